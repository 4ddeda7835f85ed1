//! RBD: images of a Ceph cluster as disks of this host, by the kernel's own client.
//!
//! ```text
//! attach                                                     by                      takes
//!   the monitors, and the user's key                         the call, or /etc/ceph
//!   does a monitor listen?                                   connect(2)              < 1 ms
//!   map; the key is lent to the kernel for this one write    sysfs, add_key(2)       50 ms
//!   who are you? cluster, pool, namespace, image, snapshot   sysfs
//!   mapped here already: unmap ours, use that                sysfs                   20 ms
//!   size, read-only as asked                                 sysfs
//! detach
//!   who uses it? keep new users out                          procfs, open(2)
//!   flush                                                    fsync
//!   unmap, see it gone                                       sysfs                   20 ms
//! manage, unmanage, all lists                                mortar-rbd, one process
//! ```
//!
//! No process is started to attach or to detach. Whatever is ours says so itself ([`mapping::Mark`]), so nothing can make
//! us take away what an operator has mapped; and an image is told by its ids, never by its name.

mod attach;
mod cluster;
mod derive;
mod detach;
#[cfg(fuzzing)]
pub mod fuzz;
mod inventory;
mod jobs;
mod listing;
mod manage;
mod mapping;
mod provenance;
mod refuse;
#[cfg(test)]
mod tests;
mod turns;
mod underway;

use async_trait::async_trait;
use detach::Theirs;
use driver::{
    Adoption, Attached, Attempt, Backend, Candidate, Derivation, Derived, Detached, Device, Driver, Error, Finding,
    Footprint, Image, Locator, Object, Pool, Readiness, Release, Result, Scope, Spec, Templates, Tool, Volume,
    VolumeId,
};
use host::{Host, Module, module};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::time::{Instant, timeout_at};
use turns::Turns;
use underway::Underway;

/// Where krbd shows itself when it is loaded.
const BUS: &str = "/sys/bus/rbd";

/// The settings of the driver.
#[derive(Debug, Clone, Default)]
pub struct RbdConfig {
    /// How managed images and snapshots are named.
    pub templates: Templates,
}

/// The driver for RBD images.
pub struct RbdDriver {
    host: Arc<dyn Host>,
    templates: Templates,
    underway: Underway,
    turns: Turns,
    /// As [`Turns`], for changes of images and their names.
    changes: Turns,
}

/// What outlives a call: a write that hangs in the kernel has to be seen to its end.
pub(crate) struct Parts {
    pub(crate) host: Arc<dyn Host>,
}

impl RbdDriver {
    /// A driver that works on `host`.
    pub fn new(host: Arc<dyn Host>, config: RbdConfig) -> Self {
        Self {
            host,
            templates: config.templates,
            underway: Underway::default(),
            turns: Turns::default(),
            changes: Turns::default(),
        }
    }

    pub(crate) fn host(&self) -> &dyn Host {
        self.host.as_ref()
    }

    pub(crate) fn parts(&self) -> Parts {
        Parts { host: Arc::clone(&self.host) }
    }

    fn problem(&self) -> Option<String> {
        match self.host().stat(Path::new(BUS)) {
            Ok(Some(_)) => None,
            _ => Some("the kernel's module rbd is not loaded; run modprobe rbd".into()),
        }
    }

