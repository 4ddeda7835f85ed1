//! A machine in memory that answers as the real one does: files, processes, block devices, uevents, without root.
//!
//! Every call that changes something is a numbered *effect*. A test lets the machine die after any of them
//! ([`Machine::crash_after`]), starts the process again ([`Machine::restart`]) or the whole host ([`Machine::reboot`]), and
//! compares what is left with what was there before ([`Machine::snapshot`]). What the crash kills is the process under
//! test: its calls never return. The machine itself keeps its state, as a host does when a daemon dies.
//!
//! The world behind it is one struct under one lock. Each backend adds one module with its own part of that struct, and
//! answers for its tool, its attributes and its devices through the hooks named in [`World`].

mod files;
pub mod iscsi;
mod loops;
pub mod lvm;
mod multipath;
mod process;
pub mod rbd;
pub mod target;
mod world;

pub(crate) use files::{Files, Node};
pub use process::{Fault, Held};
pub(crate) use world::{Reach, World};

use crate::{
    Claim, Clock, Command, Error, Facts, FileStat, Host, KernelKey, LoopDevice, LoopSetup, Output, Result, Room, Tool,
    Uevents, User, step,
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, timeout_at};

/// A simulated machine, or rather one process's view of it: a clone is another view of the same machine, and belongs to
/// the same process.
///
/// After [`Machine::restart`] or [`Machine::reboot`] the view that was restarted belongs to a new process. Views cloned
/// before belong to the dead one: as a [`Host`] they never answer again. What a test asks (everything outside of `Host`)
/// works on any of them.
#[derive(Clone)]
pub struct Machine {
    world: Arc<Mutex<World>>,
    /// The process that this view belongs to.
    life: u64,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Machine of process {}", self.life)
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

/// What a test does to a machine.
impl Machine {
    /// A machine that has just booted, with every tool and kernel module and nothing on it.
    pub fn new() -> Self {
        Self { world: Arc::new(Mutex::new(World::new())), life: 0 }
    }

    /// The `n`-th effect from now still happens, then its call and every later one never returns. 0: already now.
    pub fn crash_after(&self, n: usize) {
        self.with(|world| world.process.crash_after(n));
    }

    /// As the next tool whose run is named so begins, the process dies. The tool does its work all the same, so much later.
    pub fn crash_as_it_begins(&self, name: impl Into<String>, after: Duration) {
        self.with(|world| world.process.die_of(name.into(), after));
    }

    /// Ends when the process is dead.
    pub async fn crashed(&self) {
        let mut dead = self.with(|world| world.process.watch());
        // The sender lives in the world, which lives at least as long as `self`.
        let _seen = dead.wait_for(|dead| *dead).await;
    }

    /// Ends the process, if it lives, and starts the next one. The machine keeps its state.
    pub fn restart(&mut self) {
        self.life = self.with(|world| world.process.start_next());
    }

    /// Turns the machine off and on: what is on its disks stays, all else is new.
    pub fn reboot(&mut self) {
        self.restart();
        self.with(World::boot);
    }

    /// The next call whose name holds `name` fails: it does nothing, and ends as `fault` says. Calls are named as in
    /// [`Machine::effects`]; those that change nothing as `inquiry /dev/sdb`, `claim …`, `users …`, `head …`, `reach …`,
    /// `loop_devices`, `attributes …`.
    /// A time-out ends after the time that the call was given.
    pub fn fail_next(&self, name: impl Into<String>, fault: impl Into<Fault>) {
        self.with(|world| world.process.fail_next(name.into(), fault.into(), false));
    }

    /// As [`Machine::fail_next`], but what the call was to do is done before it fails.
    pub fn lose_next(&self, name: impl Into<String>, fault: impl Into<Fault>) {
        self.with(|world| world.process.fail_next(name.into(), fault.into(), true));
    }

    /// What was to fail, or to end the process, and has not come to it does not any more.
    pub fn forget_faults(&self) {
        self.with(|world| world.process.forget_faults());
    }

