//! What a crash or a reboot left: each operation is finished or undone before anybody is served; and each attachment is
//! brought in line with this boot, before anybody works on it.

use super::{
    Operation, OutcomeState, Plan, Rest, Work,
    attach::UNDO_TIMEOUT,
    manage::{managed, released, undo_of},
};
use crate::{
    agent::Agent,
    journal::{Change, Record},
    looks::Begun,
    watch::Event,
};
use driver::{Attached, AttachmentId, Attempt, Error, Locator, Result};
use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

/// How long the start waits for recovery; what takes longer goes on while others are served.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How many attachments are looked at at a time, unless none of them answers within the patience. Few, so that who calls
/// meanwhile need not share the host with a crowd of looks.
const LOOKS: usize = 2;
const LOOK_PATIENCE: Duration = Duration::from_millis(100);
/// The pause before the first repetition of what failed; it doubles up to the longest.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The longest while all that is missing is room for the journal, which may come at any moment.
const UNTIL_THERE_IS_ROOM: Duration = Duration::from_secs(5);

impl Agent {
    /// Recovers everything, as far as it goes within [`START_PATIENCE`]. Without a journal nothing is touched: nobody knows
    /// what is whose. Fails only if the journal cannot be read.
    pub(crate) async fn recover(self: &Arc<Self>) -> Result<()> {
        if self.journal.lost().is_some() {
            return Ok(());
        }
        let unfinished = self.journal.unfinished().await?;
        // The ways of a multipath attachment log in without an operation of their own.
        let has_ways =
            |record: &Record| matches!(&record.attached.spec.locator, Locator::Iscsi(unit) if unit.is_multipath());
        if !unfinished.is_empty() || self.journal.attachments().await?.iter().any(has_ways) {
            // A login or a rename that the last agent started may still be at it: only then is there something to see.
            match self.host.outlived(Instant::now() + START_PATIENCE).await {
                Ok(still) => still.iter().for_each(|line| tracing::warn!(line, "still runs since before the restart")),
                Err(error) => tracing::warn!(%error, "cannot look for tools that outlived the last agent"),
            }
        }
        let agent = Arc::clone(self);
        // A rescue is made of others, which are recovered first.
        let (outer, inner): (Vec<_>, Vec<_>) = unfinished
            .into_iter()
            .partition(|operation| matches!(operation.plan, Plan::Rescue { .. } | Plan::Unrescue { .. }));
        let all = self.tasks.spawn(async move {
            agent.recover_operations(inner).await;
            agent.recover_operations(outer).await;
        });
        if timeout(START_PATIENCE, all).await.is_err() {
            tracing::warn!("recovery takes long; it goes on while others are served");
        }
        self.drivers.tidy().await;
        let records = self.journal.attachments().await?;
        self.remove_stray_links(&records).await?;
        self.settle(records).await
    }

