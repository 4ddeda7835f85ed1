//! Who uses a device. The kernel has no one list, so six places are read: holders in sysfs, loop devices, what is exported
//! to other machines, mounts of every mount namespace, swap areas, and what every process has open.
//!
//! All but the first are the same for every device, and reading them means to go through every process. So that is done
//! once for all who ask at the time ([`look`]).

mod look;

pub(super) use look::Looks;

use super::{files, process};
use crate::{Error, Result, User};
use look::Look;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

/// A device and its partitions.
struct Devices {
    /// `8:16`, as sysfs and mountinfo write it.
    numbers: BTreeSet<String>,
    /// As stat writes it.
    rdevs: BTreeSet<u64>,
    directories: Vec<PathBuf>,
}

impl Devices {
    /// Whether a path leads to one of them. A path outside of `/dev` is not looked at: what it is on may hang.
    fn include(&self, path: &str) -> bool {
        path.starts_with("/dev/")
            && fs::metadata(path)
                .is_ok_and(|meta| meta.file_type().is_block_device() && self.rdevs.contains(&meta.rdev()))
    }
}

/// Who of all that a look has seen uses a device or one of its partitions. `None`: a process that had it open has ended
/// since. Then nobody can say any more whether it was one of udev's, nor whether a child of it goes on with the device.
fn users(device: &Path, look: &Look) -> Result<Option<Vec<User>>> {
    let meta = fs::metadata(device).map_err(Error::io("look at", device))?;
    if !meta.file_type().is_block_device() {
        return Err(Error::io("look at", device)(std::io::Error::other("it is no block device")));
    }
    let devices = with_partitions(meta.rdev());
    let mut users = holders(&devices);
    users.extend(loop_devices(&devices, look));
    users.extend(exports(&devices, look));
    users.extend(swaps(&devices, look));
    users.extend(mounts(&devices, look));
    let Some(openers) = openers(&devices, look) else { return Ok(None) };
    users.extend(openers);
    Ok(Some(users))
}

fn number(rdev: u64) -> String {
    format!("{}:{}", nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev))
}

fn with_partitions(rdev: u64) -> Devices {
    let mut devices = Devices { numbers: BTreeSet::new(), rdevs: BTreeSet::new(), directories: Vec::new() };
    let Ok(whole) = files::real_path(&Path::new("/sys/dev/block").join(number(rdev))) else { return devices };
    // A partition's directory is called by its disk (`block/partitions/core.c`); of what else is there, little is.
    let disk = file_name(&whole);
    let is_part = |path: &PathBuf| file_name(path).starts_with(&disk) && path.join("partition").exists();
    let parts = entries(&whole).into_iter().filter(is_part);
    for directory in std::iter::once(whole.clone()).chain(parts) {
        let Ok(text) = fs::read_to_string(directory.join("dev")) else { continue };
        let Some((major, minor)) = text.trim().split_once(':') else { continue };
        if let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) {
            devices.numbers.insert(text.trim().to_owned());
            devices.rdevs.insert(nix::sys::stat::makedev(major, minor));
            devices.directories.push(directory);
        }
    }
    devices
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn holders(devices: &Devices) -> Vec<User> {
    let all = devices.directories.iter().flat_map(|directory| entries(&directory.join("holders")));
    all.map(|holder| {
        let label = fs::read_to_string(holder.join("dm/name")).unwrap_or_default().trim().to_owned();
        User::Holder { name: file_name(&holder), label }
    })
    .collect()
}

/// Loop devices hold the device below them without being its holders.
fn loop_devices(devices: &Devices, look: &Look) -> Vec<User> {
    let over = look.loops.iter().filter(|(_, file)| devices.include(file));
    over.map(|(name, _)| User::Holder { name: name.clone(), label: "loop device".into() }).collect()
}

fn exports(devices: &Devices, look: &Look) -> Vec<User> {
    let ours = look.exports.iter().filter(|export| devices.include(&export.device));
    ours.map(|export| User::Export { by: export.by, name: export.name.clone() }).collect()
}

fn swaps(devices: &Devices, look: &Look) -> Vec<User> {
    let of_ours = |path: &String| {
        let rdev = fs::metadata(path).ok()?.rdev();
        devices.rdevs.contains(&rdev).then_some(User::Swap)
    };
    look.swaps.iter().filter_map(of_ours).collect()
}

fn command_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// A mount that we see ourselves is told without a process.
fn mounts(devices: &Devices, look: &Look) -> Vec<User> {
    let (mut places, mut found) = (BTreeSet::new(), Vec::new());
    let mut sources = Sources::default();
    for (pid, table) in &look.mounts {
        for at in mounted(table, devices, &mut sources) {
            if places.insert(at.clone()) {
                let seen_by = (*pid != std::process::id()).then(|| format!("{} (pid {pid})", command_of(*pid)));
                found.push(User::Mount { at, seen_by });
            }
        }
    }
    found
}

/// What is mounted, and whether it is one of the devices: most tables have the same.
type Sources = BTreeMap<String, bool>;

