//! Which devices lvm may see: the disks of the host that carry a PV label, and nothing that belongs to a guest.
//!
//! Left to itself lvm reads every block device, and finds the VGs that guests made inside of their volumes. So it is
//! always told what to look at. Left out are the devices of our own attachments with all that is built upon them, LVs,
//! and devices that something else than LVM has built upon (a path below a multipath map, a disk of an array): there the
//! map or the array stands for them.
//!
//! A device is an attachment's if a link below `/dev/mortar` leads to it. But that link comes last and goes first, so
//! what carries the mark of our other drivers counts too, from its first moment to its last: a disk on an iSCSI session
//! whose interface is called `mortar`, a loop device labelled `mortar`.

use crate::{
    failed,
    label::{self, Label},
};
use driver::Result;
use host::{Host, LoopDevice};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// How long one device may take to show its first sectors. One that hangs is left out, and holds up nobody else.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a read may go on while nobody waits for it any more. The kernel has it, and nothing ends it but the device.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How our other drivers mark what is theirs.
const MARK: &str = "mortar";

const SESSIONS: &str = "/sys/class/iscsi_session";

/// The PV labels of devices.
pub(crate) struct Labels {
    host: Arc<dyn Host>,
    reads: Arc<Mutex<Reads>>,
}

#[derive(Default)]
struct Reads {
    /// How many were begun since we run.
    begun: u64,
    /// One for each device at most: a device that hangs would keep every further one as well, and a thread with it.
    under_way: BTreeMap<PathBuf, Read>,
}

/// What devices said.
#[derive(Debug, Default)]
pub(crate) struct Labelled {
    /// They carry a PV label.
    pub(crate) pvs: BTreeMap<PathBuf, Label>,
    /// They did not answer, so nobody knows.
    pub(crate) silent: Vec<PathBuf>,
}

/// A read that is under way.
#[derive(Clone)]
struct Read {
    number: u64,
    since: Instant,
    /// The label if it is a PV. `None` if the device cannot be read, or until it is.
    answer: watch::Receiver<Option<Option<Label>>>,
}

impl Labels {
    pub(crate) fn new(host: Arc<dyn Host>) -> Self {
        Self { host, reads: Arc::default() }
    }

    /// Which of the devices carry a PV label, and what it is after the call.
    pub(crate) async fn among(&self, devices: impl IntoIterator<Item = PathBuf>) -> Labelled {
        let before = open(&self.reads).begun;
        let mut looks = JoinSet::new();
        for device in devices {
            let (host, reads) = (Arc::clone(&self.host), Arc::clone(&self.reads));
            looks.spawn(async move { (label_of(host, reads, &device, before).await, device) });
        }
        let mut labelled = Labelled::default();
        for (label, device) in looks.join_all().await {
            match label {
                Some(Some(label)) => drop(labelled.pvs.insert(device, label)),
                Some(None) => {}
                None => labelled.silent.push(device),
            }
        }
        labelled.silent.sort();
        labelled
    }
}

/// What a device says to a read that comes after the first `before`; `None` if it does not answer.
async fn label_of(host: Arc<dyn Host>, reads: Arc<Mutex<Reads>>, device: &Path, before: u64) -> Option<Option<Label>> {
    loop {
        let (Read { number, since, mut answer }, is_new) = read(&host, &reads, device);
        // The other end goes with the read.
        let told = async { answer.wait_for(Option::is_some).await.map_or(None, |told| told.clone().flatten()) };
        match timeout_at(since + PATIENCE, told).await {
            Ok(label) if number > before => return Some(label),
            Ok(_) => {}
            Err(_) => {
                if is_new {
                    let device = device.display();
                    tracing::warn!(%device, "it does not answer: left out of the search for PVs until it does");
                }
                return None;
            }
        }
    }
}

/// The read of a device that is under way, or one that begins now.
fn read(host: &Arc<dyn Host>, reads: &Arc<Mutex<Reads>>, device: &Path) -> (Read, bool) {
    let mut all = open(reads);
    if let Some(read) = all.under_way.get(device) {
        return (read.clone(), false);
    }
    let (told, answer) = watch::channel(None);
    all.begun += 1;
    let read = Read { number: all.begun, since: Instant::now(), answer };
    all.under_way.insert(device.to_owned(), read.clone());
    let (host, reads, device) = (Arc::clone(host), Arc::clone(reads), device.to_owned());
    tokio::spawn(async move {
        let head = host.head(&device, label::LENGTH, FOREVER).await;
        open(&reads).under_way.remove(&device);
        match head {
            Ok(head) => {
                told.send_replace(Some(Label::of(&head)));
            }
            // An empty drive, or one that has just gone.
            Err(error) => {
                tracing::debug!(device = %device.display(), %error, "left out of the search for PVs");
            }
        }
    });
    (read, true)
}

/// Disks and partitions that may be PVs, as sysfs tells it: none of them is asked.
pub(crate) async fn suspects(host: &dyn Host, links: &Path) -> Result<Vec<PathBuf>> {
    let loops = host.loop_devices().await.map_err(failed("list the loop devices"))?;
    let look = || {
        let mut attached = self::attached(host, links)?;
        attached.extend(our_loops(host, &loops)?);
        attached.extend(on_our_sessions(host)?);
        free(host, &attached)
    };
    look().map_err(failed("list the block devices"))
}

