//! A volume that begins as a copy of another: a clone of a snapshot, in the same pool and namespace. `mortar-rbd` makes it in
//! one run, and takes it away in one; the order of the steps, and what a crash between them leaves, stand there
//! (`host/src/bin/mortar-rbd/clone.rs`).
//!
//! Each clone has a snapshot of its own, named as the clone, unless the locator names one: so it begins with what the image
//! holds now, and no rescue has to know of another. Its features are those of its image that this kernel can map.

use crate::{RbdDriver, image_of, listing::found, mapping, provenance::Told, refuse};
use driver::{Derivation, Derived, DiskFormat, Error, Identity, Image, ImageName, Locator, Means, Pool, Result};
use host::rbd_job::{self, Cloning, Task};
use tokio::time::Instant;

/// What a clone may have of its image's features. The others are for mirroring, or for those who made the image.
const FEATURES: [&str; 5] = ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"];

impl RbdDriver {
    /// See [`driver::Driver::plan_derivation`].
    pub(crate) async fn plan_clone(&self, locator: &Locator, owner: &str) -> Result<Derivation> {
        let at = image_of(locator)?;
        let to = Image { name: Derivation::name(owner)?.parse()?, snapshot: None, ..at.clone() };
        let inspect = |name: &ImageName| self.ask(&at.pool, Task::Inspect { image: Some(name.to_string()), id: None });
        let reply = inspect(&at.name).await?;
        let (image, snapshot) = found(&reply, at)?;
        if let Some(what) = refuse::derive(image) {
            return Err(Error::WrongState { what });
        }
        match inspect(&to.name).await?.images.first() {
            Some(there) if refuse::rescued(there).is_some_and(|of| of == owner) => {
                return Err(Error::WrongState {
                    what: format!("{to} is there already: {}", Derivation::explained(owner)),
                });
            }
            Some(_) => {
                let what = format!("{to} does not bear the mark of a rescue disk, so it stays; give it another name");
                return Err(Error::WrongState { what });
            }
            None => {}
        }
        Ok(Derivation {
            owner: owner.into(),
            image: locator.clone(),
            identity: Told { pool: &at.pool, reply: &reply }.identity(&image.id, snapshot)?,
            to: Locator::Rbd(to),
        })
    }

    /// See [`driver::Driver::derive`].
    pub(crate) async fn make_clone(&self, derivation: &Derivation, deadline: Instant) -> Result<Derived> {
        let plan = Plan::new(derivation)?;
        let mut cloning = plan.cloning();
        let supported = self.supported()?;
        // Where krbd is not loaded QEMU may use the clone all the same, and has all of them.
        let fit = |feature: &&str| supported.is_empty() || supported.contains(feature);
        cloning.features = FEATURES.into_iter().filter(fit).map(str::to_owned).collect();
        let task = Task::Clone(cloning);
        let reply = self.change_until(&plan.to.pool, &derivation.identity, task, deadline).await?;
        let clone = reply.images.first().ok_or_else(|| Error::NotFound { what: plan.to.to_string() })?;
        let told = Told { pool: &plan.to.pool, reply: &reply };
        let is_there = told.at(&clone.name, None).as_ref() == Some(&derivation.to);
        match told.identity(&clone.id, None)? {
            Identity::Rbd { fsid, pool_id, .. } if is_there && fsid == plan.fsid && pool_id == plan.pool_id => {
                Ok(Derived { means: Means::Clone, format: DiskFormat::Raw, size_bytes: clone.size })
            }
            found => Err(Error::Mismatch {
                what: format!("the image of {}", plan.to),
                expected: derivation.identity.to_string(),
                found: found.to_string(),
            }),
        }
    }

    /// See [`driver::Driver::discard`].
    pub(crate) async fn remove_clone(&self, derivation: &Derivation, deadline: Instant) -> Result<()> {
        let plan = Plan::new(derivation)?;
        // A mapping for reading only is watched by nobody.
        let by: Vec<String> = mapping::list(self.host())?
            .iter()
            .filter(|mapping| plan.is_of(mapping))
            .map(|mapping| format!("mapped as {}", mapping.node().display()))
            .collect();
        if !by.is_empty() {
            return Err(Error::InUse { what: plan.to.to_string(), by });
        }
        let task = Task::Unclone(plan.cloning());
        self.change_until(&plan.to.pool, &derivation.identity, task, deadline).await.map(drop)
    }

