//! iSCSI: a logical unit of a target as a disk of this host, by open-iscsi's daemon and the kernel's sysfs.
//!
//! ```text
//! attach                                                     by                      takes
//!   is there a session of ours that is up?                   sysfs
//!   if not:  does somebody listen at the portal?             connect(2)              < 1 ms
//!            our interface, the node record (0600)           files
//!            log in                                          iscsiadm, one process   0.3 s
//!            remove the record                               files
//!   a device stands there already: is it still the volume?   INQUIRY
//!   scan for this one LUN; none then: the target has none    sysfs                   10 ms
//!   wait for the block device and its node                   uevents, sysfs          10 ms
//!   who are you?                                             INQUIRY 0x83, 0x80
//!   size, WWN, read-only as asked                            sysfs, ioctl
//! detach
//!   who uses it? keep new users out                          procfs, open(2)
//!   flush; unless it is another volume by now                fsync
//!   delete the unit, see it gone                             sysfs
//!   the session of ours is empty: log out, see it gone       iscsiadm, one process   0.3 s
//! ```
//!
//! A volume with several portals is attached by all of them at once ([`ways`]), by multipathd made one device ([`multipath`]),
//! handled as one ([`legs`]), and taken apart again ([`unmap`]). So is one with a single portal, if multipathd remembers it
//! from before and takes its disk.
//!
//! Whatever is ours says so itself: the session's interface is called `mortar` ([`database`]). A unit that we bring is
//! always on such a session, so no state, and no loss of it, can make us take away what is an operator's.

mod attach;
mod checkup;
mod database;
mod detach;
#[cfg(fuzzing)]
pub mod fuzz;
mod inventory;
mod iscsiadm;
mod lead;
mod legs;
mod multipath;
mod place;
mod proof;
mod record;
mod session;
#[cfg(test)]
mod tests;
mod turns;
mod unmap;
mod view;
mod ways;

use async_trait::async_trait;
use database::Database;
use driver::{
    Adoption, Attached, Attempt, Backend, Candidate, Detached, Device, DevicePath, Driver, Error, Finding, Footprint,
    Identity, Locator, Object, Readiness, Release, Result, Scope, Spec, Volume,
};
use host::{BlockDevice, Command, Host, Tool};
use legs::Leg;
use multipath::Map;
use place::Place;
use record::Credentials;
use session::{Session, Targets, Unit};
use std::{
    path::{Path, PathBuf},
    slice,
    sync::Arc,
};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout_at},
};
use turns::Turns;
use ways::Walks;

/// Where open-iscsi keeps its files, and what it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IscsiConfig {
    /// The node records.
    pub nodes: PathBuf,
    /// The interfaces.
    pub interfaces: PathBuf,
    /// This host's iSCSI name.
    pub initiator_name: PathBuf,
    /// The daemon's settings.
    pub daemon: PathBuf,
    /// The sysfs that `iscsiadm` is shown, in memory.
    pub view: PathBuf,
}

impl Default for IscsiConfig {
    fn default() -> Self {
        let directory = Path::new("/etc/iscsi");
        Self {
            nodes: directory.join("nodes"),
            interfaces: directory.join("ifaces"),
            initiator_name: directory.join("initiatorname.iscsi"),
            daemon: directory.join("iscsid.conf"),
            view: "/run/mortar/sysfs".into(),
        }
    }
}

/// The iSCSI driver.
pub struct IscsiDriver {
    initiator: Arc<Initiator>,
    walks: Walks,
}

/// What works on units and sessions.
pub(crate) struct Initiator {
    host: Arc<dyn Host>,
    config: IscsiConfig,
    database: Arc<Database>,
    turns: Turns,
    targets: Targets,
    /// What `iscsiadm` says of itself, asked once: each attach wants to know whether we are ready.
    version: OnceCell<String>,
}

/// For `map_err`: the machine failed, or was too slow, while we were `doing` something.
pub(crate) fn machine(doing: impl Into<String>) -> impl FnOnce(host::Error) -> Error {
    let doing = doing.into();
    move |error| match error {
        host::Error::TimedOut { what, .. } => Error::TimedOut { waiting_for: format!("{what} (to {doing})") },
        error => Error::host(doing)(error),
    }
}

impl IscsiDriver {
    /// A driver on this machine.
    pub fn new(host: Arc<dyn Host>, config: IscsiConfig) -> Self {
        let database = Arc::new(Database::new(&config));
        let initiator = Initiator {
            host,
            config,
            database,
            turns: Turns::default(),
            targets: Targets::default(),
            version: OnceCell::new(),
        };
        Self { initiator: Arc::new(initiator), walks: Walks::default() }
    }
}

