//! Attach: from a locator to a device of which the kernel says that it is that image.
//!
//! Which image a name stands for is known only to the cluster, and the kernel tells once it has mapped it. So we map first
//! and look then whether it was mapped already:
//!
//! ```text
//!   map ──▶ who is it? ──▶ nobody else has it ──────────────▶ ours
//!    │                 └──▶ it is mapped already ──▶ unmap ──▶ that one
//!    └ hangs: answer at the deadline; unmap it should it come after all
//! ```

use crate::{
    RbdDriver,
    cluster::{Cluster, Messenger},
    failed, image_of,
    jobs::BLOCKLISTED,
    mapping::{self, Mapping, Mark},
    underway::Noted,
};
use driver::{Attempt, Device, Error, Image, Result, Spec};
use host::wait_for;
use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// Where mappings are asked for; the second where the module was loaded with `single_major=0`.
const ADD: [&str; 2] = ["/sys/bus/rbd/add_single_major", "/sys/bus/rbd/add"];

/// How long the undo of an attach that failed may take. The attach's own time may be over by then.
const UNDO: Duration = Duration::from_secs(30);

impl RbdDriver {
    /// All of it; or nothing, with the reason.
    pub(crate) async fn bring(&self, spec: &Spec, attempt: &Attempt) -> Result<Device> {
        let image = image_of(&spec.locator)?;
        let cluster = Cluster::of(self.host(), &image.pool, attempt.access.cephx.as_ref())?;
        let messenger = self.reach(&cluster, image, attempt.deadline).await?;
        let mark = Mark::new(image);
        let noted = Arc::new(self.underway.note(&mark));
        let request = cluster.request(messenger, image, spec, &mark);
        let (sender, receiver) = oneshot::channel();
        let (driver, written) = (self.parts(), Arc::clone(&noted));
        let (key, mark_of_write) = (cluster.lend(&mark), mark.clone());
        let writer = self.parts();
        let write = host::carried(async move { writer.host.write_with_key(writer.add(), &request, &key).await });
        tokio::spawn(async move {
            let done = write.await;
            // Whoever takes the answer takes the note, too: once he has settled, nothing holds the mapping back.
            if let Err((Ok(()), _noted)) = sender.send((done, written)) {
                tracing::warn!(mark = %mark_of_write, "mapped after nobody waited for it any more: unmapping it");
                driver.unmap_marked(&mark_of_write).await;
            }
        });
        self.written(spec, image, receiver, attempt.deadline).await?;
        let device = self.settle(spec, image, &mark, attempt.deadline).await;
        if device.is_err() {
            self.parts().unmap_marked(&mark).await;
        }
        drop(noted);
        device
    }

    /// Refused is known at once; that nobody answers, at the deadline. The kernel itself would try for a minute.
    async fn reach(&self, cluster: &Cluster, image: &Image, deadline: Instant) -> Result<Messenger> {
        let mut seen = Vec::new();
        let kinds = [Messenger::One, Messenger::Two].map(|kind| (kind, cluster.monitors.speaking(kind)));
        let kinds: Vec<_> = kinds.into_iter().filter(|(_, monitors)| !monitors.is_empty()).collect();
        for (number, (kind, monitors)) in kinds.iter().enumerate() {
            // Those who know only the second may drop what is sent to the first: then there has to be time left.
            let left = deadline.saturating_duration_since(Instant::now());
            let until = if number + 1 < kinds.len() { Instant::now() + left / 2 } else { deadline };
            match self.one_of(monitors, until).await {
                Ok(()) => return Ok(*kind),
                Err(why) => seen.extend(why),
            }
        }
        Err(Error::Unreachable { what: format!("the cluster {} of {image}", image.pool.cluster), why: seen.join(", ") })
    }

