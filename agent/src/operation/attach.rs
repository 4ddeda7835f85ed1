//! Attach: the volume's device, proved, or nothing left behind. And what an attachment looks like from outside.

use super::{
    Operation, OperationId, Plan, Rest, Work, attachment_key, export::refuse_exported, identity_key, look_until,
};
use crate::{
    agent::Agent,
    journal::{About, Change, Record},
    watch::Event,
};
use driver::{
    Attached, AttachmentId, Attempt, Backend, Device, Driver, Error, Footprint, Identity, Locator, RawFile, Residual,
    Result, Spec,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long an undo waits for the outside world.
pub(super) const UNDO_TIMEOUT: Duration = Duration::from_secs(30);

/// What a caller asks for.
#[derive(Debug)]
pub(crate) struct AttachRequest {
    /// `None`: the attachment that the volume has, or a new id.
    pub(crate) id: Option<AttachmentId>,
    pub(crate) spec: Spec,
    pub(crate) persistent: bool,
    /// Only what has a record: what was detached meanwhile is not brought back.
    pub(crate) again: bool,
    pub(crate) attempt: Attempt,
}

/// What a caller gets.
#[derive(Debug)]
pub(crate) struct AttachReply {
    pub(crate) attachment: Attachment,
    pub(crate) changed: bool,
    pub(crate) operation: Option<OperationId>,
}

/// An attachment as it is now.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    pub(crate) record: Record,
    pub(crate) stable_path: PathBuf,
    /// `None`: it is not there.
    pub(crate) device: Option<Device>,
    pub(crate) state: State,
    /// Why it is not ready.
    pub(crate) problem: Option<String>,
    /// What of ours holds it against a detach, in words.
    pub(crate) held_by: Option<String>,
}

/// How an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    Broken,
    Residual,
}

impl Agent {
    /// Makes a volume present, or finds that it is.
    pub(crate) async fn attach(self: Arc<Self>, mut request: AttachRequest) -> Result<AttachReply> {
        let driver = self.drivers.ready(request.spec.locator.backend()).await?;
        let deadline = request.attempt.deadline;
        request.spec.locator = self.canonical(request.spec.locator, deadline).await?;
        let volume = request.spec.locator.key();
        let mut held = self.locks.take(&format!("attach of {volume}"), request.spec.locator.keys())?;
        if let Some(id) = &request.id {
            self.looked_at(id, deadline).await?;
            held.extend(attachment_key(id))?;
        }
        let About { exports, attachments: siblings, named, managed } =
            self.journal.about(&volume, request.id.as_ref()).await?;
        refuse_exported(&request.spec.locator, &exports)?;
        self.refuse_another_way(&request.spec.locator).await?;
        let (id, record) = match (&request.id, siblings.first()) {
            (Some(id), _) => (id.clone(), named),
            (None, Some(sibling)) => (sibling.id.clone(), Some(sibling.clone())),
            (None, None) => (AttachmentId::make_up(), None),
        };
        if request.id.is_none() {
            self.looked_at(&id, deadline).await?;
            held.extend(attachment_key(&id))?;
        }
        let mut before = None;
        if let Some(record) = record {
            if request.id.is_none() {
                self.still_named(driver.as_ref(), &record, &request).await?;
            }
            if let Some(attachment) = self.again(driver.as_ref(), &record, &request).await? {
                return Ok(AttachReply { attachment, changed: false, operation: None });
            }
            before = record.attached.identity;
        } else if request.again {
            return Err(Error::NotFound { what: attachment_key(&id) });
        } else if let Some(sibling) = siblings.first() {
            if sibling.attached.spec.locator != request.spec.locator {
                return Err(another_locator(sibling));
            }
            let (was, asked) = (&sibling.attached.spec, &request.spec);
            let how = match (was.exclusive != asked.exclusive, was.read_only != asked.read_only) {
                (true, _) if asked.exclusive => Some("without exclusive"),
                (true, _) => Some("exclusively"),
                (false, true) if asked.read_only => Some("for writing"),
                (false, true) => Some("read-only"),
                (false, false) => None,
            };
            if let Some(how) = how {
                let (locator, id) = (&asked.locator, &sibling.id);
                let what = format!("{locator} is attached {how} as {id}; detach that first, or ask for the same");
                return Err(Error::WrongState { what });
            }
            self.still_named(driver.as_ref(), sibling, &request).await?;
        }
        // What a sibling has brought was not there before, and goes with the last of them: his footprint is that of all.
        if let Some(sibling) = siblings.iter().find(|record| record.id != id && record.boot_id == self.boot_id)
            && let Some(device) = look_until(deadline, &request.spec.locator, driver.prove(&sibling.attached)).await?
        {
            request.spec.check(&device)?;
            is_that_of(&request.spec.locator, before.as_ref(), &device)?;
            let attached = Attached { spec: request.spec.clone(), ..sibling.attached.clone() };
            let plan = Plan::Attach { id, attached: attached.clone() };
            let work = self.begin(plan, held, deadline).await?;
            return self.publish(work, attached, device, request.persistent).await;
        }
        let footprint = look_until(deadline, &request.spec.locator, driver.prepare(&request.spec)).await?;
        let mut attached = Attached { spec: request.spec.clone(), footprint, identity: None };
        self.refuse_served(driver.as_ref(), &attached).await?;
        if let Footprint::Lvm { identity, .. } | Footprint::File { identity } = &attached.footprint {
            self.still_managed(driver.as_ref(), &attached.spec.locator, identity, managed.clone()).await?;
        }
        let plan = Plan::Attach { id, attached: attached.clone() };
        let mut work = self.begin(plan, held, deadline).await?;
        let attach = driver.attach(&request.spec, &attached.footprint, &request.attempt);
        match self.effects(&work, attach).await {
            Ok(device) => {
                if let Err(error) = self.only_by_this_locator(&mut work, driver.as_ref(), &attached, &device).await {
                    return self.undo(work, error).await;
                }
                if let Err(mismatch) = is_that_of(&request.spec.locator, before.as_ref(), &device) {
                    return self.undo(work, mismatch).await;
                }
                // Which image a name stands for is known only now.
                if let Locator::Rbd(_) = &attached.spec.locator
                    && let Err(mismatch) =
                        self.still_managed(driver.as_ref(), &attached.spec.locator, &device.identity, managed).await
                {
                    return self.undo(work, mismatch).await;
                }
                attached.identity = Some(device.identity.clone());
                let reply = self.publish(work, attached, device, request.persistent).await?;
                driver.tend(&reply.attachment.record.attached).await;
                Ok(reply)
            }
            Err(error) => self.undo(work, error).await,
        }
    }