    /// See [`driver::Driver::derivations`]; in one pool. What was made for a clone that is not there yet, or not any more, is
    /// told by its image.
    pub(crate) async fn clones(&self, pool: &Pool) -> Result<Vec<Derivation>> {
        let reply = self.ask(pool, Task::List).await?;
        let told = Told { pool, reply: &reply };
        let mut clones = Vec::new();
        for clone in &reply.images {
            if let Some(owner) = refuse::rescued(clone)
                && Derivation::name(owner).is_ok_and(|name| name == clone.name)
            {
                clones.extend(told.derivation(owner, clone)?);
            }
        }
        for image in &reply.images {
            for (owner, name) in refuse::owners(image) {
                let is_known = clones.iter().any(|known: &Derivation| known.owner == owner);
                if !is_known && Derivation::name(owner).is_ok_and(|of| of == name) {
                    let (Some(image_at), Some(to)) = (told.at(&image.name, None), told.at(name, None)) else {
                        continue;
                    };
                    let identity = told.identity(&image.id, None)?;
                    clones.push(Derivation { owner: owner.into(), image: image_at, identity, to });
                }
            }
        }
        Ok(clones)
    }
}

impl Told<'_> {
    /// What would take a clone away; `None` if its name is none that can stand in a locator.
    fn derivation(&self, owner: &str, clone: &rbd_job::Image) -> Result<Option<Derivation>> {
        let Some(to) = self.at(&clone.name, None) else { return Ok(None) };
        let derivation = |image, identity| Derivation { owner: owner.into(), image, identity, to: to.clone() };
        // The snapshot that was made for it has its name.
        let parent = clone.parent.as_ref().and_then(|parent| {
            let image = self.reply.images.iter().find(|image| image.id == parent.image_id)?;
            let snapshot = image.snapshots.iter().find(|snapshot| snapshot.id == parent.snapshot_id);
            let snapshot = snapshot.filter(|snapshot| snapshot.name != clone.name);
            Some((self.at(&image.name, snapshot.map(|snapshot| snapshot.name.as_str()))?, image, snapshot))
        });
        Ok(Some(match parent {
            Some((at, image, snapshot)) => derivation(at, self.identity(&image.id, snapshot)?),
            None => derivation(to.clone(), self.identity(&clone.id, None)?),
        }))
    }
}

/// A derivation in one pool.
struct Plan<'a> {
    owner: &'a str,
    image: &'a Image,
    to: &'a Image,
    fsid: &'a str,
    pool_id: u64,
    image_id: &'a str,
    snapshot_id: Option<u64>,
}

impl<'a> Plan<'a> {
    fn new(derivation: &'a Derivation) -> Result<Self> {
        let (image, to) = (image_of(&derivation.image)?, image_of(&derivation.to)?);
        let Identity::Rbd { fsid, pool_id, image_id, snapshot_id, .. } = &derivation.identity else {
            return Err(Error::invalid("identity", format!("{} is no RBD image", derivation.identity)));
        };
        let owner = &derivation.owner;
        let is_named = to.name.as_str() == Derivation::name(owner)? && to.snapshot.is_none();
        match image.pool == to.pool && is_named {
            true => Ok(Self { owner, image, to, fsid, pool_id: *pool_id, image_id, snapshot_id: *snapshot_id }),
            false => Err(Error::invalid("locator", format!("{to} is no place for a clone of {image}"))),
        }
    }

    fn cloning(&self) -> Cloning {
        let name = self.image.snapshot.as_ref().map(ToString::to_string);
        Cloning {
            name: self.to.name.to_string(),
            owner: self.owner.into(),
            image_id: self.image_id.into(),
            snapshot: name.zip(self.snapshot_id),
            features: Vec::new(),
        }
    }

    /// Whether a mapping is one of the clone. Its id is not known here; its name is nobody else's.
    fn is_of(&self, mapping: &mapping::Mapping) -> bool {
        let Identity::Rbd { fsid, pool_id, .. } = &mapping.identity else { return false };
        let name = mapping.name.rsplit('/').next();
        fsid == self.fsid && *pool_id == self.pool_id && name == Some(self.to.name.as_str())
    }
}
