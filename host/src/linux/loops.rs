//! Loop devices through their ioctls (loop(4), `include/uapi/linux/loop.h`): no process, and the kernel itself says which
//! file a device is bound to.

use super::{blocking, open_device};
use crate::{Error, LoopDevice, LoopSetup, Result};
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout_at},
};

const CONTROL: &str = "/dev/loop-control";
/// How long sysfs is read for the list of all devices, and then they are asked: ten seconds together.
const LIST_LIMIT: Duration = Duration::from_secs(8);
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// A device that takes longer to answer keeps the others waiting no more.
const SOON: Duration = Duration::from_millis(100);
/// The smallest block that the kernel knows, and the one for buffered I/O.
const SECTOR: u32 = 512;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LO_NAME_SIZE: usize = 64;
/// The next free device can be taken by somebody else before we bind it; more often than this is not chance.
const TRIES: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    lo_device: u64,
    lo_inode: u64,
    lo_rdevice: u64,
    lo_offset: u64,
    lo_sizelimit: u64,
    lo_number: u32,
    lo_encrypt_type: u32,
    lo_encrypt_key_size: u32,
    lo_flags: u32,
    lo_file_name: [u8; LO_NAME_SIZE],
    lo_crypt_name: [u8; LO_NAME_SIZE],
    lo_encrypt_key: [u8; 32],
    lo_init: [u64; 2],
}

impl LoopInfo64 {
    const NONE: Self = Self {
        lo_device: 0,
        lo_inode: 0,
        lo_rdevice: 0,
        lo_offset: 0,
        lo_sizelimit: 0,
        lo_number: 0,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags: 0,
        lo_file_name: [0; LO_NAME_SIZE],
        lo_crypt_name: [0; LO_NAME_SIZE],
        lo_encrypt_key: [0; 32],
        lo_init: [0; 2],
    };
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
nix::ioctl_read_bad!(loop_get_status64, 0x4C05, LoopInfo64);
nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);
nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);
nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);

/// A device's name, and the path of the file that it is bound to as sysfs shows it: the kernel's own memory, which never
/// hangs.
type Named = (String, String);

/// Every loop device that is bound.
pub(super) fn bound() -> Result<Vec<Named>> {
    let directory = Path::new("/sys/block");
    let mut bound = Vec::new();
    for name in super::list(directory)?.into_iter().filter(|name| name.starts_with("loop")) {
        let file = file_of(&name)?;
        bound.extend(file.map(|file| (name, file)));
    }
    Ok(bound)
}

fn file_of(name: &str) -> Result<Option<String>> {
    super::read(&Path::new("/sys/block").join(name).join("loop/backing_file"))
}

/// The questions that are not answered yet. A device that never answers holds one thread, not one more with every list.
#[derive(Debug, Default)]
pub(super) struct Unanswered(Mutex<BTreeMap<Named, AbortHandle>>);

pub(super) async fn list(unanswered: &Unanswered) -> Result<Vec<LoopDevice>> {
    let bound = blocking("list of the loop devices", LIST_LIMIT, bound).await?;
    Ok(unanswered.ask_all(bound, ASK_LIMIT, ask).await)
}

pub(super) async fn one(unanswered: &Unanswered, name: &str) -> Result<Option<LoopDevice>> {
    let Some(file) = file_of(name)? else { return Ok(None) };
    Ok(unanswered.ask_all(vec![(name.to_owned(), file)], ASK_LIMIT, ask).await.pop())
}

/// Of a list: who is still to be asked, who is asked just now and by which thread, and what was answered.
#[derive(Debug, Default)]
struct Round {
    waiting: VecDeque<Named>,
    asked: BTreeMap<usize, Named>,
    answers: Vec<(Named, Result<Option<LoopDevice>>)>,
}

impl Round {
    /// Takes a thread's answer, if it has one, and gives it the next device.
    fn next(&mut self, thread: usize, answer: Option<Result<Option<LoopDevice>>>) -> Option<Named> {
        self.answers.extend(self.asked.remove(&thread).zip(answer));
        let device = self.waiting.pop_front()?;
        self.asked.insert(thread, device.clone());
        Some(device)
    }
}

