//! The contract that all drivers keep: what a volume, its locator, its identity and its device are, what a driver can be
//! asked, and how it says no. Pure: no I/O, and no knowledge of any of our other crates.

pub mod connection_info;
mod derivation;
mod error;
mod finding;
mod image;
mod inventory;
pub mod keyring;
mod locator;
mod names;
pub mod version;
mod volume;

pub use derivation::{Derivation, Derived, DiskFormat, Means};
pub use error::{Error, Result};
pub use finding::{Finding, Severity};
pub use image::{CephUser, ClusterName, Image, ImageName, Pool, PoolName, RbdNamespace, SnapshotName};
pub use inventory::{Mark, Object, ObjectKind};
pub use locator::{Backend, Locator, LogicalUnit, LogicalVolume, RawFile, Scope, Way};
pub use names::{AttachmentId, Iqn, Lun, LvName, NameTemplate, Portal, Templates, VgName, VolumeId, VolumeName, Wwn};
pub use volume::{Adoption, Candidate, Refusal, Release, Volume, VolumeKind};

use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use std::{fmt, path::PathBuf};
use tokio::time::Instant;

/// One storage technology on this host.
///
/// Every verb may be repeated; the second time changes nothing. `prepare`, `find`, `prove`, `users`, `findings` and
/// everything that lists only read.
///
/// ```text
///            prepare            attach                  detach
///   (absent) ───────▶ footprint ───────▶ device ──────────────────▶ (absent)
///                         │                 ▲  prove: is it still the volume?
///                         └── after a crash: detach, with the footprint alone
/// ```
#[async_trait]
pub trait Driver: Send + Sync {
    /// Which backend this is.
    fn backend(&self) -> Backend;

    /// What the driver needs on this host, and whether it is there.
    async fn readiness(&self) -> Readiness;

    /// Checks that the volume can be attached as asked and notes what is on the host already, so that a later detach
    /// (or the undo after a crash) takes away just what the attach brought.
    async fn prepare(&self, spec: &Spec) -> Result<Footprint>;

    /// Makes the volume present and returns its device, proved.
    async fn attach(&self, spec: &Spec, footprint: &Footprint, attempt: &Attempt) -> Result<Device>;

    /// Goes on with what an attach left to the background (the other ways to the volume): once it is recorded, and after a
    /// restart of the agent. Returns at once; a detach ends it.
    async fn tend(&self, _at: &Attached) {}

    /// Removes what of ours is on this host and belongs to no attachment, such as a file that a reboot left. Called at the
    /// start, when what a crash left is undone.
    async fn tidy(&self) {}

    /// The device as the kernel lists it, or `None` where there is none. Asks no device.
    async fn find(&self, at: &Attached) -> Result<Option<Device>>;

    /// Whether a device that [`Driver::attach`] has just returned is still there, and nothing else in its place. Asks no
    /// device.
    async fn is_still(&self, at: &Attached, device: &Device) -> Result<bool> {
        Ok(self.find(at).await?.is_some_and(|now| now.path == device.path))
    }

    /// [`Driver::find`] of each, in their order. Where one look at the kernel tells of all, it is made once.
    async fn find_each(&self, all: &[&Attached]) -> Vec<Result<Option<Device>>> {
        let mut found = Vec::with_capacity(all.len());
        for at in all {
            found.push(self.find(at).await);
        }
        found
    }

    /// The device, after it has proved that it is the volume; `None` where there is none.
    /// [`Error::Mismatch`] if it is another volume.
    async fn prove(&self, at: &Attached) -> Result<Option<Device>>;

    /// Who uses the device: mounts in any namespace, holders, openers; each in words that an operator understands.
    async fn users(&self, at: &Attached) -> Result<Vec<String>>;

    /// Flushes and takes away all that [`Driver::attach`] brought, however far it came, and sees that it is gone.
    /// [`Error::InUse`], with nothing touched, if [`Driver::users`] would name anybody.
    async fn detach(&self, at: &Attached, deadline: Instant) -> Result<Detached>;

    /// Learns the size anew after the volume grew.
    async fn extend(&self, at: &Attached, deadline: Instant) -> Result<Device>;

    /// What could be managed in `scope`, and why not.
    async fn manageable(&self, scope: &Scope) -> Result<Vec<Candidate>>;

    /// One volume as [`Driver::manageable`] would list it. [`Error::NotFound`] if there is none.
    async fn inspect(&self, locator: &Locator) -> Result<Candidate>;

    /// Writes the origin onto the storage and renames, from whichever step is still undone.
    async fn manage(&self, adoption: &Adoption) -> Result<Volume>;

    /// The way back of [`Driver::manage`], from whichever step is still undone.
    async fn unmanage(&self, release: &Release) -> Result<()>;

    /// The managed volumes as the storage tells them; everywhere this driver knows of if `scope` is `None`.
    async fn volumes(&self, scope: Option<&Scope>) -> Result<Vec<Volume>>;

