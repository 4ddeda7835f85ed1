//! What is asked of the cluster itself: one run of `mortar-rbd` each, however many images it is about. Attaching asks nothing.

use crate::{RbdDriver, cluster, failed};
use driver::{Error, Identity, Image, Pool, Result};
use host::{
    Command, Output, Tool,
    rbd_job::{self, FEATURES, Failure, Features, Job, Step, Task},
};
use serde::de::DeserializeOwned;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// The bits that this kernel has, in hexadecimal.
const SUPPORTED: &str = "/sys/bus/rbd/supported_features";

/// How long one request to the cluster may take. A step of a job is a few of them.
const REQUEST: Duration = Duration::from_secs(20);

/// When a change begins no step any more, and how long it is waited for.
const CHANGE: Duration = Duration::from_secs(60);
const CHANGE_ENDS: Duration = Duration::from_secs(120);

/// How long the process of a change is kept in sight, whoever waits for it: longer than all its requests together may take.
const CHANGE_LIVES: Duration = Duration::from_secs(900);

/// How long a list may take. A pool of 1,000 images took half a minute on a slow cluster.
const LIST: Duration = Duration::from_secs(240);

/// What to say where the cluster has shut our client out (`ESHUTDOWN`).
pub(crate) const BLOCKLISTED: &str = "it has shut this host's client out (`ceph osd blocklist ls` shows it, `ceph osd blocklist \
                                      rm` lets it in again)";

impl RbdDriver {
    /// Asks for what only reads.
    pub(crate) async fn ask(&self, pool: &Pool, task: Task) -> Result<rbd_job::Pool> {
        let command = Command::read::<String>(Tool::Rbd, []);
        let command = if task == Task::List { command.within(LIST) } else { command };
        let asked = self.asked(pool, task, command)?;
        answered(pool, None, self.host().run(asked).await)
    }

    /// Asks for a change of an image. Until the process of an earlier change of it has ended, whatever became of who asked for
    /// that, this one is not begun: one would undo what the other is still to do.
    pub(crate) async fn change(&self, pool: &Pool, image: &Identity, task: Task) -> Result<rbd_job::Pool> {
        self.change_until(pool, image, task, Instant::now() + CHANGE_ENDS).await
    }

    /// As [`RbdDriver::change`], for a caller who waits so long.
    pub(crate) async fn change_until(
        &self,
        pool: &Pool,
        image: &Identity,
        task: Task,
        deadline: Instant,
    ) -> Result<rbd_job::Pool> {
        let name = match &task {
            Task::Manage(change) | Task::Unmanage(change) => Some(change.image.clone()),
            Task::Clone(cloning) | Task::Unclone(cloning) => Some(cloning.name.clone()),
            _ => None,
        };
        let command = self.asked(pool, task, Command::write::<String>(Tool::Rbd, []).within(CHANGE_LIVES))?;
        let late = |which: &str| Error::TimedOut {
            waiting_for: format!("{which} change of an image of {pool} (mortar-rbd), which still goes on"),
        };
        let turn = self.changes.take(&whole(image), deadline).await.map_err(|_| late("an earlier"))?;
        let host = Arc::clone(&self.host);
        let ended = tokio::spawn(host::carried(async move {
            let output = host.run(command).await;
            drop(turn);
            output
        }));
        match timeout_at(deadline, ended).await {
            Ok(Ok(output)) => answered(pool, name.as_deref(), output),
            Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            Err(_) => Err(late("the")),
        }
    }

    /// The features of an image.
    pub(crate) async fn features(&self, image: &Image) -> Result<Vec<String>> {
        let task = Task::Features { image: image.name.to_string() };
        let asked = self.asked(&image.pool, task, Command::read::<String>(Tool::Rbd, []))?;
        let told: Features = answered(&image.pool, None, self.host().run(asked).await)?;
        Ok(told.features)
    }

    fn asked(&self, pool: &Pool, task: Task, command: Command) -> Result<Command> {
        if self.host().tool(Tool::Rbd).is_none() {
            return Err(Error::Unsupported {
                what: "mortar-rbd is not installed, so images can be attached but not managed; install it in \
                       /usr/libexec/mortar"
                    .into(),
            });
        }
        let conf = cluster::path(pool);
        let conf = self.host().stat(&conf).map_err(failed(format!("look for {}", conf.display())))?.map(|_| conf);
        let job = Job {
            cluster: pool.cluster.to_string(),
            conf,
            monitors: pool.monitors.iter().map(ToString::to_string).collect(),
            user: pool.user.to_string(),
            key: None,
            pool: pool.pool.to_string(),
            namespace: pool.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
            timeout_ms: millis(REQUEST),
            budget_ms: command.writes.then(|| millis(CHANGE)),
            task,
        };
        if job.conf.is_none() && job.monitors.is_empty() {
            return Err(Error::WrongState {
                what: format!(
                    "{} is not there; write it, or name the monitors in the locator: ?mon=ADDRESS:PORT,…",
                    cluster::path(pool).display()
                ),
            });
        }
        Ok(command.input(job.to_stdin()))
    }