impl Unanswered {
    /// One thread asks them all, one after the other: there may be a thousand. The kernel may look at a device's file for its
    /// answer, so a server that is gone can keep it (or have it fail); then another thread goes on with the rest.
    async fn ask_all(
        &self,
        bound: Vec<Named>,
        limit: Duration,
        ask: impl Fn(&Named) -> Result<Option<LoopDevice>> + Clone + Send + 'static,
    ) -> Vec<LoopDevice> {
        let deadline = Instant::now() + limit;
        let left_out = |(name, file): &Named, why: &dyn std::fmt::Display| {
            tracing::warn!("/dev/{name}, bound to {file}, is left out of the list of loop devices: {why}");
        };
        let (silent, waiting): (Vec<_>, _) = bound.into_iter().partition(|device| self.is_waited_for(device));
        silent.iter().for_each(|device| left_out(device, &"it still has not answered"));
        let round = Arc::new(Mutex::new(Round { waiting: VecDeque::from(waiting), ..Round::default() }));
        let (mut threads, mut handles, mut answered) = (JoinSet::new(), Vec::new(), 0);
        loop {
            let (ask, shared, number) = (ask.clone(), Arc::clone(&round), handles.len());
            handles.push(threads.spawn_blocking(move || {
                let next = |answer| locked(&shared).next(number, answer);
                let mut device = next(None);
                while let Some(some) = &device {
                    device = next(Some(ask(some)));
                }
            }));
            if !stands_still(&round, &mut threads, &mut answered, deadline).await {
                break;
            }
        }
        let Round { waiting, asked, answers } = std::mem::take(&mut *locked(&round));
        threads.detach_all();
        waiting.iter().for_each(|device| left_out(device, &"others kept us from asking it"));
        for (thread, device) in asked {
            left_out(&device, &"it does not answer");
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(device, handles[thread].clone());
        }
        let mut found = Vec::new();
        for (device, answer) in answers {
            match answer {
                Ok(answer) => found.extend(answer),
                Err(error) => left_out(&device, &error),
            }
        }
        found.sort_by(|one: &LoopDevice, other| one.name.cmp(&other.name));
        found
    }

    fn is_waited_for(&self, device: &Named) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, thread| !thread.is_finished());
        waiting.contains_key(device)
    }
}

fn locked(round: &Mutex<Round>) -> MutexGuard<'_, Round> {
    round.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until all are answered, or the time is over; `true`, as soon as a device keeps a thread and others wait behind it.
async fn stands_still(
    round: &Mutex<Round>,
    threads: &mut JoinSet<()>,
    answered: &mut usize,
    deadline: Instant,
) -> bool {
    loop {
        match timeout_at(deadline.min(Instant::now() + SOON), threads.join_next()).await {
            Ok(Some(Ok(()))) => {}
            Ok(Some(Err(panic))) => std::panic::resume_unwind(panic.into_panic()),
            Ok(None) => return false,
            Err(_) if Instant::now() >= deadline => return false,
            Err(_) => {
                let round = locked(round);
                let before = std::mem::replace(answered, round.answers.len());
                if before == *answered && !round.waiting.is_empty() {
                    return true;
                }
            }
        }
    }
}

