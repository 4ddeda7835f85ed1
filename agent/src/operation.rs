//! Work that survives a crash. One file below for each verb; this one has what they share: the plan that is committed
//! before the first effect, and how an operation ends.
//!
//! ```text
//!                 validate, lock, look (reads only)
//!                              │
//!                    journal: begin(plan)          ◀── before this, a crash has nothing to recover
//!                              │
//!                           effects ──── error ──▶ undo ──▶ journal: finish(failed)
//!                              │                     └── undo fails ──▶ stuck: locks kept, tried again
//!               journal: finish(done, records)      ◀── from here on, a cancel comes too late
//!                              │
//!                            reply
//!
//!  in the middle of the effects:
//!     cancelled              → undo, or refused and forward (`cancel`)
//!     the machine does not answer in time → the caller is told; locks kept; undone or forward when it has answered
//!
//!  at the next start, for a plan without an outcome:
//!     attach               → undo      nobody was told of the device, and the undo needs no secret
//!     detach               → forward   the caller wanted it gone
//!     extend               → forward   it only looks
//!     manage, unmanage     → forward   the storage tells which steps are still to be done
//!     export               → undo      nobody was told the password; one that was there before is served again
//!     unexport             → forward   unless its initiator is logged in by now
//!     rescue               → undo      nobody was told the password; see `rescue`
//!     unrescue             → forward   the caller wanted the original back
//!     start, stop, reboot  → closed; a reboot starts what it stopped
//! ```

mod attach;
mod cancel;
mod detach;
mod export;
mod extend;
mod instances;
mod lookup;
mod manage;
mod power;
mod recover;
mod rescue;

pub(crate) use attach::{AttachRequest, Attachment, State};
pub(crate) use detach::{DetachReply, Target};
pub(crate) use export::{ExportReply, ExportRequest, ExportTarget, Exported, UnexportReply, export_key};
pub(crate) use instances::{InstanceNow, Rescued, Role};
pub(crate) use manage::ManageRequest;
pub(crate) use power::{PowerReply, PowerRequest, PowerVerb};
pub(crate) use rescue::{
    RescueDisk, RescueRecord, RescueReply, RescueRequest, RescueState, UnrescueReply, UnrescueRequest, instance_key,
    seed_of,
};

use crate::{
    agent::Agent,
    callers,
    journal::{Change, Record},
    locks::Held,
    metrics::Phase,
    running::Listed,
    status,
    watch::Event,
};
use ::export::{Export, ExportId};
use driver::{Adoption, Attached, AttachmentId, Error, Identity, Locator, Release, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, future::Future, str::FromStr, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

/// Names an operation; it holds the time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct OperationId(Uuid);

impl OperationId {
    fn at(ms: i64) -> Self {
        let ms = u64::try_from(ms).unwrap_or_default();
        let nanos = u32::try_from(ms % 1000).unwrap_or_default() * 1_000_000;
        Self(Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, ms / 1000, nanos)))
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for OperationId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::parse_str(text).map(Self).map_err(|_| Error::invalid("id", "an operation's id is a UUID"))
    }
}

/// What an operation is going to do: all that is needed to undo or finish it, and no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub(crate) enum Plan {
    Attach { id: AttachmentId, attached: Attached },
    Detach { id: AttachmentId, attached: Attached },
    Extend { id: AttachmentId, locator: Locator },
    Manage { adoption: Adoption },
    Unmanage { release: Release },
    Export { export: Export, attached: Attached },
    Unexport { id: ExportId, locator: Locator },
    Rescue { instance: Uuid, name: String, locator: Locator },
    Unrescue { instance: Uuid, name: String, locator: Locator },
    Power { instance: Uuid, name: String, power: PowerVerb },
}

