//! What a crash or a reboot left: each operation is finished or undone, and each attachment is brought in line with this
//! boot, before anybody is served.

use super::{
    Operation, Outcome, OutcomeState, Plan, Work,
    attach::{UNDO_TIMEOUT, left_over},
    manage::{managed, released, undo_of},
};
use crate::{
    agent::Agent,
    journal::{Change, Record},
    watch::Event,
};
use driver::{Access, Attached, Error, Result};
use std::{sync::Arc, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

/// How long the start waits for recovery; what takes longer goes on while others are served.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// The pause before the first repetition of what failed; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Lets its tasks run on when nobody waits for them any more.
struct DetachOnDrop(JoinSet<()>);

impl Drop for DetachOnDrop {
    fn drop(&mut self) {
        self.0.detach_all();
    }
}

impl Agent {
    /// Recovers everything, as far as it goes within [`START_PATIENCE`].
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<()> {
        let unfinished = self.journal.unfinished().await?;
        if !unfinished.is_empty() {
            // A login or a rename that the last agent started may still be at it: only then is there something to see.
            let still = self.host.outlived(Instant::now() + START_PATIENCE).await;
            for line in still.map_err(Error::host("look for tools that outlived the last agent"))? {
                tracing::warn!(command = line, "still runs since before the restart");
            }
        }
        let all = self.recover_operations(unfinished);
        if timeout(START_PATIENCE, all).await.is_err() {
            tracing::warn!("recovery takes long; it goes on while others are served");
        }
        self.settle().await?;
        self.remove_stray_links().await
    }

    /// Recovers what can be recovered side by side, oldest first; what needs the same locks follows in the next round.
    async fn recover_operations(self: &Arc<Self>, mut waiting: Vec<Operation>) {
        while !waiting.is_empty() {
            let mut round = JoinSet::new();
            let mut next = Vec::new();
            for operation in waiting {
                match self.locks.take(&format!("recovery of operation {}", operation.id), operation.plan.keys()) {
                    Ok(held) => {
                        let recovery = Arc::clone(self).recover_or_keep_trying(Work { operation, held });
                        round.spawn(self.tasks.track_future(recovery));
                    }
                    Err(_) => next.push(operation),
                }
            }
            if round.is_empty() {
                for operation in next {
                    tracing::error!(operation = %operation.id, "left for the next start: an older one is stuck");
                }
                return;
            }
            // A round that is not waited for any more goes on.
            let mut round = DetachOnDrop(round);
            while round.0.join_next().await.is_some() {}
            waiting = next;
        }
    }

    async fn recover_or_keep_trying(self: Arc<Self>, work: Work) {
        if let Err(error) = self.recover_one(&work.operation).await {
            self.keep_trying(work, error);
        }
    }

    /// Finishes or undoes one operation.
    async fn recover_one(&self, operation: &Operation) -> Result<()> {
        let (verb, subject) = (operation.plan.verb(), operation.plan.subject());
        tracing::info!(operation = %operation.id, subject, "recovering {verb}");
        let done = Outcome::new(OutcomeState::Succeeded, None);
        let undone = |error: Option<&Error>| Outcome::new(OutcomeState::Undone, error);
        match &operation.plan {
            Plan::Attach { .. } => {
                self.undo_attach(operation).await?;
                self.conclude(operation, undone(None), Change::None).await
            }
            Plan::Detach { id, attached } => {
                let Some(record) = self.journal.attachment(id).await? else {
                    return self.conclude(operation, done, Change::None).await;
                };
                if self.boot_id()? != record.boot_id {
                    // What the record says of the host was true of another boot.
                    self.forget(&record).await?;
                    return self.conclude(operation, done, Change::Remove(id.clone())).await;
                }
                let siblings = self.journal.attachments_of(&attached.spec.locator.key()).await?;
                let shared = siblings.iter().any(|other| other.id != *id);
                let detached = self.take_away(&record, shared, Instant::now() + UNDO_TIMEOUT).await?;
                self.gone(operation, record, &detached).await
            }
            Plan::Extend { .. } => self.conclude(operation, undone(None), Change::None).await,
            Plan::Manage { adoption } => {
                let driver = self.drivers.get(adoption.from.backend())?;
                match driver.manage(adoption).await {
                    Ok(_) => {
                        let attachments = self.journal.attachments_of(&adoption.from.key()).await?;
                        self.conclude(operation, done, managed(adoption, attachments)?).await
                    }
                    Err(error) => match driver.unmanage(&undo_of(adoption)).await {
                        Ok(()) | Err(Error::NotFound { .. } | Error::Mismatch { .. }) => {
                            self.conclude(operation, undone(Some(&error)), Change::None).await
                        }
                        Err(undo) => Err(undo),
                    },
                }
            }
            Plan::Unmanage { release } => {
                let driver = self.drivers.get(release.from.backend())?;
                match driver.unmanage(release).await {
                    Ok(()) => {
                        let attachments = self.journal.attachments_of(&release.from.key()).await?;
                        self.conclude(operation, done, released(release, attachments)).await
                    }
                    Err(error @ (Error::AlreadyExists { .. } | Error::NotFound { .. } | Error::Mismatch { .. })) => {
                        self.conclude(operation, undone(Some(&error)), Change::None).await
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    fn boot_id(&self) -> Result<String> {
        Ok(self.host.facts().map_err(Error::host("read the boot id"))?.boot_id)
    }

    /// Tries again in the background until it is done, its locks taken all the while.
    pub(super) fn keep_trying(self: &Arc<Self>, work: Work, first: Error) {
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            let Work { operation, held: _until_done } = work;
            let (mut error, mut pause) = (first, FIRST_PAUSE);
            loop {
                let outcome = Outcome::new(OutcomeState::Stuck, Some(&error));
                tracing::error!(operation = %operation.id, "{} is stuck: {}", operation.plan.verb(), error.chain());
                if let Err(error) = agent.journal.stuck(operation.id, &outcome).await {
                    tracing::error!("{}", error.chain());
                }
                agent.watch.send(Event::Operation(Operation { outcome: Some(outcome), ..operation.clone() }));
                if timeout(pause, agent.stop.cancelled()).await.is_ok() {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
                match agent.recover_one(&operation).await {
                    Ok(()) => return,
                    Err(again) => error = again,
                }
            }
        });
    }

    /// Brings the records in line with this boot: after a reboot, what is persistent comes back and the rest is
    /// forgotten; without one, a stable path that went missing is made again.
    async fn settle(self: &Arc<Self>) -> Result<()> {
        let boot_id = self.boot_id()?;
        for record in self.journal.attachments().await? {
            if self.locks.take("settle", [super::attachment_key(&record.id)]).is_err() {
                continue;
            }
            if record.boot_id == boot_id {
                let driver = self.drivers.get(record.attached.spec.locator.backend());
                if let Ok(driver) = driver
                    && let Ok(Some(device)) = driver.find(&record.attached).await
                {
                    self.link(&record.id, &device).await?;
                }
            } else if record.persistent {
                self.bring_back(record, boot_id.clone());
            } else {
                tracing::info!(attachment = %record.id, "forgotten: the host was rebooted and it is not persistent");
                if let Err(error) = self.forget(&record).await {
                    tracing::warn!(attachment = %record.id, "{}", error.chain());
                    continue;
                }
                self.journal.change(Change::Remove(record.id)).await?;
            }
        }
        Ok(())
    }

    /// Takes away what an attachment of another boot left on disk. What is on the host now is looked at anew, so that
    /// nothing goes that this boot brought by itself.
    async fn forget(&self, record: &Record) -> Result<()> {
        self.unlink(&record.id).await?;
        let driver = self.drivers.get(record.attached.spec.locator.backend())?;
        let spec = record.attached.spec.clone();
        let footprint = match driver.prepare(&spec).await {
            Ok(footprint) => footprint,
            // The volume is not there any more, and nothing of it.
            Err(Error::NotFound { .. } | Error::WrongState { .. } | Error::InUse { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let detached =
            driver.detach(&Attached { spec, footprint, identity: None }, Instant::now() + UNDO_TIMEOUT).await?;
        match detached.residuals.first() {
            None => Ok(()),
            Some(left) => Err(left_over(left)),
        }
    }

    /// Attaches again what a reboot took, in the background, until it is there or detached.
    fn bring_back(self: &Arc<Self>, record: Record, boot_id: String) {
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                match agent.journal.attachment(&record.id).await {
                    Ok(Some(now)) if now.boot_id != boot_id => {}
                    _ => return,
                }
                let request = super::AttachRequest {
                    id: Some(record.id.clone()),
                    spec: record.attached.spec.clone(),
                    persistent: true,
                    access: Access::default(),
                    deadline: Instant::now() + agent.config.limits.operation_timeout(),
                };
                match agent.in_own_task(Arc::clone(&agent).attach(request)).await {
                    Ok(_) => return,
                    Err(error) => {
                        tracing::warn!(attachment = %record.id, "not back yet after the reboot: {}", error.chain());
                    }
                }
                if timeout(pause, agent.stop.cancelled()).await.is_ok() {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    /// Stable paths without a record are ours, and of nobody.
    async fn remove_stray_links(&self) -> Result<()> {
        let directory = &self.config.agent.device_directory;
        for name in self.host.list(directory).map_err(Error::host("list the stable paths"))? {
            let stray = match name.parse() {
                Ok(id) => self.journal.attachment(&id).await?.is_none(),
                Err(_) => name.starts_with('.') && name.ends_with(".new"),
            };
            if stray {
                self.host.remove(&directory.join(name)).await.map_err(Error::host("remove a stray stable path"))?;
            }
        }
        Ok(())
    }
}