fn ask((name, file): &Named) -> Result<Option<LoopDevice>> {
    let node = Path::new("/dev").join(name);
    let fd = match open_device(&node, OFlag::O_RDONLY) {
        Ok(fd) => fd,
        Err(Error::Io { source, .. }) if super::is_absent(&source) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(status(&fd, &node)?.map(|info| {
        let label = info.lo_file_name.split(|byte| *byte == 0).next().unwrap_or_default();
        LoopDevice {
            name: name.clone(),
            file_device: info.lo_device,
            file_inode: info.lo_inode,
            file: file.into(),
            label: String::from_utf8_lossy(label).into_owned(),
            direct_io: info.lo_flags & LO_FLAGS_DIRECT_IO != 0,
            autoclear: info.lo_flags & LO_FLAGS_AUTOCLEAR != 0,
        }
    }))
}

/// What the kernel knows of a loop device; `None` if it is bound to nothing.
fn status(device: &OwnedFd, node: &Path) -> Result<Option<LoopInfo64>> {
    let mut info = LoopInfo64::NONE;
    // SAFETY: the structure has the layout of `loop_info64`; it and the descriptor live for the whole call.
    #[expect(unsafe_code, reason = "ioctl")]
    match unsafe { loop_get_status64(device.as_raw_fd(), &raw mut info) } {
        // The kernel keeps st_dev in its old 32-bit form (`huge_encode_dev`), which stat(2) uses as well.
        Ok(_) => Ok(Some(info)),
        Err(nix::Error::ENXIO) => Ok(None),
        Err(errno) => Err(Error::io("ask", node)(errno.into())),
    }
}

pub(super) fn attach(setup: &LoopSetup) -> Result<PathBuf> {
    let access = if setup.read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
    let flags = access | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = open(&on_the_hosts_mounts(&setup.file), flags, Mode::empty())
        .map_err(|errno| Error::io("open", &setup.file)(errno.into()))?;
    let file = File::from(file);
    let control = open_device(Path::new(CONTROL), OFlag::O_RDWR)?;
    let meta = file.metadata().map_err(Error::io("look at", &setup.file))?;
    let disk = disk_block_size(meta.dev());
    let (block_size, mut buffered_because) = match block_size(meta.size(), disk) {
        size if size == disk => (size, "the kernel does not do it there".to_owned()),
        size => (size, format!("its size is no multiple of {disk}, its disk's block size")),
    };
    let mut config = LoopConfig {
        fd: u32::try_from(file.as_raw_fd()).unwrap_or_default(),
        block_size,
        info: LoopInfo64::NONE,
        reserved: [0; 8],
    };
    config.info.lo_flags = LO_FLAGS_DIRECT_IO | if setup.read_only { LO_FLAGS_READ_ONLY } else { 0 };
    for (to, from) in config.info.lo_file_name.iter_mut().take(LO_NAME_SIZE - 1).zip(setup.label.bytes()) {
        *to = from;
    }
    for _ in 0..TRIES {
        let node = free(&control)?;
        let device = match open_device(&node, access) {
            Ok(device) => device,
            Err(Error::Busy { .. }) => continue,
            Err(error) => return Err(error),
        };
        // SAFETY: the structure has the layout of `loop_config`; it and the descriptors live for the whole call.
        #[expect(unsafe_code, reason = "ioctl")]
        match unsafe { loop_configure(device.as_raw_fd(), &raw const config) } {
            Ok(_) => {
                if matches!(status(&device, &node), Ok(Some(info)) if info.lo_flags & LO_FLAGS_DIRECT_IO == 0) {
                    let (node, file) = (node.display(), setup.file.display());
                    tracing::info!("{node} has no direct I/O to {file}: {buffered_because}");
                }
                return Ok(node);
            }
            Err(nix::Error::EBUSY) => {}
            // Some kernels bind without direct I/O where a file system (tmpfs, say) has none; others refuse.
            Err(nix::Error::EINVAL) if config.info.lo_flags & LO_FLAGS_DIRECT_IO != 0 => {
                config.info.lo_flags &= !LO_FLAGS_DIRECT_IO;
                config.block_size = SECTOR;
                buffered_because = "its file system refuses it".to_owned();
            }
            Err(errno) => return Err(Error::io("bind a loop device to", &setup.file)(errno.into())),
        }
    }
    Err(Error::io("find a free loop device for", &setup.file)(io::ErrorKind::ResourceBusy.into()))
}

fn free(control: &OwnedFd) -> Result<PathBuf> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open for the whole call.
    #[expect(unsafe_code, reason = "ioctl")]
    let number = unsafe { loop_ctl_get_free(control.as_raw_fd()) }
        .map_err(|errno| Error::io("find a free loop device with", CONTROL)(errno.into()))?;
    Ok(PathBuf::from(format!("/dev/loop{number}")))
}

