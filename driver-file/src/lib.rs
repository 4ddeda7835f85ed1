//! Raw files on loop devices: the backend that needs no storage at hand, and no process at all.
//!
//! A file is known by its device and inode number, never by its name alone: a rename does not change them, and the
//! kernel tells them of the file below a loop device. A loop device is ours by the label that we bind it with; every other
//! one is somebody else's, and stays as it is.

mod adoption;
mod binding;
mod derive;
mod header;
mod inventory;
mod listing;
mod provenance;
mod refusal;
mod seen;
mod volume;

use async_trait::async_trait;
use driver::{
    Adoption, Attached, Attempt, Backend, Candidate, Derivation, Derived, Detached, Device, Driver, Error, Finding,
    Footprint, Identity, Locator, Object, Readiness, Release, Result, Scope, Spec, Tool, Volume,
};
use host::{Host, LoopDevice, Module, module};
use listing::Listing;
use refusal::machine;
use seen::{Listed, Seen};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::time::Instant;

/// What binds loop devices; it is there as soon as the module is.
const LOOP_CONTROL: &str = "/dev/loop-control";

/// Of so few attachments the device of each is asked by itself: there may be a thousand loop devices of others.
const FEW: usize = 16;

/// What the driver has to be told.
#[derive(Debug, Clone)]
pub struct FileConfig {
    /// Where managed volumes are looked for by themselves.
    pub directories: Vec<PathBuf>,
    /// How they are named.
    pub templates: driver::Templates,
}

/// The file backend on one machine.
pub struct FileDriver {
    host: Arc<dyn Host>,
    config: FileConfig,
    seen: Seen,
}

impl FileDriver {
    /// The file backend on `host`.
    pub fn new(host: Arc<dyn Host>, config: FileConfig) -> Self {
        Self { host, config, seen: Seen::default() }
    }

    async fn listing(&self) -> Result<Listing<'_>> {
        Listing::new(self.host.as_ref(), &self.config.templates).await
    }

    /// The loop devices of an attachment.
    async fn bound(&self, at: &Attached) -> Result<Vec<LoopDevice>> {
        binding::ours(self.host.as_ref(), &at.spec.locator, identity(at)?).await
    }

    /// The loop device of an attachment, unless it is on its way out: then it is nobody's any more.
    async fn staying(&self, at: &Attached) -> Result<Option<LoopDevice>> {
        self.seen.find(self.host.as_ref(), &at.spec.locator, identity(at)?).await
    }
}

#[async_trait]
impl Driver for FileDriver {
    fn backend(&self) -> Backend {
        Backend::File
    }

    async fn readiness(&self) -> Readiness {
        let control = Path::new(LOOP_CONTROL);
        let problem = match self.host.stat(control) {
            Ok(Some(_)) => None,
            Ok(None) => Some("loop devices are missing: modprobe loop".to_owned()),
            Err(error) => Some(machine("look for loop devices")(error).chain()),
        };
        let version = self.host.facts().map(|facts| facts.kernel).unwrap_or_default();
        let tools = match problem {
            None => vec![Tool { name: "loop".into(), path: control.into(), version }],
            Some(_) => Vec::new(),
        };
        Readiness { problem, tools }
    }

    async fn prepare(&self, spec: &Spec) -> Result<Footprint> {
        let found = volume::attachable(self.host.as_ref(), &spec.locator).await?;
        if let Some(bound) = binding::reusable(self.host.as_ref(), &spec.locator, &found.identity).await? {
            binding::check_mode(self.host.as_ref(), spec, &bound)?;
        }
        Ok(Footprint::File { identity: found.identity })
    }

    async fn attach(&self, spec: &Spec, footprint: &Footprint, attempt: &Attempt) -> Result<Device> {
        let deadline = attempt.deadline;
        let host = self.host.as_ref();
        let identity = noted(footprint)?;
        let found = volume::attachable(host, &spec.locator).await?;
        volume::same(&spec.locator, identity, &found.identity)?;
        if let Some(bound) = binding::reusable(host, &spec.locator, identity).await? {
            binding::check_mode(host, spec, &bound)?;
            let device = binding::wait_for_device(host, &bound, deadline).await?;
            spec.check(&device)?;
            return Ok(device);
        }
        let device = binding::bind(host, spec, identity, deadline).await?;
        self.seen.note(identity, &device);
        Ok(device)
    }

    async fn find(&self, at: &Attached) -> Result<Option<Device>> {
        match self.staying(at).await? {
            Some(bound) => binding::device(self.host.as_ref(), &bound),
            None => Ok(None),
        }
    }

    async fn find_each(&self, all: &[&Attached]) -> Vec<Result<Option<Device>>> {
        let host = self.host.as_ref();
        let listed = match all.len() {
            ..=FEW => None,
            // What is in the way is told by each.
            _ => self.seen.list(host).await.ok(),
        };
        let mut found = Vec::with_capacity(all.len());
        for at in all {
            found.push(match &listed {
                Some(listed) => listed_device(host, listed, at),
                None => self.find(at).await,
            });
        }
        found
    }

