//! The machine beneath us: processes, sysfs, block devices, uevents, files. The only crate that touches it, and it knows
//! nothing of volumes.
//!
//! [`Host`] is the seam: [`Linux`] is the real machine, `sim::Machine` (feature `sim`) is one in memory that answers in
//! the same way, so that the whole agent runs in a test without root.

mod block;
mod command;
mod error;
mod key;
pub mod libvirt;
#[expect(clippy::disallowed_methods, reason = "this is the place that they are kept to")]
mod linux;
mod module;
mod peer;
pub mod rbd_job;
#[cfg(feature = "sim")]
pub mod sim;
pub mod step;
mod uevent;

pub use block::{BlockDevice, Claim, FileStat, LoopDevice, LoopSetup, User, block_device, block_devices};
pub use command::{Command, Output, Tool};
pub use error::{Error, Result};
pub use key::KernelKey;
pub use linux::{Linux, inherited_listeners};
pub use module::{Module, module};
pub use peer::LocalPeer;
pub use step::{Attended, Started, Step, Steps, TRACES, cancelled, carried};
pub use uevent::{Uevent, Uevents, wait_for};

use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// The machine beneath us. Everything privileged goes through here.
///
/// What only reads the kernel's own memory (sysfs, procfs, a stat) is a plain function; what may wait for a device, a
/// disk or a process is `async` and never blocks the runtime.
#[async_trait]
pub trait Host: Send + Sync + 'static {
    // ---- processes ----

    /// Runs a tool to its end. A non-zero exit is an [`Output`], not an error.
    ///
    /// [`Error::TimedOut`] if it did not end in time: then what it did is unknown, so look before you decide. One that
    /// only reads is killed; one that writes is left to finish.
    async fn run(&self, command: Command) -> Result<Output>;

    /// Where a tool is, in a fixed list of directories that `$PATH` has no part in.
    fn tool(&self, tool: Tool) -> Option<PathBuf>;

    /// Waits for tools that an agent before us started and that outlived it: what they do is not done yet. Returns the
    /// command lines of those that still run at the deadline.
    async fn outlived(&self, deadline: Instant) -> Result<Vec<String>>;

    // ---- the kernel's own files ----
    //
    // In sysfs, proc and /dev, which are in memory: they are looked at without a thread.

    /// An attribute's text without the newline at its end; `None` if there is no such file.
    fn read(&self, path: &Path) -> Result<Option<String>>;

    /// The names in a directory, sorted; none if there is no such directory.
    fn list(&self, directory: &Path) -> Result<Vec<String>>;

    /// Where a path leads once every link in it is followed; `None` if it leads nowhere.
    fn resolve(&self, path: &Path) -> Result<Option<PathBuf>>;

    /// What a path is, its last link not followed; `None` if it is not there.
    fn stat(&self, path: &Path) -> Result<Option<FileStat>>;

    /// Writes an attribute. It may sleep in the kernel.
    async fn write(&self, attribute: &Path, value: &str) -> Result<()>;

    /// As [`Host::write`], with a key at hand that the kernel looks for while it handles the write (`request_key(9)`), and
    /// that is gone afterwards. It ends when the kernel has answered, however long that takes: what such a write makes is
    /// not to be lost track of.
    async fn write_with_key(&self, attribute: &Path, value: &str, key: &KernelKey) -> Result<()>;

    /// Asks multipathd through its socket, as `multipathd -k` does: no process. [`Error::Unreachable`] if it does not run.
    async fn multipathd(&self, request: &str, timeout: Duration) -> Result<String>;

    /// Kernel events from now on: subscribe before you act.
    fn uevents(&self) -> Uevents;

    // ---- block devices ----

    /// A vital product data page, as the device itself answers now (SG_IO, INQUIRY with EVPD, SPC-4 section 6.6). That it has
    /// no such page is an [`Error::Io`] of the kind [`Unsupported`](std::io::ErrorKind::Unsupported).
    async fn inquiry(&self, device: &Path, page: u8, timeout: Duration) -> Result<Vec<u8>>;

    /// Opens a device for nobody else to mount or hold. [`Error::Busy`] if somebody has.
    async fn claim(&self, device: &Path) -> Result<Claim>;

    /// Writes all that the kernel has cached of a device to it, and forgets the cache (fsync, then BLKFLSBUF).
    async fn flush(&self, device: &Path, timeout: Duration) -> Result<()>;

    /// Makes a device refuse writes, or take them again (BLKROSET).
    async fn set_read_only(&self, device: &Path, read_only: bool) -> Result<()>;

    /// Which of some mapped devices somebody has open, by the kernel's own count (DM_DEV_STATUS). Each is meant by the UUID that it
    /// has in the device mapper; one that is not there is not open.
    fn open_mapped(&self, uuids: &[String]) -> Result<BTreeSet<String>>;

    /// Who uses a device or one of its partitions: mounts in any namespace, swap, holders, loop devices, exports to other
    /// machines, openers. Neither we nor udev count, nor multipathd, which has every path open to check it.
    async fn users(&self, device: &Path) -> Result<Vec<User>>;

    /// The first bytes of a device or file.
    async fn head(&self, path: &Path, length: usize, timeout: Duration) -> Result<Vec<u8>>;

    // ---- loop devices ----

    /// Every loop device that is bound to a file and tells which. One that does not answer soon (its file is on a server
    /// that is gone) is left out, and logged: sysfs still has its `loop/backing_file`.
    async fn loop_devices(&self) -> Result<Vec<LoopDevice>>;

    /// One of [`Host::loop_devices`], by its name; `None` if it is bound to nothing, or does not answer.
    async fn loop_device(&self, name: &str) -> Result<Option<LoopDevice>>;

    /// Binds a free loop device and returns its node.
    async fn loop_attach(&self, setup: &LoopSetup) -> Result<PathBuf>;

    /// Unbinds a loop device. One that is not bound is fine.
    async fn loop_detach(&self, device: &Path) -> Result<()>;

    /// Lets a loop device see that its file grew.
    async fn loop_resize(&self, device: &Path) -> Result<()>;

    // ---- files ----
    //
    // They may be on a server that is gone. Then what asks for them fails after a minute, and one thread at most waits in each
    // directory for the kernel.

    /// As [`Host::stat`].
    async fn file(&self, path: &Path) -> Result<Option<FileStat>>;

    /// As [`Host::resolve`].
    async fn real_path(&self, path: &Path) -> Result<Option<PathBuf>>;

    /// What is in a directory, sorted by name; nothing if there is no such directory.
    async fn files(&self, directory: &Path) -> Result<Vec<(String, FileStat)>>;

    /// Puts a file in place whole: written beside it, synced, renamed, its directory synced. Missing directories are
    /// made, with mode 0700.
    async fn replace(&self, path: &Path, content: &[u8], mode: u32) -> Result<()>;

    /// As [`Host::replace`] without the sync, for what a crash of the machine may take with it: two writes to the disk less.
    async fn replace_unsynced(&self, path: &Path, content: &[u8], mode: u32) -> Result<()>;

    /// Renames a file within its directory, never over another. [`Error::Exists`] if the new name is taken.
    async fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Makes a file, for nobody but us to open, that shares the blocks of another and goes ways of its own from then on
    /// (`FICLONERANGE(2)`). Returns what was copied. [`Error::Io`] of the kind `Unsupported` where the file system cannot, with
    /// nothing left. [`Error::Exists`] if the name is taken.
    async fn reflink(&self, from: &Path, to: &Path) -> Result<FileStat>;

    /// As [`Host::reflink`], byte by byte, but for the holes. The step tells how far it is. It ends at the deadline, or when
    /// its work is cancelled, with nothing left.
    async fn copy(&self, from: &Path, to: &Path, deadline: Instant) -> Result<FileStat>;

    /// Which processes have a file open, by its path. None of us count.
    async fn openers(&self, file: &Path) -> Result<Vec<User>>;

    /// Removes a file, a link or an empty directory. Absent is fine, and so is a directory that is not empty.
    async fn remove(&self, path: &Path) -> Result<()>;

    /// Makes or replaces a symbolic link in /dev or /run, whole at any moment. Missing directories are made.
    async fn link(&self, name: &Path, target: &Path) -> Result<()>;

    /// Makes a directory, but none above it; in configfs that makes what it stands for. One that is there is fine.
    async fn make_directory(&self, path: &Path) -> Result<()>;

    /// Makes a symbolic link, and replaces nothing; in configfs that connects two things. The same link is fine.
    /// [`Error::Exists`] if the name is taken by anything else.
    async fn symlink(&self, name: &Path, target: &Path) -> Result<()>;

    /// A file's extended attributes whose names begin with `prefix`, the name space (`user.`, `trusted.`) left off.
    async fn attributes(&self, path: &Path, prefix: &str) -> Result<BTreeMap<String, String>>;

    /// Sets (or, with `None`, removes) extended attributes: in `user.` where the file system has it, else in `trusted.`.
    async fn set_attributes(&self, path: &Path, attributes: &[(&str, Option<&str>)]) -> Result<()>;

    // ---- the rest ----

    /// Whether somebody listens at an address. [`Error::Unreachable`] says what was seen instead.
    async fn reach(&self, address: SocketAddr, deadline: Instant) -> Result<()>;

    /// What machine this is.
    fn facts(&self) -> Result<Facts>;

    /// What time it is here, and whether somebody sees to it.
    fn clock(&self) -> Result<Clock>;

    /// How much room a file system has, by any path on it.
    async fn room(&self, path: &Path, timeout: Duration) -> Result<Room>;

    /// The time of day, for people. It can be set back: nothing is decided by it.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Told when nobody has asked for anything for a while: memory that is free goes back to the kernel.
    async fn rest(&self) {}

    /// Told of an effect outside this trait (a commit of the journal) before it is tried, so that a test can refuse it.
    async fn commits(&self, _what: &str) -> Result<()> {
        Ok(())
    }

    /// Told of such an effect when it is done, so that a test can crash there too.
    async fn effect(&self, _what: &str) {}
}

/// What machine this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its host name.
    pub name: String,
    /// As `uname -r` says.
    pub kernel: String,
    /// As `uname -m` says.
    pub platform: String,
    /// New at every boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Neither loopback nor link-local.
    pub addresses: Vec<IpAddr>,
}

/// What the kernel says of its clock (`adjtimex(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// Seconds since 1970.
    pub unix_seconds: u64,
    /// A time service keeps it right, or did lately.
    pub synchronised: bool,
}

/// The room of a file system (`statvfs(3)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// In bytes.
    pub total_bytes: u64,
    /// What is left for those who are not root, in bytes.
    pub free_bytes: u64,
}
