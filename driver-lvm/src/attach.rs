//! Attaching and detaching: one LV is activated, and what became of it is read from the kernel.
//!
//! Read-only is the device, not the LV: the kernel is told to refuse writes (BLKROSET). That works for every sort of LV,
//! takes nothing from those that share its data, and stays whatever LVM does to the LV until it is deactivated. (The mode
//! of the table that LVM loads does neither: the next run of lvm that loads it anew makes it writable again, and a thin
//! pool cannot have it.)

use crate::{
    absent,
    active::{self, Active},
    failed,
    lvm::{Change, Lvm},
    refuse,
    report::{Lv, Vg},
    scan, tags, uuids, volume_of,
};
use driver::{
    Attached, Detached, Device, Error, Footprint, Identity, LogicalVolume, Residual, ResidualKind, Result, Spec,
};
use host::{Host, wait_for};
use std::{path::Path, time::Duration};
use tokio::time::Instant;

/// How long the kernel is given to show what lvm said it has done. It has done it when lvm ends: this is for udev's part.
const SETTLING: Duration = Duration::from_secs(5);

/// How long data is written of an LV that stays active, and goes on to be written by the kernel after that.
const WRITING: Duration = Duration::from_secs(5);

/// How long somebody whom no list shows is given to close a device: udev looks into it after each change.
pub(crate) const GLANCE: Duration = Duration::from_secs(1);

/// What a footprint tells.
struct Print<'a> {
    identity: &'a Identity,
    vg_uuid: &'a str,
    lv_uuid: &'a str,
    was_active: bool,
    was_read_only: bool,
}

impl<'a> Print<'a> {
    fn of(footprint: &'a Footprint) -> Result<Self> {
        let Footprint::Lvm { identity, was_active, was_read_only } = footprint else {
            return Err(Error::invalid("footprint", "it is none of an LV"));
        };
        let (vg_uuid, lv_uuid) = uuids(identity)?;
        Ok(Self { identity, vg_uuid, lv_uuid, was_active: *was_active, was_read_only: *was_read_only })
    }

    /// Whether a device that stays has been made read-only by us.
    fn flipped(&self, spec: &Spec, device: &Device) -> bool {
        self.was_active && !self.was_read_only && spec.read_only && device.read_only
    }

    fn active(&self, lvm: &Lvm) -> Result<Option<Active>> {
        lvm.seen.find(lvm.host.as_ref(), self.vg_uuid, self.lv_uuid)
    }
}

/// The device as the kernel lists it: the UUIDs in its name are the proof.
pub(crate) fn find(lvm: &Lvm, footprint: &Footprint) -> Result<Option<Device>> {
    match Print::of(footprint)?.active(lvm)? {
        Some(active) => active.device(lvm.host.as_ref()),
        None => Ok(None),
    }
}

/// As [`find`]; an LV that has taken the place and the name of ours is an error.
pub(crate) fn prove(lvm: &Lvm, at: &Attached) -> Result<Option<Device>> {
    if let Some(device) = find(lvm, &at.footprint)? {
        return Ok(Some(device));
    }
    let (print, name) = (Print::of(&at.footprint)?, volume_of(&at.spec.locator)?);
    match active::list(lvm.host.as_ref())?.into_iter().find(|other| other.at == *name) {
        None => Ok(None),
        Some(other) => Err(Error::Mismatch {
            what: format!("{} at {}", at.spec.locator, other.node().display()),
            expected: print.identity.to_string(),
            found: Identity::Lvm { vg_uuid: other.vg_uuid, lv_uuid: other.lv_uuid }.to_string(),
        }),
    }
}

/// Whether a detach leaves the device just as it is.
pub(crate) fn leaves(at: &Attached, device: &Device) -> Result<bool> {
    let print = Print::of(&at.footprint)?;
    Ok(print.was_active && !print.flipped(&at.spec, device))
}

/// Who uses a device, in words.
pub(crate) async fn users(host: &dyn Host, node: &Path) -> Result<Vec<String>> {
    let users = host.users(node).await.map_err(failed(format!("look who uses {}", node.display())))?;
    Ok(users.iter().map(ToString::to_string).collect())
}

/// Somebody who has an LV open until then by the kernel's count, which tells neither who that is nor why, in words.
pub(crate) async fn unseen_user(host: &dyn Host, vg: &Vg, lv: &Lv, until: Instant) -> Result<Option<String>> {
    let device = [active::mapper_uuid(&vg.uuid, &lv.uuid)];
    let closed = wait_for(host, until, || Ok(host.open_mapped(&device)?.is_empty().then_some(()))).await;
    let closed = closed.map_err(failed(format!("ask whether {}/{} is open", vg.name, lv.name)))?;
    Ok(closed.is_none().then(|| "open by someone that this host does not show".into()))
}

