//! The LVM driver: activates one LV, proves by the kernel's own word which LV that is, and takes LVs into management by
//! renaming them.
//!
//! What LVM holds is read by one `lvm fullreport`; what is active is read from sysfs; what is changed is changed by one
//! `lvm` for each step. What a report said is kept, and asked for again without a process as long as the PVs say that nothing
//! has changed ([`known`]).

mod active;
mod attach;
mod derive;
mod filters;
#[cfg(fuzzing)]
pub mod fuzz;
mod inventory;
mod known;
mod label;
mod lvm;
mod manage;
mod refuse;
mod report;
mod scan;
mod tags;
#[cfg(test)]
mod tests;

use async_trait::async_trait;
use driver::{
    Adoption, Attached, Attempt, Backend, Candidate, Derivation, Derived, Detached, Device, Driver, Error, Finding,
    Footprint, Identity, Locator, LogicalVolume, Object, Readiness, Refusal, Release, Result, Scope, Spec, Templates,
    Tool, VgName, Volume,
};
use host::Host;
use lvm::Lvm;
use report::{Lv, Vg};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{sync::OnceCell, time::Instant};

/// Where the device mapper shows itself when it is loaded.
const DEVICE_MAPPER: &str = "/sys/class/misc/device-mapper";

/// The settings of the driver.
#[derive(Debug, Clone)]
pub struct LvmConfig {
    /// How managed LVs are named.
    pub templates: Templates,
    /// The directory of the stable paths: the devices that they lead to belong to guests, and are not searched for VGs.
    pub exclude_links: PathBuf,
}

/// The driver for LVs.
pub struct LvmDriver {
    lvm: Lvm,
    templates: Templates,
    version: OnceCell<String>,
}

impl LvmDriver {
    /// A driver that works on `host`.
    pub fn new(host: Arc<dyn Host>, config: LvmConfig) -> Self {
        Self { lvm: Lvm::new(host, config.exclude_links), templates: config.templates, version: OnceCell::new() }
    }

    fn host(&self) -> &dyn Host {
        self.lvm.host.as_ref()
    }

    /// The candidates among some LVs of a VG.
    async fn candidates(&self, vg: &Vg, lvs: &[&Lv]) -> Result<Vec<Candidate>> {
        let active = active::list(self.host())?;
        let of_this_vg = active.iter().filter(|active| active.vg_uuid == vg.uuid);
        let nodes: HashMap<&str, PathBuf> = of_this_vg.map(|lv| (lv.lv_uuid.as_str(), lv.node())).collect();
        let node = |lv: &Lv| nodes.get(lv.uuid.as_str());
        let pvs = self.lvm.labels.among(lvs.iter().filter_map(|lv| node(lv).cloned())).await.pvs;
        let mapped = |lv: &Lv| active::mapper_uuid(&vg.uuid, &lv.uuid);
        let mapped_here: Vec<String> = lvs.iter().filter(|lv| node(lv).is_some()).map(|lv| mapped(lv)).collect();
        let open = self.host().open_mapped(&mapped_here).map_err(failed("ask which LVs are open"))?;
        let (mut candidates, until) = (Vec::new(), Instant::now() + attach::GLANCE);
        for lv in lvs {
            let node = node(lv);
            let mut refusal = refuse::manage(vg, lv, &self.templates);
            if refusal.is_none() && node.is_some_and(|node| pvs.contains_key(node)) {
                refusal = Some(Refusal::Kind(format!(
                    "{0}/{1} is a PV of another VG; if that is one that a guest made inside of its disk, manage {0}/{1} \
                     while it is inactive (lvchange -an)",
                    vg.name, lv.name
                )));
            }
            if refusal.is_none() && open.contains(&mapped(lv)) {
                let by = self.openers(vg, lv, node.map(PathBuf::as_path), until).await?;
                refusal = (!by.is_empty()).then_some(Refusal::InUse(by));
            }
            candidates.push(Candidate {
                locator: Locator::Lvm(tags::at(vg, lv)?),
                identity: tags::identity(vg, lv),
                kind: tags::kind(lv),
                size_bytes: lv.size_bytes,
                refusal,
                managed: tags::volume(vg, lv)?,
            });
        }
        Ok(candidates)
    }

    /// Who uses an LV that the kernel says is open; nobody if it is not for long.
    async fn openers(&self, vg: &Vg, lv: &Lv, node: Option<&Path>, until: Instant) -> Result<Vec<String>> {
        let mut users = match node {
            Some(node) => attach::users(self.host(), node).await?,
            None => Vec::new(),
        };
        if users.is_empty() {
            users.extend(attach::unseen_user(self.host(), vg, lv, until).await?);
        }
        Ok(users)
    }
}

#[async_trait]
impl Driver for LvmDriver {
    fn backend(&self) -> Backend {
        Backend::Lvm
    }

    async fn readiness(&self) -> Readiness {
        let problem = |text: &str| Readiness { problem: Some(text.into()), tools: Vec::new() };
        let Some(path) = self.host().tool(host::Tool::Lvm) else {
            return problem("lvm is not installed; install the package lvm2");
        };
        match self.host().resolve(Path::new(DEVICE_MAPPER)) {
            Ok(Some(_)) => {}
            _ => return problem("the kernel's device mapper is not loaded; run modprobe dm_mod"),
        }
        match self.version.get_or_try_init(|| self.lvm.version()).await {
            Ok(version) if lvm::can_restrict(version) => {
                Readiness { problem: None, tools: vec![Tool { name: "lvm".into(), path, version: version.clone() }] }
            }
            Ok(version) => problem(&format!("lvm {version} knows no --devices; install 2.03.12 or later")),
            Err(error) => problem(&error.chain()),
        }
    }