/// The mount points of the devices in a mountinfo table (proc_pid_mountinfo(5)). A file system over several devices
/// (btrfs) has a number of its own, so its source counts as well.
fn mounted(table: &str, devices: &Devices, sources: &mut Sources) -> Vec<String> {
    let of_ours = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(2);
        let (number, _root, at) = (fields.next()?, fields.next()?, fields.next()?);
        let source = after.split(' ').nth(1)?;
        let mut is_source = || *sources.entry(source.to_owned()).or_insert_with(|| devices.include(&unescape(source)));
        (devices.numbers.contains(number) || is_source()).then(|| unescape(at))
    };
    table.lines().filter_map(of_ours).collect()
}

/// The kernel writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

/// Whether a process with this program is no user: what it has open it lets go by itself. udev opens a device for a moment
/// after each of its events, in as many workers as there are devices; multipathd has every path open, for its checker.
fn lets_go(program: &str) -> bool {
    is_udev(program) || matches!(program, "multipathd" | "multipath")
}

fn is_udev(program: &str) -> bool {
    matches!(program, "systemd-udevd" | "udevadm" | "udevd")
}

/// udev's helpers (`scsi_id`, `blkid`, …) let go by themselves as well. Under systemd they are all in one control group with
/// it; elsewhere they are its children.
fn helps_udev(pid: u32) -> bool {
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    if group.contains("/systemd-udevd.service") {
        return true;
    }
    let stat = process::stat(Path::new(&format!("/proc/{pid}")));
    stat.and_then(|stat| program(stat.parent)).is_some_and(|parent| is_udev(&parent))
}

/// What a process has open. One that we have just forked has open what we have, until exec(2) closes that; so what is found is
/// nothing if the process is such a one, and is asked for again, for the case that it was.
fn of_its_own<T>(pid: u32, what_is_open: impl Fn() -> Vec<T>) -> Vec<T> {
    if what_is_open().is_empty() || is_about_to_exec(pid) { Vec::new() } else { what_is_open() }
}

/// Whether a process is a fork of ours that is not yet the program it was made for.
fn is_about_to_exec(pid: u32) -> bool {
    /// PF_FORKNOEXEC (`include/linux/sched.h`).
    const NO_EXEC_YET: u64 = 0x40;
    let stat = process::stat(Path::new(&format!("/proc/{pid}")));
    stat.is_some_and(|stat| stat.parent == std::process::id() && stat.flags & NO_EXEC_YET != 0)
}

/// `None`: one of them has ended.
fn openers(devices: &Devices, look: &Look) -> Option<Vec<User>> {
    let mut pids: Vec<u32> =
        look.open.iter().filter(|(_, rdev)| devices.rdevs.contains(rdev)).map(|(pid, _)| *pid).collect();
    pids.dedup();
    pids.retain(|pid| !helps_udev(*pid) && !program(*pid).is_some_and(|program| lets_go(&program)));
    pids.into_iter().map(opener).collect()
}

/// A process that has something open; `None` if it has ended since.
fn opener(pid: u32) -> Option<User> {
    let command = command_of(pid);
    program(pid).map(|_| User::Opener { pid, command })
}

/// The name of a process's program. A thread of the kernel has none, nor has one that has ended, even before its parent has
/// taken note.
fn program(pid: u32) -> Option<String> {
    fs::read_link(format!("/proc/{pid}/exe")).ok().map(|path| file_name(&path))
}

