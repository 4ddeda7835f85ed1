//! A volume that begins as a copy of another: a snapshot, thick or thin as its origin. The run of lvm that makes it writes
//! its mark, too.
//!
//! ```text
//!              lvcreate
//!   (absent) ────────────▶ a snapshot of the image, with the mark ──┐
//!      ▲ └──────────────▶ an LV with the mark, of no image ────────┤ lvremove
//!      │  the machine died in it         └─ derive: lvremove first  │
//!      └────────────────────────────────────────────────────────────┘
//! ```
//!
//! A thick snapshot keeps what is written to itself and what its origin held before; once it is full, it is lost. So it is
//! made as large as it can ever have to be, or not at all. A thin one takes its room from the pool.
//!
//! It is left inactive: attaching activates it, as any other LV.

use crate::{
    absent, attach,
    lvm::{CHUNK, Change, Lvm},
    refuse,
    report::{Lv, Vg},
    scan, tags, uuids, volume_of,
};
use driver::{Derivation, Derived, DiskFormat, Error, Locator, LogicalVolume, Means, Result};
use tokio::time::Instant;

/// What the kernel keeps of each chunk that a thick snapshot holds, in bytes (`dm-snap-persistent.c`).
const EXCEPTION: u64 = 16;

impl Lvm {
    /// See [`driver::Driver::plan_derivation`].
    pub(crate) async fn plan_derivation(&self, image: &Locator, owner: &str) -> Result<Derivation> {
        let at = volume_of(image)?;
        let to = LogicalVolume { vg: at.vg.clone(), lv: Derivation::name(owner)?.parse()? };
        let vg = self.group(&at.vg).await?;
        refused(refuse::group(&vg))?;
        let lv = vg.lv(at.lv.as_str()).ok_or_else(|| absent(at))?;
        refused(refuse::derive(&vg, lv))?;
        match vg.lv(to.lv.as_str()) {
            Some(there) if tags::rescued(there) == Some(owner) => return Err(there_already(&to, owner)),
            Some(_) => return Err(taken(&to)),
            None => {}
        }
        self.has_room(&vg, lv).await?;
        Ok(Derivation {
            owner: owner.into(),
            image: image.clone(),
            identity: tags::identity(&vg, lv),
            to: Locator::Lvm(to),
        })
    }

    /// See [`driver::Driver::derive`]. It is looked before and after: LVM knows an origin by its name, and the image is known
    /// by its UUID.
    pub(crate) async fn derive(&self, derivation: &Derivation, deadline: Instant) -> Result<Derived> {
        let plan = Plan::new(derivation)?;
        let _turn = self.lock(&plan.to.vg, Some(deadline)).await?;
        let vg = self.group(&plan.to.vg).await?;
        let image = plan.image(&vg)?;
        match plan.there(&vg)? {
            Some(there) if there.origin.as_ref() == Some(&image.name) => return Ok(derived(image)),
            Some(half) => self.remove(&plan, &vg, half, deadline).await?,
            None => {}
        }
        refused(refuse::derive(&vg, image))?;
        let extents = image.pool.is_none().then(|| cow_extents(image.size_bytes, vg.extent_size));
        self.snapshot(&vg, &image.name, plan.to, &plan.tag, extents, deadline).await?;
        let vg = self.reported(&plan.to.vg).await?;
        let image = plan.image(&vg)?;
        match plan.there(&vg)? {
            Some(there) if there.origin.as_ref() == Some(&image.name) => Ok(derived(image)),
            _ => Err(Error::WrongState {
                what: format!(
                    "lvm made no {}/{} of {}: it was renamed meanwhile; try again",
                    vg.name, plan.to.lv, image.name
                ),
            }),
        }
    }

