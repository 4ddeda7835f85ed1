//! The real machine.
//!
//! What may wait for a device or a disk runs on a thread of its own (`blocking`), so that one that never comes back holds
//! up nothing but its own caller, and that one only until its timeout.

mod clock;
mod files;
mod flush;
mod inherited;
mod keys;
mod lanes;
mod loops;
mod mapper;
mod memory;
mod multipathd;
mod netlink;
mod own_thread;
mod peer;
mod process;
mod scsi;
mod usage;

pub use inherited::inherited_listeners;

use crate::{
    Claim, Clock, Command, Error, Facts, FileStat, Host, KernelKey, LoopDevice, LoopSetup, Output, Result, Room, Tool,
    Uevents, User, step, wait_for,
};
use async_trait::async_trait;
use nix::{
    fcntl::{OFlag, open},
    sys::{stat::Mode, utsname::uname},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::broadcast,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use zeroize::Zeroizing;

/// The real machine. Clones are the same machine.
#[derive(Debug, Clone)]
pub struct Linux {
    events: broadcast::Sender<crate::Uevent>,
    slots: Arc<process::Slots>,
    loops: Arc<loops::Unanswered>,
    looks: Arc<usage::Looks>,
    lanes: lanes::Lanes,
    flusher: flush::Flusher,
    keyed: own_thread::Threads,
}

impl Linux {
    /// Listens to the kernel's events; must be called within a runtime. At most `processes` runs of
    /// each tool go on at a time.
    ///
    /// Without events (a container may not have them) everything works, with more latency; that is logged once.
    pub fn new(processes: usize) -> Self {
        let (events, _) = broadcast::channel(1024);
        if let Err(error) = netlink::listen(events.clone()) {
            tracing::warn!(%error, "no kernel events; device changes are seen by looking four times a second");
        }
        Self {
            events,
            slots: Arc::new(process::Slots::new(processes)),
            loops: Arc::default(),
            looks: Arc::default(),
            lanes: lanes::Lanes::default(),
            flusher: flush::Flusher::default(),
            keyed: own_thread::Threads::new(KEYED_WRITES),
        }
    }

    /// Lets another process do the flushing: a program that begins with [`Self::other_self`], so that a device which stands
    /// still does not keep this one from ending.
    pub fn flushing_apart(mut self) -> Self {
        self.flusher = flush::Flusher::in_a_process();
        self
    }

    /// Looks at a file of others, one look at a time in each `directory`: its server may be gone.
    async fn look<T: Send + 'static>(
        &self,
        directory: &Path,
        path: &Path,
        look: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let lane = lanes::Lane::of(directory, "look");
        self.lanes.alone(lane, format!("look at {}", path.display()), PATIENCE, look).await
    }

    /// Does what this program was started for by the other name that [`Self::flushing_apart`] gives it; `None` if it has its
    /// own.
    pub fn other_self() -> Option<std::process::ExitCode> {
        flush::serve()
    }
}

/// Runs what may block on a thread of its own, and stops waiting for it (not the thread itself) when its time is over. What
/// has not begun by then, or when the caller goes, never begins.
async fn blocking<T: Send + 'static>(
    what: impl Into<String>,
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let deadline = std::time::Instant::now() + limit;
    let late = move |what: String| Error::TimedOut { what, after: limit };
    let what = what.into();
    let named = what.clone();
    let step = step::current();
    let mut running = Running(tokio::task::spawn_blocking(move || {
        // As long as the thread is in the kernel, whether somebody waits for it or not.
        let _step = step;
        match std::time::Instant::now() < deadline {
            true => work(),
            // There was no thread for it until now.
            false => Err(late(named)),
        }
    }));
    match timeout(limit, &mut running.0).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        Err(_) => Err(late(what)),
    }
}

/// Work on a thread. Without somebody who waits for it, it is not begun any more; what has begun goes on.
struct Running<T>(JoinHandle<T>);

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How long the kernel is waited for where the caller gives no time of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many writes with a key may be unanswered: each has a thread, for as long as the kernel takes.
const KEYED_WRITES: usize = 64;

fn open_device(device: &Path, flags: OFlag) -> Result<OwnedFd> {
    open(device, flags | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| match errno {
        nix::Error::EBUSY => Error::Busy { path: device.into() },
        other => Error::io("open", device)(other.into()),
    })
}

