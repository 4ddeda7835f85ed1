//! Taking an image, or a snapshot, into management and letting it go.
//!
//! Metadata and name are two changes, so a crash may come between them. Metadata comes first and goes last: what has a
//! managed name always tells where it came from. `mortar-rbd` does both in one run and leaves out what is done already;
//! it goes by the image's id:
//!
//! ```text
//!              metadata                  rename
//!   old name ───────────▶ old name, ─────────────▶ new name,
//!            ◀───────────  metadata ◀─────────────  metadata
//! ```

use crate::{
    RbdDriver, image_of,
    listing::only,
    provenance::{Keys, Told},
};
use driver::{Adoption, Error, Identity, Image, Locator, Release, Result, Volume};
use host::rbd_job::{self, Change, Snapshot, SnapshotChange, Task};

impl RbdDriver {
    /// See [`driver::Driver::manage`].
    pub(crate) async fn adopt(&self, adoption: &Adoption) -> Result<Volume> {
        let plan = Plan::new(&adoption.from, &adoption.to, &adoption.identity)?;
        let keys = Keys::of(plan.snapshot_id);
        let change = Change { metadata: keys.written(adoption, plan.image_id, plan.name(plan.from)), ..plan.rename() };
        let reply = self.change(&plan.from.pool, plan.identity, Task::Manage(change)).await?;
        let (image, snapshot) = plan.seen(&reply)?;
        let told = Told { pool: &plan.from.pool, reply: &reply };
        let volume = told.volume(image, snapshot)?.filter(|volume| volume.id == adoption.id);
        volume.ok_or_else(|| Error::WrongState { what: format!("somebody else changed {}; try again", plan.to) })
    }

    /// See [`driver::Driver::unmanage`].
    pub(crate) async fn release(&self, release: &Release) -> Result<()> {
        let plan = Plan::new(&release.from, &release.to, &release.identity)?;
        let task = Task::Inspect { image: None, id: Some(plan.image_id.clone()) };
        let reply = self.ask(&plan.from.pool, task).await?;
        let keys = Keys::of(plan.snapshot_id);
        let managed = keys.volume_in(only(&reply, plan.from)?);
        if let Some(other) = managed.filter(|id| **id != release.id.to_string()) {
            return Err(mismatch(&format!("the volume {}", plan.from), &release.id.to_string(), other));
        }
        let change = Change { forget: keys.all(), ..plan.rename() };
        let reply = self.change(&plan.from.pool, plan.identity, Task::Unmanage(change)).await?;
        plan.seen(&reply).map(drop)
    }
}

/// One image or snapshot and its two names.
struct Plan<'a> {
    from: &'a Image,
    to: &'a Image,
    identity: &'a Identity,
    image_id: &'a String,
    snapshot_id: Option<u64>,
}

impl<'a> Plan<'a> {
    fn new(from: &'a Locator, to: &'a Locator, identity: &'a Identity) -> Result<Self> {
        let (from, to) = (image_of(from)?, image_of(to)?);
        let Identity::Rbd { image_id, snapshot_id, .. } = identity else {
            return Err(Error::invalid("identity", format!("{identity} is no RBD image")));
        };
        let of_a_snapshot = from.snapshot.is_some() && to.snapshot.is_some() && from.name == to.name;
        let of_an_image = from.snapshot.is_none() && to.snapshot.is_none();
        match from.pool == to.pool && (of_a_snapshot && snapshot_id.is_some() || of_an_image && snapshot_id.is_none()) {
            true => Ok(Self { from, to, identity, image_id, snapshot_id: *snapshot_id }),
            false => Err(Error::invalid("locator", format!("{from} and {to} are not two names in one pool"))),
        }
    }

    /// The name that changes.
    fn name<'i>(&self, of: &'i Image) -> &'i str {
        of.snapshot.as_ref().map_or_else(|| of.name.as_str(), |snapshot| snapshot.as_str())
    }

    fn rename(&self) -> Change {
        let to = (self.from != self.to).then(|| self.name(self.to).to_owned());
        let change = Change { image: self.from.name.to_string(), id: self.image_id.clone(), ..Change::default() };
        match self.snapshot_id {
            None => Change { rename_to: to, ..change },
            Some(id) => {
                let snapshot = SnapshotChange { id, name: self.name(self.from).to_owned(), rename_to: to };
                Change { snapshot: Some(snapshot), ..change }
            }
        }
    }

    /// What it is after the change, which has to be what it was.
    fn seen<'r>(&self, reply: &'r rbd_job::Pool) -> Result<(&'r rbd_job::Image, Option<&'r Snapshot>)> {
        let image = only(reply, self.to)?;
        let snapshot = match self.snapshot_id {
            None => None,
            Some(id) => Some(
                image
                    .snapshots
                    .iter()
                    .find(|snapshot| snapshot.id == id)
                    .ok_or_else(|| Error::NotFound { what: self.to.to_string() })?,
            ),
        };
        let found = Told { pool: &self.to.pool, reply }.identity(&image.id, snapshot)?;
        let name = snapshot.map_or(&image.name, |snapshot| &snapshot.name);
        match found == *self.identity && name == self.name(self.to) {
            true => Ok((image, snapshot)),
            false => Err(mismatch(&self.to.to_string(), &self.identity.to_string(), &format!("{found}, {name}"))),
        }
    }
}

fn mismatch(what: &str, expected: &str, found: &str) -> Error {
    Error::Mismatch { what: what.into(), expected: expected.into(), found: found.into() }
}