    /// Which of Ceph's libraries `mortar-rbd` would not find. Those below `/usr/lib` may be in a directory of their
    /// architecture.
    fn missing_libraries(&self) -> Result<Option<&'static str>> {
        let list = |path: &Path| self.host().list(path).map_err(failed("look for Ceph's libraries"));
        let mut directories = vec![PathBuf::from("/usr/lib64"), "/usr/lib".into()];
        directories.extend(
            list(Path::new("/usr/lib"))?
                .iter()
                .filter(|name| name.contains("-linux-gnu"))
                .map(|name| Path::new("/usr/lib").join(name)),
        );
        let mut names = Vec::new();
        for directory in directories {
            names.extend(list(&directory)?);
        }
        Ok(["librados.so.2", "librbd.so.1"].into_iter().find(|library| !names.iter().any(|name| name == library)))
    }

    /// The device of an attachment: on a mapping of ours, or else on the one that was here before.
    fn device(&self, at: &Attached) -> Result<Option<Device>> {
        let Theirs { ours, others } = detach::of(self.host(), &self.underway, image_of(&at.spec.locator)?, at)?;
        match ours.first().or(others.first()) {
            Some(mapping) => mapping.device(self.host()),
            None => Ok(None),
        }
    }
}

#[async_trait]
impl Driver for RbdDriver {
    fn backend(&self) -> Backend {
        Backend::Rbd
    }

    async fn readiness(&self) -> Readiness {
        let mut tools = vec![Tool { name: "krbd".into(), path: BUS.into(), version: "the kernel's".into() }];
        if let Some(path) = self.host().tool(host::Tool::Rbd) {
            // It is built with us, and asking it would be a process for each attach.
            tools.push(Tool { name: "mortar-rbd".into(), path, version: env!("CARGO_PKG_VERSION").into() });
        }
        Readiness { problem: self.problem(), tools }
    }

    async fn prepare(&self, spec: &Spec) -> Result<Footprint> {
        image_of(&spec.locator)?;
        if let Some(problem) = self.problem() {
            return Err(Error::WrongState { what: problem });
        }
        let marks = mapping::marks(self.host())?.iter().map(ToString::to_string).collect();
        Ok(Footprint::Rbd { marks })
    }

    async fn attach(&self, spec: &Spec, _footprint: &Footprint, attempt: &Attempt) -> Result<Device> {
        self.bring(spec, attempt).await
    }

    async fn find(&self, at: &Attached) -> Result<Option<Device>> {
        self.device(at)
    }

    async fn is_still(&self, at: &Attached, device: &Device) -> Result<bool> {
        let now = mapping::at(self.host(), &device.path)?;
        Ok(now.is_some_and(|now| at.identity.as_ref() == Some(&now.identity) && self.underway.is_settled(&now)))
    }

    async fn prove(&self, at: &Attached) -> Result<Option<Device>> {
        // The kernel's word is the proof: a mapping goes by the ids, and stays with its image.
        self.device(at)
    }

    async fn users(&self, at: &Attached) -> Result<Vec<String>> {
        let Theirs { ours, .. } = detach::of(self.host(), &self.underway, image_of(&at.spec.locator)?, at)?;
        let mut users = Vec::new();
        // Those who used what others have mapped go on to.
        for mapping in ours {
            users.extend(detach::users(self.host(), &mapping.node()).await?);
        }
        Ok(users)
    }

    async fn detach(&self, at: &Attached, deadline: Instant) -> Result<Detached> {
        self.take_away(at, deadline).await
    }

    async fn extend(&self, at: &Attached, deadline: Instant) -> Result<Device> {
        let image = image_of(&at.spec.locator)?;
        let absent = || Error::NotFound { what: format!("the device of {image}") };
        let Theirs { ours, others } = detach::of(self.host(), &self.underway, image, at)?;
        let mapping = ours.into_iter().chain(others).next().ok_or_else(absent)?;
        // The kernel is told of a new size by itself; this waits until it has heard.
        match timeout_at(deadline, self.host().write(&mapping.attribute("refresh"), "1")).await {
            Ok(Ok(())) => {}
            Ok(Err(host::Error::TimedOut { .. })) | Err(_) => {
                let what = format!("the cluster {} of {image}", image.pool.cluster);
                return Err(Error::Unreachable { what, why: "it did not tell the size in time".into() });
            }
            Ok(Err(error)) => return Err(failed(format!("learn the size of {image}"))(error)),
        }
        mapping.device(self.host())?.ok_or_else(absent)
    }

