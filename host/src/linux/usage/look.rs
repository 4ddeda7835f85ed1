//! One look at everything that could use a device, shared by all who ask at the time.
//!
//! ```text
//!   ask ─▶ waiting ─┐                      a look that has begun may have missed what came since,
//!   ask ─▶ waiting ─┼─▶ look ─▶ answers    so who asks meanwhile waits for the next one
//!   ask ─▶ waiting ─┘     ▲ │
//!                         └─┘ as long as somebody waits
//! ```

use super::{
    super::{loops, read},
    entries, file_name, lets_go, of_its_own, program, unescape,
};
use crate::{Error, Result, User};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::oneshot, task::spawn_blocking, time::timeout};

/// Everything that could use some device.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Loop devices, and the file or device below each.
    pub(super) loops: Vec<(String, String)>,
    /// What is served to other machines.
    pub(super) exports: Vec<Export>,
    /// Swap areas.
    pub(super) swaps: Vec<String>,
    /// One process of each mount namespace, ours first, and its table of mounts.
    pub(super) mounts: Vec<(u32, String)>,
    /// Which process has which block device open, as stat writes it; none of us, and none that lets go by itself.
    pub(super) open: Vec<(u32, u64)>,
}

/// A device that one of the kernel's own targets serves.
#[derive(Debug)]
pub(super) struct Export {
    pub(super) by: &'static str,
    pub(super) name: String,
    pub(super) device: String,
}

impl Look {
    fn take() -> Result<Self> {
        let mut look = Self {
            loops: loops::bound()?,
            exports: exports(Path::new("/sys/kernel/config")),
            swaps: swaps(),
            ..Self::default()
        };
        look.at_processes();
        Ok(look)
    }

    /// The mount tables, and what is open. A mount is in the table of every process in its namespace, so one process a
    /// namespace is asked.
    fn at_processes(&mut self) {
        let own = std::process::id();
        let mut namespaces = BTreeSet::new();
        let others = entries(Path::new("/proc")).into_iter().filter_map(|path| file_name(&path).parse().ok());
        for pid in std::iter::once(own).chain(others.filter(|pid| *pid != own)) {
            let process = PathBuf::from(format!("/proc/{pid}"));
            // A thread of the kernel has no program, mounts nothing and opens nothing.
            let Some(program) = program(pid) else { continue };
            if let Ok(namespace) = fs::read_link(process.join("ns/mnt"))
                && namespaces.insert(namespace)
            {
                self.mounts.push((pid, text(&process.join("mountinfo"))));
            }
            // Who is no user whatever he has open need not be asked for it.
            if pid != own && !lets_go(&program) {
                self.open.extend(of_its_own(pid, || devices_of(&process)).into_iter().map(|rdev| (pid, rdev)));
            }
        }
    }
}

/// Who waits for a look.
#[derive(Debug, Default)]
pub(in super::super) struct Looks(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<oneshot::Sender<Result<Arc<Look>>>>,
    /// Somebody looks, and will look again for those who wait now.
    busy: bool,
}

impl Looks {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who uses a device or one of its partitions, as seen after the call. While processes that have it open come and go
    /// faster than they can be judged, it is looked for again.
    pub(in super::super) async fn users(self: &Arc<Self>, device: &Path, limit: Duration) -> Result<Vec<User>> {
        let seen = async {
            loop {
                let (look, device) = (self.taken().await?, device.to_owned());
                let users = spawn_blocking(move || super::users(&device, &look)).await;
                if let Some(users) = users.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))? {
                    return Ok(users);
                }
            }
        };
        let late = || Error::TimedOut { what: format!("search for users of {}", device.display()), after: limit };
        timeout(limit, seen).await.map_err(|_| late())?
    }

    /// A look that was begun after the call.
    async fn taken(self: &Arc<Self>) -> Result<Arc<Look>> {
        let (reply, answer) = oneshot::channel();
        let idle = {
            let mut queue = self.queue();
            queue.waiting.push(reply);
            !std::mem::replace(&mut queue.busy, true)
        };
        if idle {
            let looks = Arc::clone(self);
            spawn_blocking(move || looks.look());
        }
        answer
            .await
            .map_err(|_| Error::Unreachable { why: "cannot look who uses devices: the look has broken off".into() })?
    }

    /// Looks as long as somebody waits.
    fn look(&self) {
        loop {
            let waiting = {
                let mut queue = self.queue();
                queue.busy = !queue.waiting.is_empty();
                if !queue.busy {
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let look = Look::take().map(Arc::new);
            for one in waiting {
                // Who does not wait any more needs no answer.
                let _gone = one.send(match &look {
                    Ok(look) => Ok(Arc::clone(look)),
                    Err(error) => Err(Error::Unreachable { why: format!("cannot look who uses devices: {error}") }),
                });
            }
        }
    }
}

/// The kernel's own targets, LIO (SCSI) and nvmet (NVMe), as configfs tells of them. One that is not enabled has nothing
/// open.
pub(super) fn exports(config: &Path) -> Vec<Export> {
    let text = |path: PathBuf| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let enabled = |directory: &Path| text(directory.join("enable")) != "0";
    let mut found = Vec::new();
    for store in entries(&config.join("target/core")).iter().flat_map(|backend| entries(backend)) {
        let device = text(store.join("udev_path"));
        if !device.is_empty() && enabled(&store) {
            let name = format!("{}/{}", file_name(store.parent().unwrap_or(&store)), file_name(&store));
            found.push(Export { by: "LIO", name, device });
        }
    }
    for subsystem in entries(&config.join("nvmet/subsystems")) {
        for namespace in entries(&subsystem.join("namespaces")) {
            if enabled(&namespace) {
                let name = format!("{}/{}", file_name(&subsystem), file_name(&namespace));
                found.push(Export { by: "nvmet", name, device: text(namespace.join("device_path")) });
            }
        }
    }
    found
}

fn swaps() -> Vec<String> {
    let table = text(Path::new("/proc/swaps"));
    table.lines().skip(1).filter_map(|line| line.split_whitespace().next().map(unescape)).collect()
}

fn text(path: &Path) -> String {
    read(path).ok().flatten().unwrap_or_default()
}

/// The block devices that a process has open.
fn devices_of(process: &Path) -> Vec<u64> {
    let device = |fd: PathBuf| {
        // The link's text is enough to leave out sockets, pipes and most files without a stat.
        let target = fs::read_link(&fd).ok()?;
        if !target.starts_with("/dev") || target == Path::new("/dev/null") {
            return None;
        }
        let meta = fs::metadata(&fd).ok()?;
        meta.file_type().is_block_device().then(|| meta.rdev())
    };
    entries(&process.join("fd")).into_iter().filter_map(device).collect()
}
