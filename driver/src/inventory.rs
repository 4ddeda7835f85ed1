//! What stands on a host of the sorts that drivers bring, and whose mark it bears. A driver tells what it sees; which
//! attachment that belongs to is known by number only, and what follows from it is the agent's to say.

use crate::{Attached, Footprint, Identity, Spec};
use std::fmt;

/// Something that stands on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What sort of thing.
    pub kind: ObjectKind,
    /// Its name: `/dev/sdb`, `session3`.
    pub name: String,
    /// What it is, in words: `LUN 1 of target …`.
    pub what: String,
    /// Whose mark it bears.
    pub mark: Mark,
    /// To which of the known it belongs, by their numbers.
    pub holders: Vec<usize>,
    /// Why it is not what it was any more, if that is so.
    pub stale: Option<String>,
    /// How it would be detached; `None` where a detach cannot take it away, or must not.
    pub remains: Option<Attached>,
}

impl Object {
    /// Something that bears no mark of ours.
    pub fn of_others(
        kind: ObjectKind,
        name: impl Into<String>,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        let mark = Mark::Others(why.into());
        Self { kind, name: name.into(), what: what.into(), mark, holders: Vec::new(), stale: None, remains: None }
    }

    /// Something that bears our mark.
    pub fn of_ours(kind: ObjectKind, name: impl Into<String>, what: impl Into<String>) -> Self {
        Self { mark: Mark::Ours, ..Self::of_others(kind, name, what, "") }
    }
}

/// What shows whose something is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    /// It is marked as ours.
    Ours,
    /// As ours, and the driver is still at work on it: how.
    UnderWay(String),
    /// It has no mark of ours: what shows that.
    Others(String),
}

/// The sorts of [`Object`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// An attachment or an export, as the journal knows it.
    Record,
    /// A managed volume.
    Volume,
    /// A volume that was made for a rescue.
    RescueDisk,
    /// What tells a rescue system its password and keys.
    Seed,
    /// Our link to a device.
    StablePath,
    /// An iSCSI session.
    Session,
    /// A file of open-iscsi about one portal of one target.
    NodeRecord,
    /// A SCSI device.
    Device,
    /// A multipath map.
    MultipathMap,
    /// An RBD image's mapping.
    Mapping,
    /// An active LV.
    Activation,
    /// A loop device.
    Loop,
    /// A target of this host, with what serves it.
    Target,
    /// What a target serves.
    Backstore,
    /// What backstores hang from.
    Hba,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Record => "record",
            Self::Volume => "volume",
            Self::RescueDisk => "rescue disk",
            Self::Seed => "seed",
            Self::StablePath => "stable path",
            Self::Session => "session",
            Self::NodeRecord => "node record",
            Self::Device => "device",
            Self::MultipathMap => "multipath map",
            Self::Mapping => "mapping",
            Self::Activation => "activation",
            Self::Loop => "loop device",
            Self::Target => "target",
            Self::Backstore => "backstore",
            Self::Hba => "HBA",
        })
    }
}

impl Attached {
    /// As if it had been attached for writing, with nothing here before it: so that a detach takes all of it away.
    pub fn remains(locator: crate::Locator, footprint: Footprint, identity: Option<Identity>) -> Self {
        Self { spec: Spec::of(locator), footprint, identity }
    }
}