impl Lvm {
    /// See [`driver::Driver::prepare`].
    pub(crate) async fn prepare(&self, spec: &Spec) -> Result<Footprint> {
        let at = volume_of(&spec.locator)?;
        let vg = self.group(&at.vg).await?;
        let refused = |why: Option<String>| why.map_or(Ok(()), |what| Err(Error::WrongState { what }));
        refused(refuse::group(&vg))?;
        let lv = vg.lv(at.lv.as_str()).ok_or_else(|| absent(at))?;
        refused(refuse::attach(&vg, lv, spec.read_only))?;
        let active = self.seen.find(self.host.as_ref(), &vg.uuid, &lv.uuid)?;
        let device = active.as_ref().map(|active| active.device(self.host.as_ref())).transpose()?.flatten();
        if let Some(device) = device.as_ref().filter(|device| device.read_only != spec.read_only) {
            self.can_flip(at, device, spec.read_only).await?;
        }
        Ok(Footprint::Lvm {
            identity: tags::identity(&vg, lv),
            was_active: device.is_some(),
            was_read_only: device.is_some_and(|device| device.read_only),
        })
    }

    /// Whether an active LV may be made read-only. That takes the writing away even from those who have it open.
    async fn can_flip(&self, at: &LogicalVolume, device: &Device, read_only: bool) -> Result<()> {
        let name = format!("{}/{}", at.vg, at.lv);
        if !read_only {
            return Err(Error::WrongState {
                what: format!(
                    "{name} is active read-only; attach it read-only, or deactivate it with lvchange -an first"
                ),
            });
        }
        let users = users(self.host.as_ref(), &device.path).await?;
        match users.is_empty() {
            true => Ok(()),
            false => Err(Error::WrongState {
                what: format!(
                    "{name} is active for writing and in use ({}): it cannot become read-only under them; free it, or \
                     attach it for writing",
                    users.join(", ")
                ),
            }),
        }
    }

    /// See [`driver::Driver::attach`].
    pub(crate) async fn attach(&self, spec: &Spec, footprint: &Footprint, deadline: Instant) -> Result<Device> {
        let (at, print) = (volume_of(&spec.locator)?, Print::of(footprint)?);
        let _turn = self.lock(&at.vg, Some(deadline)).await?;
        let here = find(self, footprint)?;
        let changes = here.as_ref().is_none_or(|device| device.read_only != spec.read_only);
        if let Some(device) = here.as_ref().filter(|_| changes) {
            self.can_flip(at, device, spec.read_only).await?;
            if !print.was_active {
                // It is not ours to change, and the footprint does not know of it.
                return Err(Error::WrongState {
                    what: format!("{}/{} was activated by somebody else meanwhile; try again", at.vg, at.lv),
                });
            }
        }
        let attached = async {
            if here.is_none() {
                self.change(at, print.identity, Change::Activate, Some(deadline)).await?;
            }
            let mut device = self.shown(at, &print, deadline).await?;
            if changes && spec.read_only {
                // Not under somebody who mounts at this moment what was active before us.
                let _claim = match &here {
                    Some(_) => Some(self.claim(&device.path).await?),
                    None => None,
                };
                self.set_read_only(&device.path, true).await?;
                device = self.shown(at, &print, deadline).await?;
            }
            if device.read_only != spec.read_only {
                let mode = if spec.read_only { "read-only" } else { "for writing" };
                return Err(Error::WrongState { what: format!("lvm did not activate {} {mode}", spec.locator) });
            }
            spec.check(&device)?;
            Ok(device)
        };
        let result = attached.await;
        if result.is_ok() {
            self.note(print.identity, true)?;
        } else if changes {
            let at = Attached { spec: spec.clone(), footprint: footprint.clone(), identity: None };
            if let Err(error) = self.take_back(&at, deadline).await {
                // The caller detaches what is left of a failed attach, and hears of it then.
                tracing::warn!(locator = %spec.locator, error = error.chain(), "cannot take back an activation");
            }
        }
        result
    }

    async fn set_read_only(&self, node: &Path, read_only: bool) -> Result<()> {
        let doing = if read_only { "read-only" } else { "writable again" };
        let set = self.host.set_read_only(node, read_only).await;
        set.map_err(failed(format!("make {} {doing}", node.display())))
    }

    /// The device of an LV that was activated.
    async fn shown(&self, at: &LogicalVolume, print: &Print<'_>, deadline: Instant) -> Result<Device> {
        let host = self.host.as_ref();
        let until = deadline.min(Instant::now() + SETTLING);
        let active = wait_for(host, until, || {
            let active = active::read(host)?;
            let found = active.into_iter().find(|lv| lv.lv_uuid == print.lv_uuid && lv.vg_uuid == print.vg_uuid);
            match found {
                Some(found) if host.stat(&found.node())?.is_some() => Ok(Some(found)),
                _ => Ok(None),
            }
        });
        let active = active.await.map_err(failed(format!("wait for the device of {}/{}", at.vg, at.lv)))?;
        let device = active.map(|active| active.device(host)).transpose()?.flatten();
        device.ok_or_else(|| Error::WrongState {
            what: format!(
                "lvm activated no {}/{} with the UUID {}: it was renamed or replaced meanwhile; try again",
                at.vg, at.lv, print.lv_uuid
            ),
        })
    }

