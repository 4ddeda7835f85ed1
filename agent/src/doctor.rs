//! The doctor: what stands on this host, whose it is, what is wrong with it, and the repair of what is ours and nobody's.
//!
//! ```text
//!   journal: attachments, exports, rescues, open operations ──▶ known
//!                                                        │
//!   drivers, exporter, stable paths ── what they see ──▶ match ──▶ ours      (which attachment, export or operation)
//!        by the marks of whose it is                     │         foreign   (no mark of ours)
//!                                                        │         orphan    (our mark, and nobody has it)
//!   records ── asked one by one ─────────────────────────┘         stale     (a record without its device, or with another's)
//!
//!   repair:  orphan ──▶ the locks of its attach ──▶ still an orphan? ──▶ detach (users, flush, absence) ──▶ seen to be gone
//! ```
//!
//! Others go on working meanwhile. What is in the middle of an operation is the operation's. The look at the journal and the
//! look at the host are not one: so where an operation began or ended meanwhile that may have to do with what seems to be an
//! orphan or stale, that is not said of it, and there is another look.
//!
//! A repair is no operation: it takes away what nobody has, so nothing has to be undone or finished after a crash. What is left
//! of it then is an orphan as before.

mod checkup;
mod known;
mod look;
mod records;
mod repair;
mod rescues;

use crate::{
    agent::Agent,
    operation::{Operation, Plan},
    watch::Event,
};
use driver::{Attached, AttachmentId, Backend, Derivation, Finding, Object, ObjectKind, Result, Severity};
use export::Export;
use known::Known;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{sync::broadcast::error::TryRecvError, time::Instant};
use uuid::Uuid;

/// How long one driver may take to list what it sees, and one device to prove what it is.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often is looked, at most, while operations come and go.
const LOOKS: usize = 4;

/// Whose something on this host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    Ours,
    Foreign,
    Orphan,
    Stale,
}

impl Whose {
    /// Whether somebody has to do something about it.
    fn is_amiss(self) -> bool {
        matches!(self, Self::Orphan | Self::Stale)
    }
}

/// Something on this host, judged.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) kind: ObjectKind,
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) whose: Whose,
    /// One clause.
    pub(crate) why: String,
    /// What a repair came to; `None` if it was not tried.
    pub(crate) repair: Option<Repair>,
    remains: Option<Remains>,
}

/// What a repair did, or why it could not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Repair {
    Removed(String),
    Left(String),
    /// It was a dry run.
    WouldBeRemoved,
}

/// What becomes of orphans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Orphans {
    Stay,
    /// It is only said what would become of them.
    WouldGo,
    Go,
}

/// How an orphan is taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Remains {
    Attached(Box<Attached>),
    Export(Export),
    Link { path: PathBuf, id: Option<AttachmentId> },
    RescueDisk(Box<Derivation>),
    Seed { path: PathBuf, owner: Uuid },
}

/// What the doctor says.
#[derive(Debug, Default)]
pub(crate) struct Diagnosis {
    /// The worst first.
    pub(crate) findings: Vec<Finding>,
    /// Orphans first, then what is stale, foreign, ours.
    pub(crate) objects: Vec<Judged>,
}

impl Judged {
    fn new(object: Object, whose: Whose, why: impl Into<String>) -> Self {
        let Object { kind, name, what, .. } = object;
        Self { kind, name, what, whose, why: why.into(), repair: None, remains: None }
    }

    /// Whether an operation may have to do with it: by its id where it has one, or else by its backend.
    fn may_be_of(&self, operation: &Operation) -> bool {
        let plan = &operation.plan;
        let is_named = || self.name.ends_with(&plan.subject());
        let is_export = matches!(plan, Plan::Export { .. } | Plan::Unexport { .. });
        let is_of = |backend| plan.locator().is_some_and(|locator| locator.backend() == backend);
        match self.kind {
            ObjectKind::Record | ObjectKind::StablePath => is_named(),
            ObjectKind::RescueDisk => self.what.ends_with(&plan.subject()),
            ObjectKind::Seed => self.name.contains(&plan.subject()),
            ObjectKind::Volume => self.what.ends_with(&plan.subject()),
            ObjectKind::Session | ObjectKind::NodeRecord | ObjectKind::Device | ObjectKind::MultipathMap => {
                is_of(Backend::Iscsi)
            }
            ObjectKind::Mapping => is_of(Backend::Rbd),
            ObjectKind::Activation => is_of(Backend::Lvm),
            ObjectKind::Loop => is_of(Backend::File),
            ObjectKind::Target | ObjectKind::Backstore | ObjectKind::Hba => is_export,
        }
    }
}

