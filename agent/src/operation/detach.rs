//! Detach: gone, and seen to be gone. Users are looked for first, and nothing is touched if there are any.

use super::{Operation, OperationId, OutcomeState, Plan, Rest, attach::left_over, look_until, not_ended};
use crate::{
    agent::Agent,
    journal::{Change, Record},
    watch::Event,
};
use driver::{AttachmentId, Detached, Error, Locator, Residual, ResidualKind, Result};
use std::{path::PathBuf, sync::Arc};
use tokio::time::Instant;

/// What is to be detached.
#[derive(Debug)]
pub(crate) enum Target {
    Id(AttachmentId),
    Locator(Locator),
    /// A device node or any link to one.
    Device(PathBuf),
}

/// What a detach did.
#[derive(Debug, Default)]
pub(crate) struct DetachReply {
    pub(crate) id: Option<AttachmentId>,
    pub(crate) changed: bool,
    pub(crate) residuals: Vec<Residual>,
    pub(crate) kept: Vec<String>,
    pub(crate) operation: Option<OperationId>,
}

impl Agent {
    /// Takes an attachment away. What is not attached is gone already.
    pub(crate) async fn detach(self: Arc<Self>, target: Target, deadline: Instant) -> Result<DetachReply> {
        let id = match target {
            Target::Id(id) => id,
            Target::Locator(locator) => {
                let locator = self.canonical(locator, deadline).await?;
                let volume = locator.key();
                // An attach of it may be under way: then nobody can say yet that it is gone.
                drop(self.locks.take(&format!("detach of {volume}"), [volume.clone()])?);
                match only(self.journal.attachments_of(&volume).await?, &volume)? {
                    Some(record) => record.id,
                    None => {
                        self.refuse_guess(&locator).await?;
                        return Ok(DetachReply::default());
                    }
                }
            }
            Target::Device(path) => match self.attachment_at(&path).await? {
                Some(record) => record.id,
                None => return Ok(DetachReply::default()),
            },
        };
        if let Some(rescue) = self.rescue_with(&id).await? {
            return Err(Error::WrongState {
                what: format!(
                    "{id} is held by {}; unrescue that (`mortar unrescue {}`)",
                    rescue.title(),
                    rescue.instance
                ),
            });
        }
        self.detach_by_id(id, deadline).await
    }

    /// As [`Self::detach`], whoever holds it.
    pub(super) async fn detach_by_id(self: &Arc<Self>, id: AttachmentId, deadline: Instant) -> Result<DetachReply> {
        let Some((held, record, others)) = self.hold("detach", &id, deadline).await? else {
            return Ok(DetachReply { id: Some(id), ..DetachReply::default() });
        };
        // They go by one locator, and so have one device.
        let shared = !others.is_empty();
        let plan = Plan::Detach { id: id.clone(), attached: record.attached.clone() };
        let work = self.begin(plan, held, deadline).await?;
        match self.effects(&work, self.take_away(&record, shared, deadline)).await {
            Ok(detached) => {
                let operation = work.operation.id;
                self.gone(&work.operation, record, &detached).await.map_err(|error| {
                    let told = not_ended(&error);
                    self.keep_trying(work, Rest::Recover, error);
                    told
                })?;
                let Detached { residuals, kept } = detached;
                Ok(DetachReply { id: Some(id), changed: true, residuals, kept, operation: Some(operation) })
            }
            Err(error) if work.goes_on(&error) => self.left_waiting(work, error),
            Err(error) => {
                // It is still attached.
                self.link_again(&record).await;
                self.failed(work, error, Change::None).await
            }
        }
    }

    /// It is not said of a volume that it is not attached, if it may be by another locator.
    async fn refuse_guess(&self, locator: &Locator) -> Result<()> {
        let records = self.journal.attachments().await?;
        match records.iter().find(|record| record.attached.spec.locator.resembles(locator)) {
            None => Ok(()),
            Some(like) => Err(Error::WrongState {
                what: format!(
                    "{locator} is not attached, but {} is, as {}, and may be the same volume; name it by its id",
                    like.attached.spec.locator, like.id
                ),
            }),
        }
    }

