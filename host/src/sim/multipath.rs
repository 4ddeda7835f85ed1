//! multipathd of the simulated machine, and the maps that it makes of the kernel's disks.
//!
//! What is imitated was seen with multipath-tools 0.9.4 and Linux 6.1 (`find_multipaths strict`): a disk is a path once udev
//! has looked at it; a map is made when it is asked for, and later paths of its name join it by themselves; what once was a
//! map is remembered in a file, and becomes one again with its first path; a path of another size is left out; a map that
//! somebody uses is not removed; one whose last path goes, goes.

use super::{Machine, World, iscsi, world::Block, world::VIRTUAL};
use std::{collections::BTreeSet, path::Path, time::Duration};

const REMEMBERED: &str = "/etc/multipath/wwids";

/// How long udev takes to look at a disk.
const UDEV: Duration = Duration::from_millis(40);

/// How long the daemon takes to see that a map has lost its last path.
const NOTICE: Duration = Duration::from_millis(60);

#[derive(Debug)]
pub(crate) struct Multipath {
    /// As it says itself.
    version: String,
    running: bool,
    keeps_maps: bool,
    keeps_paths: bool,
    greedy: bool,
    /// What the operator keeps out of maps.
    blacklist: BTreeSet<String>,
    /// The disks that udev has looked at.
    settled: BTreeSet<String>,
    /// Those of them that the daemon knows.
    paths: BTreeSet<String>,
}

impl Default for Multipath {
    fn default() -> Self {
        Self {
            version: "0.9.4 (12/19, 2022)".into(),
            running: false,
            keeps_maps: false,
            keeps_paths: false,
            greedy: false,
            blacklist: BTreeSet::new(),
            settled: BTreeSet::new(),
            paths: BTreeSet::new(),
        }
    }
}

impl Machine {
    /// Another multipathd than that of Debian 12: `0.7.9`.
    pub fn set_multipathd_version(&self, version: &str) {
        self.with(|world| world.multipath.version = version.into());
    }

    /// Starts multipathd, or stops it; its maps stay.
    pub fn run_multipathd(&self, running: bool) {
        self.with(|world| {
            world.multipath.running = running;
            world.multipath.paths = if running { world.multipath.settled.clone() } else { BTreeSet::new() };
        });
    }

    /// Lets multipathd refuse to remove any map, though nobody uses it; or not any more.
    pub fn refuse_to_remove_maps(&self, refuse: bool) {
        self.with(|world| world.multipath.keeps_maps = refuse);
    }

    /// Lets multipathd keep each path in its map, whatever it is asked; or not any more.
    pub fn refuse_to_remove_paths(&self, refuse: bool) {
        self.with(|world| world.multipath.keeps_paths = refuse);
    }

    /// Lets multipathd make a map of every disk (`find_multipaths greedy`).
    pub fn take_every_disk(&self) {
        self.with(|world| world.multipath.greedy = true);
    }

    /// Keeps a volume out of maps: `blacklist("36001405…")`.
    pub fn blacklist(&self, wwid: &str) {
        self.with(|world| world.multipath.blacklist.insert(wwid.to_owned()));
    }

    /// What the operator does at the shell: `multipathd add map WWID`, …
    pub fn multipathd_at_the_shell(&self, request: &str) -> String {
        self.with(|world| answer(world, request))
    }
}

pub(crate) fn boot(world: &mut World) {
    world.multipath.settled.clear();
    world.multipath.paths.clear();
}

/// What the daemon remembers is no trace of ours: it stays, as in life.
pub(crate) fn hides(path: &Path) -> bool {
    path.starts_with("/etc/multipath")
}

pub(crate) fn runs(world: &World) -> bool {
    world.multipath.running
}

/// Whether a request changes nothing.
pub(crate) fn only_reads(request: &str) -> bool {
    request == "help" || request.starts_with("show ")
}

/// The daemon's answer on its socket.
pub(crate) fn answer(world: &mut World, request: &str) -> String {
    let words: Vec<&str> = request.split(' ').collect();
    let done = match words.as_slice() {
        ["help"] => return format!("multipath-tools v{}\nCLI commands reference:\n", world.multipath.version),
        ["show", "daemon"] => return "pid 1 idle".into(),
        ["show", "config", "local"] => {
            let find = if world.multipath.greedy { "greedy" } else { "strict" };
            return format!("defaults {{\n\tfind_multipaths \"{find}\"\n}}");
        }
        ["show", "paths", ..] => return world.multipath.paths.iter().cloned().collect::<Vec<_>>().join("\n"),
        ["add", "path", disk] => {
            let listed = wwid(world, disk).is_some_and(|wwid| world.multipath.blacklist.contains(&wwid));
            if listed && world.multipath.settled.contains(*disk) {
                return "blacklisted".into();
            }
            add_path(world, disk)
        }
        ["add", "map", wwid] => add_map(world, wwid),
        ["del", "path", _] if world.multipath.keeps_paths => false,
        ["del", "path", disk] => {
            world.multipath.paths.remove(*disk);
            leave(world, disk);
            true
        }
        ["del", "map", name] => match map_named(world, name) {
            Some(dm) if world.users_of(&dm).is_empty() && !world.multipath.keeps_maps => {
                remove_map(world, &dm);
                true
            }
            _ => false,
        },
        ["resize", "map", name] => resize(world, name),
        ["disablequeueing", "map", name] => map_named(world, name).is_some(),
        _ => panic!("not simulated: multipathd {request}"),
    };
    if done { "ok".into() } else { "fail".into() }
}