/// A file as the host's first process has it, whose mounts are the host's. systemd gives us a mount namespace of our own,
/// which goes with us: a file that was opened in it would not keep its file system from being unmounted afterwards, though
/// a loop device is bound to it.
fn on_the_hosts_mounts(file: &Path) -> PathBuf {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let ours = namespace("self");
    if ours.is_none() || namespace("1").is_none_or(|hosts| Some(hosts) == ours) {
        return file.to_owned();
    }
    // Links on the way would lead into our own mounts again.
    let directory = file.parent().and_then(|directory| fs::canonicalize(directory).ok());
    match (directory, file.file_name()) {
        (Some(directory), Some(name)) => {
            let below = directory.strip_prefix("/").unwrap_or(&directory);
            Path::new("/proc/1/root").join(below).join(name)
        }
        _ => file.to_owned(),
    }
}

/// The block size for a file on a disk with blocks of `disk` bytes: those, as direct I/O needs, unless the device's last
/// block would be a part of one, which nobody could read.
fn block_size(size_bytes: u64, disk: u32) -> u32 {
    if size_bytes.is_multiple_of(u64::from(disk)) { disk } else { SECTOR }
}

/// The block size of the disk under a file system; 512 where that is unknown.
fn disk_block_size(device: u64) -> u32 {
    let of = |directory: PathBuf| fs::read_to_string(directory.join("queue/logical_block_size")).ok();
    let here =
        PathBuf::from(format!("/sys/dev/block/{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device)));
    // A partition has no queue of its own; its disk is the directory above.
    let text = of(here.clone()).or_else(|| of(fs::canonicalize(here).ok()?.parent()?.to_owned()));
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(SECTOR)
}

pub(super) fn detach(device: &Path) -> Result<()> {
    let fd = open_loop(device)?;
    // SAFETY: LOOP_CLR_FD takes no argument; the descriptor is open for the whole call.
    #[expect(unsafe_code, reason = "ioctl")]
    match unsafe { loop_clr_fd(fd.as_raw_fd()) } {
        Ok(_) | Err(nix::Error::ENXIO) => Ok(()),
        Err(errno) => Err(Error::io("unbind", device)(errno.into())),
    }
}

pub(super) fn resize(device: &Path) -> Result<()> {
    let fd = open_loop(device)?;
    // SAFETY: LOOP_SET_CAPACITY takes no argument; the descriptor is open for the whole call.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { loop_set_capacity(fd.as_raw_fd()) }.map_err(|errno| Error::io("resize", device)(errno.into()))?;
    Ok(())
}

fn open_loop(device: &Path) -> Result<OwnedFd> {
    let fd = open_device(device, OFlag::O_RDONLY)?;
    let is_block = fs::metadata(device).map_err(Error::io("look at", device))?.file_type().is_block_device();
    if is_block { Ok(fd) } else { Err(Error::io("use", device)(io::Error::other("it is no block device"))) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{Host, Linux, block_device, wait_for};
    use std::sync::Condvar;

    /// The real machine, where it has loop devices that we may bind; a test ends without one.
    pub(in crate::linux) fn host() -> Option<Linux> {
        match open_device(Path::new(CONTROL), OFlag::O_RDWR) {
            Ok(_) => Some(Linux::new(1)),
            Err(error) => {
                println!("skipped, no loop devices here: {error}");
                None
            }
        }
    }

    /// A loop device that goes with the test.
    pub(in crate::linux) struct Bound {
        pub(in crate::linux) node: PathBuf,
        file: PathBuf,
    }

    impl Bound {
        pub(in crate::linux) async fn new(host: &Linux, file: &Path) -> Self {
            let setup = LoopSetup { file: file.into(), read_only: false, label: "mortar test".into() };
            Self { node: host.loop_attach(&setup).await.unwrap(), file: file.into() }
        }

        fn name(&self) -> &str {
            self.node.file_name().unwrap().to_str().unwrap()
        }

        /// Whether it is still this device, and not another test's under the same name.
        fn is_there(&self) -> bool {
            let shown = Path::new("/sys/block").join(self.name()).join("loop/backing_file");
            super::super::read(&shown).unwrap().is_some_and(|file| self.file == Path::new(&file))
        }

        async fn listed(&self, host: &Linux) -> Option<LoopDevice> {
            let devices = host.loop_devices().await.unwrap();
            devices.into_iter().find(|device| device.name == self.name() && device.label == "mortar test")
        }
    }

    impl Drop for Bound {
        fn drop(&mut self) {
            if self.is_there() {
                detach(&self.node).unwrap();
            }
        }
    }

    fn file(directory: &Path, size_bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new_in(directory).unwrap();
        file.as_file().set_len(size_bytes).unwrap();
        file
    }

    #[tokio::test]
    async fn a_device_tells_its_file_and_goes_with_its_last_user() {
        let Some(host) = host() else { return };
        let file = file(&std::env::temp_dir(), 9 * 512);
        let bound = Bound::new(&host, file.path()).await;
        let listed = bound.listed(&host).await.unwrap();
        let stat = host.stat(file.path()).unwrap().unwrap();
        assert_eq!((listed.file_device, listed.file_inode), (stat.device, stat.inode));
        assert_eq!((listed.file.as_path(), listed.autoclear), (file.path(), false));
        let block = block_device(&host, bound.name()).unwrap().unwrap();
        assert_eq!((block.size_bytes, block.logical_block_size), (9 * 512, 512));

        let user = File::open(&bound.node).unwrap();
        host.loop_detach(&bound.node).await.unwrap();
        assert!(bound.listed(&host).await.unwrap().autoclear);
        drop(user);
        let gone = || Ok((!bound.is_there()).then_some(()));
        let soon = Instant::now() + Duration::from_secs(20);
        assert!(wait_for(&host, soon, gone).await.unwrap().is_some(), "{} stayed", bound.node.display());
    }

    #[tokio::test]
    async fn a_file_in_memory_can_be_bound() {
        let Some(host) = host() else { return };
        let memory = Path::new("/dev/shm");
        if !memory.is_dir() {
            println!("skipped, no tmpfs at {}", memory.display());
            return;
        }
        let file = file(memory, 1 << 20);
        let bound = Bound::new(&host, file.path()).await;
        assert!(bound.listed(&host).await.is_some());
    }

    #[test]
    fn no_part_of_a_block_is_cut_off() {
        assert_eq!(block_size(1 << 20, 512), 512);
        assert_eq!(block_size(1 << 20, 4096), 4096);
        assert_eq!(block_size((1 << 20) + 512, 4096), 512);
    }

    #[tokio::test]
    async fn a_device_that_does_not_answer_hides_no_other_and_is_asked_once() {
        let (unanswered, server_is_back) = (Unanswered::default(), Arc::new((Mutex::new(false), Condvar::new())));
        let questions = Arc::new(Mutex::new(Vec::new()));
        let ask = {
            let (server_is_back, questions) = (Arc::clone(&server_is_back), Arc::clone(&questions));
            move |(name, file): &Named| {
                questions.lock().unwrap().push(name.clone());
                match name.as_str() {
                    "loop0" => return Err(Error::Busy { path: file.into() }),
                    "loop1" => {
                        let (is_back, changed) = &*server_is_back;
                        let _back = changed.wait_while(is_back.lock().unwrap(), |is_back| !*is_back).unwrap();
                    }
                    _ => {}
                }
                Ok(Some(LoopDevice {
                    name: name.clone(),
                    file_device: 1,
                    file_inode: 1,
                    file: file.into(),
                    label: String::new(),
                    direct_io: true,
                    autoclear: false,
                }))
            }
        };
        let list = async || {
            let bound = ["loop0", "loop1", "loop2"].map(|name| (name.to_owned(), format!("/srv/{name}"))).to_vec();
            let found = unanswered.ask_all(bound, Duration::from_millis(500), ask.clone()).await;
            found.into_iter().map(|device| device.name).collect::<Vec<_>>()
        };
        assert_eq!(list().await, ["loop2"]);
        assert_eq!(list().await, ["loop2"]);
        assert_eq!(questions.lock().unwrap().iter().filter(|name| *name == "loop1").count(), 1);

        *server_is_back.0.lock().unwrap() = true;
        server_is_back.1.notify_all();
        let deadline = Instant::now() + Duration::from_secs(20);
        while list().await != ["loop1", "loop2"] {
            assert!(Instant::now() < deadline, "loop1 never came back");
        }
    }
}
