//! What sysfs tells of block devices, and the plain data of the calls that work on them.

use crate::{Host, Result};
use std::{
    fmt,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// A block device as sysfs tells it; the device itself is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// The kernel's name: `sdb`, `dm-3`, `loop0`.
    pub name: String,
    /// In bytes.
    pub size_bytes: u64,
    /// It refuses writes.
    pub read_only: bool,
    /// In bytes.
    pub logical_block_size: u32,
    /// In bytes.
    pub physical_block_size: u32,
}

impl BlockDevice {
    /// `/dev/sdb`. A `!` in the kernel's name stands for a slash.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(self.name.replace('!', "/"))
    }
}

/// A whole block device by the kernel's name; `None` if there is none.
pub fn block_device(host: &dyn Host, name: &str) -> Result<Option<BlockDevice>> {
    /// The kernel counts `size` in these, whatever the device's own block size.
    const SECTOR: u64 = 512;
    let directory = Path::new("/sys/block").join(name);
    let number = |attribute: &str| -> Result<Option<u64>> {
        Ok(host.read(&directory.join(attribute))?.and_then(|text| text.parse().ok()))
    };
    let small = |attribute: &str| -> Result<u32> {
        Ok(number(attribute)?.and_then(|bytes| u32::try_from(bytes).ok()).unwrap_or(512))
    };
    let Some(sectors) = number("size")? else { return Ok(None) };
    Ok(Some(BlockDevice {
        name: name.to_owned(),
        size_bytes: sectors * SECTOR,
        read_only: number("ro")? == Some(1),
        logical_block_size: small("queue/logical_block_size")?,
        physical_block_size: small("queue/physical_block_size")?,
    }))
}

/// Every whole block device.
pub fn block_devices(host: &dyn Host) -> Result<Vec<BlockDevice>> {
    let mut found = Vec::new();
    for name in host.list(Path::new("/sys/block"))? {
        found.extend(block_device(host, &name)?);
    }
    Ok(found)
}

/// A device that nobody else can mount or hold while this lives.
#[derive(Debug)]
pub struct Claim(
    #[expect(dead_code, reason = "held open, not read; a simulated claim has none")] pub(crate) Option<OwnedFd>,
);

/// Somebody who uses a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    /// A mounted file system.
    Mount {
        /// Where.
        at: String,
        /// By a process that sees it in its mount namespace, if that is not ours.
        seen_by: Option<String>,
    },
    /// A swap area.
    Swap,
    /// A device on top of it.
    Holder {
        /// `dm-3`
        name: String,
        /// What it calls itself: `vg-lv`.
        label: String,
    },
    /// It is exported to other machines.
    Export {
        /// By what: `LIO`.
        by: &'static str,
        /// As what: `iblock_0/x`.
        name: String,
    },
    /// A process that has it open.
    Opener {
        /// The process.
        pid: u32,
        /// Its command.
        command: String,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { at, seen_by: None } => write!(f, "mounted at {at}"),
            Self::Mount { at, seen_by: Some(who) } => write!(f, "mounted at {at} in the mount namespace of {who}"),
            Self::Swap => f.write_str("used as swap"),
            Self::Holder { name, label } if label.is_empty() => write!(f, "held by {name}"),
            Self::Holder { name, label } => write!(f, "held by {name} ({label})"),
            Self::Export { by, name } => write!(f, "exported by {by} as {name}"),
            Self::Opener { pid, command } => write!(f, "open by {command} (pid {pid})"),
        }
    }
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
    /// In bytes.
    pub size_bytes: u64,
    /// A regular file.
    pub is_file: bool,
    /// A directory.
    pub is_directory: bool,
}

/// How a loop device is to be bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopSetup {
    /// The file.
    pub file: PathBuf,
    /// The device refuses writes, and the file is opened for reading only.
    pub read_only: bool,
    /// A word of ours that the kernel keeps with the device (`lo_file_name`): at most 63 bytes.
    pub label: String,
}

/// A loop device that is bound (`LOOP_GET_STATUS64`, loop(4)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    /// `loop0`
    pub name: String,
    /// `st_dev` of the file.
    pub file_device: u64,
    /// `st_ino` of the file.
    pub file_inode: u64,
    /// The file's path as sysfs shows it.
    pub file: PathBuf,
    /// See [`LoopSetup::label`].
    pub label: String,
    /// The page cache is passed by.
    pub direct_io: bool,
    /// It was unbound while somebody had it open, and goes when the last one closes it (`LO_FLAGS_AUTOCLEAR`).
    pub autoclear: bool,
}