    /// Just before the next call whose name holds `name`, somebody else does something: for races.
    pub fn before_next(&self, name: impl Into<String>, interfere: impl FnOnce(&Machine) + Send + 'static) {
        self.with(|world| world.process.interfere(name.into(), Box::new(interfere)));
    }

    /// After so many effects more, the next call whose name holds `name` waits in the kernel until it is let go. Who gives
    /// it up before does not get it done.
    pub fn hang(&self, effects: usize, name: impl Into<String>) -> Held {
        self.with(|world| world.process.hang(effects, name.into()))
    }

    /// The effects so far, each with the name of its call: `run lvm lvchange …`, `write /sys/…`, `rename A B`.
    pub fn effects(&self) -> Vec<String> {
        self.with(|world| world.process.effects().to_vec())
    }

    /// The command lines of all processes that were started.
    pub fn commands(&self) -> Vec<String> {
        self.with(|world| world.process.commands().to_vec())
    }

    /// How many processes were started.
    pub fn processes(&self) -> u64 {
        self.with(|world| world.process.commands().len() as u64)
    }

    /// All that can be seen of the machine, as text whose lines are sorted: files, devices, users and what the backends
    /// hold. Inodes, unbound loop devices and empty directories in `/dev`, `/run` and `/sys` are left out.
    pub fn snapshot(&self) -> String {
        self.with(|world| world.snapshot())
    }

    /// Takes a tool from the machine.
    pub fn remove_tool(&self, tool: Tool) {
        self.with(|world| world.tools.remove(&tool));
    }

    /// Sets the machine's clock.
    pub fn set_clock(&self, clock: Clock) {
        self.with(|world| world.clock = clock);
    }

    /// Lets every file system have so much room.
    pub fn set_room(&self, room: Room) {
        self.with(|world| world.room = room);
    }

    /// The disk that the process keeps its own on is full, or (`false`) has room again: no commit is taken.
    pub fn fill_disk(&self, full: bool) {
        self.with(|world| world.disk_full = full);
    }

    /// Sets the clock, which stands still from then on.
    pub fn set_now(&self, time: SystemTime) {
        self.with(|world| world.now = Some(time));
    }

    /// Writes a file, which keeps its identity if it is there. Missing directories are made.
    pub fn put_file(&self, path: impl AsRef<Path>, text: impl Into<String>) {
        self.with(|world| world.files.put(path, text));
    }

    /// Puts a new raw file of zeros in place of whatever has the name.
    pub fn put_raw(&self, path: impl AsRef<Path>, size_bytes: u64) {
        self.with(|world| world.files.create(path, Vec::new(), size_bytes, 0o600));
    }

    /// Its file systems share blocks between files (`FICLONE`), or (`false`) know nothing of it.
    pub fn set_reflinks(&self, known: bool) {
        self.with(|world| world.files.reflinks = known);
    }

    /// Writes a file of bytes, which begins anew if it is there.
    pub fn put_bytes(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        self.with(|world| world.files.create(path, bytes.to_vec(), bytes.len() as u64, 0o600));
    }

    /// Removes a raw file and makes one of zeros, which is given its number, as ext4 does.
    pub fn recreate_raw(&self, path: impl AsRef<Path>) {
        self.with(|world| {
            let file = world.files.file_mut(&path).expect("a test makes anew a file that was there");
            file.content.clear();
            file.attributes.clear();
        });
    }

    /// Lets a file grow or shrink.
    pub fn truncate(&self, path: impl AsRef<Path>, size_bytes: u64) {
        self.with(|world| {
            let file = world.files.file_mut(&path).expect("a test truncates a file that is there");
            file.size_bytes = size_bytes;
            file.content.truncate(usize::try_from(size_bytes).expect("a file in memory"));
        });
    }

    /// Makes a directory, and those above it.
    pub fn put_directory(&self, path: impl AsRef<Path>) {
        self.with(|world| world.files.make_directory(path));
    }

    /// Makes or replaces a link.
    pub fn put_link(&self, name: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.with(|world| world.files.link(name, target));
    }

    /// Gives a file a second name. What is written under one of them is not seen under the other.
    pub fn put_hard_link(&self, file: impl AsRef<Path>, name: impl AsRef<Path>) {
        self.with(|world| world.files.hard_link(file, name));
    }

