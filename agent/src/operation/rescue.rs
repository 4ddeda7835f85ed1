//! Rescue and unrescue: an instance boots from another disk with its own beside it, and is put back exactly.
//!
//! ```text
//!                                         rescue
//!    normal ─── look, plan + record ──▶ rescuing ─── outcome ──▶ rescued ◀─────────────────────────┐
//!      ▲          (committed)              │                        │                              │
//!      │                                   │ error, cancel, crash   │ unrescue: plan + what to      │ somebody changed the
//!      │◀──────────── undo ────────────────┤                        │ restore (committed)          │ definition at the last
//!      │                                   │ somebody changed       ▼                              │ moment: his is kept
//!      │                                   │ our definition ──▶  unrescuing ───────────────────────┘
//!      │                                   ▼ (rescued: it stays)    │ error, crash: forward,
//!      └────────────────────────────── outcome ◀────────────────────┘ again until it is done
//!
//!    rescue:    derive (a copy of the image) ── attach ── seed ── stop ── still the definition that was looked at? ── define
//!               ── (record: as it is kept) ── start ── record + outcome ── reply, with the password
//!    undo:      stop what runs by our definition ── define the original ── start, if it ran ── seed ── detach ── discard
//!    unrescue:  stop ── define the original ── start, if it ran ── seed ── detach ── discard ── record gone
//! ```
//!
//! The original definition is in the record, byte for byte and with a checksum, before anything changes; ours bears the
//! generation of the rescue. So each step finds out by itself how far it came: what bears our generation is ours to replace, what
//! equals the original is restored already, and anything else is somebody's, and stays.
//!
//! The attachment of the rescue disk is an operation of its own, and persistent. After a crash it is finished or undone
//! before the rescue is.

mod back;
mod look;
mod record;
mod sources;
mod twins;

pub(crate) use record::{Place, RescueDisk, RescueRecord, RescueState};

use super::{AttachRequest, InstanceNow, OperationId, Plan, Rest, export::refuse_exported};
use crate::{
    agent::Agent,
    callers::may_begin,
    journal::Change,
    seed::{Seed, make_up_password},
};
use driver::{Attached, AttachmentId, Attempt, Derived, DiskFormat, Error, Locator, Result, Spec};
use hypervisor::{
    Instance, InstanceName,
    definition::{Bus, Definition, Layout, Source},
};
use record::checksum;
use secrecy::SecretString;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use uuid::Uuid;

/// What a caller asks for.
#[derive(Debug)]
pub(crate) struct RescueRequest {
    pub(crate) instance: InstanceName,
    pub(crate) disk: RescueDisk,
    pub(crate) layout: Layout,
    /// `None`: the root disk's.
    pub(crate) bus: Option<Bus>,
    pub(crate) data_disks: bool,
    /// What the rescue system is told; `None`: nothing.
    pub(crate) seed: Option<Seed>,
    /// How long the guest may take to shut down.
    pub(crate) grace: Duration,
    pub(crate) deadline: Instant,
    /// Only say what would be done.
    pub(crate) dry_run: bool,
}

/// What he gets.
#[derive(Debug)]
pub(crate) struct RescueReply {
    pub(crate) instance: InstanceNow,
    pub(crate) changed: bool,
    /// The one that was made up.
    pub(crate) password: Option<SecretString>,
    pub(crate) warnings: Vec<String>,
    pub(crate) operation: Option<OperationId>,
    /// After a dry run: what would be done.
    pub(crate) would: Vec<String>,
}

impl RescueReply {
    /// Of an instance to which nothing was done.
    fn unchanged(instance: InstanceNow) -> Self {
        Self { instance, changed: false, password: None, warnings: Vec::new(), operation: None, would: Vec::new() }
    }
}

/// What is to be put back.
#[derive(Debug)]
pub(crate) struct UnrescueRequest {
    pub(crate) instance: InstanceName,
    pub(crate) discard_changes: bool,
    pub(crate) grace: Duration,
    pub(crate) deadline: Instant,
}

/// What that came to.
#[derive(Debug)]
pub(crate) struct UnrescueReply {
    /// `None`: somebody undefined it.
    pub(crate) instance: Option<InstanceNow>,
    pub(crate) changed: bool,
    /// Disks that have another name today, in words.
    pub(crate) rebound: Vec<String>,
    pub(crate) operation: Option<OperationId>,
}