impl Initiator {
    pub(crate) fn host(&self) -> &dyn Host {
        self.host.as_ref()
    }

    /// The sessions to a place: ours first, those that are up first.
    pub(crate) fn sessions(&self, place: &Place) -> Result<Vec<Session>> {
        session::sessions(self.host(), &self.targets, place).map_err(machine("list the sessions"))
    }

    /// The unit of an attachment: ours, or the one that was here before it.
    pub(crate) fn locate(&self, place: &Place, footprint: &Footprint) -> Result<Option<(Session, Unit)>> {
        for session in self.sessions(place)? {
            let unit = session.unit(place.lun);
            if (session.ours || attach::was_here(footprint, place))
                && unit.is_present(self.host()).map_err(machine("look for the unit"))?
            {
                return Ok(Some((session, unit)));
            }
        }
        Ok(None)
    }

    /// As [`Self::locate`], with its block device. One that has none yet is not there yet.
    fn locate_disk(&self, place: &Place, footprint: &Footprint) -> Result<Option<(Unit, BlockDevice)>> {
        let Some((_, unit)) = self.locate(place, footprint)? else { return Ok(None) };
        let disk = unit.disk(self.host()).map_err(machine("read the unit's device"))?;
        Ok(disk.map(|disk| (unit, disk)))
    }

    pub(crate) fn device(&self, place: &Place, unit: &Unit, disk: BlockDevice, identity: Identity) -> Result<Device> {
        let path = disk.node();
        let state = unit.state(self.host()).map_err(machine("read the unit's state"))?;
        Ok(Device {
            paths: vec![DevicePath { device: path.clone(), portal: Some(place.portal), state, problem: None }],
            path,
            identity,
            size_bytes: disk.size_bytes,
            logical_block_size: disk.logical_block_size,
            physical_block_size: disk.physical_block_size,
            read_only: disk.read_only,
        })
    }