    /// Recovers what can be recovered side by side, oldest first; what needs the same locks follows in the next round.
    async fn recover_operations(self: &Arc<Self>, mut waiting: Vec<Operation>) {
        while !waiting.is_empty() {
            let mut round = JoinSet::new();
            let mut next = Vec::new();
            for operation in waiting {
                match self.locks.take(&format!("recovery of operation {}", operation.id), operation.plan.keys()) {
                    Ok(held) => {
                        let listed = self.running.begin(operation.id, false, self.usual_deadline());
                        listed.course.steps.close();
                        let recovery = Arc::clone(self).recover_or_keep_trying(Work { operation, held, listed });
                        round.spawn(recovery);
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
            while round.join_next().await.is_some() {}
            waiting = next;
        }
    }

    async fn recover_or_keep_trying(self: Arc<Self>, work: Work) {
        if let Err(error) = work.listed.course.steps.during(self.recover_one(&work.operation)).await {
            self.keep_trying(work, Rest::Recover, error);
        }
    }

    /// Finishes or undoes one operation.
    async fn recover_one(self: &Arc<Self>, operation: &Operation) -> Result<()> {
        let (verb, subject) = (operation.plan.verb(), operation.plan.subject());
        tracing::info!(operation = %operation.id, subject, "recovering {verb} {subject}");
        let done = self.outcome(OutcomeState::Succeeded, None);
        let undone = |error: Option<&Error>| self.outcome(OutcomeState::Undone, error);
        match &operation.plan {
            Plan::Attach { .. } => {
                self.undo_attach(operation).await?;
                self.conclude(operation, undone(None), Change::None).await
            }
            Plan::Detach { id, .. } => {
                let Some(record) = self.journal.attachment(id).await? else {
                    return self.conclude(operation, done, Change::None).await;
                };
                let shared = self.shares_device(&record).await?;
                match self.take_away(&record, shared, Instant::now() + UNDO_TIMEOUT).await {
                    Ok(detached) => self.gone(operation, record, &detached).await,
                    Err(in_use @ Error::InUse { .. }) => {
                        // Somebody opened it since the crash: it stays attached, as if the detach had been refused.
                        self.link_again(&record).await;
                        self.conclude(operation, undone(Some(&in_use)), Change::None).await
                    }
                    Err(error) => Err(error),
                }
            }
            Plan::Extend { .. } => self.conclude(operation, undone(None), Change::None).await,
            Plan::Manage { adoption } => {
                let driver = self.drivers.get(adoption.from.backend())?;
                match driver.manage(adoption).await {
                    Ok(_) => {
                        let change = managed(adoption, self.with_locator(&adoption.from).await?)?;
                        self.conclude(operation, done, change).await
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
                        let change = released(release, self.with_locator(&release.from).await?);
                        self.conclude(operation, done, change).await
                    }
                    Err(error @ (Error::AlreadyExists { .. } | Error::NotFound { .. } | Error::Mismatch { .. })) => {
                        self.conclude(operation, undone(Some(&error)), Change::None).await
                    }
                    Err(error) => Err(error),
                }
            }
            Plan::Export { .. } => {
                let change = self.recover_export(operation).await?;
                let outcome = if change.is_some() { done } else { undone(None) };
                self.conclude(operation, outcome, change.unwrap_or(Change::None)).await
            }
            Plan::Unexport { id, .. } => self.recover_unexport(operation, id).await,
            Plan::Rescue { instance, .. } => {
                let (error, change) = self.undo_rescue(*instance).await?.outcome();
                self.conclude(operation, undone(error.as_ref()), change).await
            }
            Plan::Unrescue { instance, .. } => self.recover_unrescue(operation, *instance).await,
            Plan::Power { instance, power, .. } => {
                let outcome = if self.recover_power(*instance, *power).await? { done } else { undone(None) };
                self.conclude(operation, outcome, Change::None).await
            }
        }
    }

    /// Tries again in the background until it is done, its locks taken all the while.
    pub(super) fn keep_trying(self: &Arc<Self>, work: Work, rest: Rest, first: Error) {
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            let Work { operation, held: _until_done, listed } = work;
            let (mut error, mut pause) = (first, FIRST_PAUSE);
            // It is being undone or finished: there is nothing to cancel any more.
            listed.course.steps.close();
            loop {
                let outcome = agent.outcome(OutcomeState::Stuck, Some(&error));
                tracing::error!(operation = %operation.id, "{} is stuck: {}", operation.plan.verb(), error.chain());
                if let Err(error) = agent.journal.stuck(operation.id, &outcome).await {
                    tracing::error!("{}", error.chain());
                }
                agent.watch.send(Event::Operation(Operation { outcome: Some(outcome), ..operation.clone() }));
                if let Error::Full { .. } = error {
                    pause = pause.min(UNTIL_THERE_IS_ROOM);
                }
                if timeout(pause, agent.stop.cancelled()).await.is_ok() {
                    return;
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
                // What the machine still does to it would come after what is done now.
                tokio::select! {
                    () = listed.course.steps.settled() => {}
                    () = agent.stop.cancelled() => return,
                }
                let done = match &rest {
                    Rest::Conclude(outcome, change) => {
                        agent.conclude(&operation, outcome.clone(), change.clone()).await
                    }
                    Rest::Recover => agent.recover_one(&operation).await,
                };
                match done {
                    Ok(()) => return,
                    Err(again) => error = again,
                }
            }
        });
    }

    /// An attachment with a footprint of this boot. What was noted in another is looked at anew, so that nothing is taken
    /// away that this boot brought by itself; `None` if there is no such volume any more.
    pub(super) async fn in_this_boot(&self, attached: &Attached, boot_id: &str) -> Result<Option<Attached>> {
        if self.boot_id == boot_id {
            return Ok(Some(attached.clone()));
        }
        let driver = self.drivers.get(attached.spec.locator.backend())?;
        match driver.prepare(&attached.spec).await {
            Ok(footprint) => Ok(Some(Attached { footprint, ..attached.clone() })),
            Err(Error::NotFound { .. } | Error::WrongState { .. } | Error::InUse { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Brings the records in line with this boot. After a reboot, what is persistent comes back, and the rest is
    /// forgotten: a reboot leaves nothing of it. Without one, a stable path that went missing is made again. Both in the
    /// background: a thousand devices take their time, and one of them may not answer.
    async fn settle(self: &Arc<Self>, records: Vec<Record>) -> Result<()> {
        let boot_id = self.boot_id.clone();
        let (here, before): (Vec<_>, Vec<_>) = records.into_iter().partition(|record| record.boot_id == boot_id);
        let (persistent, forgotten): (Vec<_>, Vec<_>) = before.into_iter().partition(|record| record.persistent);
        for Record { id, .. } in &forgotten {
            tracing::info!(attachment = %id, "{id} is forgotten: the host was rebooted and it is not persistent");
            self.unlink(id).await?;
        }
        if !forgotten.is_empty() {
            let forgotten = forgotten.into_iter().map(|record| Change::Remove(Box::new(record)));
            self.journal.change(Change::All(forgotten.collect())).await?;
        }
        self.looks.expect(here.into_iter().map(|record| record.id));
        tokio::spawn(Arc::clone(self).look_at_attachments());
        for record in persistent {
            self.bring_back(record, boot_id.clone());
        }
        self.settle_exports(&boot_id).await
    }

    /// Looks at every attachment of this boot.
    async fn look_at_attachments(self: Arc<Self>) {
        let mut looks = JoinSet::new();
        while !self.stop.is_cancelled()
            && let Some(begun) = self.looks.next()
        {
            looks.spawn(Arc::clone(&self).look_again(begun));
            if looks.len() >= LOOKS {
                // One that does not answer holds up nobody else for long.
                let _ended = timeout(LOOK_PATIENCE, looks.join_next()).await;
            }
        }
        let mut rest = pin!(async move { while looks.join_next().await.is_some() {} });
        if timeout(START_PATIENCE, &mut rest).await.is_err() {
            tracing::warn!("some attachments do not answer; whoever works on one of them waits for it");
            rest.await;
        }
    }

    /// Waits until the start has looked at an attachment; whoever works on it comes after that. [`Error::TimedOut`] if its
    /// device does not answer in time.
    pub(crate) async fn looked_at(self: &Arc<Self>, id: &AttachmentId, deadline: Instant) -> Result<()> {
        let Some(ended) = self.looks.end_of(id) else { return Ok(()) };
        if let Some(begun) = self.looks.begin(id) {
            tokio::spawn(Arc::clone(self).look_again(begun));
        }
        let late =
            |_| Error::TimedOut { waiting_for: format!("the device of {id}, which is looked at after a restart") };
        timeout_at(deadline, ended.cancelled()).await.map_err(late)
    }

    /// Brings one attachment of this boot in line, unless its recovery works on it still.
    async fn look_again(self: Arc<Self>, begun: Begun) {
        let Ok(_until_linked) = self.locks.take("the start", [super::attachment_key(&begun.id)]) else { return };
        let Ok(Some(record)) = self.journal.attachment(&begun.id).await else { return };
        self.link_again(&record).await;
        if let Ok(driver) = self.drivers.get(record.attached.spec.locator.backend()) {
            driver.tend(&record.attached).await;
        }
    }

    /// Makes the stable path anew, if the device proves to be the volume; without a device there is none.
    pub(super) async fn link_again(&self, record: &Record) {
        let work = async {
            let driver = self.drivers.get(record.attached.spec.locator.backend())?;
            match driver.prove(&record.attached).await? {
                Some(device) => self.link(&record.id, &device).await,
                None => self.unlink(&record.id).await,
            }
        };
        if let Err(error) = work.await {
            tracing::warn!(attachment = %record.id, "no stable path: {}", error.chain());
        }
    }

    /// Attaches again what a reboot took, in the background, until it is there or detached.
    fn bring_back(self: &Arc<Self>, record: Record, boot_id: String) {
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                let now = match agent.journal.attachment(&record.id).await {
                    Ok(Some(now)) if now.boot_id != boot_id => now,
                    _ => return,
                };
                let request = super::AttachRequest {
                    id: Some(record.id.clone()),
                    spec: now.attached.spec,
                    persistent: true,
                    again: true,
                    attempt: Attempt::until(Instant::now() + agent.config.limits.operation_timeout()),
                };
                match agent.in_own_task(Arc::clone(&agent).attach(request)).await {
                    Ok(_) => return,
                    Err(error) => {
                        tracing::warn!(attachment = %record.id, "not back yet after the reboot: {}", error.chain());
                    }
                }
                if agent.stops_within(&mut pause).await {
                    return;
                }
            }
        });
    }

    /// Waits before the next attempt, each time longer. Whether the agent is to stop meanwhile.
    pub(super) async fn stops_within(&self, pause: &mut Duration) -> bool {
        let stops = timeout(*pause, self.stop.cancelled()).await.is_ok();
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        stops
    }

    /// Stable paths without a record are ours, and of nobody.
    async fn remove_stray_links(&self, records: &[Record]) -> Result<()> {
        let known: HashSet<_> = records.iter().map(|record| &record.id).collect();
        let directory = &self.config.agent.device_directory;
        for name in self.host.list(directory).map_err(Error::host("list the stable paths"))? {
            let stray = match name.parse::<AttachmentId>() {
                Ok(id) => !known.contains(&id),
                Err(_) => name.starts_with('.') && name.ends_with(".new"),
            };
            if stray && let Err(error) = self.host.remove(&directory.join(name)).await {
                tracing::warn!(%error, "cannot remove a stray stable path");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Mortard,
        config::Config,
        operation::{AttachRequest, ExportRequest},
    };
    use driver::{Attempt, Error, Spec};
    use host::sim::Machine;
    use std::{sync::Arc, time::Duration};
    use tokio::time::Instant;

    #[tokio::test]
    async fn what_ended_while_it_was_to_be_brought_back_stays_away() {
        let machine = Machine::new();
        machine.add_vg("vg0", &["vda"]);
        machine.add_lv("vg0", "v", 16 << 20);
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.agent.state_directory = directory.path().to_owned();
        let hypervisor = Arc::new(hypervisor::sim::Domains::new().on(machine.clone()));
        let agent = Mortard::start(config, Arc::new(machine.clone()), hypervisor).await.unwrap().agent;
        let before = machine.snapshot();
        let deadline = Instant::now() + Duration::from_secs(10);
        let attach = AttachRequest {
            id: Some("a".parse().unwrap()),
            spec: Spec::of("lvm:vg0/v".parse().unwrap()),
            persistent: true,
            again: true,
            attempt: Attempt::until(deadline),
        };
        let export = ExportRequest {
            id: Some("a".parse().unwrap()),
            locator: "lvm:vg0/v".parse().unwrap(),
            initiator: "iqn.2026-11.org.example:other".parse().unwrap(),
            portals: Vec::new(),
            read_only: false,
            again: true,
            deadline,
        };
        assert!(matches!(Arc::clone(&agent).attach(attach).await, Err(Error::NotFound { .. })));
        assert!(matches!(agent.export(export).await, Err(Error::NotFound { .. })));
        assert_eq!(machine.snapshot(), before);
    }
}