    async fn manageable(&self, scope: &Scope) -> Result<Vec<Candidate>> {
        self.list(pool_of(scope)?).await
    }

    async fn inspect(&self, locator: &Locator) -> Result<Candidate> {
        self.look(locator).await
    }

    async fn manage(&self, adoption: &Adoption) -> Result<Volume> {
        self.adopt(adoption).await
    }

    async fn unmanage(&self, release: &Release) -> Result<()> {
        self.release(release).await
    }

    async fn volumes(&self, scope: Option<&Scope>) -> Result<Vec<Volume>> {
        match scope {
            Some(scope) => self.managed(pool_of(scope)?).await,
            // A cluster is not searched: its pools may hold anything, and there may be many.
            None => Ok(Vec::new()),
        }
    }

    async fn named(&self, scope: Option<&Scope>, id: VolumeId) -> Result<Option<Volume>> {
        match scope {
            Some(scope) => self.of_id(pool_of(scope)?, id).await,
            None => Ok(None),
        }
    }

    async fn plan_derivation(&self, image: &Locator, owner: &str) -> Result<Derivation> {
        self.plan_clone(image, owner).await
    }

    async fn derive(&self, derivation: &Derivation, deadline: Instant) -> Result<Derived> {
        self.make_clone(derivation, deadline).await
    }

    async fn discard(&self, derivation: &Derivation, deadline: Instant) -> Result<()> {
        self.remove_clone(derivation, deadline).await
    }

    async fn derivations(&self, scope: Option<&Scope>) -> Result<Vec<Derivation>> {
        match scope {
            Some(scope) => self.clones(pool_of(scope)?).await,
            // As with the managed ones: a cluster is not searched.
            None => Ok(Vec::new()),
        }
    }

    async fn inventory(&self, known: &[Attached], _ask: bool) -> Result<Vec<Object>> {
        inventory::list(self.host(), &self.underway, known)
    }

    async fn findings(&self) -> Result<Vec<Finding>> {
        let absent = module(self.host(), "rbd").map_err(failed("look for a kernel module"))? == Module::Absent;
        let module = absent.then(|| {
            Finding::warning(
                "kernel module rbd",
                "it is neither loaded, built in nor on the disk: no RBD image can be attached",
                "install the package with the modules of the running kernel, or reboot into the newest one",
            )
        });
        let tool = self.host().tool(host::Tool::Rbd).is_none().then(|| {
            let found = "it is not installed: no RBD image can be listed or managed";
            Finding::warning(
                "mortar-rbd",
                found,
                "install it as /usr/libexec/mortar/mortar-rbd, as mortar's package does",
            )
        });
        let libraries = self.missing_libraries()?.map(|missing| {
            let found = format!("{missing} is not installed: no RBD image can be listed or managed");
            Finding::warning("Ceph's libraries", found, "install librbd1 and librados2")
        });
        Ok(module.into_iter().chain(tool).chain(libraries).collect())
    }
}

fn pool_of(scope: &Scope) -> Result<&Pool> {
    match scope {
        Scope::Rbd(pool) => Ok(pool),
        other => Err(Error::invalid("scope", format!("{other} is no pool; write rbd:POOL"))),
    }
}

fn image_of(locator: &Locator) -> Result<&Image> {
    match locator {
        Locator::Rbd(image) => Ok(image),
        other => Err(Error::invalid("locator", format!("{other} is no RBD image; write rbd:POOL/IMAGE"))),
    }
}

/// For `map_err`: the machine failed while we were `doing` something. What did not end in time may be tried again.
fn failed(doing: impl Into<String>) -> impl FnOnce(host::Error) -> Error {
    let doing = doing.into();
    move |error| match error {
        host::Error::TimedOut { what, .. } => Error::TimedOut { waiting_for: format!("{what} (to {doing})") },
        other => Error::host(doing)(other),
    }
}
