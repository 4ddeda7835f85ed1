//! A volume that begins as a copy of another: what a rescue boots from, so that the image itself is never written.

use crate::{Error, Identity, Locator, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use uuid::Uuid;

/// The plan to make one derived volume, and all that is needed to take it away after a crash.
///
/// It stands beside its image (the same VG; the same pool and namespace; the same directory), and bears the mark
/// `mortar.rescue=OWNER` where the storage can write one down, so that nothing else is ever discarded in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derivation {
    /// Who it is for: the UUID of an instance. There is one at most for each.
    pub owner: String,
    /// What it begins as.
    pub image: Locator,
    /// What that is: held against what is found before the copy is made.
    pub identity: Identity,
    /// Where it will be.
    pub to: Locator,
}

impl Derivation {
    /// The key of the mark that a derived volume bears on its storage. Its value is the owner.
    pub const MARK: &str = "mortar.rescue";

    /// What the derived volume of an owner is called. [`Error::Invalid`] if the owner is no UUID as libvirt writes it, which
    /// is the only thing that can stand in every backend's names.
    pub fn name(owner: &str) -> Result<String> {
        match Uuid::try_parse(owner) {
            Ok(uuid) if uuid.hyphenated().to_string() == owner => Ok(format!("rescue-{owner}")),
            _ => Err(Error::invalid("instance", format!("{owner:?} is no UUID in lower case with its dashes"))),
        }
    }

    /// What is said of a derived volume to those who would take it for another one.
    pub fn explained(owner: &str) -> String {
        format!("it is the rescue disk of the instance {owner}; `mortar unrescue {owner}` takes it away")
    }
}

/// A derived volume that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derived {
    /// How it was made.
    pub means: Means,
    /// What QEMU has to take it for.
    pub format: DiskFormat,
    /// In bytes, as a guest sees it.
    pub size_bytes: u64,
}

/// How a derived volume was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// LVM: a snapshot, thick or thin as its origin.
    Snapshot,
    /// RBD: a clone of a snapshot.
    Clone,
    /// A file that shares its blocks with the image (`FICLONE`, ioctl_ficlonerange(2)).
    Reflink,
    /// A qcow2 file over the image.
    Overlay,
    /// A whole copy.
    Copy,
}

/// What the bytes of a disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Just the bytes.
    Raw,
    /// QEMU's format, version 3.
    Qcow2,
}

impl fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_a_uuid_and_of_nothing_else() {
        let owner = "9394b827-4ad0-488e-8df8-26476b3a8662";
        assert_eq!(Derivation::name(owner).unwrap(), format!("rescue-{owner}"));
        for other in
            ["", "a", "../a", "9394b8274ad0488e8df826476b3a8662", &owner.to_uppercase(), &format!("{{{owner}}}")]
        {
            assert_eq!(Derivation::name(other).unwrap_err().reason(), "INVALID", "{other}");
        }
    }
}