/// The disk driver has made a disk; udev looks at it, and then the daemon does.
pub(crate) fn disk_came(world: &mut World, disk: &str) {
    let disk = disk.to_owned();
    world.later(UDEV, move |world| {
        if wwid(world, &disk).is_some() {
            world.multipath.settled.insert(disk.clone());
            if world.multipath.running {
                add_path(world, &disk);
            }
        }
    });
}

/// The kernel takes a disk away.
pub(crate) fn disk_goes(world: &mut World, disk: &str) {
    world.multipath.settled.remove(disk);
    world.multipath.paths.remove(disk);
    if let Some(dm) = leave(world, disk) {
        world.later(NOTICE, move |world| {
            let deserted = world.files.list(format!("/sys/block/{dm}/slaves")).is_empty();
            if world.multipath.running && deserted && world.users_of(&dm).is_empty() {
                remove_map(world, &dm);
            }
        });
    }
}

fn wwid(world: &World, disk: &str) -> Option<String> {
    iscsi::naa(world, disk).map(|naa| format!("3{naa}"))
}

fn maps(world: &World) -> impl Iterator<Item = (String, String)> {
    let names = world.files.list("/sys/block").into_iter();
    names.filter_map(|name| {
        let uuid = world.files.text(format!("/sys/block/{name}/dm/uuid"))?;
        Some((name, uuid.strip_prefix("mpath-")?.to_owned()))
    })
}

fn map_of(world: &World, wwid: &str) -> Option<String> {
    maps(world).find(|(_, known)| known == wwid).map(|(name, _)| name)
}

fn map_named(world: &World, name: &str) -> Option<String> {
    let called = |dm: &str| world.files.text(format!("/sys/block/{dm}/dm/name"));
    maps(world).find(|(dm, _)| called(dm).as_deref() == Some(name)).map(|(dm, _)| dm)
}

fn size(world: &World, block: &str) -> Option<u64> {
    world.files.text(format!("/sys/block/{block}/size"))?.parse().ok()
}

fn add_path(world: &mut World, disk: &str) -> bool {
    let Some(wwid) = wwid(world, disk).filter(|_| world.multipath.settled.contains(disk)) else { return false };
    if world.multipath.blacklist.contains(&wwid) {
        return false;
    }
    world.multipath.paths.insert(disk.to_owned());
    match map_of(world, &wwid) {
        Some(dm) => join(world, &dm, disk),
        None if world.multipath.greedy || remembered(world).contains(&format!("/{wwid}/\n")) => add_map(world, &wwid),
        None => true,
    }
}

fn remembered(world: &World) -> String {
    let file = world.files.file(REMEMBERED);
    file.map(|file| String::from_utf8_lossy(&file.content).into_owned()).unwrap_or_default()
}

fn join(world: &mut World, dm: &str, disk: &str) -> bool {
    if size(world, dm) != size(world, disk) {
        return false;
    }
    let (below, above) = (format!("/sys/block/{dm}/slaves/{disk}"), format!("/sys/block/{disk}/holders/{dm}"));
    if let Some(directory) = world.files.resolve(format!("/sys/block/{disk}")) {
        world.files.link(below, directory);
    }
    world.files.link(above, format!("{VIRTUAL}/{dm}"));
    world.emit_block("change", dm);
    true
}

/// The map that the disk was a path of.
fn leave(world: &mut World, disk: &str) -> Option<String> {
    let (dm, _) =
        maps(world).find(|(dm, _)| world.files.list(format!("/sys/block/{dm}/slaves")).contains(&disk.into()))?;
    world.files.take(format!("/sys/block/{dm}/slaves/{disk}"));
    world.files.take(format!("/sys/block/{disk}/holders/{dm}"));
    world.emit_block("change", &dm);
    Some(dm)
}

fn add_map(world: &mut World, name: &str) -> bool {
    let paths: Vec<String> = world.multipath.paths.iter().cloned().collect();
    let paths: Vec<String> = paths.into_iter().filter(|disk| wwid(world, disk).as_deref() == Some(name)).collect();
    let Some(first) = paths.first() else { return false };
    let dm = match map_of(world, name) {
        Some(dm) => dm,
        None => {
            let dm = world.free_number("dm-");
            let size_bytes = size(world, first).unwrap_or_default() * 512;
            world.add_block(&Block {
                name: &dm,
                below: VIRTUAL,
                size_bytes,
                read_only: false,
                logical_block_size: 512,
                physical_block_size: 512,
            });
            for (attribute, value) in [("uuid", format!("mpath-{name}")), ("name", name.to_owned())] {
                world.files.put(format!("/sys/block/{dm}/dm/{attribute}"), format!("{value}\n"));
            }
            let (known, line) = (remembered(world), format!("/{name}/\n"));
            if !known.contains(&line) {
                world.files.put(REMEMBERED, known + &line);
            }
            dm
        }
    };
    for disk in &paths {
        join(world, &dm, disk);
    }
    true
}

fn remove_map(world: &mut World, dm: &str) {
    for disk in world.files.list(format!("/sys/block/{dm}/slaves")) {
        world.files.take(format!("/sys/block/{disk}/holders/{dm}"));
    }
    world.remove_block(dm);
}

fn resize(world: &mut World, name: &str) -> bool {
    let Some(dm) = map_named(world, name) else { return false };
    let first = world.files.list(format!("/sys/block/{dm}/slaves")).into_iter().next();
    let Some(sectors) = first.and_then(|disk| size(world, &disk)) else { return false };
    world.resize_block(&dm, sectors * 512);
    true
}
