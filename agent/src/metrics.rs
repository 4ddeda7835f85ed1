//! What the agent counts, for Prometheus: what its operations did and how long that took, as they end; and how things are,
//! at the moment of the question. No name of a volume, a host or a caller is in it: such names are without end, and theirs.
//!
//! It is served on a loopback port or a socket of its own, because whoever may count need not be one who may attach.

mod few;

use crate::{
    agent::Agent,
    config::MetricsPlace,
    operation::{Outcome, OutcomeState, Plan, State},
    socket::{self, SocketError},
};
use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use driver::Backend;
use few::Few;
use host::Started;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use std::{
    collections::BTreeMap,
    fmt,
    fs::{Permissions, set_permissions},
    future::{Future, IntoFuture},
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The port is taken, say.
    #[error("metrics.listen: cannot listen on {address}: {source}")]
    Port {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket.
    #[error("metrics.listen: {0}")]
    Socket(#[from] SocketError),
}

/// A part of an operation that is worth a look of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// The commit of the plan.
    Intent,
    /// What is done on the machine.
    Effects,
    /// The commit of the outcome.
    Outcome,
}

/// A word as a label's value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Word(String);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.as_str().encode(encoder)
    }
}

fn word(text: impl fmt::Display) -> Word {
    Word(text.to_string())
}

