//! What is in the machine, and how the kernel behind it answers.

use super::{
    Files, Node, absent, files::File, iscsi, loops, lvm, multipath, process::Fault, process::Process, rbd, target,
};
use crate::{Clock, Command, Error, Output, Result, Room, Tool, Uevent, User};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::sync::broadcast;

/// Everything in the machine.
///
/// A backend's module offers, and is asked by this one:
/// - `run(&mut World, &Command) -> Output`: its tool;
/// - `written(&mut World, &Path, &str) -> Option<Result<()>>`: somebody writes an attribute; `None` if it is not its own;
/// - `inquiry(&World, device, page) -> Option<Result<Vec<u8>>>` and `head(&World, device) -> Option<Vec<u8>>`: what its
///   devices answer, and what stands at their beginning;
/// - `boot(&mut World)`: called when `/sys` and `/dev` are empty again;
/// - `snapshot(&World) -> Vec<String>`: what it holds that no file tells.
pub(crate) struct World {
    pub(crate) files: Files,
    pub(crate) iscsi: iscsi::Iscsi,
    pub(crate) lvm: lvm::Lvm,
    pub(crate) loops: loops::Loops,
    pub(crate) rbd: rbd::Rbd,
    pub(crate) target: target::Targets,
    pub(crate) multipath: multipath::Multipath,
    /// By the kernel's name of the device. Holders that `/sys/block/*/holders` shows need not stand here.
    pub(crate) users: BTreeMap<String, Vec<User>>,
    pub(crate) tools: BTreeSet<Tool>,
    pub(crate) clock: Clock,
    pub(crate) room: Room,
    pub(crate) boot_id: String,
    boots: u64,
    /// `None`: it goes as ours does.
    pub(crate) now: Option<SystemTime>,
    pub(crate) disk_full: bool,
    pub(crate) process: Process,
    pub(crate) events: broadcast::Sender<Uevent>,
    pub(crate) later: Vec<Later>,
}

/// Something that the kernel does after a while, by itself.
pub(crate) struct Later {
    pub(crate) after: Duration,
    pub(crate) what: Box<dyn FnOnce(&mut World) + Send>,
}

/// A block device that comes: what sysfs will tell of it.
#[derive(Debug, Clone)]
pub(crate) struct Block<'a> {
    /// `sdb`
    pub(crate) name: &'a str,
    /// Where its directory is: `/sys/devices/platform/host2/session1/target2:0:0/2:0:0:1/block` or
    /// `/sys/devices/virtual/block`.
    pub(crate) below: &'a str,
    pub(crate) size_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) logical_block_size: u32,
    pub(crate) physical_block_size: u32,
}