    /// Whether another attachment has the same device. Attachments of one volume go by one locator.
    pub(super) async fn shares_device(&self, record: &Record) -> Result<bool> {
        let same = self.journal.attachments_of(&record.attached.spec.locator.key()).await?;
        Ok(same.iter().any(|other| other.id != record.id))
    }

    /// The device, unless another attachment has it; then the stable path. Refused, with nothing touched, if somebody uses
    /// the device: it is the driver that looks, between its claim on the device and all that it does to it.
    pub(super) async fn take_away(&self, record: &Record, shared: bool, deadline: Instant) -> Result<Detached> {
        let mut detached = Detached::default();
        let look = self.in_this_boot(&record.attached, &record.boot_id);
        if !shared && let Some(attached) = look_until(deadline, &record.attached.spec.locator, look).await? {
            let driver = self.drivers.get(attached.spec.locator.backend())?;
            detached = driver.detach(&attached, deadline).await?;
        }
        match self.unlink(&record.id).await {
            Ok(()) => Ok(detached),
            // It is as it was, but for its stable path, which is made again.
            Err(error) if shared => Err(error),
            Err(error) => {
                let name = self.stable_path(&record.id).display().to_string();
                detached.residuals.push(Residual { kind: ResidualKind::Link, name, reason: error.chain() });
                Ok(detached)
            }
        }
    }

    /// Ends a detach: the record goes, or stays with what could not be removed.
    pub(super) async fn gone(&self, operation: &Operation, mut record: Record, detached: &Detached) -> Result<()> {
        let Some(left) = detached.residuals.first() else {
            let id = record.id.clone();
            let outcome = self.outcome(OutcomeState::Succeeded, None);
            self.conclude(operation, outcome, Change::Remove(Box::new(record))).await?;
            self.watch.send(Event::Gone(id));
            return Ok(());
        };
        record.residuals.clone_from(&detached.residuals);
        let outcome = self.outcome(OutcomeState::Failed, Some(&left_over(left)));
        self.conclude(operation, outcome, Change::Put(vec![record.clone()])).await?;
        let attachment = self.look(record, false).await;
        self.watch.send(Event::Attachment(attachment));
        Ok(())
    }

    /// The attachment whose stable path or device this is; `None` if nothing is there.
    async fn attachment_at(&self, path: &std::path::Path) -> Result<Option<Record>> {
        if path.parent() == Some(&self.config.agent.device_directory)
            && let Some(Ok(id)) = path.file_name().and_then(|name| name.to_str()).map(str::parse)
        {
            return self.journal.attachment(&id).await;
        }
        let Some(node) = self.host.resolve(path).map_err(Error::host("look for the device"))? else { return Ok(None) };
        let mut of_node = Vec::new();
        for record in self.journal.attachments().await? {
            // One that cannot be looked at does not hide the others.
            let found = match self.drivers.get(record.attached.spec.locator.backend()) {
                Ok(driver) => driver.find(&record.attached).await,
                Err(error) => Err(error),
            };
            if found.is_ok_and(|device| device.is_some_and(|device| device.path == node)) {
                of_node.push(record);
            }
        }
        match only(of_node, &node.display().to_string())? {
            Some(record) => Ok(Some(record)),
            None => Err(Error::WrongState {
                what: format!("{} was not attached by mortar; `mortar list` shows what was", node.display()),
            }),
        }
    }
}

/// At most one, or the caller has to say which.
fn only(mut records: Vec<Record>, what: &str) -> Result<Option<Record>> {
    if records.len() > 1 {
        let ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
        return Err(Error::WrongState {
            what: format!("{what} has {} attachments ({}); name one by its id", ids.len(), ids.join(", ")),
        });
    }
    Ok(records.pop())
}