impl Plan {
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Attach { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::Extend { .. } => "extend",
            Self::Manage { .. } => "manage",
            Self::Unmanage { .. } => "unmanage",
            Self::Export { .. } => "export",
            Self::Unexport { .. } => "unexport",
            Self::Rescue { .. } => "rescue",
            Self::Unrescue { .. } => "unrescue",
            Self::Power { power, .. } => power.as_str(),
        }
    }

    /// The id of the attachment, volume, export or instance that it works on.
    pub(crate) fn subject(&self) -> String {
        match self {
            Self::Attach { id, .. } | Self::Detach { id, .. } | Self::Extend { id, .. } => id.to_string(),
            Self::Manage { adoption } => adoption.id.to_string(),
            Self::Unmanage { release } => release.id.to_string(),
            Self::Export { export, .. } => export.id.to_string(),
            Self::Unexport { id, .. } => id.to_string(),
            Self::Rescue { instance, .. } | Self::Unrescue { instance, .. } | Self::Power { instance, .. } => {
                instance.to_string()
            }
        }
    }

    /// The volume; `None` if there is none.
    pub(crate) fn locator(&self) -> Option<&Locator> {
        Some(match self {
            Self::Attach { attached, .. } | Self::Detach { attached, .. } | Self::Export { attached, .. } => {
                &attached.spec.locator
            }
            Self::Extend { locator, .. } | Self::Unexport { locator, .. } => locator,
            Self::Manage { adoption } => &adoption.from,
            Self::Unmanage { release } => &release.from,
            Self::Rescue { locator, .. } | Self::Unrescue { locator, .. } => locator,
            Self::Power { .. } => return None,
        })
    }

    /// The instance, by name; `None` if there is none.
    pub(crate) fn instance(&self) -> Option<&str> {
        match self {
            Self::Rescue { name, .. } | Self::Unrescue { name, .. } | Self::Power { name, .. } => Some(name),
            _ => None,
        }
    }

    /// Its text; empty if there is none.
    pub(crate) fn locator_text(&self) -> String {
        self.locator().map(ToString::to_string).unwrap_or_default()
    }

    /// What it is about, for people.
    fn about(&self) -> String {
        match self {
            Self::Rescue { name, locator, .. } | Self::Unrescue { name, locator, .. } => format!("{name}, {locator}"),
            Self::Power { name, .. } => name.clone(),
            _ => self.locator_text(),
        }
    }

    /// What it changed can be taken back, until its end.
    fn can_be_undone(&self) -> bool {
        matches!(self, Self::Attach { .. } | Self::Export { .. } | Self::Rescue { .. })
    }

    /// What nobody else may work on meanwhile.
    fn keys(&self) -> Vec<String> {
        match self {
            Self::Attach { id, .. } | Self::Detach { id, .. } | Self::Extend { id, .. } => {
                std::iter::once(attachment_key(id)).chain(self.locator().into_iter().flat_map(Locator::keys)).collect()
            }
            Self::Manage { adoption } => {
                vec![format!("volume {}", adoption.id), adoption.from.key(), adoption.to.key()]
            }
            Self::Export { export: Export { id, .. }, .. } | Self::Unexport { id, .. } => {
                std::iter::once(export::export_key(id))
                    .chain(self.locator().into_iter().flat_map(Locator::keys))
                    .collect()
            }
            Self::Rescue { instance, .. } | Self::Unrescue { instance, .. } | Self::Power { instance, .. } => {
                vec![instance_key(*instance)]
            }
            Self::Unmanage { release } => vec![format!("volume {}", release.id), release.from.key(), release.to.key()],
        }
    }
}

pub(crate) fn attachment_key(id: &AttachmentId) -> String {
    format!("attachment {id}")
}

/// A look before anything is changed: it ends at the deadline, and the tools that it runs end with it.
async fn look_until<T>(deadline: Instant, locator: &Locator, look: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| Error::TimedOut {
        waiting_for: format!(
            "a look at {locator}, which another command may hold, or whose server may be gone; nothing was changed"
        ),
    };
    timeout_at(deadline, look).await.map_err(late)?
}

/// What a locator turned out to be, once that is known: two locators may lead to one volume.
pub(crate) fn identity_key(identity: &Identity) -> String {
    format!("volume that is {identity}")
}

/// An operation, with its outcome once it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) id: OperationId,
    pub(crate) plan: Plan,
    /// Milliseconds since 1970.
    pub(crate) started_ms: i64,
    /// The boot in which it began: its footprint means nothing in another.
    pub(crate) boot_id: String,
    /// `None`: it runs.
    pub(crate) outcome: Option<Outcome>,
    /// It holds nothing any more.
    pub(crate) ended: bool,
}