    /// See [`driver::Driver::discard`].
    pub(crate) async fn discard(&self, derivation: &Derivation, deadline: Instant) -> Result<()> {
        let plan = Plan::new(derivation)?;
        let _turn = self.lock(&plan.to.vg, Some(deadline)).await?;
        let vg = match self.group(&plan.to.vg).await {
            Err(Error::NotFound { .. }) => return Ok(()),
            vg => vg?,
        };
        // Another VG of the same name holds nothing of ours.
        if vg.uuid != plan.vg_uuid {
            return Ok(());
        }
        match plan.there(&vg)? {
            None => Ok(()),
            Some(lv) => self.remove(&plan, &vg, lv, deadline).await,
        }
    }

    /// Removes a derived LV that nobody uses, and sees that it is gone.
    async fn remove(&self, plan: &Plan<'_>, vg: &Vg, lv: &Lv, deadline: Instant) -> Result<()> {
        refused(refuse::changes(vg))?;
        let by = self.rely_on(vg, lv).await?;
        if !by.is_empty() {
            return Err(Error::InUse { what: format!("{}/{}", vg.name, lv.name), by });
        }
        self.change(plan.to, &tags::identity(vg, lv), Change::Remove { tag: &plan.tag }, Some(deadline)).await?;
        match self.reported(&plan.to.vg).await?.by_uuid(&lv.uuid) {
            None => Ok(()),
            Some(_) => Err(Error::WrongState {
                what: format!("lvm did not remove {}/{}: somebody else changed it; try again", vg.name, lv.name),
            }),
        }
    }

    /// Who would lose something with an LV.
    async fn rely_on(&self, vg: &Vg, lv: &Lv) -> Result<Vec<String>> {
        let host = self.host.as_ref();
        let mut by = Vec::new();
        if let Some(active) = self.seen.find(host, &vg.uuid, &lv.uuid)? {
            by = attach::users(host, &active.node()).await?;
            let attached = scan::attached(host, &self.links).map_err(crate::failed("look at the stable paths"))?;
            if attached.contains(&active.device) || self.has_attached(&vg.uuid, &lv.uuid) {
                by.push("attached".into());
            }
        }
        if by.is_empty() {
            by.extend(attach::unseen_user(host, vg, lv, Instant::now() + attach::GLANCE).await?);
        }
        // A thick snapshot goes with its origin; a thin one stays.
        let goes_with = |other: &&Lv| other.is("thicksnapshot") && other.origin.as_ref() == Some(&lv.name);
        by.extend(vg.lvs.iter().filter(goes_with).map(|other| format!("its snapshot {}", other.name)));
        Ok(by)
    }

    /// Whether a snapshot of an LV would have room.
    async fn has_room(&self, vg: &Vg, lv: &Lv) -> Result<()> {
        let Some(pool) = &lv.pool else {
            let needed = cow_extents(lv.size_bytes, vg.extent_size).saturating_mul(vg.extent_size);
            let missing = needed.saturating_sub(vg.free_bytes);
            return match missing {
                0 => Ok(()),
                missing => Err(Error::Full {
                    what: format!("the VG {}", vg.name),
                    why: format!(
                        "a snapshot of {} takes {needed} bytes, as all of it may be overwritten, and {missing} of them are \
                         missing; extend the VG, or use a thin LV",
                        lv.name
                    ),
                }),
            };
        };
        match self.filled(vg, pool).await? {
            Some((data, metadata)) if data >= 100.0 || metadata >= 100.0 => Err(Error::Full {
                what: format!("the thin pool {}/{pool}", vg.name),
                why: format!("{data} % of its data and {metadata} % of its metadata are used; lvextend gives it more"),
            }),
            _ => Ok(()),
        }
    }

    /// See [`driver::Driver::derivations`]; of some VGs.
    pub(crate) fn derivations_in(vgs: &[Vg]) -> Result<Vec<Derivation>> {
        let mut found = Vec::new();
        // What another host owns is for that host to list.
        for vg in vgs.iter().filter(|vg| vg.owner.is_none()) {
            for lv in &vg.lvs {
                let Some(owner) = tags::rescued(lv) else { continue };
                let image = lv.origin.as_ref().and_then(|origin| vg.lv(origin)).unwrap_or(lv);
                found.push(Derivation {
                    owner: owner.into(),
                    image: Locator::Lvm(tags::at(vg, image)?),
                    identity: tags::identity(vg, image),
                    to: Locator::Lvm(tags::at(vg, lv)?),
                });
            }
        }
        Ok(found)
    }
}

