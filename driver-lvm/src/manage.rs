//! Taking an LV into management and letting it go.
//!
//! LVM changes tags and names in two runs, so a crash may come between them. Tags come first and go last: an LV under a
//! managed name always tells where it came from. Each run looks at where the LV is now, by its UUID, and goes on from
//! there:
//!
//! ```text
//!              addtag                  lvrename
//!   old name ───────────▶ old name, ─────────────▶ new name,
//!            ◀───────────    tags   ◀─────────────    tags
//!              deltag                  lvrename
//! ```

use crate::{
    lvm::{Change, Lvm},
    refuse,
    report::{Lv, Vg},
    tags,
};
use driver::{Adoption, Error, Identity, Locator, LogicalVolume, Release, Result, Volume};

impl Lvm {
    /// See [`driver::Driver::manage`].
    pub(crate) async fn manage(&self, adoption: &Adoption) -> Result<Volume> {
        let plan = Plan::new(&adoption.from, &adoption.to, &adoption.identity)?;
        let _turn = self.lock(&plan.from.vg, None).await?;
        let mut vg = self.group(&plan.from.vg).await?;
        let lv = plan.locate(&vg)?;
        if let Some(other) = tags::id(lv).filter(|id| *id != adoption.id.to_string()) {
            return Err(Error::AlreadyExists { what: format!("{}/{} is managed as {other}", vg.name, lv.name) });
        }
        let (at, wanted) = (tags::at(&vg, lv)?, tags::of(adoption, plan.from));
        let missing: Vec<String> = wanted.iter().filter(|tag| !lv.tags.contains(tag)).cloned().collect();
        let stale: Vec<String> = tags::ours(lv).into_iter().filter(|tag| !wanted.contains(tag)).collect();
        let (to_tag, to_rename) = (!missing.is_empty() || !stale.is_empty(), at != *plan.to);
        if to_tag || to_rename {
            can_change(&vg)?;
        }
        if to_tag {
            self.tag(&at, plan.identity, &missing, &stale).await?;
        }
        if to_rename {
            self.rename(&vg, plan.from.lv.as_str(), plan.to.lv.as_str()).await?;
        }
        if to_tag || to_rename {
            vg = self.reported(&plan.from.vg).await?;
        }
        let lv = plan.seen(&vg, plan.to)?;
        match tags::volume(&vg, lv)? {
            Some(volume) if wanted.iter().all(|tag| lv.tags.contains(tag)) => Ok(volume),
            _ => Err(Error::WrongState { what: format!("lvm did not tag {}/{}; try again", plan.to.vg, plan.to.lv) }),
        }
    }

    /// See [`driver::Driver::unmanage`].
    ///
    /// [`Error::WrongState`], [`Error::NotFound`], [`Error::AlreadyExists`], [`Error::Mismatch`] and [`Error::InUse`] mean
    /// that nothing was changed: the LV is where this call found it, with the tags that it had. After every other error
    /// something may have been, and the next call goes on from there.
    pub(crate) async fn unmanage(&self, release: &Release) -> Result<()> {
        let plan = Plan::new(&release.from, &release.to, &release.identity)?;
        let _turn = self.lock(&plan.from.vg, None).await?;
        let vg = self.group(&plan.from.vg).await?;
        let lv = plan.locate(&vg)?;
        if let Some(other) = tags::id(lv).filter(|id| *id != release.id.to_string()) {
            return Err(Error::Mismatch {
                what: format!("the volume {}/{}", vg.name, lv.name),
                expected: release.id.to_string(),
                found: other.into(),
            });
        }
        if tags::ours(lv).is_empty() && lv.name == plan.to.lv.as_str() {
            return Ok(());
        }
        can_change(&vg)?;
        match self.let_go(&plan, &vg, lv).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.told_apart(error, &plan, lv).await),
        }
    }

    /// The two steps of it, and a look at what came of them.
    async fn let_go(&self, plan: &Plan<'_>, vg: &Vg, lv: &Lv) -> Result<()> {
        if lv.name != plan.to.lv.as_str() {
            self.rename(vg, plan.from.lv.as_str(), plan.to.lv.as_str()).await?;
        }
        let to_go = tags::ours(lv);
        if !to_go.is_empty() {
            self.tag(plan.to, plan.identity, &[], &to_go).await?;
        }
        let vg = self.reported(&plan.from.vg).await?;
        match tags::ours(plan.seen(&vg, plan.to)?).is_empty() {
            true => Ok(()),
            false => Err(unfinished(plan, "it left the tags".into())),
        }
    }

    /// An error of an unmanage as one that says whether the LV is still as it `was`: it is looked at.
    async fn told_apart(&self, error: Error, plan: &Plan<'_>, was: &Lv) -> Error {
        match error {
            // What lvm does may come yet, or comes at the next try.
            Error::TimedOut { .. } | Error::Busy { .. } => return error,
            _ => {}
        }
        let is = self.reported(&plan.from.vg).await.ok();
        let is = is.as_ref().filter(|vg| vg.uuid == plan.vg_uuid).and_then(|vg| vg.by_uuid(plan.lv_uuid));
        let unchanged = is.is_some_and(|is| is.name == was.name && is.tags == was.tags);
        match (unchanged, says_unchanged(&error)) {
            (true, false) => Error::WrongState { what: format!("{}; nothing was changed", error.chain()) },
            (false, true) => unfinished(plan, error.chain()),
            _ => error,
        }
    }

    async fn tag(&self, at: &LogicalVolume, identity: &Identity, add: &[String], remove: &[String]) -> Result<()> {
        self.change(at, identity, Change::Tag { add, remove }, None).await
    }
}