    /// Ends with the first that listens.
    async fn one_of(&self, monitors: &[SocketAddr], deadline: Instant) -> std::result::Result<(), Vec<String>> {
        let mut tries = JoinSet::new();
        for monitor in monitors.iter().copied() {
            let host = Arc::clone(&self.host);
            tries.spawn(host::carried(async move { (monitor, host.reach(monitor, deadline).await) }));
        }
        let mut seen = Vec::new();
        while let Some(tried) = tries.join_next().await {
            match tried {
                Ok((_, Ok(()))) => return Ok(()),
                Ok((monitor, Err(error))) => seen.push(format!("{monitor}: {error}")),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
        Err(seen)
    }

    /// Waits for the kernel's answer to the write.
    async fn written(
        &self,
        spec: &Spec,
        image: &Image,
        mut answer: oneshot::Receiver<(host::Result<()>, Arc<Noted>)>,
        deadline: Instant,
    ) -> Result<()> {
        let late =
            || Error::TimedOut { waiting_for: format!("the kernel to map {image}: its cluster does not answer") };
        let answered = tokio::select! {
            answered = timeout_at(deadline, &mut answer) => answered.ok(),
            () = host::cancelled() => None,
        };
        let answer = match answered {
            Some(answer) => answer,
            None => {
                // What is sent from now on is not taken any more, and then its sender unmaps it.
                answer.close();
                answer.try_recv().map_err(|_| late()).map(Ok)?
            }
        };
        match answer {
            Ok((Ok(()), _)) => Ok(()),
            Ok((Err(error), _)) => Err(self.refused(spec, image, error).await),
            Err(_) => Err(late()),
        }
    }

    /// What the kernel means by the number that it answers a mapping with (`rbd_add` and below it, `drivers/block/rbd.c`).
    async fn refused(&self, spec: &Spec, image: &Image, error: host::Error) -> Error {
        let cluster = format!("the cluster {}", image.pool.cluster);
        let source = match &error {
            // Of lending the key, or opening the attribute, the same numbers say something else.
            host::Error::Io { doing: "write", source, .. } => source,
            host::Error::Unreachable { why } => return Error::Unreachable { what: cluster, why: why.clone() },
            _ => return failed(format!("map {image}"))(error),
        };
        let user = format!("client.{}", image.pool.user);
        match source.raw_os_error() {
            Some(libc::ENOENT) => {
                Error::NotFound { what: format!("{image} (the pool, the namespace, the image or its snapshot)") }
            }
            Some(libc::EACCES) => {
                Error::Denied { who: cluster, why: format!("there is no {user}, or it has another key") }
            }
            Some(libc::EPERM) => Error::Denied {
                who: cluster,
                why: format!("{user} may not use {image}; `ceph auth caps` can give it `profile rbd`"),
            },
            Some(libc::ENXIO) => self.unsupported(image).await,
            Some(libc::EINVAL) if spec.exclusive && self.has_no_lock(image).await => Error::WrongState {
                what: format!(
                    "{image} cannot be attached exclusively without the feature exclusive-lock; `rbd feature enable {} \
                     exclusive-lock` gives it",
                    path(image)
                ),
            },
            Some(libc::ESHUTDOWN) => Error::Unreachable { what: cluster, why: BLOCKLISTED.into() },
            Some(libc::ETIMEDOUT) => {
                Error::Unreachable { what: cluster, why: "its monitors listen, but let nobody in".into() }
            }
            Some(libc::EROFS | libc::EBUSY) => Error::InUse {
                what: image.to_string(),
                by: vec!["another client that holds its exclusive lock (`rbd lock ls`)".into()],
            },
            _ => failed(format!("map {image}"))(error),
        }
    }

    /// Which features the kernel lacks. Only the cluster can tell what the image has, so this one error costs a process.
    async fn unsupported(&self, image: &Image) -> Error {
        let what = match self.lacking(image).await {
            Ok(features) if !features.is_empty() => format!(
                "{image} has features that this kernel does not support: {0}; `rbd feature disable {1} {0}` takes them off",
                features.join(" "),
                path(image),
            ),
            Ok(_) => format!("{image} has features that this kernel does not support; dmesg says which"),
            Err(error) => format!(
                "{image} has features that this kernel does not support; dmesg says which (asking for their names failed: {})",
                error.chain()
            ),
        };
        Error::Unsupported { what }
    }

    /// Whether an image is known to lack exclusive-lock.
    async fn has_no_lock(&self, image: &Image) -> bool {
        self.features(image).await.is_ok_and(|features| !features.iter().any(|has| has == "exclusive-lock"))
    }

    /// From a mapping to a device that can be handed out.
    async fn settle(&self, spec: &Spec, image: &Image, mark: &Mark, deadline: Instant) -> Result<Device> {
        let gone = || Error::WrongState { what: format!("{image} was unmapped by somebody else meanwhile; try again") };
        // The kernel shows it before it answers the write, so what is not there is gone.
        let mut mapping = mapping::marked(self.host(), mark)?.ok_or_else(gone)?;
        let _turn = self.turns.take(&mapping.identity, deadline).await?;
        let mut others = mapping::others(self.host(), &mapping)?;
        others.retain(|other| self.underway.is_settled(other));
        // Of several, ours.
        others.sort_by_key(|other| other.mark.is_none());
        let other = others.into_iter().next();
        if let Some(other) = other {
            self.parts().unmap(&mapping, deadline).await?;
            mapping = other;
        }
        let device = self.shown(&mapping, deadline).await?.ok_or_else(gone)?;
        let wants_read_only = spec.read_only || image.snapshot.is_some();
        if device.read_only != wants_read_only {
            let mode = |read_only| if read_only { "read-only" } else { "for writing" };
            return Err(Error::WrongState {
                what: format!(
                    "{} was mapped before {} as {}; unmap it there to have it {}",
                    device.path.display(),
                    mode(device.read_only),
                    mapping.name,
                    mode(wants_read_only)
                ),
            });
        }
        if spec.exclusive && !mapping.exclusive {
            return Err(Error::WrongState {
                what: format!(
                    "{} was mapped before as {}, without its exclusive lock; unmap it there first",
                    device.path.display(),
                    mapping.name
                ),
            });
        }
        spec.check(&device)?;
        Ok(device)
    }

    /// The device of a mapping, once it has its node; `None` if the mapping has gone, whoever has its number then.
    async fn shown(&self, mapping: &Mapping, deadline: Instant) -> Result<Option<Device>> {
        let node = mapping.node();
        let waiting = || format!("wait for {}", node.display());
        let probe = || match self.host().stat(&node)? {
            Some(_) => Ok(Some(true)),
            None => Ok((!mapping.is_there(self.host())?).then_some(false)),
        };
        let there = wait_for(self.host(), deadline, probe).await.map_err(failed(waiting()))?;
        let device = match there {
            Some(true) => mapping.device(self.host())?,
            Some(false) => return Ok(None),
            None => return Err(Error::TimedOut { waiting_for: format!("the device {}", node.display()) }),
        };
        // What was read was this mapping's only if it is still there.
        let still = mapping.is_there(self.host()).map_err(failed(waiting()))?;
        Ok(device.filter(|_| still))
    }
}

impl crate::Parts {
    fn add(&self) -> &'static Path {
        let there = |path: &&str| matches!(self.host.stat(path.as_ref()), Ok(Some(_)));
        Path::new(ADD.iter().find(|path| there(path)).unwrap_or(&ADD[0]))
    }

    /// Takes a mapping away that nobody was given. What stays is said in the log.
    async fn unmap_marked(&self, mark: &Mark) {
        let deadline = Instant::now() + UNDO;
        let done = match mapping::marked(self.host.as_ref(), mark) {
            Ok(Some(mapping)) => self.unmap(&mapping, deadline).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(%mark, error = error.chain(), "cannot take back a mapping");
        }
    }
}

/// `pool/namespace/image`, as the commands of Ceph want it.
fn path(image: &Image) -> String {
    let namespace = image.pool.namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!("{}/{namespace}{}", image.pool.pool, image.name)
}

/// For the kernel's own errors.
pub(crate) fn errno(error: &host::Error) -> Option<i32> {
    match error {
        host::Error::Io { source, .. } => io::Error::raw_os_error(source),
        _ => None,
    }
}
