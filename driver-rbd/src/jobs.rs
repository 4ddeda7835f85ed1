//! What is asked of the cluster itself: one run of `mortar-rbd` each, however many images it is about. Attaching asks nothing.

use crate::{RbdDriver, cluster, failed};
use driver::{Error, Image, Pool, Result};
use host::{
    Command, Tool,
    rbd_job::{self, Failure, Features, Job, Step, Task},
};
use serde::de::DeserializeOwned;
use std::path::Path;

/// What the kernel's client knows to do with an image, one bit for each feature in this order (`rbd/features.h`).
const FEATURES: [&str; 12] = [
    "layering",
    "striping",
    "exclusive-lock",
    "object-map",
    "fast-diff",
    "deep-flatten",
    "journaling",
    "data-pool",
    "operations",
    "migrating",
    "non-primary",
    "dirty-cache",
];

/// The bits that this kernel has, in hexadecimal.
const SUPPORTED: &str = "/sys/bus/rbd/supported_features";

impl RbdDriver {
    /// Asks for what only reads.
    pub(crate) async fn ask(&self, pool: &Pool, task: Task) -> Result<rbd_job::Pool> {
        self.run(pool, task, Command::read::<String>(Tool::Rbd, [])).await
    }

    /// Asks for a change.
    pub(crate) async fn change(&self, pool: &Pool, task: Task) -> Result<rbd_job::Pool> {
        self.run(pool, task, Command::write::<String>(Tool::Rbd, [])).await
    }

    async fn run<T: DeserializeOwned>(&self, pool: &Pool, task: Task, command: Command) -> Result<T> {
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
            timeout_ms: 20_000,
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
        let output = self.host().run(command.input(job.to_stdin())).await.map_err(failed(format!("ask for {pool}")))?;
        rbd_job::reply(&output).map_err(|failure| classify(pool, failure))
    }

    /// Which features an image has and this kernel lacks.
    pub(crate) async fn lacking(&self, image: &Image) -> Result<Vec<String>> {
        let task = Task::Features { image: image.name.to_string() };
        let asked: Features = self.run(&image.pool, task, Command::read::<String>(Tool::Rbd, [])).await?;
        let supported = self.host().read(Path::new(SUPPORTED)).map_err(failed("read what the kernel supports"))?;
        let supported = supported.unwrap_or_default();
        let bits = u64::from_str_radix(supported.trim().trim_start_matches("0x"), 16).unwrap_or_default();
        let knows = |name: &String| {
            FEATURES.iter().position(|feature| feature == name).is_some_and(|bit| bits & (1 << bit) != 0)
        };
        Ok(asked.features.into_iter().filter(|name| !knows(name)).collect())
    }
}

/// The one place where the answers of Ceph's libraries are given a meaning.
fn classify(pool: &Pool, failure: Failure) -> Error {
    let said = failure.to_string();
    let cluster = format!("the cluster {}", pool.cluster);
    match (failure.step, failure.errno) {
        (Step::Library, _) => Error::Unsupported {
            what: format!("{said}; install Ceph's librados2 and librbd1 to manage images (attaching does without)"),
        },
        (_, Some(libc::EACCES | libc::EPERM)) => Error::Denied { who: cluster, why: said },
        (_, Some(libc::ETIMEDOUT)) => Error::Unreachable { what: cluster, why: said },
        (Step::Connect, Some(libc::ENOENT | libc::EINVAL)) => {
            Error::WrongState { what: format!("{said}; see {} and its keyrings", cluster::path(pool).display()) }
        }
        (Step::Connect, _) => Error::Unreachable { what: cluster, why: said },
        (Step::Pool, Some(libc::ENOENT)) => Error::NotFound { what: format!("the pool of {pool}") },
        (Step::Image | Step::Snapshot, Some(libc::ENOENT)) => Error::NotFound { what: failure.message },
        (Step::Rename, Some(libc::EEXIST)) => Error::AlreadyExists { what: format!("{said}; nothing was changed") },
        (_, Some(libc::EROFS)) => Error::WrongState { what: said },
        (_, Some(libc::ENOSPC | libc::EDQUOT)) => Error::Full { what: pool.to_string(), why: said },
        (_, errno) => Error::Tool {
            doing: failure.doing,
            tool: "mortar-rbd",
            code: errno.map_or_else(|| "1".into(), |errno| errno.to_string()),
            said: failure.message,
        },
    }
}