/// One LV and its two names.
struct Plan<'a> {
    from: &'a LogicalVolume,
    to: &'a LogicalVolume,
    identity: &'a Identity,
    vg_uuid: &'a str,
    lv_uuid: &'a str,
}

impl<'a> Plan<'a> {
    fn new(from: &'a Locator, to: &'a Locator, identity: &'a Identity) -> Result<Self> {
        match (from, to, identity) {
            (Locator::Lvm(from), Locator::Lvm(to), Identity::Lvm { vg_uuid, lv_uuid }) if from.vg == to.vg => {
                Ok(Self { from, to, identity, vg_uuid, lv_uuid })
            }
            _ => Err(Error::invalid("locator", format!("{from} and {to} are not two names in one VG"))),
        }
    }

    /// The LV under one of its names, the other one free or its own.
    fn locate<'v>(&self, vg: &'v Vg) -> Result<&'v Lv> {
        if vg.uuid != self.vg_uuid {
            return Err(mismatch(format!("the volume group {}", vg.name), self.vg_uuid, &vg.uuid));
        }
        match vg.by_uuid(self.lv_uuid) {
            Some(lv) if lv.name == self.to.lv.as_str() => Ok(lv),
            Some(lv) if lv.name == self.from.lv.as_str() => match vg.lv(self.to.lv.as_str()) {
                None => Ok(lv),
                Some(_) => {
                    Err(Error::AlreadyExists { what: format!("another LV is named {}/{}", vg.name, self.to.lv) })
                }
            },
            Some(lv) => Err(mismatch(
                format!("the LV with the UUID {}", self.lv_uuid),
                &format!("{}/{}", vg.name, self.from.lv),
                &format!("{}/{}", vg.name, lv.name),
            )),
            None => match vg.lv(self.from.lv.as_str()) {
                Some(other) => Err(mismatch(format!("{}/{}", vg.name, self.from.lv), self.lv_uuid, &other.uuid)),
                None => Err(Error::NotFound { what: format!("the logical volume {}/{}", vg.name, self.from.lv) }),
            },
        }
    }

    /// The LV under its new name, after all was done.
    fn seen<'v>(&self, vg: &'v Vg, at: &LogicalVolume) -> Result<&'v Lv> {
        let found = vg.lv(at.lv.as_str());
        match found.filter(|lv| lv.uuid == self.lv_uuid && vg.uuid == self.vg_uuid) {
            Some(lv) => Ok(lv),
            None => {
                let found = found.map_or("nothing", |lv| lv.uuid.as_str());
                Err(mismatch(format!("{}/{} after the rename", at.vg, at.lv), self.lv_uuid, found))
            }
        }
    }
}

/// Before the first change: whether LVM would make any.
fn can_change(vg: &Vg) -> Result<()> {
    refuse::changes(vg).map_or(Ok(()), |what| Err(Error::WrongState { what }))
}

/// Whether an error of [`Lvm::unmanage`] means that nothing was changed.
fn says_unchanged(error: &Error) -> bool {
    matches!(
        error,
        Error::WrongState { .. }
            | Error::NotFound { .. }
            | Error::AlreadyExists { .. }
            | Error::Mismatch { .. }
            | Error::InUse { .. }
    )
}

/// Some of it is done, and not all.
fn unfinished(plan: &Plan<'_>, said: String) -> Error {
    let doing = format!("let {}/{} go as {}", plan.from.vg, plan.from.lv, plan.to.lv);
    Error::Tool { doing, tool: "lvm", code: "half of it done".into(), said }
}

fn mismatch(what: String, expected: &str, found: &str) -> Error {
    Error::Mismatch { what, expected: expected.into(), found: found.into() }
}