/// A derivation in one VG.
struct Plan<'a> {
    owner: &'a str,
    image: &'a LogicalVolume,
    to: &'a LogicalVolume,
    vg_uuid: &'a str,
    lv_uuid: &'a str,
    tag: String,
}

impl<'a> Plan<'a> {
    fn new(derivation: &'a Derivation) -> Result<Self> {
        let (image, to) = (volume_of(&derivation.image)?, volume_of(&derivation.to)?);
        let (vg_uuid, lv_uuid) = uuids(&derivation.identity)?;
        let owner = &derivation.owner;
        if image.vg != to.vg || to.lv.as_str() != Derivation::name(owner)? {
            return Err(Error::invalid(
                "locator",
                format!("{} is no place for a copy of {}", derivation.to, derivation.image),
            ));
        }
        Ok(Self { owner, image, to, vg_uuid, lv_uuid, tag: tags::rescue(owner) })
    }

    /// The image, by whatever name it has today.
    fn image<'v>(&self, vg: &'v Vg) -> Result<&'v Lv> {
        let found = match vg.by_uuid(self.lv_uuid) {
            Some(lv) if vg.uuid == self.vg_uuid => return Ok(lv),
            _ => vg.lv(self.image.lv.as_str()).ok_or_else(|| absent(self.image))?,
        };
        Err(Error::Mismatch {
            what: format!("the image {}/{}", vg.name, self.image.lv),
            expected: format!("{}/{}", self.vg_uuid, self.lv_uuid),
            found: format!("{}/{}", vg.uuid, found.uuid),
        })
    }

    /// What has the derived volume's name, if it is the derived volume.
    fn there<'v>(&self, vg: &'v Vg) -> Result<Option<&'v Lv>> {
        match vg.lv(self.to.lv.as_str()) {
            Some(lv) if tags::rescued(lv) == Some(self.owner) => Ok(Some(lv)),
            Some(_) => Err(taken(self.to)),
            None => Ok(None),
        }
    }
}

fn derived(image: &Lv) -> Derived {
    // What LVM calls the size of a thick snapshot is the room for what it keeps.
    Derived { means: Means::Snapshot, format: DiskFormat::Raw, size_bytes: image.size_bytes }
}

/// How many extents a thick snapshot takes that can never be full: all of its origin, what the kernel notes of each chunk,
/// and a header (lvm2 `lib/metadata/snapshot_manip.c`, `cow_max_extents`).
fn cow_extents(origin_bytes: u64, extent_size: u64) -> u64 {
    let chunks = origin_bytes.div_ceil(CHUNK);
    let notes = (chunks * EXCEPTION).div_ceil(CHUNK);
    ((chunks + notes + 2) * CHUNK).div_ceil(extent_size)
}

fn refused(why: Option<String>) -> Result<()> {
    why.map_or(Ok(()), |what| Err(Error::WrongState { what }))
}

fn there_already(to: &LogicalVolume, owner: &str) -> Error {
    Error::WrongState { what: format!("{}/{} is there already: {}", to.vg, to.lv, Derivation::explained(owner)) }
}

fn taken(to: &LogicalVolume) -> Error {
    Error::WrongState {
        what: format!("{}/{} does not bear the mark of a rescue disk, so it stays; give it another name", to.vg, to.lv),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_as_large_as_lvm_would_have_it_at_most() {
        const MIB: u64 = 1 << 20;
        // As `lvcreate -l 100%ORIGIN` of lvm2 2.03.16 made it, where there was room.
        assert_eq!(cow_extents(40 * MIB, 4 * MIB), 11);
        assert_eq!(cow_extents(4 * MIB, 4 * MIB), 2);
        assert_eq!(cow_extents(1 << 40, 4 * MIB), (1 << 18) + 1025);
    }
}
