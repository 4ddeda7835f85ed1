//! The instances of this host as the hypervisor knows them, with what the journal knows of their rescue.

use super::rescue::{Place, RescueRecord};
use crate::agent::Agent;
use driver::{Error, Locator, Result};
use hypervisor::{
    Instance, InstanceName,
    definition::{Definition, Disk, Source},
};
use std::path::Path;

/// An instance as it is now.
#[derive(Debug)]
pub(crate) struct InstanceNow {
    pub(crate) instance: Instance,
    /// Empty in a list.
    pub(crate) disks: Vec<(Disk, Role)>,
    pub(crate) rescue: Option<Rescued>,
}

/// Its rescue.
#[derive(Debug)]
pub(crate) struct Rescued {
    pub(crate) record: RescueRecord,
    /// Somebody else has changed the definition since.
    pub(crate) changed_since: bool,
}

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Own,
    Root,
    Rescue,
    Seed,
}

impl Agent {
    /// Every instance, by name, without its disks.
    pub(crate) async fn instances(&self) -> Result<Vec<InstanceNow>> {
        let mut rescues = self.journal.rescues().await?;
        let instances = self.hypervisor.instances().await?.into_iter().map(|instance| {
            let at = rescues.iter().position(|record| record.instance == instance.uuid);
            let rescue = at.map(|at| Rescued { record: rescues.swap_remove(at), changed_since: false });
            InstanceNow { instance, disks: Vec::new(), rescue }
        });
        Ok(instances.collect())
    }

    /// One instance.
    pub(crate) async fn instance_now(&self, name: &InstanceName) -> Result<InstanceNow> {
        let instance = self.hypervisor.instance(name).await?;
        let definition = match self.hypervisor.definition(instance.uuid).await {
            Ok(definition) => definition,
            // It is transient: as it runs is all that there is.
            Err(Error::WrongState { .. }) => {
                self.hypervisor.running_definition(instance.uuid).await?.unwrap_or_default()
            }
            Err(error) => return Err(error),
        };
        let record = self.journal.rescue(instance.uuid).await?;
        let rescue = record.map(|record| {
            let changed_since = record.defined.as_ref().is_some_and(|defined| *defined != definition);
            Rescued { record, changed_since }
        });
        let parsed = Definition::parse(&definition)?;
        let first = parsed.root().map(|root| root.target);
        let original = rescue.as_ref().and_then(|it| Definition::parse(&it.record.original).ok()?.root());
        let disks = parsed.disks().into_iter().map(|disk| {
            let role = match &rescue {
                None if Some(&disk.target) == first.as_ref() => Role::Root,
                None => Role::Own,
                Some(it) if self.is_rescue_disk(&disk, &it.record) => Role::Rescue,
                Some(it)
                    if it.record.seed.as_deref() == disk.source.path().map(Path::new) && it.record.seed.is_some() =>
                {
                    Role::Seed
                }
                Some(_) if original.as_ref().is_some_and(|root| root.source == disk.source) => Role::Root,
                Some(_) => Role::Own,
            };
            (disk, role)
        });
        let disks = disks.collect();
        Ok(InstanceNow { instance, disks, rescue })
    }

    /// As [`Self::instance_now`]; `None` if there is none any more.
    pub(super) async fn instance_left(&self, name: &InstanceName) -> Result<Option<InstanceNow>> {
        match self.instance_now(name).await {
            Ok(instance) => Ok(Some(instance)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_rescue_disk(&self, disk: &Disk, record: &RescueRecord) -> bool {
        match (&record.place, record.at(), &disk.source) {
            (Place::Attached(id), _, Source::Block(path)) => self.stable_path(id) == Path::new(path),
            (Place::File, Locator::File(file), Source::File(path)) => file.path() == Path::new(path),
            (Place::Rbd, Locator::Rbd(image), Source::Rbd(name)) => {
                name.rsplit('/').next() == Some(&image.name.to_string())
            }
            _ => false,
        }
    }
}