pub(crate) fn instance_key(instance: Uuid) -> String {
    format!("instance {instance}")
}

/// The name of an instance's seed, and whose a file of such a name is.
pub(crate) fn seed_of(name: &str) -> Option<Uuid> {
    name.strip_prefix(SEED)?.strip_suffix(".img")?.parse().ok()
}

const SEED: &str = "seed-";

/// How long a guest may take to shut down, so that something of the time is left for what comes after.
pub(super) fn until(grace: Duration, deadline: Instant) -> Instant {
    const AFTERWARDS: Duration = Duration::from_secs(15);
    let now = Instant::now();
    let left = deadline.saturating_duration_since(now);
    now + grace.min(left.saturating_sub(AFTERWARDS.min(left / 2)))
}

impl Agent {
    /// Lets an instance boot from a rescue disk, or finds that it does.
    pub(crate) async fn rescue(self: Arc<Self>, mut request: RescueRequest) -> Result<RescueReply> {
        request.disk = match request.disk {
            RescueDisk::Image(locator) => RescueDisk::Image(self.canonical(locator, request.deadline).await?),
            RescueDisk::Volume(locator) => RescueDisk::Volume(self.canonical(locator, request.deadline).await?),
        };
        let instance = self.hypervisor.instance(&request.instance).await?;
        let uuid = instance.uuid;
        let held = self.locks.take(&format!("rescue of {}", instance.name), [instance_key(uuid)])?;
        if let Some(record) = self.journal.rescue(uuid).await? {
            is_what_is_asked(&record, &request)?;
            let instance = self.instance_now(&uuid_name(uuid)?).await?;
            return Ok(RescueReply::unchanged(instance));
        }
        // Looked at once more, under the lock.
        let instance = self.hypervisor.instance(&uuid_name(uuid)?).await?;
        // Boxed, here and below: a rescue is made of others, and would be too large for a stack.
        let (mut record, mut warnings) = Box::pin(self.plan_rescue(&instance, &request)).await?;
        let plan = Plan::Rescue { instance: uuid, name: record.name.clone(), locator: record.disk.locator().clone() };
        if request.dry_run {
            may_begin(&plan)?;
            let instance = self.instance_now(&uuid_name(uuid)?).await?;
            let would = record.would(request.grace);
            return Ok(RescueReply { changed: true, warnings, would, ..RescueReply::unchanged(instance) });
        }
        let mut seed = request.seed;
        let password = match &mut seed {
            Some(seed) if seed.password.is_none() && seed.ssh_keys.is_empty() && seed.user_data.is_none() => {
                let made_up = make_up_password()?;
                seed.password = Some(made_up.clone());
                Some(made_up)
            }
            _ => None,
        };
        let begun = match record.at().scope() {
            // So that the doctor looks there.
            Ok(scope) => {
                Change::All(vec![Change::PutRescue(Box::new(record.clone())), Change::Place(scope.to_string())])
            }
            Err(_) => Change::PutRescue(Box::new(record.clone())),
        };
        let work = self.begin_with(plan, begun, held, request.deadline).await?;
        let bring = Box::pin(self.bring_rescue(&mut record, seed.as_ref(), request.grace, request.deadline));
        match self.effects(&work, bring).await {
            Ok(found) => {
                warnings.extend(found);
                record.state = RescueState::Rescued;
                let operation = self.succeeded(work, Change::PutRescue(Box::new(record))).await?;
                let instance = self.instance_now(&uuid_name(uuid)?).await?;
                let operation = Some(operation);
                Ok(RescueReply { instance, changed: true, password, warnings, operation, would: Vec::new() })
            }
            Err(error) if work.goes_on(&error) => self.left_waiting(work, error),
            Err(error) => match Box::pin(self.undo_rescue(uuid)).await {
                Ok(back) => {
                    let (error, change) = back.tell(error);
                    self.failed(work, error, change).await
                }
                Err(undo) => {
                    self.keep_trying(work, Rest::Recover, undo);
                    Err(error)
                }
            },
        }
    }

