//! One call: by whom, what it may touch, and what it did. It goes with the request, and with the operation that the request
//! begins.

use super::{
    Callers, Peer, Policy,
    policy::Grant,
    table::{self, Rpc},
};
use crate::{
    config::Role,
    operation::{OperationId, Outcome, Plan},
    telemetry,
};
use driver::{Error, Locator, Result, Scope};
use std::{
    fmt::Display,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::task_local;
use tracing::{Instrument, Span};

task_local! {
    /// The call for which an operation runs; none for what the agent does by itself.
    static CURRENT: Arc<Call>;
}

/// A call that has passed the gate, or is about to.
#[derive(Debug)]
pub(crate) struct Call {
    pub(super) rpc: &'static Rpc,
    pub(super) peer: Arc<Peer>,
    callers: Arc<Callers>,
    /// As it was when the call came.
    policy: Arc<Policy>,
    grants: Vec<Arc<Grant>>,
    seen: Mutex<Seen>,
    /// For the traces.
    pub(super) span: Span,
}

/// What is to be told of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// What it is about: a locator, or an id.
    pub(super) subject: String,
    pub(super) operation: Option<OperationId>,
    /// It was refused for who called.
    pub(super) refused: bool,
    /// It changes something, though its RPC need not.
    pub(super) changes: bool,
    /// It only looks what it would change.
    pub(super) dry_run: bool,
}

impl Call {
    pub(super) fn new(rpc: &'static Rpc, peer: Arc<Peer>, callers: &Arc<Callers>, span: Span) -> Self {
        let policy = callers.policy();
        let grants = policy.grants(&peer);
        Self { rpc, peer, callers: Arc::clone(callers), policy, grants, seen: Mutex::default(), span }
    }

    /// The call that a request is. Its gate has put it there.
    pub(crate) fn of<T>(request: &tonic::Request<T>) -> Result<Arc<Self>> {
        request.extensions().get::<Arc<Self>>().cloned().ok_or_else(|| Error::Forbidden {
            who: "nobody".into(),
            what: "call".into(),
            needs: "it has not passed the gate".into(),
            way: "this is a defect of mortard: report it".into(),
        })
    }

    /// Refuses to go on with a call that takes long, once the rules are others, or its caller's certificate is good no more.
    pub(crate) fn goes_on(&self) -> Result<()> {
        self.peer.is_still_good()?;
        if Arc::ptr_eq(&self.policy, &self.callers.policy()) {
            return Ok(());
        }
        Err(Error::WrongState { what: "the rules for callers have changed; call again".into() })
    }

    /// Runs an operation of this call.
    pub(crate) async fn during<T>(self: Arc<Self>, work: impl Future<Output = T>) -> T {
        let span = telemetry::work(&self.span, self.rpc.name);
        CURRENT.scope(self, work).instrument(span).await
    }

    /// The most that some rule gives.
    pub(super) fn role(&self) -> Option<Role> {
        self.grants.iter().map(|grant| grant.role).max()
    }

    pub(super) fn is_strangers(&self) -> bool {
        self.grants.is_empty()
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, role: Role, reaches: impl Fn(&super::Reach) -> bool) -> bool {
        self.grants.iter().any(|grant| grant.role >= role && reaches(&grant.reach))
    }

    /// The role that this RPC needs; [`Role::Viewer`] where the config lets anybody in.
    fn needed(&self) -> Role {
        self.rpc.role(&self.policy.config).unwrap_or(Role::Viewer)
    }

    /// Whether it may be made at all.
    pub(super) fn may_be_made(&self) -> Result<()> {
        self.peer.is_still_good()?;
        match self.rpc.role(&self.policy.config) {
            Some(role) => self.needs(role, self.rpc.name)?,
            None => return Ok(()),
        }
        if !self.rpc.by_reach && !self.has(self.needed(), super::Reach::is_everything) {
            return Err(self.refused(self.rpc.name, "a role for all of this host".into(), self.needed()));
        }
        Ok(())
    }

    /// Refuses `what` to a caller without this role.
    pub(crate) fn needs(&self, role: Role, what: &str) -> Result<()> {
        if self.has(role, |_| true) {
            return Ok(());
        }
        let has = self.role().map_or("none", Role::as_str);
        Err(self.refused(what, format!("the role {}, and it has {has}", role.as_str()), role))
    }

    /// The call is about a volume, which the caller knows as `subject`. Refuses it, if the volume is out of his reach.
    pub(crate) fn concerns(&self, subject: impl Display, locator: &Locator) -> Result<()> {
        self.is_about(subject, self.needed(), |reach| reach.covers(locator))
    }

    /// As [`Call::concerns`], of all that an operation changes.
    pub(crate) fn concerns_all_that(&self, operation: OperationId, plan: &Plan) -> Result<()> {
        self.is_about(format_args!("operation {operation}"), self.needed(), |reach| reach.covers_all_that(plan))
    }