    async fn prove(&self, at: &Attached) -> Result<Option<Device>> {
        let found = self.find(at).await?;
        // The device proves itself by the numbers of its file. A name that is gone was changed, by us or by somebody
        // else; one that another file has now would be attached again as another volume.
        if found.is_some()
            && let Some(named) = volume::look(self.host.as_ref(), &at.spec.locator).await?
        {
            volume::same(&at.spec.locator, identity(at)?, &named.identity)?;
        }
        Ok(found)
    }

    async fn users(&self, at: &Attached) -> Result<Vec<String>> {
        let mut users = Vec::new();
        for bound in self.bound(at).await? {
            users.extend(binding::users(self.host.as_ref(), &bound).await?);
        }
        Ok(users)
    }

    async fn detach(&self, at: &Attached, deadline: Instant) -> Result<Detached> {
        let mut detached = Detached::default();
        // What was never handed out has nothing to flush that anybody wrote.
        let flush = at.identity.is_some();
        for bound in self.bound(at).await? {
            detached.residuals.extend(binding::unbind(self.host.as_ref(), &bound, flush, deadline).await?);
        }
        Ok(detached)
    }

    async fn extend(&self, at: &Attached, _: Instant) -> Result<Device> {
        let bound = self.staying(at).await?;
        let bound = bound.ok_or_else(|| Error::NotFound { what: format!("the device of {}", at.spec.locator) })?;
        binding::grow(self.host.as_ref(), &bound, &at.spec.locator).await
    }

    async fn manageable(&self, scope: &Scope) -> Result<Vec<Candidate>> {
        self.listing().await?.candidates(directory(scope)?).await
    }

    async fn inspect(&self, locator: &Locator) -> Result<Candidate> {
        let found = volume::present(self.host.as_ref(), locator).await?;
        self.listing().await?.candidate(volume::file(locator)?, found).await
    }

    async fn manage(&self, adoption: &Adoption) -> Result<Volume> {
        adoption::manage(self.host.as_ref(), adoption).await
    }

    async fn unmanage(&self, release: &Release) -> Result<()> {
        adoption::unmanage(self.host.as_ref(), release).await
    }

    async fn volumes(&self, scope: Option<&Scope>) -> Result<Vec<Volume>> {
        match scope {
            Some(scope) => listing::volumes(self.host.as_ref(), directory(scope)?).await,
            None => {
                let mut volumes = Vec::new();
                for directory in &self.config.directories {
                    match listing::volumes(self.host.as_ref(), directory).await {
                        Ok(found) => volumes.extend(found),
                        // It need not be there before something is put into it.
                        Err(Error::NotFound { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(volumes)
            }
        }
    }

    async fn plan_derivation(&self, image: &Locator, owner: &str) -> Result<Derivation> {
        derive::plan(self.host.as_ref(), image, owner).await
    }

    async fn derive(&self, derivation: &Derivation, deadline: Instant) -> Result<Derived> {
        derive::derive(self.host.as_ref(), derivation, deadline).await
    }

    async fn discard(&self, derivation: &Derivation, _: Instant) -> Result<()> {
        derive::discard(self.host.as_ref(), derivation).await
    }

    async fn derivations(&self, scope: Option<&Scope>) -> Result<Vec<Derivation>> {
        let directories = match scope {
            Some(scope) => vec![directory(scope)?.to_owned()],
            None => self.config.directories.clone(),
        };
        let mut found = Vec::new();
        for directory in directories {
            found.extend(derive::list(self.host.as_ref(), &directory).await?);
        }
        Ok(found)
    }

    async fn inventory(&self, known: &[Attached], _ask: bool) -> Result<Vec<Object>> {
        inventory::list(self.host.as_ref(), known).await
    }

    async fn findings(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        if module(self.host.as_ref(), "loop").map_err(machine("look for a kernel module"))? == Module::Absent {
            findings.push(Finding::warning(
                "kernel module loop",
                "it is neither loaded, built in nor on the disk: no file can be attached",
                "install the package with the modules of the running kernel, or reboot into the newest one",
            ));
        }
        if self.host.tool(host::Tool::QemuImg).is_none() {
            findings.push(Finding::info(
                "qemu-img",
                "it is not installed: where the file system has no reflinks, a rescue disk is a whole copy of its image",
                "install the package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora, Red Hat)",
            ));
        }
        Ok(findings)
    }
}

/// As [`FileDriver::find`], among all loop devices.
fn listed_device(host: &dyn Host, listed: &Listed, at: &Attached) -> Result<Option<Device>> {
    match listed.find(host, &at.spec.locator, identity(at)?)? {
        Some(bound) => binding::device(host, &bound),
        None => Ok(None),
    }
}

/// What an attachment's device must prove to be.
fn identity(at: &Attached) -> Result<&Identity> {
    at.identity.as_ref().map_or_else(|| noted(&at.footprint), Ok)
}

/// The file as it was when the attachment was prepared.
fn noted(footprint: &Footprint) -> Result<&Identity> {
    match footprint {
        Footprint::File { identity } => Ok(identity),
        _ => Err(Error::invalid("footprint", "it is not that of a file")),
    }
}

fn directory(scope: &Scope) -> Result<&Path> {
    match scope {
        Scope::File(directory) => Ok(directory),
        other => Err(Error::invalid("scope", format!("{other} is no directory; write file:/DIRECTORY"))),
    }
}

#[cfg(test)]
mod tests;