mod ioctls {
    //! The ioctls on any block device (`include/uapi/linux/fs.h`).
    nix::ioctl_none_bad!(blkflsbuf, nix::request_code_none!(0x12, 97));
    nix::ioctl_write_ptr_bad!(blkroset, nix::request_code_none!(0x12, 93), nix::libc::c_int);
    // And the one on files.
    nix::ioctl_write_int!(ficlone, 0x94, 9);
}

#[async_trait]
impl Host for Linux {
    async fn run(&self, command: Command) -> Result<Output> {
        process::run(&self.slots, command).await
    }

    fn tool(&self, tool: Tool) -> Option<PathBuf> {
        tool.places().into_iter().find(|path| path.is_file())
    }

    async fn outlived(&self, deadline: Instant) -> Result<Vec<String>> {
        let none_left = || Ok(process::orphans().is_empty().then_some(()));
        match wait_for(self, deadline, none_left).await? {
            Some(()) => Ok(Vec::new()),
            None => Ok(process::orphans()),
        }
    }

    fn read(&self, path: &Path) -> Result<Option<String>> {
        read(path)
    }

    fn list(&self, directory: &Path) -> Result<Vec<String>> {
        list(directory)
    }

    fn resolve(&self, path: &Path) -> Result<Option<PathBuf>> {
        files::resolve(path)
    }

    fn stat(&self, path: &Path) -> Result<Option<FileStat>> {
        files::stat(path)
    }

    async fn write(&self, attribute: &Path, value: &str) -> Result<()> {
        // It may be a secret, which must not stay in our memory.
        let (path, value) = (attribute.to_owned(), Zeroizing::new(value.to_owned()));
        let lane = lanes::Lane::of(attribute, &value);
        self.lanes
            .alone(lane, format!("write to {}", attribute.display()), PATIENCE, move || {
                let fd = open_device(&path, OFlag::O_WRONLY)?;
                nix::unistd::write(&fd, value.as_bytes()).map_err(|errno| Error::io("write", &path)(errno.into()))?;
                Ok(())
            })
            .await
    }

    async fn write_with_key(&self, attribute: &Path, value: &str, key: &KernelKey) -> Result<()> {
        let (path, value, key) = (attribute.to_owned(), value.to_owned(), key.clone());
        let write = move || {
            let _lent = keys::lend(&key)?;
            let fd = open_device(&path, OFlag::O_WRONLY)?;
            nix::unistd::write(&fd, value.as_bytes()).map_err(|errno| Error::io("write", &path)(errno.into()))?;
            Ok(())
        };
        self.keyed.run(write).await
    }

    async fn multipathd(&self, request: &str, limit: Duration) -> Result<String> {
        multipathd::ask(request, limit).await
    }

    fn uevents(&self) -> Uevents {
        Uevents::new(self.events.subscribe())
    }

    async fn inquiry(&self, device: &Path, page: u8, limit: Duration) -> Result<Vec<u8>> {
        let path = device.to_owned();
        blocking(format!("INQUIRY to {}", device.display()), limit, move || scsi::inquiry(&path, page, limit)).await
    }

    async fn claim(&self, device: &Path) -> Result<Claim> {
        let path = device.to_owned();
        blocking(format!("open {}", device.display()), PATIENCE, move || {
            open_device(&path, OFlag::O_RDONLY | OFlag::O_EXCL).map(|fd| Claim(Some(fd)))
        })
        .await
    }

    async fn flush(&self, device: &Path, limit: Duration) -> Result<()> {
        let (path, flusher) = (device.to_owned(), self.flusher.clone());
        let lane = lanes::Lane::of(device, "flush");
        self.lanes.alone(lane, format!("flush of {}", device.display()), limit, move || flusher.flush(&path)).await
    }

    async fn set_read_only(&self, device: &Path, read_only: bool) -> Result<()> {
        let path = device.to_owned();
        blocking(format!("BLKROSET on {}", device.display()), PATIENCE, move || {
            let fd = open_device(&path, OFlag::O_RDONLY)?;
            // SAFETY: BLKROSET reads one int; the descriptor and the int live for the whole call.
            #[expect(unsafe_code, reason = "ioctl")]
            unsafe { ioctls::blkroset(fd.as_raw_fd(), &i32::from(read_only)) }
                .map_err(|errno| Error::io("change the read-only flag of", &path)(errno.into()))?;
            Ok(())
        })
        .await
    }