/// The kernel's names of the devices that belong to guests, but for LVs: into those lvm does not look by itself.
pub(crate) async fn of_guests(host: &dyn Host, links: &Path) -> Result<BTreeSet<String>> {
    let loops = host.loop_devices().await.map_err(failed("list the loop devices"))?;
    let look = || {
        let mut attached = self::attached(host, links)?;
        attached.extend(our_loops(host, &loops)?);
        attached.extend(on_our_sessions(host)?);
        let mut found = BTreeSet::new();
        for name in attached {
            if !is_lv(host, &name)? {
                found.insert(name);
            }
        }
        Ok(found)
    };
    look().map_err(failed("look at what is attached"))
}

fn free(host: &dyn Host, attached: &BTreeSet<String>) -> host::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for disk in host.list(Path::new("/sys/block"))? {
        let directory = Path::new("/sys/block").join(&disk);
        if is_lv(host, &disk)? || is_upon(host, &directory, attached)? {
            continue;
        }
        if is_free(host, &directory)? {
            found.push(node(&disk));
        }
        for part in host.list(&directory)?.into_iter().filter(|name| name.starts_with(&disk)) {
            let directory = directory.join(&part);
            if !attached.contains(&part)
                && host.read(&directory.join("partition"))?.is_some()
                && is_free(host, &directory)?
            {
                found.push(node(&part));
            }
        }
    }
    Ok(found)
}

/// Whether a disk is one of these, or built upon one of them (a multipath map, an array, an encrypted device).
fn is_upon(host: &dyn Host, disk: &Path, devices: &BTreeSet<String>) -> host::Result<bool> {
    let is_one = |path: Option<&Path>| {
        path.and_then(Path::file_name).is_some_and(|name| devices.contains(name.to_string_lossy().as_ref()))
    };
    let (mut seen, mut left) = (BTreeSet::new(), vec![disk.to_owned()]);
    while let Some(link) = left.pop() {
        if is_one(Some(&link)) {
            return Ok(true);
        }
        let Some(directory) = host.resolve(&link)? else { continue };
        if host.read(&directory.join("partition"))?.is_some() && is_one(directory.parent()) {
            return Ok(true);
        }
        let below = directory.join("slaves");
        if seen.insert(directory) {
            left.extend(host.list(&below)?.into_iter().map(|name| below.join(name)));
        }
    }
    Ok(false)
}

/// The kernel's names of the devices that our stable paths lead to.
pub(crate) fn attached(host: &dyn Host, links: &Path) -> host::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for link in host.list(links)? {
        let target = host.resolve(&links.join(link))?;
        names.extend(target.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()));
    }
    Ok(names)
}

/// The kernel's names of the loop devices that are ours, or do not say whose they are.
fn our_loops(host: &dyn Host, known: &[LoopDevice]) -> host::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for name in host.list(Path::new("/sys/block"))?.into_iter().filter(|name| name.starts_with("loop")) {
        let theirs = known.iter().any(|device| device.name == name && device.label != MARK);
        if !theirs && host.read(&Path::new("/sys/block").join(&name).join("loop/backing_file"))?.is_some() {
            names.insert(name);
        }
    }
    Ok(names)
}

/// The kernel's names of the disks on iSCSI sessions of ours: a disk's directory is below that of its session.
fn on_our_sessions(host: &dyn Host) -> host::Result<BTreeSet<String>> {
    let mut sessions = Vec::new();
    for name in host.list(Path::new(SESSIONS))? {
        let directory = Path::new(SESSIONS).join(name);
        if host.read(&directory.join("ifacename"))?.as_deref() == Some(MARK) {
            sessions.extend(host.resolve(&directory.join("device"))?);
        }
    }
    let mut disks = BTreeSet::new();
    if sessions.is_empty() {
        return Ok(disks);
    }
    for disk in host.list(Path::new("/sys/block"))? {
        let directory = host.resolve(&Path::new("/sys/block").join(&disk))?;
        if directory.is_some_and(|directory| sessions.iter().any(|session| directory.starts_with(session))) {
            disks.insert(disk);
        }
    }
    Ok(disks)
}

/// Nobody but LVM has built upon it, and it holds something.
fn is_free(host: &dyn Host, directory: &Path) -> host::Result<bool> {
    if host.read(&directory.join("size"))?.is_none_or(|sectors| sectors == "0") {
        return Ok(false);
    }
    for holder in host.list(&directory.join("holders"))? {
        if !is_lv(host, &holder)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_lv(host: &dyn Host, name: &str) -> host::Result<bool> {
    let uuid = host.read(&Path::new("/sys/block").join(name).join("dm/uuid"))?;
    Ok(uuid.is_some_and(|uuid| uuid.starts_with("LVM-")))
}

/// A `!` in the kernel's name stands for a slash.
fn node(name: &str) -> PathBuf {
    Path::new("/dev").join(name.replace('!', "/"))
}

fn open<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