    /// Lets the kernel ask a unit again for its size and its names.
    pub(crate) async fn rescan(&self, place: &Place, unit: &Unit, deadline: Instant) -> Result<()> {
        let late = || Error::Unreachable { what: place.to_string(), why: "it was not asked again in time".into() };
        match timeout_at(deadline, self.host().write(&unit.attribute("rescan"), "1")).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(host::Error::TimedOut { .. })) | Err(_) => Err(late()),
            Ok(Err(error)) => Err(machine(format!("rescan {place}"))(error)),
        }
    }

    /// Holds what a device says now against what it proved when it was attached. `None` if it goes meanwhile.
    async fn proved(&self, place: &Place, at: &Attached, unit: &Unit, disk: BlockDevice) -> Result<Option<Device>> {
        let found = Identity::Scsi { wwn: proof::ask(self.host(), &disk.node()).await?.wwn };
        if let Some(expected) = at.identity.as_ref().filter(|expected| **expected != found) {
            return Err(Error::Mismatch {
                what: format!("{} ({place})", disk.node().display()),
                expected: expected.to_string(),
                found: found.to_string(),
            });
        }
        // It may have been made read-only, or writable, while it was asked.
        match unit.disk(self.host()).map_err(machine("read the unit's device"))? {
            Some(disk) => self.device(place, unit, disk, found).map(Some),
            None => Ok(None),
        }
    }

    /// What of a volume is on this host already, on sessions that are not ours, and whether a map is over it.
    fn footprint(&self, places: &[Place]) -> Result<Footprint> {
        let any = Footprint::Iscsi { were_here: places.iter().map(Place::way).collect(), map_was_here: false };
        let legs: Vec<Leg> = self.legs(places, &any)?.into_iter().filter(|leg| !leg.session.ours).collect();
        let map_was_here = !self.maps(&legs)?.is_empty();
        Ok(Footprint::Iscsi { were_here: legs.iter().map(|leg| leg.place.way()).collect(), map_was_here })
    }

    /// What is missing on this host, in words.
    fn problem(&self) -> Result<Option<String>> {
        if self.host().tool(Tool::Iscsiadm).is_none() {
            let packages = "open-iscsi (Debian, Ubuntu, SUSE) or iscsi-initiator-utils (Fedora, Red Hat)";
            return Ok(Some(format!("iscsiadm is not installed; install the package {packages}")));
        }
        let file = &self.config.initiator_name;
        let text = self.host().read(file).map_err(machine("read this host's iSCSI name"))?.unwrap_or_default();
        let named = text.lines().filter_map(|line| line.trim().strip_prefix("InitiatorName=")).any(|n| !n.is_empty());
        Ok((!named).then(|| {
            format!(
                "{} has no InitiatorName, so this host has no iSCSI name; run \
                 `echo InitiatorName=$(iscsi-iname) >{}` and restart iscsid",
                file.display(),
                file.display()
            )
        }))
    }

    async fn tools(&self) -> Vec<driver::Tool> {
        let mut tools = Vec::new();
        if let Some(path) = self.host().tool(Tool::Iscsiadm) {
            let ask = || async {
                let output = self.host().run(Command::read(Tool::Iscsiadm, ["--version"])).await?;
                Ok(iscsiadm::version(&output).map_or_else(|| output.said(), str::to_owned))
            };
            let version = match self.version.get_or_try_init(ask).await {
                Ok(version) => version.clone(),
                Err(error) => host::Error::to_string(&error),
            };
            tools.push(driver::Tool { name: "iscsiadm".into(), path, version });
        }
        let transport = PathBuf::from("/sys/class/iscsi_transport/tcp");
        let version = match self.host().resolve(&transport) {
            Ok(Some(_)) => "loaded",
            _ => "not loaded yet: iscsid does it",
        };
        tools.push(driver::Tool { name: "iscsi_tcp".into(), path: transport, version: version.into() });
        tools
    }

    // ---- a unit with one way: a disk, or a map if multipathd has taken it ----

    /// Whether the attachment is the map over its disk.
    fn is_a_map(&self, place: &Place, at: &Attached, disk: &BlockDevice) -> Result<bool> {
        let over = Map::over(self.host(), &disk.name).map_err(machine("look for a multipath map"))?;
        Ok(over.is_some() && self.map_of(slice::from_ref(place), at)?.is_some())
    }

    /// As the kernel lists it.
    fn find_disk(&self, place: &Place, at: &Attached) -> Result<Option<Device>> {
        let Some((unit, disk)) = self.locate_disk(place, &at.footprint)? else { return Ok(None) };
        if self.is_a_map(place, at, &disk)? {
            return self.find_map(slice::from_ref(place), at);
        }
        let identity = match &at.identity {
            Some(identity) => identity.clone(),
            // The attach did not come so far as to prove it; the kernel's memory is all there is.
            None => {
                match unit.cached_name(self.host()).map_err(machine("read the unit's name"))?.map(|name| name.parse()) {
                    Some(Ok(wwn)) => Identity::Scsi { wwn },
                    Some(Err(_)) | None => return Ok(None),
                }
            }
        };
        self.device(place, &unit, disk, identity).map(Some)
    }

    async fn prove_disk(&self, place: &Place, at: &Attached) -> Result<Option<Device>> {
        match self.locate_disk(place, &at.footprint)? {
            Some((_, disk)) if self.is_a_map(place, at, &disk)? => self.prove_map(slice::from_ref(place), at).await,
            Some((unit, disk)) => self.proved(place, at, &unit, disk).await,
            None => Ok(None),
        }
    }

    async fn extend_disk(&self, place: &Place, at: &Attached, deadline: Instant) -> Result<Device> {
        let Some((session, unit)) = self.locate(place, &at.footprint)? else {
            return Err(Error::NotFound { what: format!("a device of {place}") });
        };
        let disk = unit.disk(self.host()).map_err(machine("read the unit's device"))?;
        if let Some(disk) = disk
            && self.is_a_map(place, at, &disk)?
        {
            return self.extend_map(slice::from_ref(place), at, deadline).await;
        }
        if !session.is_up() {
            let why = format!("its session is {}", session.state());
            return Err(Error::Unreachable { what: place.to_string(), why });
        }
        self.rescan(place, &unit, deadline).await?;
        let proved = match self.locate_disk(place, &at.footprint)? {
            Some((unit, disk)) => self.proved(place, at, &unit, disk).await?,
            None => None,
        };
        match proved {
            // Kernels before 5.11 forget on a rescan that a device was made read-only.
            Some(device) => self.protect(place, &at.spec, &session, device).await,
            None => Err(Error::NotFound { what: format!("a device of {place}") }),
        }
    }
}

#[async_trait]
impl Driver for IscsiDriver {
    fn backend(&self) -> Backend {
        Backend::Iscsi
    }