    /// Refuses a way to a volume that is attached by others: two devices of one volume would not know of each other's
    /// writes. Only what can be known from the locators; see [`Agent::only_by_this_locator`].
    async fn refuse_another_way(&self, locator: &Locator) -> Result<()> {
        let Locator::Iscsi(_) = locator else { return Ok(()) };
        let records = self.journal.attachments().await?;
        let overlaps = |record: &&Record| {
            let attached = &record.attached.spec.locator;
            attached != locator && attached.resembles(locator)
        };
        records.iter().find(overlaps).map_or(Ok(()), |record| Err(another_locator(record)))
    }

    /// Once it is known what a locator led to: nobody else may attach or detach the same volume meanwhile, no attachment
    /// may have it by another locator, and it has to be there still.
    async fn only_by_this_locator(
        &self,
        work: &mut Work,
        driver: &dyn Driver,
        attached: &Attached,
        device: &Device,
    ) -> Result<()> {
        work.held.extend(identity_key(&device.identity))?;
        let records = self.journal.attachments_that_are(&device.identity).await?;
        let same =
            |record: &&Record| record.boot_id == self.boot_id && record.attached.spec.locator != attached.spec.locator;
        if let Some(record) = records.iter().find(same) {
            return Err(another_locator(record));
        }
        let at = Attached { identity: Some(device.identity.clone()), ..attached.clone() };
        if driver.is_still(&at, device).await? {
            return Ok(());
        }
        Err(Error::Busy {
            what: attached.spec.locator.to_string(),
            holder: "a detach that has just ended".into(),
            age: Duration::ZERO,
        })
    }