/// How an operation ended, or why it could not yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) state: OutcomeState,
    /// Milliseconds since 1970.
    pub(crate) ended_ms: i64,
    pub(crate) error: Option<Failure>,
}

/// The ends of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OutcomeState {
    /// As asked.
    Succeeded,
    /// An error, and what had been done was undone.
    Failed,
    /// A crash, and what had been done was undone.
    Undone,
    /// The undo failed; it is tried again.
    Stuck,
}

/// An error as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) reason: String,
    pub(crate) message: String,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { code: status::code_name(error).into(), reason: error.reason().into(), message: error.chain() }
    }
}

/// What the caller is told whose operation has done its work, when the journal does not take its end.
fn not_ended(error: &Error) -> Error {
    let goes_on = "it was done, and ends by itself when that is mended: see the operations";
    match error {
        Error::Full { what, why } => Error::Full { what: what.clone(), why: format!("{why}; {goes_on}") },
        Error::WrongState { what } => Error::WrongState { what: format!("{what}; {goes_on}") },
        _ => Error::Host { doing: format!("end the operation ({goes_on})"), source: error.chain().into() },
    }
}

/// What is still to be done of an operation that could not be ended.
#[derive(Debug)]
enum Rest {
    /// Its effects are done or undone; the journal does not say so yet.
    Conclude(Outcome, Change),
    /// Everything: undo it, or finish it.
    Recover,
}

/// An operation under way, and the locks that it holds until it has ended.
pub(crate) struct Work {
    operation: Operation,
    held: Held,
    listed: Listed,
}

impl Work {
    fn can_be_undone(&self) -> bool {
        self.operation.plan.can_be_undone()
    }

    /// Whether the machine goes on with it though nobody waits: until it answers, nobody can say what is to be undone.
    fn goes_on(&self, error: &Error) -> bool {
        let untouched = matches!(error, Error::Cancelled { .. }) && !self.can_be_undone();
        !untouched && self.listed.course.steps.is_changing()
    }
}

impl Agent {
    fn outcome(&self, state: OutcomeState, error: Option<&Error>) -> Outcome {
        Outcome { state, ended_ms: self.now_ms(), error: error.map(Failure::from) }
    }

    /// Milliseconds since 1970, for people; nothing is decided by it.
    fn now_ms(&self) -> i64 {
        jiff::Timestamp::try_from(self.host.now()).map_or(0, jiff::Timestamp::as_millisecond)
    }

    /// An attachment with its own lock and its volume's, and the others of that volume; `None` if there is none.
    async fn hold(
        self: &Arc<Self>,
        verb: &str,
        id: &AttachmentId,
        deadline: Instant,
    ) -> Result<Option<(Held, Record, Vec<Record>)>> {
        self.looked_at(id, deadline).await?;
        let mut held = self.locks.take(&format!("{verb} of {id}"), [attachment_key(id)])?;
        let Some(record) = self.journal.attachment(id).await? else { return Ok(None) };
        let volume = record.attached.spec.locator.key();
        let identity = record.attached.identity.as_ref().map(identity_key);
        for key in record.attached.spec.locator.keys().into_iter().chain(identity) {
            held.extend(key)?;
        }
        // Read once more under all locks: a manage may have given it another locator meanwhile.
        let mut of_volume = self.journal.attachments_of(&volume).await?;
        match of_volume.iter().position(|record| record.id == *id) {
            Some(place) => {
                let record = of_volume.remove(place);
                Ok(Some((held, record, of_volume)))
            }
            None => {
                let holder = "an operation that just ended".into();
                Err(Error::Busy { what: volume, holder, age: Duration::ZERO })
            }
        }
    }

    /// Commits the intent and tells the watchers.
    async fn begin(&self, plan: Plan, held: Held, deadline: Instant) -> Result<Work> {
        self.begin_with(plan, Change::None, held, deadline).await
    }