/// What a connection attempt meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    Listens,
    Refused,
    Silent,
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            files: Files::new(),
            iscsi: iscsi::Iscsi::default(),
            lvm: lvm::Lvm::default(),
            loops: loops::Loops::default(),
            rbd: rbd::Rbd::default(),
            target: target::Targets::default(),
            multipath: multipath::Multipath::default(),
            users: BTreeMap::new(),
            tools: Tool::ALL.into(),
            clock: Clock { unix_seconds: 1_795_363_200, synchronised: true },
            room: Room { total_bytes: 100 << 30, free_bytes: 50 << 30 },
            boot_id: String::new(),
            boots: 0,
            now: None,
            disk_full: false,
            process: Process::new(),
            events: broadcast::Sender::new(1024),
            later: Vec::new(),
        };
        world.furnish();
        world.boot();
        world
    }

    /// What a host is set up with that has nothing to complain of.
    fn furnish(&mut self) {
        let modules = ["iscsi_tcp", "dm_multipath", "rbd", "loop", "target_core_mod"];
        let lines: Vec<String> = modules.iter().map(|name| format!("kernel/{name}.ko")).collect();
        for (path, text) in [
            ("/lib/modules/6.12.0/modules.builtin", lines.join("\n").as_str()),
            ("/etc/lvm/lvm.conf", "use_devicesfile=1\nfilter=[\"a|.*|\"]\nglobal_filter=[\"a|.*|\"]\n"),
            (
                "/etc/iscsi/iscsid.conf",
                "node.startup = manual\nnode.session.timeo.replacement_timeout = 120\n\
                 node.conn[0].timeo.noop_out_interval = 5\nnode.conn[0].timeo.noop_out_timeout = 5\n",
            ),
            ("/usr/lib64/librados.so.2", ""),
            ("/usr/lib64/librbd.so.1", ""),
            ("/usr/lib/udev/rules.d/61-mortar.rules", "# as installed\n"),
        ] {
            self.files.put(path, text);
        }
    }

    /// Turns the machine on: what was only in the kernel is gone.
    pub(crate) fn boot(&mut self) {
        for directory in ["/sys", "/dev", "/proc", "/run"] {
            self.files.take_tree(directory);
            self.files.make_directory(directory);
        }
        self.users.clear();
        self.later.clear();
        self.process.forget_orphans();
        self.boots += 1;
        self.boot_id = format!("00000000-0000-4000-8000-{:012x}", self.boots);
        self.files.put("/proc/sys/kernel/random/boot_id", format!("{}\n", self.boot_id));
        // As systemd makes it.
        self.files.link("/run/mortar/sysfs/devices", "/sys/devices");
        self.files.make_directory("/run/mortar/sysfs/class/iscsi_session");
        self.files.put("/proc/net/unix", "0: 00000002 00000000 00010000 0001 01 7 @ISCSIADM_ABSTRACT_NAMESPACE\n");
        self.files.make_directory("/sys/block");
        loops::boot(self);
        multipath::boot(self);
        iscsi::boot(self);
        lvm::boot(self);
        rbd::boot(self);
        target::boot(self);
    }

    // ---- for the backends ----

    /// Tells everybody who listens of a kernel event. `devpath` is below `/sys`.
    pub(crate) fn emit(&self, action: &str, devpath: &str, subsystem: &str) {
        let event = Uevent { action: action.into(), devpath: devpath.into(), subsystem: subsystem.into() };
        // That nobody listens is fine.
        let _listeners = self.events.send(event);
    }

    /// Lets the kernel do something after a while. Forgotten at a reboot.
    pub(crate) fn later(&mut self, after: Duration, what: impl FnOnce(&mut World) + Send + 'static) {
        self.later.push(Later { after, what: Box::new(what) });
    }

    /// A block device comes: its directory in sysfs, its link in `/sys/block`, its node, its event.
    pub(crate) fn add_block(&mut self, block: &Block<'_>) {
        let directory = format!("{}/{}", block.below, block.name);
        for (attribute, value) in [
            ("size", (block.size_bytes / 512).to_string()),
            ("ro", u8::from(block.read_only).to_string()),
            ("queue/logical_block_size", block.logical_block_size.to_string()),
            ("queue/physical_block_size", block.physical_block_size.to_string()),
        ] {
            self.files.put(format!("{directory}/{attribute}"), format!("{value}\n"));
        }
        self.files.make_directory(format!("{directory}/holders"));
        self.files.link(format!("/sys/block/{}", block.name), &directory);
        self.files.make_device(format!("/dev/{}", block.name));
        self.emit_block("add", block.name);
    }

    /// A block device goes, and those who used it have nothing left.
    pub(crate) fn remove_block(&mut self, name: &str) {
        self.emit_block("remove", name);
        if let Some(directory) = self.files.resolve(format!("/sys/block/{name}")) {
            self.files.take_tree(directory);
        }
        self.files.take(format!("/sys/block/{name}"));
        self.files.take(format!("/dev/{name}"));
    }

    /// A block device's size changes.
    pub(crate) fn resize_block(&mut self, name: &str, size_bytes: u64) {
        self.files.put(format!("/sys/block/{name}/size"), format!("{}\n", size_bytes / 512));
        self.emit_block("change", name);
    }

    /// The event of a block device.
    pub(crate) fn emit_block(&self, action: &str, name: &str) {
        let directory = self.files.resolve(format!("/sys/block/{name}")).unwrap_or_default();
        let devpath = directory.strip_prefix("/sys").map(|path| format!("/{}", path.display())).unwrap_or_default();
        self.emit(action, &devpath, "block");
    }

    /// The first of `loop0`, `loop1`, … that is not there.
    pub(crate) fn free_number(&self, prefix: &str) -> String {
        let free = (0_u32..).map(|n| format!("{prefix}{n}"));
        free.into_iter().find(|name| self.files.stat(format!("/sys/block/{name}")).is_none()).unwrap_or_default()
    }

    /// The first of `sda`, `sdb`, … `sdz`, `sdaa`, … that is not there.
    pub(crate) fn free_disk(&self) -> String {
        let letters = || (b'a'..=b'z').map(char::from);
        let one = letters().map(|last| format!("sd{last}"));
        let two = letters().flat_map(|first| letters().map(move |last| format!("sd{first}{last}")));
        let mut free = one.chain(two).filter(|name| self.files.stat(format!("/sys/block/{name}")).is_none());
        free.next().expect("a test with fewer than 702 disks")
    }

    // ---- for the machine ----

    /// A call that changes something, unless it fails.
    pub(crate) fn effect<T>(&mut self, name: &str, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let done = self.attempt(name, act);
        if done.is_ok() {
            self.process.did(name);
        }
        done
    }

    /// A call that may have been told to fail.
    pub(crate) fn attempt<T>(&mut self, name: &str, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let Some(planned) = self.process.fault(name) else { return act(self) };
        if planned.done {
            act(self)?;
            self.process.did(name);
        }
        match planned.fault {
            Fault::Error(error) => Err(error),
            Fault::Output(output) => panic!("{name} is no tool that could end with {output:?}"),
        }
    }

    pub(crate) fn run(&mut self, name: &str, command: &Command) -> Result<Output> {
        if !self.tools.contains(&command.tool) {
            return Err(Error::Start { tool: command.tool.name(), source: io::ErrorKind::NotFound.into() });
        }
        if let Some(after) = self.process.dies_of(name) {
            let (name, command) = (name.to_owned(), command.clone());
            self.later(after, move |world| {
                let _unheard = world.run(&name, &command);
                world.process.orphan_ended(&name);
            });
            return Ok(Output::default());
        }
        self.process.started(command.line());
        let planned = self.process.fault(name);
        let mut output = Ok(Output::default());
        if planned.as_ref().is_none_or(|planned| planned.done) {
            output = Ok(match command.tool {
                Tool::Iscsiadm => iscsi::run(self, command),
                Tool::Lvm => lvm::run(self, command),
                Tool::Rbd => rbd::run(self, command, name),
                Tool::QemuImg => super::files::qemu_img(&mut self.files, command),
            });
            if command.writes {
                self.process.did(name);
            }
        }
        match planned.map(|planned| planned.fault) {
            None => output,
            Some(Fault::Output(output)) => Ok(output),
            Some(Fault::Error(error)) => Err(error),
        }
    }

    pub(crate) fn write(&mut self, path: &Path, value: &str) -> Result<()> {
        let done = iscsi::written(self, path, value)
            .or_else(|| lvm::written(self, path, value))
            .or_else(|| rbd::written(self, path, value))
            .or_else(|| target::written(self, path, value));
        if let Some(done) = done {
            return done;
        }
        match self.files.file_mut(path) {
            None => Err(absent("write", path)),
            Some(_) => {
                self.files.put(path, value);
                Ok(())
            }
        }
    }

    /// As mkdir(2): one directory.
    pub(crate) fn make_directory(&mut self, path: &Path) -> Result<()> {
        if path.parent().is_none_or(|parent| self.files.resolve(parent).is_none()) {
            return Err(absent("make", path));
        }
        if target::is_ours(path) {
            return target::make(self, path);
        }
        self.files.make_directory(path);
        Ok(())
    }

    /// As symlink(2).
    pub(crate) fn symlink(&mut self, name: &Path, to: &Path) -> Result<()> {
        if name.parent().is_none_or(|parent| self.files.resolve(parent).is_none()) {
            return Err(absent("link", name));
        }
        if target::is_ours(name) {
            return target::link(self, name, to);
        }
        self.files.link(name, to);
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) {
        self.files.rename(from, to);
        loops::renamed(self);
    }

    pub(crate) fn remove_tree(&mut self, path: &Path) {
        self.files.take_tree(path);
        loops::renamed(self);
    }

    /// The kernel's name of the block device that a path leads to.
    pub(crate) fn block(&self, doing: &'static str, path: &Path) -> Result<String> {
        let node = self.files.resolve(path).ok_or_else(|| absent(doing, path))?;
        match (self.files.node(&node), node.file_name()) {
            (Some(Node::Device { .. }), Some(name)) => Ok(name.to_string_lossy().into_owned()),
            _ => Err(Error::io(doing, path)(io::Error::other("not a block device"))),
        }
    }

    /// What a connection attempt meets.
    pub(crate) fn reach(&self, address: SocketAddr) -> Reach {
        rbd::reach(self, address).unwrap_or_else(|| iscsi::reach(self, address))
    }

    pub(crate) fn inquiry(&self, path: &Path, page: u8) -> Result<Vec<u8>> {
        let device = self.block("open", path)?;
        let refused = || Err(Error::io("ask", path)(io::ErrorKind::Unsupported.into()));
        iscsi::inquiry(self, &device, page).or_else(|| lvm::inquiry(self, &device, page)).unwrap_or_else(refused)
    }

    pub(crate) fn set_read_only(&mut self, path: &Path, read_only: bool) -> Result<()> {
        let device = self.block("open", path)?;
        self.files.put(format!("/sys/block/{device}/ro"), format!("{}\n", u8::from(read_only)));
        Ok(())
    }

    pub(crate) fn claim(&self, path: &Path) -> Result<()> {
        let device = self.block("open", path)?;
        let shares = |user: &User| matches!(user, User::Opener { .. });
        match self.users_of(&device).iter().all(shares) {
            true => Ok(()),
            false => Err(Error::Busy { path: path.into() }),
        }
    }

    pub(crate) fn users_of(&self, device: &str) -> Vec<User> {
        let mut users = self.users.get(device).cloned().unwrap_or_default();
        for name in self.files.list(format!("/sys/block/{device}/holders")) {
            let label = self.files.text(format!("/sys/block/{name}/dm/name")).unwrap_or_default();
            users.push(User::Holder { name, label });
        }
        users
    }

    pub(crate) fn head(&self, path: &Path, length: usize) -> Result<Vec<u8>> {
        if let Some(file) = self.files.file(path) {
            return Ok(file.head(length));
        }
        let device = self.block("open", path)?;
        let sectors = self.files.text(format!("/sys/block/{device}/size")).and_then(|text| text.parse::<u64>().ok());
        let known = loops::head(self, &device)
            .or_else(|| iscsi::head(self, &device))
            .or_else(|| lvm::head(self, &device))
            .unwrap_or_default();
        let size_bytes = sectors.unwrap_or_default() * 512;
        let whole = File { content: known, size_bytes, mode: 0, inode: 0, attributes: BTreeMap::new() };
        Ok(whole.head(length))
    }

    pub(crate) fn snapshot(&self) -> String {
        let mut lines = Vec::new();
        for (path, node) in self.files.under(Path::new("/")) {
            if !self.loops.hides(path) && !multipath::hides(path) {
                lines.extend(self.line(path, node));
            }
        }
        for (device, users) in &self.users {
            lines.extend(users.iter().map(|user| format!("{device} is {user}")));
        }
        lines.extend(self.loops.snapshot());
        lines.extend(iscsi::snapshot(self));
        lines.extend(lvm::snapshot(self));
        lines.extend(rbd::snapshot(self));
        lines.sort();
        lines.push(String::new());
        lines.join("\n")
    }

    /// A file's line in the snapshot.
    fn line(&self, path: &Path, node: &Node) -> Option<String> {
        let shown = path.display();
        match node {
            Node::Directory { .. } => {
                let empty = self.files.under(path).next().is_none();
                let passing = ["/dev", "/run", "/sys"].iter().any(|place| path.starts_with(place));
                (empty && !passing).then(|| format!("{shown}/"))
            }
            Node::Link { target, .. } => Some(format!("{shown} -> {}", target.display())),
            Node::Device { .. } => Some(format!("{shown} is a device")),
            Node::File(file) => {
                let text = String::from_utf8_lossy(&file.content);
                let attributes: String =
                    file.attributes.iter().map(|(name, value)| format!(" {name}={value}")).collect();
                Some(format!("{shown} {:o} {} bytes{attributes}: {:?}", file.mode, file.size_bytes, text.trim_end()))
            }
        }
    }
}

/// Where sysfs keeps the devices that have no hardware below them.
pub(crate) const VIRTUAL: &str = "/sys/devices/virtual/block";

/// For a caller that has a device's name and wants its node.
pub(crate) fn node(device: &str) -> PathBuf {
    Path::new("/dev").join(device)
}