    async fn prepare(&self, spec: &Spec) -> Result<Footprint> {
        self.lvm.prepare(spec).await
    }

    async fn attach(&self, spec: &Spec, footprint: &Footprint, attempt: &Attempt) -> Result<Device> {
        self.lvm.attach(spec, footprint, attempt.deadline).await
    }

    async fn find(&self, at: &Attached) -> Result<Option<Device>> {
        attach::find(&self.lvm, &at.footprint)
    }

    async fn prove(&self, at: &Attached) -> Result<Option<Device>> {
        attach::prove(&self.lvm, at)
    }

    async fn users(&self, at: &Attached) -> Result<Vec<String>> {
        match attach::find(&self.lvm, &at.footprint)? {
            // Those who used it before us go on to.
            Some(device) if attach::leaves(at, &device)? => Ok(Vec::new()),
            Some(device) => attach::users(self.host(), &device.path).await,
            None => Ok(Vec::new()),
        }
    }

    async fn detach(&self, at: &Attached, deadline: Instant) -> Result<Detached> {
        self.lvm.detach(at, deadline).await
    }

    async fn extend(&self, at: &Attached, _deadline: Instant) -> Result<Device> {
        // lvextend has told the device itself of its new size.
        let found = attach::find(&self.lvm, &at.footprint)?;
        found.ok_or_else(|| Error::NotFound { what: format!("the device of {}", at.spec.locator) })
    }

    async fn manageable(&self, scope: &Scope) -> Result<Vec<Candidate>> {
        let vg = self.lvm.group(vg_of(scope)?).await?;
        let visible: Vec<&Lv> = vg.lvs.iter().filter(|lv| !lv.hidden).collect();
        self.candidates(&vg, &visible).await
    }

    async fn inspect(&self, locator: &Locator) -> Result<Candidate> {
        let at = volume_of(locator)?;
        let vg = self.lvm.group(&at.vg).await?;
        let lv = vg.lv(at.lv.as_str()).ok_or_else(|| absent(at))?;
        self.candidates(&vg, &[lv]).await?.pop().ok_or_else(|| absent(at))
    }

    async fn manage(&self, adoption: &Adoption) -> Result<Volume> {
        self.lvm.manage(adoption).await
    }

    async fn unmanage(&self, release: &Release) -> Result<()> {
        self.lvm.unmanage(release).await
    }

    async fn volumes(&self, scope: Option<&Scope>) -> Result<Vec<Volume>> {
        let vgs = match scope {
            Some(scope) => vec![self.lvm.group(vg_of(scope)?).await?],
            None => self.lvm.groups().await?,
        };
        let mut volumes = Vec::new();
        // What another host owns is for that host to list.
        for vg in vgs.iter().filter(|vg| vg.owner.is_none()) {
            for lv in &vg.lvs {
                volumes.extend(tags::volume(vg, lv)?);
            }
        }
        Ok(volumes)
    }

    async fn plan_derivation(&self, image: &Locator, owner: &str) -> Result<Derivation> {
        self.lvm.plan_derivation(image, owner).await
    }

    async fn derive(&self, derivation: &Derivation, deadline: Instant) -> Result<Derived> {
        self.lvm.derive(derivation, deadline).await
    }

    async fn discard(&self, derivation: &Derivation, deadline: Instant) -> Result<()> {
        self.lvm.discard(derivation, deadline).await
    }

    async fn derivations(&self, scope: Option<&Scope>) -> Result<Vec<Derivation>> {
        Lvm::derivations_in(&match scope {
            Some(scope) => vec![self.lvm.group(vg_of(scope)?).await?],
            None => self.lvm.groups().await?,
        })
    }

    async fn inventory(&self, known: &[Attached], _ask: bool) -> Result<Vec<Object>> {
        inventory::list(self.host(), known)
    }

    async fn findings(&self) -> Result<Vec<Finding>> {
        match self.host().tool(host::Tool::Lvm) {
            Some(_) => Ok(Vec::from_iter(self.lvm.lets_guests_in().await?)),
            None => Ok(Vec::new()),
        }
    }
}

fn vg_of(scope: &Scope) -> Result<&VgName> {
    match scope {
        Scope::Lvm(vg) => Ok(vg),
        other => Err(Error::invalid("scope", format!("{other} is no VG; write lvm:VG"))),
    }
}

fn volume_of(locator: &Locator) -> Result<&LogicalVolume> {
    match locator {
        Locator::Lvm(at) => Ok(at),
        other => Err(Error::invalid("locator", format!("{other} is no LV; write lvm:VG/LV"))),
    }
}

fn absent(at: &LogicalVolume) -> Error {
    Error::NotFound { what: format!("the logical volume {}/{}", at.vg, at.lv) }
}

/// For `map_err`: the machine failed while we were `doing` something. What did not end in time may be tried again.
fn failed(doing: impl Into<String>) -> impl FnOnce(host::Error) -> Error {
    let doing = doing.into();
    move |error| match error {
        host::Error::TimedOut { what, .. } => Error::TimedOut { waiting_for: what },
        other => Error::host(doing)(other),
    }
}

fn uuids(identity: &Identity) -> Result<(&str, &str)> {
    match identity {
        Identity::Lvm { vg_uuid, lv_uuid } => Ok((vg_uuid, lv_uuid)),
        other => Err(Error::invalid("identity", format!("{other} is no LV"))),
    }
}