    /// A locator names a place, and another volume may have been put there since it was attached. So before a caller who
    /// does not say which attachment he means is given one, the name is looked at again. (By iSCSI and file it is the
    /// device that is asked, and that each time.)
    async fn still_named(&self, driver: &dyn Driver, sibling: &Record, request: &AttachRequest) -> Result<()> {
        let Some(before) = &sibling.attached.identity else { return Ok(()) };
        let (locator, deadline) = (&request.spec.locator, request.attempt.deadline);
        let now = match locator {
            Locator::Lvm(_) => match look_until(deadline, locator, driver.prepare(&request.spec)).await? {
                Footprint::Lvm { identity, .. } => identity,
                _ => return Ok(()),
            },
            Locator::Rbd(_) => look_until(deadline, locator, driver.inspect(locator)).await?.identity,
            Locator::Iscsi(_) | Locator::File(_) => return Ok(()),
        };
        if now.is_still(before) {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: format!("{}, which is attached as {} and is another volume now,", request.spec.locator, sibling.id),
            expected: before.to_string(),
            found: now.to_string(),
        })
    }

    /// The same call once more: the same device, or `None` if it has to be brought back.
    async fn again(&self, driver: &dyn Driver, record: &Record, request: &AttachRequest) -> Result<Option<Attachment>> {
        let (was, asked) = (&record.attached.spec, &request.spec);
        if was.locator != asked.locator
            || was.read_only != asked.read_only
            || was.exclusive != asked.exclusive
            || record.persistent != request.persistent
        {
            let mode = |spec: &Spec, persistent| {
                format!(
                    "{}{}{}",
                    if spec.read_only { "read-only" } else { "for writing" },
                    if spec.exclusive { ", exclusive" } else { "" },
                    if persistent { ", persistent" } else { "" }
                )
            };
            return Err(Error::AlreadyExists {
                what: format!(
                    "attachment {} is {} {}; detach it first, or choose another id",
                    record.id,
                    was.locator,
                    mode(was, record.persistent)
                ),
            });
        }
        if let Some(left) = record.residuals.first() {
            return Err(Error::WrongState {
                what: format!("a detach of {} left {} ({}); detach it again first", record.id, left.name, left.reason),
            });
        }
        if record.boot_id != self.boot_id {
            return Ok(None);
        }
        let proved = look_until(request.attempt.deadline, &asked.locator, driver.prove(&record.attached)).await?;
        let Some(device) = proved else { return Ok(None) };
        if device.read_only != asked.read_only && asked.read_only {
            return Err(Error::WrongState {
                what: format!("{} does not refuse writes any more; detach {} first", device.path.display(), record.id),
            });
        }
        asked.check(&device)?;
        self.link(&record.id, &device).await?;
        Ok(Some(self.attachment_with(record.clone(), device)))
    }

    /// Makes the stable path and the record, and answers.
    async fn publish(
        self: &Arc<Self>,
        work: Work,
        attached: Attached,
        device: Device,
        persistent: bool,
    ) -> Result<AttachReply> {
        let Plan::Attach { id, .. } = &work.operation.plan else { unreachable!("only an attach is published") };
        let id = id.clone();
        if let Err(error) = self.link(&id, &device).await {
            return self.undo(work, error).await;
        }
        let boot_id = work.operation.boot_id.clone();
        let record = Record { id, attached, persistent, boot_id, created_ms: self.now_ms(), residuals: Vec::new() };
        let operation = self.succeeded(work, Change::Put(vec![record.clone()])).await?;
        let attachment = self.attachment_with(record, device);
        self.watch.send(Event::Attachment(attachment.clone()));
        Ok(AttachReply { attachment, changed: true, operation: Some(operation) })
    }

    /// Takes away what a failed attach brought, and hands its error on. If that fails too, it is tried again in the
    /// background, its locks taken until it is done.
    async fn undo<T>(self: &Arc<Self>, work: Work, error: Error) -> Result<T> {
        if work.goes_on(&error) {
            return self.left_waiting(work, error);
        }
        match self.undo_attach(&work.operation).await {
            Ok(()) => self.failed(work, error, Change::None).await,
            Err(undo) => {
                self.keep_trying(work, Rest::Recover, undo);
                Err(error)
            }
        }
    }

    /// Takes away what an attach brought, however far it came; not a device that another attachment has.
    pub(super) async fn undo_attach(&self, operation: &Operation) -> Result<()> {
        let Plan::Attach { id, attached } = &operation.plan else { return Ok(()) };
        self.unlink(id).await?;
        let records = self.journal.attachments_of(&attached.spec.locator.key()).await?;
        if records.iter().any(|record| record.id != *id) {
            return Ok(());
        }
        let Some(attached) = self.in_this_boot(attached, &operation.boot_id).await? else { return Ok(()) };
        let driver = self.drivers.get(attached.spec.locator.backend())?;
        if let Locator::Rbd(_) = attached.spec.locator
            && let Some(device) = driver.find(&attached).await?
            && !self.journal.attachments_that_are(&device.identity).await?.is_empty()
        {
            // Another attachment, by another name of the image, has found our mapping and uses it.
            return Ok(());
        }
        let detached = driver.detach(&attached, Instant::now() + UNDO_TIMEOUT).await?;
        match detached.residuals.first() {
            None => Ok(()),
            Some(left) => Err(left_over(left)),
        }
    }

    /// The locator in the one spelling that all names of a volume lead to: a file's directory without links.
    pub(super) async fn canonical(&self, locator: Locator, deadline: Instant) -> Result<Locator> {
        let Locator::File(file) = &locator else { return Ok(locator) };
        let (Some(directory), Some(name)) = (file.path().parent(), file.path().file_name()) else { return Ok(locator) };
        let resolve =
            async { self.host.real_path(directory).await.map_err(Error::host("resolve the file's directory")) };
        match look_until(deadline, &locator, resolve).await? {
            Some(real) => RawFile::new(&real.join(name).to_string_lossy()).map(Locator::File),
            None => Ok(locator),
        }
    }

    /// `/dev/mortar/ID`
    pub(crate) fn stable_path(&self, id: &AttachmentId) -> PathBuf {
        self.config.agent.device_directory.join(id.as_str())
    }

    pub(super) async fn link(&self, id: &AttachmentId, device: &Device) -> Result<()> {
        let name = self.stable_path(id);
        if self.host.resolve(&name).map_err(Error::host("read the stable path"))?.as_deref() == Some(&device.path) {
            return Ok(());
        }
        self.host.link(&name, &device.path).await.map_err(Error::host("make the stable path"))
    }

    pub(super) async fn unlink(&self, id: &AttachmentId) -> Result<()> {
        self.host.remove(&self.stable_path(id)).await.map_err(Error::host("remove the stable path"))
    }

    fn attachment_with(&self, record: Record, device: Device) -> Attachment {
        let stable_path = self.stable_path(&record.id);
        Attachment { record, stable_path, device: Some(device), state: State::Ready, problem: None, held_by: None }
    }

    /// An attachment as the kernel lists it; with `prove`, as its device itself answers.
    pub(crate) async fn look(&self, record: Record, prove: bool) -> Attachment {
        let found = match self.drivers.get(record.attached.spec.locator.backend()) {
            Ok(driver) if prove => driver.prove(&record.attached).await,
            Ok(driver) => driver.find(&record.attached).await,
            Err(error) => Err(error),
        };
        self.as_found(record, found).await
    }

    /// Attachments as the kernel lists them, in their order.
    pub(crate) async fn look_at_each(&self, records: Vec<Record>) -> Vec<Attachment> {
        let mut found: Vec<Option<Result<Option<Device>>>> = records.iter().map(|_| None).collect();
        for backend in Backend::ALL {
            let of = |record: &Record| record.attached.spec.locator.backend() == backend;
            let places: Vec<usize> = (0..records.len()).filter(|place| of(&records[*place])).collect();
            let attached: Vec<&Attached> = places.iter().map(|place| &records[*place].attached).collect();
            if let Ok(driver) = self.drivers.get(backend) {
                for (place, device) in places.into_iter().zip(driver.find_each(&attached).await) {
                    found[place] = Some(device);
                }
            }
        }
        let mut attachments = Vec::with_capacity(records.len());
        for (record, found) in records.into_iter().zip(found) {
            attachments.push(match found {
                Some(found) => self.as_found(record, found).await,
                None => self.look(record, false).await,
            });
        }
        attachments
    }

    async fn as_found(&self, record: Record, found: Result<Option<Device>>) -> Attachment {
        let stable_path = self.stable_path(&record.id);
        let (device, mut state, mut problem) = match found {
            Ok(Some(device)) => (Some(device), State::Ready, None),
            Ok(None) => (None, State::Broken, Some("its device is not there".to_owned())),
            Err(error) => (None, State::Broken, Some(error.chain())),
        };
        if self.boot_id != record.boot_id {
            (state, problem) = (State::Broken, Some("not attached again since the reboot".to_owned()));
        }
        if !record.residuals.is_empty() {
            let left: Vec<String> =
                record.residuals.iter().map(|left| format!("{}: {}", left.name, left.reason)).collect();
            (state, problem) = (State::Residual, Some(format!("a detach left {}", left.join("; "))));
        }
        let held_by = self.rescue_with(&record.id).await.ok().flatten().map(|rescue| rescue.title());
        Attachment { record, stable_path, device, state, problem, held_by }
    }
}

/// An id stands for the volume that it was first attached for, not for what took its place.
fn is_that_of(locator: &Locator, before: Option<&Identity>, device: &Device) -> Result<()> {
    match before.filter(|before| !device.identity.is_still(before)) {
        None => Ok(()),
        Some(before) => Err(Error::Mismatch {
            what: format!("the volume at {locator}"),
            expected: before.to_string(),
            found: device.identity.to_string(),
        }),
    }
}

fn another_locator(record: &Record) -> Error {
    Error::WrongState {
        what: format!(
            "the volume is attached as {}, by {}; attach it by the same locator",
            record.id, record.attached.spec.locator
        ),
    }
}

/// What could not be removed, as the error of those who needed it gone.
pub(super) fn left_over(residual: &Residual) -> Error {
    Error::WrongState { what: format!("{} is left: {}", residual.name, residual.reason) }
}