    fn open_mapped(&self, uuids: &[String]) -> Result<BTreeSet<String>> {
        mapper::open_mapped(uuids)
    }

    async fn users(&self, device: &Path) -> Result<Vec<User>> {
        self.looks.users(device, PATIENCE).await
    }

    async fn head(&self, path: &Path, length: usize, limit: Duration) -> Result<Vec<u8>> {
        let owned = path.to_owned();
        blocking(format!("read of {}", path.display()), limit, move || files::head(&owned, length)).await
    }

    async fn loop_device(&self, name: &str) -> Result<Option<LoopDevice>> {
        loops::one(&self.loops, name).await
    }

    async fn loop_devices(&self) -> Result<Vec<LoopDevice>> {
        loops::list(&self.loops).await
    }

    async fn loop_attach(&self, setup: &LoopSetup) -> Result<PathBuf> {
        let setup = setup.clone();
        blocking("loop set-up", PATIENCE, move || loops::attach(&setup)).await
    }

    async fn loop_detach(&self, device: &Path) -> Result<()> {
        let path = device.to_owned();
        blocking("loop removal", PATIENCE, move || loops::detach(&path)).await
    }

    async fn loop_resize(&self, device: &Path) -> Result<()> {
        let path = device.to_owned();
        blocking("loop resize", PATIENCE, move || loops::resize(&path)).await
    }

    async fn file(&self, path: &Path) -> Result<Option<FileStat>> {
        let owned = path.to_owned();
        self.look(files::parent(path), path, move || files::stat(&owned)).await
    }

    async fn real_path(&self, path: &Path) -> Result<Option<PathBuf>> {
        let owned = path.to_owned();
        self.look(path, path, move || files::resolve(&owned)).await
    }

    async fn files(&self, directory: &Path) -> Result<Vec<(String, FileStat)>> {
        let owned = directory.to_owned();
        self.look(directory, directory, move || files::in_directory(&owned)).await
    }

    async fn replace(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        // It may hold a secret, which must not stay in our memory.
        let (owned, content) = (path.to_owned(), Zeroizing::new(content.to_owned()));
        blocking(format!("write of {}", path.display()), PATIENCE, move || files::replace(&owned, &content, mode, true))
            .await
    }

    async fn replace_unsynced(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        let (owned, content) = (path.to_owned(), Zeroizing::new(content.to_owned()));
        blocking(format!("write of {}", path.display()), PATIENCE, move || {
            files::replace(&owned, &content, mode, false)
        })
        .await
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let (old, new) = (from.to_owned(), to.to_owned());
        blocking(format!("rename of {}", from.display()), PATIENCE, move || files::rename(&old, &new)).await
    }

    async fn reflink(&self, from: &Path, to: &Path) -> Result<FileStat> {
        let (source, target) = (from.to_owned(), to.to_owned());
        blocking(format!("share of {}", from.display()), PATIENCE, move || files::reflink(&source, &target)).await
    }

    async fn copy(&self, from: &Path, to: &Path, deadline: Instant) -> Result<FileStat> {
        let (source, target, step) = (from.to_owned(), to.to_owned(), step::current());
        let left = deadline.saturating_duration_since(Instant::now());
        // It ends by itself when the time is over, unless a disk hangs.
        blocking(format!("copy of {}", from.display()), left + PATIENCE, move || {
            files::copy(&source, &target, left, step.as_ref())
        })
        .await
    }

    async fn openers(&self, file: &Path) -> Result<Vec<User>> {
        let owned = file.to_owned();
        blocking(format!("search for users of {}", file.display()), PATIENCE, move || Ok(usage::of_file(&owned))).await
    }

    async fn remove(&self, path: &Path) -> Result<()> {
        let owned = path.to_owned();
        blocking(format!("removal of {}", path.display()), PATIENCE, move || files::remove(&owned)).await
    }

    async fn link(&self, name: &Path, target: &Path) -> Result<()> {
        // On no thread: /dev and /run are in memory, and answer.
        files::link(name, target)
    }