    /// The volume that is managed under an id, if it still has its managed name. Where to look at every volume is dear,
    /// only that name is looked at; so one that somebody renamed by hand may be missed.
    async fn named(&self, scope: Option<&Scope>, id: VolumeId) -> Result<Option<Volume>> {
        Ok(self.volumes(scope).await?.into_iter().find(|volume| volume.id == id))
    }

    /// Checks that a volume can begin as a copy of `image` and says where it will be. `owner` is the UUID of an instance.
    /// [`Error::WrongState`] if such a volume of this owner is there already. Only reads.
    async fn plan_derivation(&self, image: &Locator, _owner: &str) -> Result<Derivation> {
        Err(Error::Unsupported { what: format!("{image} cannot be an image: its backend cannot copy on write") })
    }

    /// Makes the derived volume, from whichever step is still undone. The image is not written. It is not attached: on a
    /// block device it is as any other volume after that.
    async fn derive(&self, derivation: &Derivation, _deadline: Instant) -> Result<Derived> {
        Err(Error::Unsupported { what: format!("{} cannot be made: its backend cannot copy on write", derivation.to) })
    }

    /// Takes a derived volume away, however far [`Driver::derive`] came, and sees that it is gone; absent is fine. The image
    /// is not needed any more. [`Error::InUse`], with nothing touched, if somebody uses it; [`Error::WrongState`] if what
    /// has its name does not bear its mark.
    async fn discard(&self, derivation: &Derivation, _deadline: Instant) -> Result<()> {
        Err(Error::Unsupported { what: format!("{} cannot be discarded: its backend makes none", derivation.to) })
    }

    /// The derived volumes in `scope`, whoever's, as their marks tell: each as what would discard it. Without a scope, those
    /// in the places that the driver knows by itself. Of an image that is gone, the identity is that of the derived volume.
    async fn derivations(&self, _scope: Option<&Scope>) -> Result<Vec<Derivation>> {
        Ok(Vec::new())
    }

    /// Everything on this host of the sorts that this driver brings, whoever's. For each it tells to which of the `known` it
    /// belongs. With `ask`, what bears our mark is asked whether it is still the volume that it was.
    async fn inventory(&self, known: &[Attached], ask: bool) -> Result<Vec<Object>>;

    /// What on this host would make attaching fail, hang or lose data. `Err` if that cannot be known.
    async fn findings(&self) -> Result<Vec<Finding>>;
}

/// What is to be attached, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Where the volume is.
    pub locator: Locator,
    /// The device refuses writes.
    pub read_only: bool,
    /// RBD only: no other host may write to the image as long as it is attached.
    #[serde(default)]
    pub exclusive: bool,
    /// The WWN that the device must have.
    pub expected_wwn: Option<Wwn>,
    /// The size in bytes that the device must have.
    pub expected_size: Option<u64>,
}

impl Spec {
    /// Holds a device against what the caller expects of it. [`Error::Mismatch`] names both.
    pub fn check(&self, device: &Device) -> Result<()> {
        if let Some(expected) = &self.expected_wwn {
            let found = match &device.identity {
                Identity::Scsi { wwn } => wwn.to_string(),
                other => format!("none ({other})"),
            };
            if found != expected.to_string() {
                return Err(Error::Mismatch {
                    what: format!("the WWN of {} at {}", self.locator, device.path.display()),
                    expected: expected.to_string(),
                    found,
                });
            }
        }
        if let Some(expected) = self.expected_size
            && expected != device.size_bytes
        {
            return Err(Error::Mismatch {
                what: format!("the size in bytes of {} at {}", self.locator, device.path.display()),
                expected: expected.to_string(),
                found: device.size_bytes.to_string(),
            });
        }
        Ok(())
    }
}

impl Spec {
    /// A volume for writing, of which nothing else is known.
    pub fn of(locator: Locator) -> Self {
        Self { locator, read_only: false, exclusive: false, expected_wwn: None, expected_size: None }
    }
}

/// How one attach is to go about it. Nothing of it is kept.
#[derive(Debug)]
pub struct Attempt {
    /// What the backend asks for.
    pub access: Access,
    /// Every way to the volume has to stand, not just the first one.
    pub all_paths: bool,
    /// When to give up.
    pub deadline: Instant,
}

impl Attempt {
    /// Without credentials, content with the first path.
    pub fn until(deadline: Instant) -> Self {
        Self { access: Access::default(), all_paths: false, deadline }
    }
}

/// What the backend asks for before it lets us in. Travels in the call only.
#[derive(Debug, Default)]
pub struct Access {
    /// One-way CHAP.
    pub chap: Option<Chap>,
    /// The secret key of the locator's cephx user, as a keyring holds it (base64). Without it, `/etc/ceph` is asked.
    pub cephx: Option<SecretString>,
}

/// One-way CHAP (RFC 7143 section 12.1): this host proves itself to the target.
#[derive(Debug)]
pub struct Chap {
    /// The name that the target knows this host by.
    pub user: String,
    /// Its password.
    pub password: SecretString,
}

