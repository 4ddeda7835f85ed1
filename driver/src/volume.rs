//! What is said of volumes when they are taken into management and let go again.

use crate::{Identity, Locator, VolumeId, VolumeName};
use serde::{Deserialize, Serialize};

/// What is managed: a volume, or a snapshot of one. They are named differently.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// A volume of its own.
    #[default]
    Volume,
    /// A snapshot: an LV, or a part of an RBD image.
    Snapshot,
}

/// A volume that could be managed, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is now.
    pub locator: Locator,
    /// What it is, whatever its name.
    pub identity: Identity,
    /// Which of the two.
    pub kind: VolumeKind,
    /// In bytes.
    pub size_bytes: u64,
    /// Why it cannot be managed; `None` if it can.
    pub refusal: Option<Refusal>,
    /// What is written on the storage, if it is managed by us.
    pub managed: Option<Volume>,
}

/// Why a volume cannot be managed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Somebody uses it: refused unless the caller says that in-use is fine.
    InUse(Vec<String>),
    /// It is managed already, by us or by its name.
    Managed(String),
    /// What it is does not allow it.
    Kind(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InUse(by) => write!(f, "in use: {}", by.join(", ")),
            Self::Managed(why) | Self::Kind(why) => f.write_str(why),
        }
    }
}

/// A managed volume, as the storage tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The id it is managed under.
    pub id: VolumeId,
    /// The name for people.
    pub name: VolumeName,
    /// Where it is now.
    pub locator: Locator,
    /// Where it was before.
    pub origin: Locator,
    /// In bytes.
    pub size_bytes: u64,
    /// What it is, whatever its name.
    pub identity: Identity,
    /// Which of the two.
    #[serde(default)]
    pub kind: VolumeKind,
}

/// The plan to manage one volume. It holds all that is needed to go on after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// The id to manage it under.
    pub id: VolumeId,
    /// The name for people.
    pub name: VolumeName,
    /// Where it is.
    pub from: Locator,
    /// Where it will be.
    pub to: Locator,
    /// What it is: held against what is found under either name.
    pub identity: Identity,
}

/// The plan to let one volume go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// The id it is managed under.
    pub id: VolumeId,
    /// Where it is.
    pub from: Locator,
    /// Where it will be; the same if it keeps its name.
    pub to: Locator,
    /// What it is.
    pub identity: Identity,
}