    /// Removes whatever has the name, with all below it.
    pub fn remove_tree(&self, path: impl AsRef<Path>) {
        self.with(|world| world.remove_tree(path.as_ref()));
    }

    /// Gives a file or a directory another name, over whatever has it.
    pub fn move_tree(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) {
        self.with(|world| {
            world.remove_tree(to.as_ref());
            world.rename(from.as_ref(), to.as_ref());
        });
    }

    /// Mounts a device: `mount("sdb", "/mnt/a")`.
    pub fn mount(&self, device: &str, at: &str) {
        self.engage(device, User::Mount { at: at.into(), seen_by: None });
    }

    /// Puts a device on top of another: `hold("sdb", "dm-7", "guest-root")`.
    pub fn hold(&self, device: &str, name: &str, label: &str) {
        self.engage(device, User::Holder { name: name.into(), label: label.into() });
    }

    /// Lets a process open a device: `open("sdb", 4711, "qemu-system-x86")`.
    pub fn open(&self, device: &str, pid: u32, command: &str) {
        self.engage(device, User::Opener { pid, command: command.into() });
    }

    /// Gives a device a user of any sort.
    pub fn engage(&self, device: &str, user: User) {
        self.with(|world| world.users.entry(device.into()).or_default().push(user));
    }

    /// The server with a loop device's file is gone, or (`false`) back: while it is, the device does not tell its file.
    pub fn silence_loop(&self, device: &str, silent: bool) {
        self.with(|world| world.loops.silence(device, silent));
    }

    /// Somebody unbinds a loop device at the shell, and binds it to another file.
    pub fn rebind_loop(&self, device: &str, file: impl AsRef<Path>) {
        self.with(|world| loops::rebind(world, device, file.as_ref()));
    }

    /// A process has nothing open any more.
    pub fn close(&self, pid: u32) {
        self.with(|world| {
            for users in world.users.values_mut() {
                users.retain(|user| !matches!(user, User::Opener { pid: other, .. } if *other == pid));
            }
            world.users.retain(|_, users| !users.is_empty());
            loops::released(world);
        });
    }

    /// Takes all users of a device away.
    pub fn release(&self, device: &str) {
        self.with(|world| {
            world.users.remove(device);
            loops::released(world);
        });
    }

    /// The world, for the test-facing methods of the backends.
    pub(crate) fn with<T>(&self, ask: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.lock();
        let answer = ask(&mut world);
        self.let_time_pass(&mut world);
        answer
    }
}

/// How calls reach the world.
impl Machine {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call of the process. It never returns if the process is dead, or dies of it.
    async fn call<T>(&self, name: &str, ask: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        self.held(name).await;
        self.do_call(name, ask).await
    }

    /// Waits where a test wants it to.
    async fn held(&self, name: &str) {
        let Some(held) = self.with(|world| world.process.holds(self.life, name)) else { return };
        let step = step::current();
        let let_go = async move {
            held.until_let_go().await;
            drop(step);
        };
        // Whether somebody waits for it or not.
        let _let_go = tokio::spawn(let_go).await;
    }