    /// Which features an image has and this kernel lacks.
    pub(crate) async fn lacking(&self, image: &Image) -> Result<Vec<String>> {
        let features = self.features(image).await?;
        let supported = self.supported()?;
        Ok(features.into_iter().filter(|name| !supported.contains(&name.as_str())).collect())
    }

    /// The features that this kernel has.
    pub(crate) fn supported(&self) -> Result<Vec<&'static str>> {
        let supported = self.host().read(Path::new(SUPPORTED)).map_err(failed("read what the kernel supports"))?;
        let supported = supported.unwrap_or_default();
        let bits = u64::from_str_radix(supported.trim().trim_start_matches("0x"), 16).unwrap_or_default();
        let known = FEATURES.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
        Ok(known.map(|(_, name)| *name).collect())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The image, when one of its snapshots may be meant: it has one name and one set of metadata.
fn whole(identity: &Identity) -> Identity {
    match identity.clone() {
        Identity::Rbd { fsid, pool_id, namespace, image_id, .. } => {
            Identity::Rbd { fsid, pool_id, namespace, image_id, snapshot_id: None }
        }
        other => other,
    }
}

/// Reads how a job ended that was about one image, or about a pool.
fn answered<T: DeserializeOwned>(pool: &Pool, image: Option<&str>, output: host::Result<Output>) -> Result<T> {
    let output = output.map_err(failed(format!("ask for {pool}")))?;
    rbd_job::reply(&output).map_err(|failure| classify(pool, image, failure))
}

/// The one place where the answers of Ceph's libraries are given a meaning.
fn classify(pool: &Pool, image: Option<&str>, failure: Failure) -> Error {
    let said = failure.to_string();
    let cluster = format!("the cluster {}", pool.cluster);
    match (failure.step, failure.errno) {
        (Step::Library, _) => Error::Unsupported {
            what: format!("{said}; install Ceph's librados2 and librbd1 to manage images (attaching does without)"),
        },
        (_, Some(libc::EACCES | libc::EPERM)) => Error::Denied { who: cluster, why: said },
        (_, Some(libc::ESHUTDOWN)) => Error::Unreachable { what: cluster, why: BLOCKLISTED.into() },
        (_, Some(libc::ETIMEDOUT)) => Error::Unreachable { what: cluster, why: said },
        (Step::Connect, Some(libc::ENOENT | libc::EINVAL)) => {
            Error::WrongState { what: format!("{said}; see {} and its keyrings", cluster::path(pool).display()) }
        }
        (Step::Connect, _) => Error::Unreachable { what: cluster, why: said },
        (Step::Pool, Some(libc::ENOENT)) => Error::NotFound { what: format!("the pool of {pool}") },
        (Step::Image | Step::Snapshot, Some(libc::ENOENT)) => Error::NotFound { what: failure.message },
        (Step::Rename, Some(libc::EEXIST)) => Error::AlreadyExists { what: format!("{said}; nothing was changed") },
        (Step::Clone, Some(libc::EEXIST)) => {
            Error::WrongState { what: format!("{said}, so it stays; give it another name") }
        }
        (Step::Clone, Some(libc::ENOSYS | libc::EOPNOTSUPP)) => {
            Error::Unsupported { what: format!("{said}; the cluster cannot clone this image") }
        }
        // Who has it stands in the message.
        (Step::Clone, Some(libc::EBUSY | libc::ENOTEMPTY)) | (_, Some(libc::EROFS)) => Error::InUse {
            what: image.map_or_else(|| pool.to_string(), |image| format!("the image {image}")),
            by: vec![failure.message],
        },
        (_, Some(libc::ENOSPC | libc::EDQUOT)) => Error::Full { what: pool.to_string(), why: said },
        (_, errno) => Error::Tool {
            doing: failure.doing,
            tool: "mortar-rbd",
            code: errno.map_or_else(|| "1".into(), |errno| errno.to_string()),
            said: failure.message,
        },
    }
}