/// Of the volume that an operation is about; empty if it is about none.
fn backend(plan: &Plan) -> Word {
    plan.locator().map_or_else(|| word(""), |locator| word(locator.backend()))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    kind: Word,
    backend: Word,
    /// gRPC's, or OK.
    code: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Took {
    kind: Word,
    backend: Word,
    phase: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Attached {
    backend: Word,
    state: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: Word,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTool {
    tool: Word,
}

/// From a millisecond to a good minute.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

/// All that is counted.
pub(crate) struct Metrics {
    operations: Family<Ended, Counter>,
    took: Family<Took, Histogram, fn() -> Histogram>,
    started: Started,
}

impl Metrics {
    pub(crate) fn new(started: Started) -> Self {
        Self {
            operations: Family::default(),
            took: Family::new_with_constructor(durations as fn() -> Histogram),
            started,
        }
    }

    /// How long a part of an operation took, however it ended.
    pub(crate) fn took(&self, plan: &Plan, phase: Phase, time: Duration) {
        let phase = match phase {
            Phase::Intent => "intent",
            Phase::Effects => "effects",
            Phase::Outcome => "outcome",
        };
        let labels = Took { kind: word(plan.verb()), backend: backend(plan), phase: word(phase) };
        self.took.get_or_create(&labels).observe(time.as_secs_f64());
    }

    /// An operation ended.
    pub(crate) fn ended(&self, plan: &Plan, outcome: &Outcome) {
        let code = match (&outcome.error, outcome.state) {
            (Some(error), _) => error.code.as_str(),
            (None, OutcomeState::Undone) => "UNDONE",
            (None, _) => "OK",
        };
        let labels = Ended { kind: word(plan.verb()), backend: backend(plan), code: word(code) };
        self.operations.get_or_create(&labels).inc();
    }
}

/// How things are now; what is not known in time is left out.
#[derive(Debug, Default)]
struct Now {
    in_flight: usize,
    wedged: usize,
    attachments: Option<BTreeMap<(Backend, &'static str), u32>>,
    paths: BTreeMap<String, u32>,
    exports: Option<usize>,
    journal_bytes: Option<u64>,
    journal_lost: bool,
}

/// How long the journal is asked, and then all attachments are looked at.
const PATIENCE: Duration = Duration::from_secs(5);

impl Agent {
    async fn now(self: &Arc<Self>) -> Now {
        let (in_flight, wedged) = self.running.counts(&*self.host, self.config.limits.wedged_after());
        let mut now = Now { in_flight, wedged, journal_lost: self.journal.lost().is_some(), ..Now::default() };
        let journal = async { (self.journal.exports().await, self.journal.bytes().await) };
        if let Ok((exports, bytes)) = timeout(PATIENCE, journal).await {
            (now.exports, now.journal_bytes) = (exports.ok().map(|exports| exports.len()), bytes.ok());
        }
        if let Ok(Some((attachments, paths))) = timeout(PATIENCE, self.attachments_now()).await {
            (now.attachments, now.paths) = (Some(attachments), paths);
        }
        now
    }

    /// As the kernel has them: no device is asked.
    async fn attachments_now(
        self: &Arc<Self>,
    ) -> Option<(BTreeMap<(Backend, &'static str), u32>, BTreeMap<String, u32>)> {
        let mut looks = JoinSet::new();
        for record in self.journal.attachments().await.ok()? {
            let agent = Arc::clone(self);
            looks.spawn(async move { agent.look(record, false).await });
        }
        let (mut attachments, mut paths) = (BTreeMap::new(), BTreeMap::new());
        while let Some(attachment) = looks.join_next().await {
            let attachment = attachment.ok()?;
            let state = match attachment.state {
                State::Ready => "ready",
                State::Broken => "broken",
                State::Residual => "residual",
            };
            *attachments.entry((attachment.record.attached.spec.locator.backend(), state)).or_default() += 1;
            for path in attachment.device.into_iter().flat_map(|device| device.paths) {
                *paths.entry(path.state).or_default() += 1;
            }
        }
        Some((attachments, paths))
    }

    /// All of it, in Prometheus's text format.
    async fn exposition(self: &Arc<Self>) -> Result<String, fmt::Error> {
        let (now, counted) = (self.now().await, &self.metrics);
        let mut all = Registry::with_prefix("mortar");
        all.register("build", "The agent that tells this", Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]));
        all.register("operations", "Operations that have ended, by gRPC code", counted.operations.clone());
        let help = "How long the parts of operations took";
        all.register_with_unit("operation_phase", help, Unit::Seconds, counted.took.clone());
        let gauge = |value: usize| {
            let gauge = Gauge::<i64>::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            gauge
        };
        all.register("operations_in_flight", "Operations that have not ended", gauge(now.in_flight));
        all.register("operations_wedged", "Of these, those that wait past all patience", gauge(now.wedged));
        if let Some(found) = now.attachments {
            let attachments = Family::<Attached, Gauge>::default();
            for ((backend, state), number) in found {
                let labels = Attached { backend: word(backend), state: word(state) };
                attachments.get_or_create(&labels).set(number.into());
            }
            all.register("attachments", "Volumes that are attached", attachments);
            let paths = Family::<OfState, Gauge>::default();
            for (state, number) in now.paths {
                paths.get_or_create(&OfState { state: word(state) }).set(number.into());
            }
            all.register("paths", "Ways to attached volumes, by the kernel's word for their state", paths);
        }
        if let Some(exports) = now.exports {
            all.register("exports", "Logical volumes that are served to other hosts", gauge(exports));
        }
        if let Some(bytes) = now.journal_bytes {
            let bytes = gauge(usize::try_from(bytes).unwrap_or(usize::MAX));
            all.register_with_unit("journal", "The journal with its log, on disk", Unit::Bytes, bytes);
        }
        all.register("read_only", "1: without a journal, nothing is changed", gauge(now.journal_lost.into()));
        let processes = Family::<OfTool, Counter>::default();
        for (tool, times) in counted.started.counts() {
            processes.get_or_create(&OfTool { tool: word(tool) }).inc_by(times);
        }
        all.register("processes_started", "Runs of tools", processes);
        let mut text = String::new();
        encode(&mut text, &all)?;
        Ok(text)
    }
}

/// Serves them where the config says, until the agent stops.
pub(crate) async fn serve(agent: &Arc<Agent>) -> Result<(), MetricsError> {
    let Ok(Some(place)) = agent.config.metrics.place() else { return Ok(()) };
    let asked = Arc::clone(agent);
    let router = Router::new().route("/metrics", get(move || answer(Arc::clone(&asked))));
    let stop = agent.stop.clone().cancelled_owned();
    match place {
        MetricsPlace::Port(address) => {
            let failed = |source| MetricsError::Port { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            until(stop, axum::serve(Few::of(listener), router).into_future());
        }
        MetricsPlace::Socket(path) => {
            let listener = socket::bind(&path)?;
            set_permissions(&path, Permissions::from_mode(0o600)).map_err(|source| SocketError::Io {
                doing: "set the mode of",
                path: path.clone(),
                source,
            })?;
            until(stop, axum::serve(Few::of(listener), router).into_future());
        }
    }
    tracing::info!(listen = agent.config.metrics.listen, "metrics are served on {}", agent.config.metrics.listen);
    Ok(())
}

fn until(
    stop: impl Future<Output = ()> + Send + 'static,
    serving: impl Future<Output = io::Result<()>> + Send + 'static,
) {
    tokio::spawn(async move {
        tokio::select! {
            _ = serving => {}
            () = stop => {}
        }
    });
}

async fn answer(agent: Arc<Agent>) -> Response {
    let kind = (header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    match agent.exposition().await {
        Ok(text) => ([kind], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
