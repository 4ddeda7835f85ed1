//! What is in a pool: one job, however many images it holds.

use crate::{
    RbdDriver, image_of,
    mapping::{self, Mapping},
    provenance::Told,
    refuse,
};
use driver::{Candidate, Error, Image, Locator, Pool, Refusal, Result, SnapshotName, Volume, VolumeId, VolumeKind};
use host::rbd_job::{self, Snapshot, Task};

impl RbdDriver {
    /// See [`driver::Driver::manageable`].
    pub(crate) async fn list(&self, pool: &Pool) -> Result<Vec<Candidate>> {
        let reply = self.ask(pool, Task::List).await?;
        let (told, mapped) = (Told { pool, reply: &reply }, mapping::with_clients(self.host())?);
        let mut candidates = Vec::new();
        for image in &reply.images {
            candidates.extend(self.candidate(&told, &mapped, image, None)?);
            for snapshot in &image.snapshots {
                candidates.extend(self.candidate(&told, &mapped, image, Some(snapshot))?);
            }
        }
        for entry in &reply.trash {
            let Some(locator) = told.at(&entry.name, None) else { continue };
            // Another image may have the name by now.
            if reply.images.iter().all(|image| image.name != entry.name) {
                candidates.push(Candidate {
                    locator,
                    identity: told.identity(&entry.id, None)?,
                    kind: VolumeKind::Volume,
                    size_bytes: 0,
                    refusal: Some(Refusal::Kind(refuse::in_trash(pool, entry))),
                    managed: None,
                });
            }
        }
        Ok(candidates)
    }

    /// See [`driver::Driver::inspect`].
    pub(crate) async fn look(&self, locator: &Locator) -> Result<Candidate> {
        let at = image_of(locator)?;
        let reply = self.ask(&at.pool, Task::Inspect { image: Some(at.name.to_string()), id: None }).await?;
        let (image, snapshot) = found(&reply, at)?;
        let told = Told { pool: &at.pool, reply: &reply };
        let candidate = self.candidate(&told, &mapping::with_clients(self.host())?, image, snapshot)?;
        candidate.ok_or_else(|| Error::NotFound { what: at.to_string() })
    }

    /// See [`driver::Driver::volumes`].
    pub(crate) async fn managed(&self, pool: &Pool) -> Result<Vec<Volume>> {
        let reply = self.ask(pool, Task::List).await?;
        let told = Told { pool, reply: &reply };
        let mut volumes = Vec::new();
        for image in &reply.images {
            volumes.extend(told.volume(image, None)?);
            for snapshot in &image.snapshots {
                volumes.extend(told.volume(image, Some(snapshot))?);
            }
        }
        Ok(volumes)
    }

    /// See [`driver::Driver::named`].
    pub(crate) async fn of_id(&self, pool: &Pool, id: VolumeId) -> Result<Option<Volume>> {
        let image = Some(self.templates.volume.name(id));
        let reply = self.ask(pool, Task::Inspect { image, id: None }).await?;
        let told = Told { pool, reply: &reply };
        let volume = reply.images.first().map(|image| told.volume(image, None)).transpose()?.flatten();
        Ok(volume.filter(|volume| volume.id == id))
    }

    /// `None` if its name is none that can stand in a locator.
    fn candidate(
        &self,
        told: &Told<'_>,
        mapped: &[(String, Mapping)],
        image: &rbd_job::Image,
        snapshot: Option<&Snapshot>,
    ) -> Result<Option<Candidate>> {
        let Some(locator) = told.at(&image.name, snapshot.map(|snapshot| snapshot.name.as_str())) else {
            tracing::debug!(image = image.name, "has a name that no locator can hold");
            return Ok(None);
        };
        let identity = told.identity(&image.id, snapshot)?;
        Ok(Some(Candidate {
            locator,
            kind: if snapshot.is_some() { VolumeKind::Snapshot } else { VolumeKind::Volume },
            size_bytes: snapshot.map_or(image.size, |snapshot| snapshot.size),
            refusal: refuse::manage(image, snapshot, &identity, mapped, &self.templates),
            managed: told.volume(image, snapshot)?,
            identity,
        }))
    }
}

/// The image, and its snapshot if the locator names one, of a reply that is about just one.
pub(crate) fn found<'a>(reply: &'a rbd_job::Pool, at: &Image) -> Result<(&'a rbd_job::Image, Option<&'a Snapshot>)> {
    let absent = || Error::NotFound { what: at.to_string() };
    let image = reply.images.first().ok_or_else(|| match reply.trash.first() {
        Some(entry) => Error::WrongState { what: refuse::in_trash(&at.pool, entry) },
        None => absent(),
    })?;
    let named = |name: &SnapshotName| image.snapshots.iter().find(|snapshot| snapshot.name == name.as_str());
    let snapshot = at.snapshot.as_ref().map(|name| named(name).ok_or_else(absent)).transpose()?;
    Ok((image, snapshot))
}

/// The image of a reply that is about just one.
pub(crate) fn only<'a>(reply: &'a rbd_job::Pool, at: &Image) -> Result<&'a rbd_job::Image> {
    reply.images.first().ok_or_else(|| Error::NotFound { what: at.to_string() })
}