    async fn do_call<T>(&self, name: &str, ask: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        if let Some(interfere) = self.with(|world| world.process.interference(self.life, name)) {
            interfere(self);
        }
        let answer = {
            let mut world = self.lock();
            if world.process.lives(self.life) {
                let answer = ask(&mut world);
                self.let_time_pass(&mut world);
                world.process.lives(self.life).then_some(answer)
            } else {
                None
            }
        };
        match answer {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    /// As [`Machine::call`], where an answer that comes too late takes its time.
    async fn call_within<T>(
        &self,
        name: &str,
        timeout: Duration,
        ask: impl FnOnce(&mut World) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        if timeout_at(deadline, self.held(name)).await.is_err() {
            return Err(Error::TimedOut { what: name.into(), after: timeout });
        }
        let answer = self.do_call(name, ask).await;
        if let Err(Error::TimedOut { .. }) = &answer {
            tokio::time::sleep_until(deadline).await;
        }
        answer
    }

    /// A call that cannot wait. A dead process gets an error, which nobody will hear of.
    fn look<T>(&self, path: &Path, ask: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        let mut world = self.lock();
        if world.process.lives(self.life) {
            ask(&mut world)
        } else {
            Err(Error::io("read", path)(io::Error::other("the process has crashed")))
        }
    }

    /// Starts what the kernel will do later by itself.
    fn let_time_pass(&self, world: &mut World) {
        for later in std::mem::take(&mut world.later) {
            let (machine, boot, deadline) = (self.clone(), world.boot_id.clone(), Instant::now() + later.after);
            tokio::spawn(async move {
                tokio::time::sleep_until(deadline).await;
                machine.with(|world| {
                    if world.boot_id == boot {
                        (later.what)(world);
                    }
                });
            });
        }
    }
}

#[async_trait]
impl Host for Machine {
    async fn run(&self, command: Command) -> Result<Output> {
        let name = format!("run {}", command.line());
        self.call_within(&name, command.timeout, |world| world.run(&name, &command)).await
    }

    fn tool(&self, tool: Tool) -> Option<PathBuf> {
        self.with(|world| world.tools.contains(&tool).then(|| Path::new("/usr/sbin").join(tool.name())))
    }

    async fn outlived(&self, deadline: Instant) -> Result<Vec<String>> {
        let mut orphans = self.with(|world| world.process.orphans());
        let in_time = timeout_at(deadline, orphans.wait_for(Vec::is_empty)).await.is_ok();
        Ok(if in_time { Vec::new() } else { orphans.borrow().clone() })
    }

    fn read(&self, path: &Path) -> Result<Option<String>> {
        self.look(path, |world| Ok(world.files.text(path)))
    }

    fn list(&self, directory: &Path) -> Result<Vec<String>> {
        self.look(directory, |world| Ok(world.files.list(directory)))
    }

    fn resolve(&self, path: &Path) -> Result<Option<PathBuf>> {
        self.look(path, |world| Ok(world.files.resolve(path)))
    }

    async fn write(&self, attribute: &Path, value: &str) -> Result<()> {
        let name = format!("write {} {value}", attribute.display());
        self.call(&name, |world| world.effect(&name, |world| world.write(attribute, value))).await
    }

    async fn write_with_key(&self, attribute: &Path, value: &str, _key: &KernelKey) -> Result<()> {
        if let Some(held) = self.with(|world| rbd::held(world, attribute)) {
            let _told_or_dropped = held.await;
        }
        self.write(attribute, value).await
    }

    async fn multipathd(&self, request: &str, timeout: Duration) -> Result<String> {
        let name = format!("multipathd {request}");
        let ask = |world: &mut World| {
            if !multipath::runs(world) {
                return Err(Error::Unreachable { why: "multipathd does not run".into() });
            }
            let ask = |world: &mut World| Ok(multipath::answer(world, request));
            if multipath::only_reads(request) { world.attempt(&name, ask) } else { world.effect(&name, ask) }
        };
        self.call_within(&name, timeout, ask).await
    }

    async fn set_read_only(&self, device: &Path, read_only: bool) -> Result<()> {
        let name = format!("set_read_only {} {read_only}", device.display());
        self.call(&name, |world| world.effect(&name, |world| world.set_read_only(device, read_only))).await
    }

    fn uevents(&self) -> Uevents {
        self.with(|world| Uevents::new(world.events.subscribe()))
    }

    async fn inquiry(&self, device: &Path, page: u8, timeout: Duration) -> Result<Vec<u8>> {
        let name = format!("inquiry {} {page:#x}", device.display());
        self.call_within(&name, timeout, |world| world.attempt(&name, |world| world.inquiry(device, page))).await
    }

    async fn claim(&self, device: &Path) -> Result<Claim> {
        let name = format!("claim {}", device.display());
        self.call(&name, |world| world.attempt(&name, |world| world.claim(device))).await.map(|()| Claim(None))
    }

    async fn flush(&self, device: &Path, timeout: Duration) -> Result<()> {
        let name = format!("flush {}", device.display());
        self.call_within(&name, timeout, |world| world.effect(&name, |world| world.block("flush", device).map(drop)))
            .await
    }

    fn open_mapped(&self, uuids: &[String]) -> Result<BTreeSet<String>> {
        self.look(Path::new("/dev/mapper/control"), |world| Ok(lvm::open_mapped(world, uuids)))
    }

    async fn users(&self, device: &Path) -> Result<Vec<User>> {
        let name = format!("users {}", device.display());
        self.call(&name, |world| world.attempt(&name, |world| Ok(world.users_of(&world.block("open", device)?)))).await
    }

    async fn head(&self, path: &Path, length: usize, timeout: Duration) -> Result<Vec<u8>> {
        let name = format!("head {}", path.display());
        self.call_within(&name, timeout, |world| world.attempt(&name, |world| world.head(path, length))).await
    }

    async fn loop_device(&self, name: &str) -> Result<Option<LoopDevice>> {
        let call = format!("loop_device {name}");
        let one = |world: &mut World| Ok(world.loops.list().into_iter().find(|device| device.name == name));
        self.call(&call, |world| world.attempt(&call, one)).await
    }

    async fn loop_devices(&self) -> Result<Vec<LoopDevice>> {
        self.call("loop_devices", |world| world.attempt("loop_devices", |world| Ok(world.loops.list()))).await
    }

    async fn loop_attach(&self, setup: &LoopSetup) -> Result<PathBuf> {
        let name = format!("loop_attach {}", setup.file.display());
        self.call(&name, |world| world.effect(&name, |world| loops::attach(world, setup))).await
    }

    async fn loop_detach(&self, device: &Path) -> Result<()> {
        let name = format!("loop_detach {}", device.display());
        self.call(&name, |world| match world.loops.is_bound(device) {
            true => world.effect(&name, |world| loops::detach(world, device)),
            false => Ok(()),
        })
        .await
    }

    async fn loop_resize(&self, device: &Path) -> Result<()> {
        let name = format!("loop_resize {}", device.display());
        self.call(&name, |world| world.effect(&name, |world| loops::resize(world, device))).await
    }

    fn stat(&self, path: &Path) -> Result<Option<FileStat>> {
        self.look(path, |world| Ok(world.files.stat(path)))
    }

    async fn file(&self, path: &Path) -> Result<Option<FileStat>> {
        let name = format!("file {}", path.display());
        self.call(&name, |world| world.attempt(&name, |world| Ok(world.files.stat(path)))).await
    }

    async fn real_path(&self, path: &Path) -> Result<Option<PathBuf>> {
        let name = format!("real_path {}", path.display());
        self.call(&name, |world| world.attempt(&name, |world| Ok(world.files.resolve(path)))).await
    }

    async fn files(&self, directory: &Path) -> Result<Vec<(String, FileStat)>> {
        let name = format!("files {}", directory.display());
        let list = |world: &mut World| {
            let stat = |name: String| world.files.stat(directory.join(&name)).map(|stat| (name, stat));
            Ok(world.files.list(directory).into_iter().filter_map(stat).collect())
        };
        self.call(&name, |world| world.attempt(&name, list)).await
    }

    async fn replace(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        let put = |world: &mut World| {
            world.files.create(path, content.to_vec(), content.len() as u64, mode);
            Ok(())
        };
        let name = format!("replace {}", path.display());
        // Others go on meanwhile.
        tokio::task::yield_now().await;
        self.call(&name, |world| world.effect(&name, put)).await
    }

    async fn replace_unsynced(&self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        self.replace(path, content, mode).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let rename = |world: &mut World| match (world.files.stat(from), world.files.stat(to)) {
            (_, Some(_)) => Err(Error::Exists { path: to.into() }),
            (None, None) => Err(Error::io("rename", from)(io::ErrorKind::NotFound.into())),
            (Some(_), None) => {
                world.rename(from, to);
                Ok(())
            }
        };
        let name = format!("rename {} {}", from.display(), to.display());
        self.call(&name, |world| world.effect(&name, rename)).await
    }

    async fn reflink(&self, from: &Path, to: &Path) -> Result<FileStat> {
        let share = |world: &mut World| match world.files.reflinks {
            true => copy(world, from, to),
            false => Err(Error::io("share the blocks of", from)(io::ErrorKind::Unsupported.into())),
        };
        let name = format!("reflink {} {}", from.display(), to.display());
        self.call(&name, |world| match world.files.reflinks {
            true => world.effect(&name, share),
            false => world.attempt(&name, share),
        })
        .await
    }

    async fn copy(&self, from: &Path, to: &Path, deadline: Instant) -> Result<FileStat> {
        let name = format!("copy {} {}", from.display(), to.display());
        let left = deadline.saturating_duration_since(Instant::now());
        self.call_within(&name, left, |world| world.effect(&name, |world| copy(world, from, to))).await
    }

    async fn openers(&self, file: &Path) -> Result<Vec<User>> {
        let name = format!("openers {}", file.display());
        let key = file.display().to_string();
        self.call(&name, |world| world.attempt(&name, |world| Ok(world.users_of(&key)))).await
    }

    async fn remove(&self, path: &Path) -> Result<()> {
        let name = format!("remove {}", path.display());
        self.call(&name, |world| match world.files.stat(path) {
            None => Ok(()),
            Some(_) if target::is_ours(path) => match target::is_empty(world, path) {
                true => world.effect(&name, |world| target::remove(world, path)),
                false => Ok(()),
            },
            Some(stat) if stat.is_directory && !world.files.list(path).is_empty() => Ok(()),
            Some(_) => world.effect(&name, |world| {
                world.remove_tree(path);
                Ok(())
            }),
        })
        .await
    }

    async fn link(&self, name: &Path, target: &Path) -> Result<()> {
        let link = |world: &mut World| {
            world.files.link(name, target);
            Ok(())
        };
        let call = format!("link {} {}", name.display(), target.display());
        self.call(&call, |world| world.effect(&call, link)).await
    }

    async fn make_directory(&self, path: &Path) -> Result<()> {
        let name = format!("make_directory {}", path.display());
        self.call(&name, |world| match world.files.stat(path) {
            Some(stat) if stat.is_directory => Ok(()),
            Some(_) => Err(Error::Exists { path: path.into() }),
            None => world.effect(&name, |world| world.make_directory(path)),
        })
        .await
    }

    async fn symlink(&self, name: &Path, target: &Path) -> Result<()> {
        let call = format!("symlink {} {}", name.display(), target.display());
        self.call(&call, |world| match world.files.stat(name) {
            Some(_) if world.files.resolve(name).is_some_and(|place| Some(place) == world.files.resolve(target)) => {
                Ok(())
            }
            Some(_) => Err(Error::Exists { path: name.into() }),
            None => world.effect(&call, |world| world.symlink(name, target)),
        })
        .await
    }

    async fn attributes(&self, path: &Path, prefix: &str) -> Result<BTreeMap<String, String>> {
        let get = |world: &mut World| {
            let file = world.files.file(path).ok_or_else(|| absent("read", path))?;
            let found = file.attributes.iter().filter(|(name, _)| name.starts_with(prefix));
            Ok(found.map(|(name, value)| (name.clone(), value.clone())).collect())
        };
        let name = format!("attributes {}", path.display());
        self.call(&name, |world| world.attempt(&name, get)).await
    }

    /// One effect for each of them, as the kernel takes them one by one.
    async fn set_attributes(&self, path: &Path, attributes: &[(&str, Option<&str>)]) -> Result<()> {
        for (name, value) in attributes {
            let set = |world: &mut World| {
                let file = world.files.file_mut(path).ok_or_else(|| absent("write", path))?;
                match value {
                    Some(value) => file.attributes.insert((*name).into(), (*value).into()),
                    None => file.attributes.remove(*name),
                };
                Ok(())
            };
            let call = format!("set_attributes {} {name}", path.display());
            self.call(&call, |world| world.effect(&call, set)).await?;
        }
        Ok(())
    }

    async fn reach(&self, address: SocketAddr, deadline: Instant) -> Result<()> {
        let unreachable = |why: &str| Error::Unreachable { why: why.into() };
        let name = format!("reach {address}");
        match self.call(&name, |world| world.attempt(&name, |world| Ok(world.reach(address)))).await? {
            Reach::Listens => Ok(()),
            Reach::Refused => Err(unreachable("connection refused")),
            Reach::Silent => {
                tokio::time::sleep_until(deadline).await;
                Err(unreachable("no answer"))
            }
        }
    }

    fn facts(&self) -> Result<Facts> {
        self.look(Path::new("/proc/sys/kernel/random/boot_id"), |world| {
            Ok(Facts {
                name: "sim".into(),
                kernel: "6.12.0".into(),
                platform: "x86_64".into(),
                boot_id: world.boot_id.clone(),
                addresses: vec![[10, 0, 0, 1].into()],
            })
        })
    }

    fn clock(&self) -> Result<Clock> {
        self.look(Path::new("/proc/uptime"), |world| Ok(world.clock))
    }

    async fn room(&self, path: &Path, _timeout: Duration) -> Result<Room> {
        let name = format!("room {}", path.display());
        self.call(&name, |world| world.attempt(&name, |world| Ok(world.room))).await
    }

    fn now(&self) -> SystemTime {
        self.with(|world| world.now.unwrap_or_else(SystemTime::now))
    }

    async fn commits(&self, what: &str) -> Result<()> {
        let name = format!("commit {what}");
        self.call(&name, |world| {
            let full = world.disk_full && what.starts_with("journal");
            world.attempt(&name, |_| match full {
                true => Err(Error::io("write", "the journal")(io::ErrorKind::StorageFull.into())),
                false => Ok(()),
            })
        })
        .await
    }

    async fn effect(&self, what: &str) {
        // Nobody but a fault can refuse it, and a fault has nobody to tell.
        let _done = self.call(what, |world| world.effect(what, |_| Ok(()))).await;
    }
}

fn copy(world: &mut World, from: &Path, to: &Path) -> Result<FileStat> {
    match world.files.stat(to) {
        Some(_) => Err(Error::Exists { path: to.into() }),
        None => world.files.copy(from, to).ok_or_else(|| absent("open", from)),
    }
}

/// The error of a kernel that does not find a file.
pub(crate) fn absent(doing: &'static str, path: impl Into<PathBuf>) -> Error {
    Error::io(doing, path)(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait_for;

    fn loops(file: &str) -> LoopSetup {
        LoopSetup { file: file.into(), read_only: false, label: "mortar".into() }
    }

    /// Whether a call is still waiting after all that could happen has happened.
    async fn hangs<T>(call: impl Future<Output = T>) -> bool {
        tokio::time::timeout(Duration::from_secs(3600), call).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_comes_after_its_effect_and_before_its_answer() {
        let mut machine = Machine::new();
        let old = machine.clone();
        machine.crash_after(2);
        machine.replace(Path::new("/srv/a"), b"one", 0o600).await.unwrap();
        machine.remove(Path::new("/srv/none")).await.unwrap();
        assert!(hangs(machine.link(Path::new("/dev/mortar/a"), Path::new("/dev/sdb"))).await);
        machine.crashed().await;
        assert!(hangs(machine.replace(Path::new("/srv/a"), b"two", 0o600)).await);
        assert!(machine.read(Path::new("/srv/a")).is_err());

        machine.restart();
        assert_eq!(machine.read(Path::new("/srv/a")).unwrap().unwrap(), "one");
        assert!(machine.stat(Path::new("/dev/mortar/a")).unwrap().is_some());
        assert_eq!(machine.effects(), ["replace /srv/a", "link /dev/mortar/a /dev/sdb"]);
        assert!(hangs(old.effect("the journal's commit")).await, "the dead process came back");
        assert!(old.read(Path::new("/srv/a")).is_err());
        machine.effect("the journal's commit").await;
        assert_eq!(old.effects().len(), 3);
    }

    #[tokio::test]
    async fn a_reboot_leaves_the_disks_and_nothing_else() {
        let mut machine = Machine::new();
        let boot_id = machine.facts().unwrap().boot_id;
        machine.put_raw("/srv/a.raw", 4096);
        let before = machine.snapshot();
        machine.loop_attach(&loops("/srv/a.raw")).await.unwrap();
        machine.link(Path::new("/dev/mortar/a"), Path::new("/dev/loop0")).await.unwrap();
        machine.mount("loop0", "/mnt");
        machine.reboot();
        let new_boot_id = machine.facts().unwrap().boot_id;
        assert_ne!(new_boot_id, boot_id);
        assert_eq!(machine.snapshot().replace(&new_boot_id, &boot_id), before);
    }

    #[tokio::test(start_paused = true)]
    async fn planned_faults_hit_once_and_late_ones_take_their_time() {
        let machine = Machine::new();
        machine.put_raw("/srv/a.raw", 4096);
        let device = machine.loop_attach(&loops("/srv/a.raw")).await.unwrap();
        let timeout = Duration::from_secs(5);
        machine.fail_next("flush /dev/loop0", Error::TimedOut { what: "flush".into(), after: timeout });
        let start = Instant::now();
        assert!(matches!(machine.flush(&device, timeout).await, Err(Error::TimedOut { .. })));
        assert_eq!(start.elapsed(), timeout);
        machine.flush(&device, timeout).await.unwrap();

        machine.lose_next("remove /srv/a.raw", Error::Busy { path: "/srv/a.raw".into() });
        assert!(machine.remove(Path::new("/srv/a.raw")).await.is_err());
        assert_eq!(machine.stat(Path::new("/srv/a.raw")).unwrap(), None);
        assert_eq!(machine.effects(), ["loop_attach /srv/a.raw", "flush /dev/loop0", "remove /srv/a.raw"]);
    }

    #[tokio::test]
    async fn tools_are_counted_and_can_be_missing() {
        let machine = Machine::new();
        let version = || Command::read(Tool::Lvm, ["version"]);
        machine.fail_next("run lvm version", Output { code: 5, ..Output::default() });
        assert_eq!(machine.run(version()).await.unwrap().code, 5);
        assert_eq!((machine.processes(), machine.commands()), (1, vec!["lvm version".to_owned()]));
        assert!(machine.tool(Tool::Lvm).is_some());
        machine.remove_tool(Tool::Lvm);
        assert_eq!(machine.tool(Tool::Lvm), None);
        assert!(matches!(machine.run(version()).await, Err(Error::Start { .. })));
        assert_eq!((machine.processes(), machine.effects().len()), (1, 0));
    }

    #[tokio::test]
    async fn users_are_found_and_only_openers_may_be_shared_with() {
        let machine = Machine::new();
        machine.put_raw("/srv/a.raw", 4096);
        let device = machine.loop_attach(&loops("/srv/a.raw")).await.unwrap();
        machine.put_link("/dev/mortar/a", &device);
        machine.open("loop0", 7, "cat");
        machine.claim(&device).await.unwrap();
        machine.mount("loop0", "/mnt");
        assert!(matches!(machine.claim(Path::new("/dev/mortar/a")).await, Err(Error::Busy { .. })));
        let users = machine.users(Path::new("/dev/mortar/a")).await.unwrap();
        assert_eq!(users.iter().map(User::to_string).collect::<Vec<_>>(), ["open by cat (pid 7)", "mounted at /mnt"]);
        machine.release("loop0");
        machine.claim(&device).await.unwrap();
        assert!(machine.claim(Path::new("/dev/sdz")).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_kernel_does_later_wakes_who_waits() {
        let machine = Machine::new();
        machine.with(|world| {
            world.later(Duration::from_millis(333), |world| {
                world.files.put("/sys/block/sdb/size", "8\n");
                world.emit("add", "/devices/sdb", "block");
            });
        });
        let start = Instant::now();
        let probe = || machine.read(Path::new("/sys/block/sdb/size"));
        let found = wait_for(&machine, start + Duration::from_secs(9), probe).await.unwrap();
        assert_eq!((found.as_deref(), start.elapsed()), (Some("8"), Duration::from_millis(333)));
    }
}
