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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool() -> Pool {
        let Locator::Rbd(image) = "rbd:p/a".parse().unwrap() else { unreachable!() };
        image.pool
    }

    fn reply(pool_id: i64) -> rbd_job::Pool {
        rbd_job::Pool { fsid: "f".into(), pool_id, images: Vec::new(), trash: Vec::new() }
    }

    fn snapshot(id: u64, name: &str) -> Snapshot {
        Snapshot { id, name: name.into(), size: 1, protected: false, children: None }
    }

    proptest! {
        #[test]
        fn no_metadata_panics(values in proptest::array::uniform4("([0-9a-f-]{36}|\\PC{0,20})"), name in "\\PC{0,20}", pool_id: i64, of in proptest::option::of(any::<u64>())) {
            let (pool, reply) = (pool(), reply(pool_id));
            let [id, image, origin, title] = values;
            let keys = Keys::of(of);
            let metadata = [(keys.id, id), (keys.image, image.clone()), (keys.origin, origin), (keys.name, title)].into();
            let image = rbd_job::Image { name: name.clone(), id: image, metadata, ..rbd_job::Image::default() };
            let snapshot = of.map(|id| snapshot(id, &name));
            if let Ok(Some(volume)) = (Told { pool: &pool, reply: &reply }).volume(&image, snapshot.as_ref()) {
                prop_assert!(volume.locator.to_string().parse::<Locator>().is_ok());
            }
        }

        #[test]
        fn what_is_written_is_read_back(name in "[A-Za-z0-9_.-]{1,40}", origin in "[A-Za-z0-9_.-]{1,40}", of in proptest::option::of(any::<u64>())) {
            let (pool, reply) = (pool(), reply(2));
            let told = Told { pool: &pool, reply: &reply };
            let snapshot = of.map(|id| snapshot(id, "now"));
            let Some(at) = told.at("now", snapshot.as_ref().map(|it| it.name.as_str())) else { return Ok(()) };
            let (Ok(from), Ok(name)) = (at.beside(&origin), name.parse()) else { return Ok(()) };
            let identity = told.identity("10a1", snapshot.as_ref()).unwrap();
            let adoption = Adoption {
                id: VolumeId::make_up(),
                name,
                from: from.clone(),
                to: at.clone(),
                identity,
            };
            let metadata = Keys::of(of).written(&adoption, "10a1", &origin);
            let image = rbd_job::Image { name: "now".into(), id: "10a1".into(), size: 1, metadata, ..rbd_job::Image::default() };
            let volume = told.volume(&image, snapshot.as_ref()).unwrap().unwrap();
            prop_assert_eq!((volume.id, volume.name, volume.origin, volume.locator), (adoption.id, adoption.name, from, at));
            // A clone has it from what it was cloned from.
            let clone = rbd_job::Image { id: "10a2".into(), ..image };
            prop_assert!(told.volume(&clone, snapshot.as_ref()).unwrap().is_none());
        }
    }
}