/// What was on the host before an attach, noted before its first effect. With it, detach and undo know what to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "snake_case")]
pub enum Footprint {
    /// iSCSI.
    Iscsi {
        /// The ways whose device was here already, on a session that is not ours: they stay.
        #[serde(default)]
        were_here: Vec<Way>,
        /// So was the multipath map.
        #[serde(default)]
        map_was_here: bool,
    },
    /// RBD.
    Rbd {
        /// The marks of the mappings of ours that were here already: they stay. (What has no mark is not ours, and stays in
        /// any case; and a number of the kernel's may be given to another.)
        #[serde(default)]
        marks: Vec<String>,
    },
    /// LVM.
    Lvm {
        /// The LV by its UUIDs, which a rename does not change.
        identity: Identity,
        /// The LV was active already: it stays active.
        was_active: bool,
        /// It was active and refused writes already: it goes on to refuse them.
        was_read_only: bool,
    },
    /// File on a loop device.
    File {
        /// The file by device and inode number, which a rename does not change.
        identity: Identity,
    },
}

/// What proves that a device is the volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Identity {
    /// A logical unit's name from VPD page 0x83, or 0x80 where it has none (SPC-4 7.8.6, 7.8.15).
    Scsi {
        /// In udev's form.
        wwn: Wwn,
    },
    /// An LV's UUIDs without dashes: `/sys/block/dm-N/dm/uuid` is `LVM-` and both.
    Lvm {
        /// The VG's.
        vg_uuid: String,
        /// The LV's.
        lv_uuid: String,
    },
    /// An RBD image, as the kernel tells of a mapping (`/sys/bus/rbd/devices/N`).
    Rbd {
        /// The cluster's, a UUID.
        fsid: String,
        /// The pool's number.
        pool_id: u64,
        /// The namespace; empty: the pool's own.
        namespace: String,
        /// The image's id, which a rename does not change.
        image_id: String,
        /// The snapshot's number.
        snapshot_id: Option<u64>,
    },
    /// A file's device and inode number, which the loop device tells of its backing file.
    File {
        /// `st_dev`
        device: u64,
        /// `st_ino`
        inode: u64,
    },
}

impl Identity {
    /// Whether this is the same volume, seen in another boot: the kernel numbers file systems anew, so a file is told by
    /// its inode there.
    pub fn is_still(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::File { inode, .. }, Self::File { inode: then, .. }) => inode == then,
            (now, then) => now == then,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scsi { wwn } => write!(f, "wwn:{wwn}"),
            Self::Lvm { vg_uuid, lv_uuid } => write!(f, "lvm:{vg_uuid}/{lv_uuid}"),
            Self::File { device, inode } => write!(f, "file:{device}:{inode}"),
            Self::Rbd { fsid, pool_id, namespace, image_id, snapshot_id } => {
                write!(f, "rbd:{fsid}/{pool_id}/{namespace}/{image_id}")?;
                snapshot_id.map_or(Ok(()), |id| write!(f, "@{id}"))
            }
        }
    }
}

/// An attachment as its driver sees it: after an attach that ended, or (without an identity) one that did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// What was asked for.
    pub spec: Spec,
    /// What was here before.
    pub footprint: Footprint,
    /// What the device proved; `None` if the attach did not come so far.
    pub identity: Option<Identity>,
}

/// A volume's device on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The kernel's node: `/dev/sdb`.
    pub path: PathBuf,
    /// What it proved to be.
    pub identity: Identity,
    /// In bytes.
    pub size_bytes: u64,
    /// In bytes.
    pub logical_block_size: u32,
    /// In bytes.
    pub physical_block_size: u32,
    /// It refuses writes.
    pub read_only: bool,
    /// Every way to it.
    pub paths: Vec<DevicePath>,
}

/// One way to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePath {
    /// `/dev/sdb`
    pub device: PathBuf,
    /// iSCSI only.
    pub portal: Option<Portal>,
    /// The kernel's word: `running`, `offline`, …; `active` where the kernel has none.
    pub state: String,
    /// Why it is not up, where that is known; in words.
    pub problem: Option<String>,
}

/// What a detach did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detached {
    /// What could not be removed; empty is success.
    pub residuals: Vec<Residual>,
    /// What was here before the attachment, and stays; in words.
    pub kept: Vec<String>,
}

/// Something that a detach could not remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Residual {
    /// What sort of thing.
    pub kind: ResidualKind,
    /// Its name.
    pub name: String,
    /// Why it is still there.
    pub reason: String,
}

/// The sorts of [`Residual`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResidualKind {
    /// A SCSI device.
    Device,
    /// An iSCSI session.
    Session,
    /// An open-iscsi node record.
    NodeRecord,
    /// An active LV.
    Activation,
    /// A loop device.
    Loop,
    /// A multipath map.
    MultipathMap,
    /// An RBD image's mapping.
    Mapping,
    /// What serves an exported volume.
    Export,
    /// Our own stable path.
    Link,
}

/// Whether a driver can work on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// What is missing, and what to do about it; `None` if it can work.
    pub problem: Option<String>,
    /// The programs and kernel interfaces it relies on.
    pub tools: Vec<Tool>,
}

/// A program or kernel interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// `iscsiadm`
    pub name: String,
    /// `/usr/sbin/iscsiadm`
    pub path: PathBuf,
    /// As it says itself.
    pub version: String,
}
