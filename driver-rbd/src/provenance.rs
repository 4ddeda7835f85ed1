//! What is written onto the storage of what is managed: who it is, where it came from, and its name for people. Metadata
//! of the image (`rbd image-meta`), read back even if the journal is lost. A snapshot has no metadata of its own; what
//! is said of it stands with its image, under its number, which a rename does not change.
//!
//! Ceph copies metadata to clones and copies. So the id of the image that it was written for stands with it, and what was
//! written for another image says nothing of this one.

use driver::{
    Adoption, Error, Identity, Image, ImageName, Locator, Pool, Result, SnapshotName, Volume, VolumeId, VolumeKind,
};
use host::rbd_job::{self, Snapshot};
use std::collections::BTreeMap;

/// The keys of an image, or of one of its snapshots.
pub(crate) struct Keys {
    pub(crate) id: String,
    image: String,
    origin: String,
    name: String,
}

impl Keys {
    pub(crate) fn of(snapshot: Option<u64>) -> Self {
        let before = snapshot.map_or_else(|| "mortar".into(), |id| format!("mortar.snapshot.{id}"));
        let image = format!("{before}.image");
        Self { id: format!("{before}.id"), image, origin: format!("{before}.origin"), name: format!("{before}.name") }
    }

    pub(crate) fn all(self) -> Vec<String> {
        vec![self.id, self.image, self.origin, self.name]
    }

    /// The id of the volume that an image says to be, unless it says so only because it was copied from one.
    pub(crate) fn volume_in<'i>(&self, image: &'i rbd_job::Image) -> Option<&'i String> {
        let of_this_image = image.metadata.get(&self.image).is_none_or(|of| *of == image.id);
        image.metadata.get(&self.id).filter(|_| of_this_image)
    }

    /// What is written for an adoption.
    pub(crate) fn written(self, adoption: &Adoption, image: &str, origin: &str) -> BTreeMap<String, String> {
        [
            (self.id, adoption.id.to_string()),
            (self.image, image.to_owned()),
            (self.origin, origin.to_owned()),
            (self.name, adoption.name.to_string()),
        ]
        .into()
    }
}

/// What the cluster tells of a pool, with the pool it was asked for.
pub(crate) struct Told<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) reply: &'a rbd_job::Pool,
}

impl Told<'_> {
    /// What the kernel would say of it, were it mapped.
    pub(crate) fn identity(&self, image_id: &str, snapshot: Option<&Snapshot>) -> Result<Identity> {
        let pool_id = u64::try_from(self.reply.pool_id).map_err(Error::host("read the pool's number"))?;
        Ok(Identity::Rbd {
            fsid: self.reply.fsid.clone(),
            pool_id,
            namespace: self.pool.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
            image_id: image_id.to_owned(),
            snapshot_id: snapshot.map(|snapshot| snapshot.id),
        })
    }

    /// Where it is; `None` if its name is none that can stand in a locator.
    pub(crate) fn at(&self, image: &str, snapshot: Option<&str>) -> Option<Locator> {
        let name: ImageName = image.parse().ok()?;
        let snapshot: Option<SnapshotName> = snapshot.map(str::parse).transpose().ok()?;
        Some(Locator::Rbd(Image { pool: self.pool.clone(), name, snapshot }))
    }

    /// The managed volume that an image or a snapshot of it is; `None` if it is not managed.
    pub(crate) fn volume(&self, image: &rbd_job::Image, snapshot: Option<&Snapshot>) -> Result<Option<Volume>> {
        let keys = Keys::of(snapshot.map(|snapshot| snapshot.id));
        let Some(id) = keys.volume_in(image) else { return Ok(None) };
        let Ok(id) = id.parse::<VolumeId>() else {
            tracing::warn!(image = image.name, id, "its metadata has an id that is none of ours");
            return Ok(None);
        };
        let Some(locator) = self.at(&image.name, snapshot.map(|snapshot| snapshot.name.as_str())) else {
            return Ok(None);
        };
        // What somebody took away costs the name, not the volume.
        let origin = image.metadata.get(&keys.origin).and_then(|name| locator.beside(name).ok());
        let name = image.metadata.get(&keys.name).and_then(|name| name.parse().ok());
        Ok(Some(Volume {
            id,
            name: name.map_or_else(|| id.to_string().parse(), Ok)?,
            origin: origin.unwrap_or_else(|| locator.clone()),
            locator,
            size_bytes: snapshot.map_or(image.size, |snapshot| snapshot.size),
            identity: self.identity(&image.id, snapshot)?,
            kind: if snapshot.is_some() { VolumeKind::Snapshot } else { VolumeKind::Volume },
        }))
    }
}