    async fn make_directory(&self, path: &Path) -> Result<()> {
        let owned = path.to_owned();
        blocking(format!("directory {}", path.display()), PATIENCE, move || files::make_directory(&owned)).await
    }

    async fn symlink(&self, name: &Path, target: &Path) -> Result<()> {
        let (name, target) = (name.to_owned(), target.to_owned());
        blocking("symbolic link", PATIENCE, move || files::symlink(&name, &target)).await
    }

    async fn attributes(&self, path: &Path, prefix: &str) -> Result<BTreeMap<String, String>> {
        let (owned, prefix) = (path.to_owned(), prefix.to_owned());
        self.look(files::parent(path), path, move || files::attributes(&owned, &prefix)).await
    }

    async fn set_attributes(&self, path: &Path, attributes: &[(&str, Option<&str>)]) -> Result<()> {
        let attributes: Vec<(String, Option<String>)> =
            attributes.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
        let owned = path.to_owned();
        blocking(format!("attributes of {}", path.display()), PATIENCE, move || {
            files::set_attributes(&owned, &attributes)
        })
        .await
    }

    async fn rest(&self) {
        // On a thread: it goes through the whole heap.
        let _panicked = tokio::task::spawn_blocking(memory::give_back).await;
    }

    async fn reach(&self, address: SocketAddr, deadline: Instant) -> Result<()> {
        match timeout_at(deadline, TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::Unreachable { why: error.kind().to_string() }),
            Err(_) => Err(Error::Unreachable { why: "no answer".into() }),
        }
    }

    fn facts(&self) -> Result<Facts> {
        let system = uname().map_err(|errno| Error::io("ask the name of", "/")(errno.into()))?;
        let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
        let boot_id = self.read(Path::new("/proc/sys/kernel/random/boot_id"))?.unwrap_or_default();
        Ok(Facts {
            name: text(system.nodename()),
            kernel: text(system.release()),
            platform: text(system.machine()),
            boot_id,
            addresses: netlink::addresses(),
        })
    }

    fn clock(&self) -> Result<Clock> {
        clock::clock()
    }

    async fn room(&self, path: &Path, limit: Duration) -> Result<Room> {
        let owned = path.to_owned();
        blocking(format!("look at the room of {}", path.display()), limit, move || files::room(&owned)).await
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    match read_all(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            Ok(Some(text.strip_suffix('\n').unwrap_or(&text).to_owned()))
        }
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// What the kernel makes as it is read has no size before. An attribute in sysfs comes in one piece, shorter than a page
/// (sysfs(5)): that is three system calls, where `fs::read` makes six. A table in /proc comes page by page, where `fs::read`
/// begins with 32 bytes.
fn read_all(path: &Path) -> io::Result<Vec<u8>> {
    const PAGE: usize = 4096;
    if path.starts_with("/proc") {
        let mut bytes = Vec::with_capacity(4 * PAGE);
        fs::File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    if !path.starts_with("/sys") {
        return fs::read(path);
    }
    let mut file = fs::File::open(path)?;
    let mut bytes = vec![0; PAGE];
    let length = file.read(&mut bytes)?;
    bytes.truncate(length);
    if length == PAGE {
        file.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn list(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("list", directory))?.file_name();
        names.extend(name.into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// The kernel's two ways to say that something is not there, and sysfs's third: an attribute of a device that went.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    };

    #[test]
    fn what_waited_too_long_for_a_thread_is_not_done() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (answer, kernel) = mpsc::channel::<()>();
            let soon = Duration::from_millis(20);
            let hung = blocking("hangs", soon, move || {
                let _answered = kernel.recv();
                Ok(())
            });
            assert!(hung.await.is_err());
            let done = Arc::new(AtomicBool::new(false));
            let write = |limit| {
                let done = Arc::clone(&done);
                blocking("write", limit, move || {
                    done.store(true, Ordering::SeqCst);
                    Ok(())
                })
            };
            assert!(matches!(write(soon).await, Err(Error::TimedOut { .. })));
            // One whose caller goes before its time is over.
            assert!(timeout(soon, write(PATIENCE)).await.is_err());
            drop(answer);
            blocking("the next", PATIENCE, || Ok(())).await.unwrap();
            assert!(!done.load(Ordering::SeqCst), "it was done behind its caller's back");
        });
    }
}