    /// Everything that can be known to be wrong before anything is touched, and the record. Only reads.
    async fn plan_rescue(&self, instance: &Instance, request: &RescueRequest) -> Result<(RescueRecord, Vec<String>)> {
        let owner = instance.uuid;
        look::refuse_state(instance)?;
        let original = self.hypervisor.definition(owner).await?;
        let running = self.hypervisor.running_definition(owner).await?;
        let definition = Definition::parse(&original)?;
        let mut warnings = look::refuse_definition(&instance.name, &definition, running.as_deref())?;
        warnings.extend(look::warn_of_state(instance));
        let root = definition.root().ok_or_else(|| Error::WrongState {
            what: format!("{} has no hard disk that it could boot from", instance.name),
        })?;
        let derivation = match &request.disk {
            RescueDisk::Image(image) => {
                let driver = self.drivers.ready(image.backend()).await?;
                Some(driver.plan_derivation(image, &owner.to_string()).await?)
            }
            RescueDisk::Volume(volume) => {
                refuse_exported(volume, &self.journal.exports_of(&volume.key()).await?)?;
                None
            }
        };
        let at = derivation.as_ref().map_or_else(|| request.disk.locator(), |derivation| &derivation.to);
        let place = match (at, &root.source) {
            (Locator::File(_), _) => Place::File,
            // The cluster of the root disk is the one that the host's own conf names, unless the locator says otherwise.
            (Locator::Rbd(image), Source::Rbd(_)) if image.pool.monitors.is_empty() && image.snapshot.is_none() => {
                Place::Rbd
            }
            _ => Place::Attached(format!("rescue-{owner}").parse()?),
        };
        match (&request.disk, &place) {
            (RescueDisk::Volume(Locator::File(file)), _) => self.refuse_file(&request.disk, file.path()).await?,
            (RescueDisk::Volume(volume), Place::Attached(_)) => self.refuse_users_of(volume).await?,
            _ => {}
        }
        let kept: Vec<_> =
            definition.disks().into_iter().filter(|disk| request.data_disks || disk.target == root.target).collect();
        let seed = request.seed.as_ref().map(|_| self.config.rescue.directory.join(format!("{SEED}{owner}.img")));
        let record = RescueRecord {
            instance: owner,
            name: instance.name.clone(),
            generation: Uuid::now_v7(),
            state: RescueState::Rescuing,
            sha256: checksum(&original),
            sources: sources::bind(self.host.as_ref(), &kept)?,
            original,
            defined: None,
            power: instance.power,
            disk: request.disk.clone(),
            derivation,
            place,
            layout: request.layout,
            bus: request.bus,
            data_disks: request.data_disks,
            seed,
            created_ms: self.now_ms(),
        };
        // What cannot be put together is refused now.
        record.rescued_definition(DiskFormat::Raw, |id| self.stable_path(id))?;
        Ok((record, warnings))
    }

    /// Two systems must not write to one volume. It may be on this host already.
    async fn refuse_users_of(&self, volume: &Locator) -> Result<()> {
        let driver = self.drivers.ready(volume.backend()).await?;
        let attached = match self.journal.attachments_of(&volume.key()).await?.into_iter().next() {
            Some(record) => record.attached,
            None => {
                let spec = Spec::of(volume.clone());
                Attached { footprint: driver.prepare(&spec).await?, spec, identity: None }
            }
        };
        let Some(device) = driver.find(&attached).await? else { return Ok(()) };
        let doing = format!("look who uses {}", device.path.display());
        let users = self.host.users(&device.path).await.map_err(Error::host(doing))?;
        match users.is_empty() {
            true => Ok(()),
            false => {
                Err(Error::InUse { what: volume.to_string(), by: users.iter().map(ToString::to_string).collect() })
            }
        }
    }

    /// A file is handed to QEMU as it is: raw, and nobody else's.
    async fn refuse_file(&self, disk: &RescueDisk, path: &Path) -> Result<()> {
        let stat = self.host.file(path).await.map_err(Error::host(format!("look at {}", path.display())))?;
        if !stat.is_some_and(|stat| stat.is_file) {
            return Err(Error::NotFound { what: format!("the file {}", path.display()) });
        }
        let attached = self.journal.attachments_of(&disk.locator().key()).await?;
        let mut by: Vec<String> = attached.iter().map(|record| format!("attached as {}", record.id)).collect();
        let doing = format!("look who has {} open", path.display());
        by.extend(self.host.openers(path).await.map_err(Error::host(doing))?.iter().map(ToString::to_string));
        if !by.is_empty() {
            return Err(Error::InUse { what: disk.locator().to_string(), by });
        }
        let head = self.host.head(path, 4, LOOK).await.map_err(Error::host(format!("read {}", path.display())))?;
        match head.as_slice() {
            b"QFI\xfb" => Err(Error::Unsupported {
                what: format!(
                    "{} is a qcow2 file, and a volume has to be raw; give it as an image, which is not written",
                    disk.locator()
                ),
            }),
            _ => Ok(()),
        }
    }