    /// As [`Self::begin`], with what changes in the records from its beginning on.
    async fn begin_with(&self, plan: Plan, change: Change, held: Held, deadline: Instant) -> Result<Work> {
        let operation = Operation {
            id: OperationId::at(self.now_ms()),
            plan,
            started_ms: self.now_ms(),
            boot_id: self.boot_id.clone(),
            outcome: None,
            ended: false,
        };
        callers::begins(operation.id, &operation.plan)?;
        let listed = self.running.begin(operation.id, operation.plan.can_be_undone(), deadline);
        let asked = Instant::now();
        self.journal.begin(&operation, change, self.config.limits.attachments).await?;
        self.metrics.took(&operation.plan, Phase::Intent, asked.elapsed());
        let (verb, subject) = (operation.plan.verb(), operation.plan.subject());
        let (locator, about) = (operation.plan.locator_text(), operation.plan.about());
        tracing::info!(operation = %operation.id, subject, locator, "{verb} {subject} ({about}) begins");
        self.watch.send(Event::Operation(operation.clone()));
        Ok(Work { operation, held, listed })
    }

    /// Runs what an operation is to do, in sight of those who ask what it waits for, and to its end or until it is
    /// cancelled. An attach that was cancelled at its very end is one that was cancelled.
    async fn effects<T>(&self, work: &Work, effects: impl Future<Output = Result<T>>) -> Result<T> {
        let steps = &work.listed.course.steps;
        let begun = Instant::now();
        let done = steps.during(effects).await;
        self.metrics.took(&work.operation.plan, Phase::Effects, begun.elapsed());
        let cancelled =
            || Error::Cancelled { what: format!("{} {}", work.operation.plan.verb(), work.operation.plan.subject()) };
        match done {
            Err(_) if steps.is_cancelled() => Err(cancelled()),
            Ok(_) if !steps.close() && work.can_be_undone() => Err(cancelled()),
            done => done,
        }
    }

    /// Ends an operation as asked. If that cannot be committed, the locks stay taken until it can: no later operation on
    /// the same thing must find this one open.
    async fn succeeded(self: &Arc<Self>, work: Work, change: Change) -> Result<OperationId> {
        let outcome = self.outcome(OutcomeState::Succeeded, None);
        match self.conclude(&work.operation, outcome.clone(), change.clone()).await {
            Ok(()) => Ok(work.operation.id),
            Err(error) => {
                let told = not_ended(&error);
                self.keep_trying(work, Rest::Conclude(outcome, change), error);
                Err(told)
            }
        }
    }

    /// Ends an operation that failed and whose effects were undone, and hands its error on.
    async fn failed<T>(self: &Arc<Self>, work: Work, error: Error, change: Change) -> Result<T> {
        let outcome = self.outcome(OutcomeState::Failed, Some(&error));
        if let Err(journal) = self.conclude(&work.operation, outcome.clone(), change.clone()).await {
            self.keep_trying(work, Rest::Conclude(outcome, change), journal);
        }
        Err(error)
    }

    /// Answers the caller of an operation that the machine goes on with. It is finished or undone when that has ended.
    fn left_waiting<T>(self: &Arc<Self>, work: Work, error: Error) -> Result<T> {
        let waiting_for = match &error {
            Error::TimedOut { waiting_for } => waiting_for.clone(),
            other => other.chain(),
        };
        self.keep_trying(work, Rest::Recover, Error::TimedOut { waiting_for });
        Err(error)
    }

    /// Commits the outcome with its changes and tells the watchers.
    async fn conclude(&self, operation: &Operation, outcome: Outcome, change: Change) -> Result<()> {
        let asked = Instant::now();
        self.journal.finish(operation, &outcome, change, self.config.journal.keep_operations).await?;
        self.metrics.took(&operation.plan, Phase::Outcome, asked.elapsed());
        self.metrics.ended(&operation.plan, &outcome);
        callers::ended(operation.id, &outcome);
        let (verb, subject) = (operation.plan.verb(), operation.plan.subject());
        match &outcome.error {
            None => tracing::info!(operation = %operation.id, subject, "{verb} {subject} done"),
            Some(error) => {
                let reason = &error.reason;
                tracing::warn!(operation = %operation.id, subject, reason, "{verb} {subject} ended: {}", error.message);
            }
        }
        self.watch.send(Event::Operation(Operation { outcome: Some(outcome), ended: true, ..operation.clone() }));
        Ok(())
    }
}