    /// See [`driver::Driver::detach`].
    pub(crate) async fn detach(&self, at: &Attached, deadline: Instant) -> Result<Detached> {
        let _turn = self.lock(&volume_of(&at.spec.locator)?.vg, Some(deadline)).await?;
        let detached = self.take_back(at, deadline).await?;
        self.note(Print::of(&at.footprint)?.identity, false)?;
        Ok(detached)
    }

    /// Leaves the LV as the footprint says it was, by whatever name it has today.
    async fn take_back(&self, at: &Attached, deadline: Instant) -> Result<Detached> {
        let (host, print) = (self.host.as_ref(), Print::of(&at.footprint)?);
        let Some(active) = print.active(self)? else { return Ok(Detached::default()) };
        let Some(device) = active.device(host)? else { return Ok(Detached::default()) };
        let patience = deadline.saturating_duration_since(Instant::now());
        if !leaves(at, &device)? {
            let by = users(host, &device.path).await?;
            if !by.is_empty() {
                return Err(Error::InUse { what: device.path.display().to_string(), by });
            }
        }
        if print.was_active {
            if print.flipped(&at.spec, &device) {
                let _claim = self.claim(&device.path).await?;
                self.set_read_only(&device.path, false).await?;
            } else if let Err(error) = host.flush(&device.path, patience.min(WRITING)).await {
                // The device stays, and what the kernel holds of it.
                tracing::warn!(device = active.device, %error, "not all of its data is written yet");
            }
            let kept = format!("{}/{} was active before and stays active", active.at.vg, active.at.lv);
            return Ok(Detached { kept: vec![kept], ..Detached::default() });
        }
        self.leave_companions(&active).await?;
        let claim = self.claim(&device.path).await?;
        let what = device.path.display().to_string();
        host.flush(&device.path, patience).await.map_err(|error| match error {
            // Nobody knows what became of it; it may be tried again.
            error @ host::Error::TimedOut { .. } => failed(format!("write all data of {what}"))(error),
            source => Error::Flush { what, source: Box::new(source) },
        })?;
        drop(claim);
        let reason = match self.change(&active.at, print.identity, Change::Deactivate, Some(deadline)).await {
            Ok(()) if self.gone(&print, deadline).await? => return Ok(Detached::default()),
            Ok(()) => "lvm deactivated it, and it is still there".to_owned(),
            Err(Error::InUse { by: said, .. }) => {
                let by = Some(users(host, &device.path).await?).filter(|by| !by.is_empty());
                return Err(Error::InUse { what: device.path.display().to_string(), by: by.unwrap_or(said) });
            }
            // Its disks are gone, and lvm knows it no more.
            Err(error @ Error::NotFound { .. }) => error.to_string(),
            Err(error) => return Err(error),
        };
        let name = format!("{} ({}/{})", active.device, active.at.vg, active.at.lv);
        Ok(Detached {
            residuals: vec![Residual { kind: ResidualKind::Activation, name, reason }],
            ..Detached::default()
        })
    }

    /// Refuses to take away what goes with an LV and is in use, or attached.
    async fn leave_companions(&self, lv: &Active) -> Result<()> {
        let host = self.host.as_ref();
        for other in active::companions(host, lv)? {
            let mut by = users(host, &other.node()).await?;
            let attached = scan::attached(host, &self.links).map_err(failed("look at the stable paths"))?;
            if attached.contains(&other.device) || self.has_attached(&other.vg_uuid, &other.lv_uuid) {
                by.push("attached".into());
            }
            if !by.is_empty() {
                let what = format!("{}/{}, which goes with {},", other.at.vg, other.at.lv, lv.at.lv);
                return Err(Error::InUse { what, by });
            }
        }
        Ok(())
    }

    async fn claim(&self, node: &Path) -> Result<host::Claim> {
        match self.host.claim(node).await {
            Ok(claim) => Ok(claim),
            Err(host::Error::Busy { .. }) => {
                let by = users(self.host.as_ref(), node).await?;
                Err(Error::InUse { what: node.display().to_string(), by })
            }
            Err(other) => Err(failed(format!("claim {}", node.display()))(other)),
        }
    }

    async fn gone(&self, print: &Print<'_>, deadline: Instant) -> Result<bool> {
        let host = self.host.as_ref();
        let until = deadline.min(Instant::now() + SETTLING);
        let gone = wait_for(host, until, || {
            let here = active::read(host)?.iter().any(|lv| lv.lv_uuid == print.lv_uuid && lv.vg_uuid == print.vg_uuid);
            Ok((!here).then_some(()))
        });
        Ok(gone.await.map_err(failed("wait for a device to go"))?.is_some())
    }
}