    /// As [`Call::concerns`], of a volume beside what the call is about.
    pub(crate) fn concerns_also(&self, locator: &Locator) -> Result<()> {
        let subject = self.seen().subject.clone();
        self.concerns(locator, locator)?;
        self.seen().subject = subject;
        Ok(())
    }

    /// As [`Call::concerns`], of an instance.
    pub(crate) fn concerns_instance(&self, name: &str) -> Result<()> {
        self.is_about(format_args!("instance {name}"), self.needed(), |reach| reach.covers_instance(name))
    }

    /// As [`Call::concerns`], of all volumes in a place.
    pub(crate) fn concerns_all_of(&self, scope: &Scope) -> Result<()> {
        self.is_about(scope, self.needed(), |reach| reach.covers_all_of(scope))
    }

    fn is_about(&self, subject: impl Display, role: Role, reaches: impl Fn(&super::Reach) -> bool) -> Result<()> {
        let subject = subject.to_string();
        self.seen().subject.clone_from(&subject);
        if self.has(role, reaches) {
            return Ok(());
        }
        let within: Vec<String> =
            self.grants.iter().filter(|grant| grant.role >= role).map(|grant| grant.reach.to_string()).collect();
        let needs = format!("the role {} for it, and it has that for {} only", role.as_str(), within.join(", "));
        Err(self.refused(&format!("{} of {subject}", self.rpc.name), needs, role))
    }

    /// The call is about this host as a whole.
    pub(crate) fn shows_everything(&self) -> Result<()> {
        self.is_about("this host", Role::Viewer, super::Reach::is_everything)
    }

    /// The call takes orphans away, whatever they are.
    pub(crate) fn repairs(&self) -> Result<()> {
        self.seen().changes = true;
        self.needs(Role::Admin, "repair")?;
        self.is_about("this host", Role::Admin, super::Reach::is_everything)
    }

    /// Whether a list shows a volume.
    pub(crate) fn shows(&self, locator: &Locator) -> bool {
        self.has(Role::Viewer, |reach| reach.covers(locator))
    }

    /// Whether a list shows an operation.
    pub(crate) fn shows_all_that(&self, plan: &Plan) -> bool {
        self.has(Role::Viewer, |reach| reach.covers_all_that(plan))
    }

    /// Whether a list shows an instance.
    pub(crate) fn shows_instance(&self, name: &str) -> bool {
        self.has(Role::Viewer, |reach| reach.covers_instance(name))
    }

    /// Whether a list shows the volumes of a place.
    pub(crate) fn shows_all_of(&self, scope: &Scope) -> bool {
        self.has(Role::Viewer, |reach| reach.covers_all_of(scope))
    }

    /// Refuses to end an operation that the caller could not have begun.
    pub(crate) fn may_end(&self, operation: OperationId, plan: &Plan) -> Result<()> {
        let role = table::role_for(plan);
        self.needs(role, &format!("cancel operation {operation} ({})", plan.verb()))?;
        self.is_about(format!("operation {operation}"), role, |reach| reach.covers_all_that(plan))
    }

    fn may_begin(&self, plan: &Plan) -> Result<()> {
        let role = table::role_for(plan);
        self.needs(role, plan.verb())?;
        let subject = match self.seen().subject.clone() {
            subject if subject.is_empty() => format!("{} {}", plan.verb(), plan.subject()),
            subject => subject,
        };
        self.is_about(subject, role, |reach| reach.covers_all_that(plan))
    }

    fn begins(&self, operation: OperationId, plan: &Plan) -> Result<()> {
        self.may_begin(plan)?;
        // One that it begins on its way belongs to the first.
        if *self.seen().operation.get_or_insert(operation) == operation {
            telemetry::begins(operation, plan);
        }
        Ok(())
    }

    /// The call only looks what it would change.
    pub(crate) fn only_looks(&self) {
        self.seen().dry_run = true;
    }

    fn refused(&self, what: &str, needs: String, role: Role) -> Error {
        self.seen().refused = true;
        let what = what.strip_prefix("mortar.agent.v1.").unwrap_or(what).into();
        Error::Forbidden { who: self.peer.to_string(), what, needs, way: self.policy.way_to(role, &self.peer) }
    }
}

/// Asked before an operation's plan is committed, about what it is really going to change: what an id stood for when the
/// request came may be something else now.
pub(crate) fn begins(operation: OperationId, plan: &Plan) -> Result<()> {
    CURRENT.try_with(|call| call.begins(operation, plan)).unwrap_or(Ok(()))
}

/// As [`begins`], of an operation that will not begin: a dry run.
pub(crate) fn may_begin(plan: &Plan) -> Result<()> {
    CURRENT.try_with(|call| call.may_begin(plan)).unwrap_or(Ok(()))
}

/// Told when an operation has ended, for the traces; of one that was begun on the way of another, nothing is.
pub(crate) fn ended(operation: OperationId, outcome: &Outcome) {
    let _by_ourselves = CURRENT.try_with(|call| {
        if call.seen().operation == Some(operation) {
            telemetry::ended(outcome);
        }
    });
}