/// Which processes but us have a regular file open. They are known by the path, as a look at the file itself may hang. As long
/// as one of them ends meanwhile, and a child of it may go on with the file, it is looked again.
pub(super) fn of_file(file: &Path) -> Vec<User> {
    let Ok(file) = files::real_path(file) else { return Vec::new() };
    let has_open = |pid: &u32| {
        let descriptors = || {
            let mut all = entries(&PathBuf::from(format!("/proc/{pid}/fd")));
            all.retain(|descriptor| fs::read_link(descriptor).is_ok_and(|leads| leads == file));
            all
        };
        *pid != std::process::id() && !of_its_own(*pid, descriptors).is_empty()
    };
    let look = || {
        let pids = entries(Path::new("/proc")).into_iter().filter_map(|path| file_name(&path).parse().ok());
        pids.filter(has_open).map(opener).collect::<Option<Vec<User>>>()
    };
    loop {
        if let Some(users) = look() {
            return users;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::loops, *};
    use crate::Host;
    use proptest::prelude::*;
    use std::io::{Read, Write};

    fn devices(number: &str) -> Devices {
        Devices { numbers: BTreeSet::from([number.to_owned()]), rdevs: BTreeSet::new(), directories: Vec::new() }
    }

    #[test]
    fn who_has_a_file_open_is_found_by_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(of_file(file.path()), []);
        let mut reader =
            std::process::Command::new("sleep").arg("60").stdin(fs::File::open(file.path()).unwrap()).spawn().unwrap();
        let found = of_file(file.path());
        reader.kill().unwrap();
        reader.wait().unwrap();
        let pid = reader.id();
        assert!(matches!(found.as_slice(), [User::Opener { pid: by, .. }] if *by == pid), "{found:?}");
    }

    #[test]
    fn a_fork_of_ours_has_nothing_open_of_its_own() {
        use std::os::unix::process::CommandExt;

        let file = tempfile::NamedTempFile::new().unwrap();
        let (forked, waits) = std::io::pipe().unwrap();
        let (goes_on, go_on) = std::io::pipe().unwrap();
        let mut command = std::process::Command::new("true");
        // SAFETY: the closure makes two system calls and allocates nothing.
        #[expect(unsafe_code, reason = "to stop between fork and exec")]
        unsafe {
            command.pre_exec(move || {
                (&waits).write_all(b"x")?;
                (&goes_on).read_exact(&mut [0])
            });
        }
        let program = std::thread::spawn(move || command.spawn().unwrap().wait().unwrap());
        (&forked).read_exact(&mut [0]).unwrap();
        let found = of_file(file.path());
        (&go_on).write_all(b"x").unwrap();
        assert!(program.join().unwrap().success());
        assert_eq!(found, []);
    }

    #[test]
    fn a_process_that_has_ended_is_no_user_and_asks_for_another_look() {
        let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let look = Look { open: vec![(process.id(), 7)], ..Look::default() };
        let devices = Devices { rdevs: BTreeSet::from([7]), ..devices("0:7") };
        let users = openers(&devices, &look);
        process.kill().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while program(process.id()).is_some() && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        let (ended, pid) = (openers(&devices, &look), process.id());
        process.wait().unwrap();
        assert_eq!(users, Some(vec![User::Opener { pid, command: "sleep".into() }]));
        assert_eq!((ended, openers(&devices, &look)), (None, None));
    }

    #[test]
    fn finds_mounts_by_number() {
        let table = "36 35 8:16 / /mnt/a\\040b rw,noatime shared:1 - ext4 /dev/sdb rw\n\
                     37 35 8:32 / /mnt/c rw - ext4 /dev/sdc rw\n\
                     38 35 0:5 / /dev rw - devtmpfs udev rw\n\
                     broken line";
        assert_eq!(mounted(table, &devices("8:16"), &mut Sources::new()), ["/mnt/a b"]);
        assert_eq!(mounted(table, &devices("8:48"), &mut Sources::new()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn finds_loop_devices_and_exports_above_a_loop_device() {
        let Some(host) = loops::tests::host() else { return };
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let below = loops::tests::Bound::new(&host, file.path()).await;
        let free = host.users(&below.node).await.unwrap();
        assert!(!free.iter().any(|user| matches!(user, User::Holder { .. } | User::Export { .. })), "{free:?}");

        let above = loops::tests::Bound::new(&host, &below.node).await;
        let holder = User::Holder { name: file_name(&above.node), label: "loop device".into() };
        let users = host.users(&below.node).await.unwrap();
        assert!(users.contains(&holder), "{users:?}");

        let config = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = config.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let node = format!("{}\n", below.node.display());
        put("target/core/iblock_0/x/udev_path", &node);
        put("target/core/iblock_0/x/enable", "1\n");
        put("target/core/iblock_1/off/udev_path", &node);
        put("target/core/iblock_1/off/enable", "0\n");
        put("target/core/iblock_2/other/udev_path", "/dev/null\n");
        put("target/core/alua/lu_gps/default_lu_gp/members", "");
        put("nvmet/subsystems/nqn.2026-11.org.example:a/namespaces/1/device_path", &node);
        let devices = with_partitions(fs::metadata(&below.node).unwrap().rdev());
        let look = Look { exports: look::exports(config.path()), ..Look::default() };
        let exports: Vec<String> = exports(&devices, &look).iter().map(User::to_string).collect();
        assert_eq!(exports, ["exported by LIO as iblock_0/x", "exported by nvmet as nqn.2026-11.org.example:a/1"]);
    }

    #[test]
    fn unescapes_what_the_kernel_escapes() {
        assert_eq!(unescape("a\\040b\\134c"), "a b\\c");
        assert_eq!(unescape("a\\9"), "a\\9");
    }

    proptest! {
        #[test]
        fn no_table_panics(table in "(\\PC|[\\\\0-9: \n-]){0,200}") {
            let _mounted = mounted(&table, &devices("8:16"), &mut Sources::new());
        }

        #[test]
        fn what_is_mounted_is_found_under_its_name(at in "/[^\0]{0,30}") {
            let escaped: String = at
                .chars()
                .map(|c| match c {
                    ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(c)),
                    c => c.to_string(),
                })
                .collect();
            // The kernel ends a line with a newline alone; so do we.
            prop_assume!(!escaped.contains('\r'));
            let table = format!("36 35 8:16 / {escaped} rw,noatime shared:1 - ext4 /dev/sdb rw\n");
            prop_assert_eq!(mounted(&table, &devices("8:16"), &mut Sources::new()), [at]);
        }
    }
}
