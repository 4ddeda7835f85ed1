//! What is told of each call to a collector of OpenTelemetry's: the call, below it the operation that it began, and below that
//! each call on the machine, which `host` makes a span of.
//!
//! ```text
//!   mortar.agent.v1.Attachments/Attach      its parent is what the caller's `traceparent` names (W3C Trace Context)
//!    └── Attach                             the operation, with its id; it goes on when the caller has hung up
//!         ├── run lvm lvchange …
//!         └── write /sys/…
//! ```
//!
//! The spans have a target of their own, which no log shows, and are made only where somebody asks for it: a build with the
//! feature `otlp`, and an endpoint in the config. The words in them are those of the log, so no secret is among them.

use crate::operation::{OperationId, Outcome, OutcomeState, Plan};
use host::TRACES;
use tonic::{Code, codegen::http::HeaderMap};
use tracing::{
    Span,
    field::{Empty, display},
    trace_span,
};

#[cfg(feature = "otlp")]
mod collector;
#[cfg(not(feature = "otlp"))]
mod no_collector;

#[cfg(not(feature = "otlp"))]
use no_collector as collector;

pub use collector::{Exporter, layer};

/// A call, from its gate to its answer.
pub(crate) fn call(rpc: &str, headers: &HeaderMap) -> Span {
    let span = trace_span!(target: TRACES, "call", otel.name = rpc, otel.kind = "server", rpc.grpc.status_code = Empty);
    collector::follow(&span, headers);
    span
}

pub(crate) fn answered(call: &Span, code: Code) {
    call.record("rpc.grpc.status_code", i32::from(code));
}

/// What a call does in a task of its own: `Attach`.
pub(crate) fn work(call: &Span, rpc: &str) -> Span {
    let name = rpc.rsplit('/').next().unwrap_or(rpc);
    trace_span!(
        target: TRACES,
        parent: call,
        "work",
        otel.name = name,
        otel.status_code = Empty,
        operation = Empty,
        subject = Empty,
        reason = Empty
    )
}

/// The work that this is called in is this operation.
pub(crate) fn begins(id: OperationId, plan: &Plan) {
    let work = Span::current();
    work.record("operation", display(id));
    work.record("subject", display(plan.subject()));
}

/// And so it ended.
pub(crate) fn ended(outcome: &Outcome) {
    let work = Span::current();
    if let Some(error) = &outcome.error {
        work.record("reason", error.reason.as_str());
    }
    work.record("otel.status_code", if outcome.state == OutcomeState::Succeeded { "OK" } else { "ERROR" });
}