impl Agent {
    /// Looks at everything; takes orphans away, if they shall go, as far as that goes until the deadline.
    pub(crate) async fn diagnose(self: Arc<Self>, orphans: Orphans, deadline: Instant) -> Result<Diagnosis> {
        let mut diagnosis = self.examine().await?;
        diagnosis.findings.extend(self.checkup().await);
        match orphans {
            Orphans::Stay => {}
            Orphans::WouldGo => self.rehearse(&mut diagnosis.objects, deadline).await,
            Orphans::Go => self.repair(&mut diagnosis.objects, deadline).await,
        }
        diagnosis.findings.sort_by_key(|finding| finding.severity);
        diagnosis.objects.sort_by_key(|judged| match judged.whose {
            Whose::Orphan => 0,
            Whose::Stale => 1,
            Whose::Foreign => 2,
            Whose::Ours => 3,
        });
        Ok(diagnosis)
    }

    /// What stands on this host and what the records say, at a moment in which nobody changed what is found amiss.
    async fn examine(self: &Arc<Self>) -> Result<Diagnosis> {
        let began = Instant::now();
        let mut looks = 0;
        loop {
            let (diagnosis, is_restless) = self.look_quietly(true).await?;
            looks += 1;
            // Devices that do not answer make each look long.
            if !is_restless || looks == LOOKS || began.elapsed() > PATIENCE {
                return Ok(diagnosis);
            }
        }
    }

    /// One look, and whether anything that seemed amiss is what an operation began or ended with meanwhile: that is nothing then.
    async fn look_quietly(self: &Arc<Self>, ask: bool) -> Result<(Diagnosis, bool)> {
        // Before the journal is read: nothing falls between.
        let mut changes = self.watch.subscribe();
        let known = Known::read(self).await?;
        let mut diagnosis = if ask { self.look_at_all(&known).await? } else { self.look_at_host(&known, false).await };
        let mut meanwhile = Vec::new();
        let kept_up = loop {
            match changes.try_recv() {
                Ok(event) => meanwhile.extend(match Arc::unwrap_or_clone(event) {
                    Event::Operation(operation) => Some(operation),
                    Event::Attachment(_) | Event::Gone(_) => None,
                }),
                Err(TryRecvError::Lagged(_)) => break false,
                Err(TryRecvError::Empty | TryRecvError::Closed) => break true,
            }
        };
        let mut is_restless = false;
        for judged in diagnosis.objects.iter_mut().filter(|judged| judged.whose.is_amiss()) {
            if !kept_up || meanwhile.iter().any(|operation| judged.may_be_of(operation)) {
                is_restless = true;
                judged.whose = Whose::Ours;
                judged.why = "it is just changing".into();
                judged.remains = None;
            }
        }
        Ok((diagnosis, is_restless))
    }

    async fn look_at_all(self: &Arc<Self>, known: &Known) -> Result<Diagnosis> {
        let (mut diagnosis, (records, findings), (of_rescues, unseen)) =
            tokio::join!(self.look_at_host(known, true), self.look_at_records(known), self.look_at_rescues(known));
        diagnosis.objects.extend(of_rescues);
        diagnosis.findings.extend(unseen);
        diagnosis.objects.extend(self.stable_paths(known, &records)?);
        diagnosis.objects.extend(records.into_iter().map(|record| record.judged));
        diagnosis.findings.extend(findings);
        Ok(diagnosis)
    }

    /// Tells the log of orphans that were here at the start, in the background. They stay: our mark does not say which
    /// agent's they are, and another one may run on this host with a state directory of its own.
    pub(crate) fn tell_of_orphans(self: &Arc<Self>) {
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            match agent.look_quietly(false).await {
                Ok((diagnosis, _)) => {
                    for Judged { kind, name, what, .. } in
                        diagnosis.objects.iter().filter(|judged| judged.whose == Whose::Orphan)
                    {
                        tracing::warn!(
                            "the {kind} {name} ({what}) is ours and of no attachment; `mortar doctor --repair` takes it \
                             away"
                        );
                    }
                }
                Err(error) => tracing::warn!("cannot look for orphans: {}", error.chain()),
            }
        });
    }
}

/// That a driver, or the exporter, could not be asked.
fn unseen(what: &str, why: String) -> Finding {
    Finding {
        severity: Severity::Error,
        subject: what.to_owned(),
        found: format!("it cannot be looked at: {why}"),
        advice: "see what it says, and run this again".into(),
    }
}