    async fn readiness(&self) -> Readiness {
        let problem = self.initiator.problem().unwrap_or_else(|error| Some(error.chain()));
        Readiness { problem, tools: self.initiator.tools().await }
    }

    async fn prepare(&self, spec: &Spec) -> Result<Footprint> {
        let places = Place::all(&spec.locator)?;
        if let Some(problem) = self.initiator.problem()? {
            return Err(Error::WrongState { what: problem });
        }
        if places.len() > 1 {
            multipath::runs(self.initiator.host()).await?;
        }
        self.initiator.footprint(&places)
    }

    async fn attach(&self, spec: &Spec, footprint: &Footprint, attempt: &Attempt) -> Result<Device> {
        let places = Place::all(&spec.locator)?;
        let credentials = attempt.access.chap.as_ref().map(Credentials::new).transpose()?;
        match places.as_slice() {
            [place] => self.initiator.bring(place, spec, footprint, credentials.as_ref(), attempt.deadline).await,
            places => self.initiator.bring_ways(&self.walks, places, spec, footprint, credentials, attempt).await,
        }
    }

    async fn tend(&self, at: &Attached) {
        let places = Place::all(&at.spec.locator).unwrap_or_default();
        if places.len() > 1
            && !self.walks.all_go(&at.spec)
            && let Err(error) = self.initiator.tend_ways(&self.walks, &places, at).await
        {
            tracing::warn!(locator = %at.spec.locator, error = error.chain(), "the ways that are missing are not tried");
        }
    }

    async fn tidy(&self) {
        if let Err(error) = self.initiator.database.recall(self.initiator.host()) {
            tracing::warn!(%error, "cannot look for what is left empty of open-iscsi's data base");
        }
        self.initiator.database.tidy(self.initiator.host()).await;
    }

    async fn find(&self, at: &Attached) -> Result<Option<Device>> {
        match Place::all(&at.spec.locator)?.as_slice() {
            [place] => self.initiator.find_disk(place, at),
            places => Ok(self.initiator.find_map(places, at)?.map(|device| self.walks.explain(&at.spec, device))),
        }
    }

    async fn prove(&self, at: &Attached) -> Result<Option<Device>> {
        match Place::all(&at.spec.locator)?.as_slice() {
            [place] => self.initiator.prove_disk(place, at).await,
            places => {
                let device = self.initiator.prove_map(places, at).await?;
                Ok(device.map(|device| self.walks.explain(&at.spec, device)))
            }
        }
    }

    async fn users(&self, at: &Attached) -> Result<Vec<String>> {
        let legs = self.initiator.legs(&Place::all(&at.spec.locator)?, &at.footprint)?;
        let maps = self.initiator.maps(&legs)?;
        self.initiator.users_of(&maps, &maps, &legs).await
    }

    async fn detach(&self, at: &Attached, deadline: Instant) -> Result<Detached> {
        self.walks.stop(&at.spec).await;
        let detached = self.initiator.take_away(at, deadline).await;
        if detached.is_err() {
            // It stays attached, and so its ways are cared for.
            self.tend(at).await;
        }
        detached
    }

    async fn extend(&self, at: &Attached, deadline: Instant) -> Result<Device> {
        match Place::all(&at.spec.locator)?.as_slice() {
            [place] => self.initiator.extend_disk(place, at, deadline).await,
            places => self.initiator.extend_map(places, at, deadline).await,
        }
    }

    async fn manageable(&self, _scope: &Scope) -> Result<Vec<Candidate>> {
        Err(unmanaged())
    }

    async fn inspect(&self, _locator: &Locator) -> Result<Candidate> {
        Err(unmanaged())
    }

    async fn manage(&self, _adoption: &Adoption) -> Result<Volume> {
        Err(unmanaged())
    }

    async fn unmanage(&self, _release: &Release) -> Result<()> {
        Err(unmanaged())
    }

    async fn volumes(&self, scope: Option<&Scope>) -> Result<Vec<Volume>> {
        match scope {
            Some(_) => Err(unmanaged()),
            None => Ok(Vec::new()),
        }
    }

    async fn inventory(&self, known: &[Attached], ask: bool) -> Result<Vec<Object>> {
        self.initiator.inventory(known, ask).await
    }

    async fn findings(&self) -> Result<Vec<Finding>> {
        self.initiator.findings().await
    }
}

fn unmanaged() -> Error {
    Error::Unsupported { what: "the volumes of an iSCSI target are managed on the host that serves it".into() }
}