    /// All effects of a rescue but the commit of its end. What may be wrong with it, in words.
    async fn bring_rescue(
        self: &Arc<Self>,
        record: &mut RescueRecord,
        seed: Option<&Seed>,
        grace: Duration,
        deadline: Instant,
    ) -> Result<Vec<String>> {
        let mut format = DiskFormat::Raw;
        if let Some(derivation) = &record.derivation {
            let driver = self.drivers.get(derivation.to.backend())?;
            let Derived { format: made, .. } = driver.derive(derivation, deadline).await?;
            format = made;
        }
        let path = match &record.place {
            Place::Attached(id) => Some(self.attach_rescue(id, record.at().clone(), deadline).await?),
            _ => match (record.disk.locator(), record.at(), format) {
                // What is in an overlay cannot be read as it stands; its image can.
                (Locator::File(image), _, DiskFormat::Qcow2) => Some(image.path().to_owned()),
                (_, Locator::File(file), _) => Some(file.path().to_owned()),
                _ => None,
            },
        };
        let warnings = match path {
            Some(path) => twins::warnings(self.host.as_ref(), &record.original, &path).await?,
            None => Vec::new(),
        };
        if let (Some(path), Some(seed)) = (&record.seed, seed) {
            let disk = seed.disk(&record.name, record.generation)?;
            let directory = &self.config.rescue.directory;
            let doing = || format!("write the seed {}", path.display());
            self.host.make_directory(directory).await.map_err(Error::host(doing()))?;
            self.host.replace(path, &disk, 0o600).await.map_err(Error::host(doing()))?;
        }
        let definition = record.rescued_definition(format, |id| self.stable_path(id))?;
        // Also one that was off: somebody may have started it since, and what runs would go on by its old definition.
        self.hypervisor.stop(record.instance, until(grace, deadline), deadline).await?;
        if self.hypervisor.definition(record.instance).await? != record.original {
            let what =
                format!("somebody changed the definition of {} meanwhile; look at it, then try again", record.name);
            return Err(Error::WrongState { what });
        }
        record.defined = Some(self.hypervisor.define(&definition).await?);
        self.journal.change(Change::PutRescue(Box::new(record.clone()))).await?;
        self.hypervisor.start(record.instance, deadline).await?;
        Ok(warnings)
    }

    async fn attach_rescue(self: &Arc<Self>, id: &AttachmentId, at: Locator, deadline: Instant) -> Result<PathBuf> {
        let request = AttachRequest {
            id: Some(id.clone()),
            spec: Spec::of(at),
            persistent: true,
            again: false,
            attempt: Attempt::until(deadline),
        };
        Box::pin(Arc::clone(self).attach(request)).await?;
        Ok(self.stable_path(id))
    }

    /// The rescue that an attachment belongs to.
    pub(crate) async fn rescue_with(&self, id: &AttachmentId) -> Result<Option<RescueRecord>> {
        let Some(Ok(instance)) = id.as_str().strip_prefix("rescue-").map(str::parse::<Uuid>) else { return Ok(None) };
        Ok(self.journal.rescue(instance).await?.filter(|record| record.attachment() == Some(id)))
    }
}

/// How long a look at a disk may take that is not needed.
const LOOK: Duration = Duration::from_secs(5);

fn uuid_name(instance: Uuid) -> Result<InstanceName> {
    instance.to_string().parse()
}

/// The same call once more, or another one for an instance that is rescued.
fn is_what_is_asked(record: &RescueRecord, request: &RescueRequest) -> Result<()> {
    let same = record.disk == request.disk
        && record.layout == request.layout
        && record.bus == request.bus
        && record.data_disks == request.data_disks
        && record.seed.is_some() == request.seed.is_some();
    match same && record.state == RescueState::Rescued {
        true => Ok(()),
        false => Err(Error::WrongState {
            what: format!(
                "{} is rescued already, with {}; unrescue it first (`mortar unrescue {}`)",
                record.name,
                record.disk.locator(),
                record.instance
            ),
        }),
    }
}
