//! mortard, the storage agent of one host, as a library: the daemon's `main` gives it the real machine, tests a
//! simulated one.
//!
//! ```text
//!   service ── convert ──▶ agent ── operation ──▶ drivers ──▶ host
//!      ▲          │          │          │
//!   status ◀──────┘        locks     journal
//! ```

mod admission;
mod agent;
mod callers;
pub mod config;
mod connector;
mod convert;
mod doctor;
mod drivers;
#[cfg(fuzzing)]
pub mod fuzz;
mod held;
mod hostinfo;
mod journal;
mod locks;
mod looks;
mod losses;
mod metrics;
#[cfg(not(feature = "libvirt"))]
mod no_hypervisor;
mod operation;
mod reload;
mod rest;
mod running;
mod seed;
mod service;
mod socket;
mod status;
pub mod telemetry;
mod tls;
mod unrecorded;
mod visitor;
mod watch;
mod watchdog;

use crate::{
    admission::Admission,
    agent::Agent,
    callers::{Callers, Gate},
    config::Config,
    drivers::Drivers,
    journal::Journal,
    locks::Locks,
    looks::Looks,
    metrics::Metrics,
    running::Running,
    service::Service,
    tls::{Door, Identity},
    visitor::Visitor,
    watch::Watch,
};
use export::{ExportConfig, Exporter};
use host::{Attended, Host, Started};
use hypervisor::{Announced, Hypervisor};
use proto::v1::{
    attachments_server::AttachmentsServer, exports_server::ExportsServer, host_server::HostServer,
    instances_server::InstancesServer, operations_server::OperationsServer, volumes_server::VolumesServer,
};
use std::{future::Future, net::SocketAddr, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, Semaphore, mpsc},
    time::timeout,
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{server::NamedService, transport::Server};
use tonic_health::{ServingStatus, server::HealthReporter};

pub use callers::{Introduced, Peer};
pub use reload::Reloader;
pub use tls::TlsError;

/// Why the daemon does not start, or ended; one line each.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value of the config.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// A driver that was asked for.
    #[error(transparent)]
    Driver(#[from] drivers::NotReady),
    /// What is served to other machines.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The socket, or another agent.
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    /// What a crash left could not even be looked at.
    #[error("cannot recover: {0}")]
    Recover(String),
    /// gRPC.
    #[error("cannot serve gRPC: {0}")]
    Serve(String),
    /// Metrics.
    #[error(transparent)]
    Metrics(#[from] metrics::MetricsError),
}

/// What could be known to be right before anything was touched.
struct Checked {
    drivers: Drivers,
    identity: Option<Arc<Identity>>,
}

/// An agent that has recovered and is about to serve.
pub struct Mortard {
    agent: Arc<Agent>,
    callers: Arc<Callers>,
    door: Option<Door>,
    identity: Option<Arc<Identity>>,
}

impl Mortard {
    /// Opens the journal, checks the drivers, and recovers what a crash or a reboot left. The state directory must be
    /// there and be ours alone. Without a journal it starts read-only.
    pub async fn start(
        config: Config,
        host: Arc<dyn Host>,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> Result<Self, StartError> {
        let (host, started) = attended(host);
        let ready = Self::check(&config, &host).await?;
        Self::recover(config, host, started, ready, hypervisor).await
    }

    /// What can be known to be wrong before anything is touched.
    async fn check(config: &Config, host: &Arc<dyn Host>) -> Result<Checked, StartError> {
        config.check()?;
        let identity = match config.tls.listen.is_empty() {
            true => None,
            false => Some(Arc::new(Identity::load(&config.tls)?)),
        };
        let drivers = Drivers::new(host, config)?;
        drivers.check().await?;
        Ok(Checked { drivers, identity })
    }

    async fn recover(
        config: Config,
        host: Arc<dyn Host>,
        started: Started,
        ready: Checked,
        hypervisor: Arc<dyn Hypervisor>,
    ) -> Result<Self, StartError> {
        let Checked { drivers, identity } = ready;
        let journal = Journal::open(&config.agent.state_directory.join("journal.sqlite"), Arc::clone(&host));
        let exports = ExportConfig {
            configfs: "/sys/kernel/config".into(),
            key: config.agent.state_directory.join("export.key"),
        };
        let callers = Arc::new(Callers::new(&config.callers));
        let facts = host.facts().map_err(|error| StartError::Recover(error.to_string()))?;
        let agent = Arc::new(Agent {
            boot_id: facts.boot_id,
            running: Running::default(),
            exporter: Exporter::new(Arc::clone(&host), exports),
            hypervisor: Arc::new(Announced::new(Arc::clone(&host), hypervisor)),
            host,
            drivers,
            journal,
            locks: Locks::default(),
            looks: Looks::default(),
            watch: Watch::new(),
            metrics: Metrics::new(started),
            room: Arc::new(Semaphore::new(config.limits.operations)),
            seats: Arc::new(Semaphore::new(config.limits.watchers)),
            config,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        agent.recover().await.map_err(|error| StartError::Recover(error.chain()))?;
        agent.tell_of_orphans();
        let door = match &identity {
            Some(identity) => Some(Door::new(&agent.config.tls, Arc::clone(identity)).await?),
            None => None,
        };
        Ok(Self { agent, callers, door, identity })
    }

    /// Ends when it has looked at all attachments, which it goes on with while it serves.
    pub async fn has_looked(&self) {
        self.agent.looks.have_ended().await;
    }

    /// Lets it have another config while it runs.
    pub fn reloader(&self) -> Reloader {
        Reloader::new(Arc::clone(&self.callers), self.identity.clone(), self.agent.config.clone())
    }

    /// Where it listens for other machines.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.door.as_ref().map(Door::addresses).unwrap_or_default()
    }

    /// Serves until `stop` ends; then lets running operations finish, as long as the config allows.
    pub async fn serve<S, C>(self, incoming: S, stop: impl Future<Output = ()>) -> Result<(), StartError>
    where
        S: Stream<Item = std::io::Result<C>> + Send + 'static,
        C: AsyncRead + AsyncWrite + Introduced + Unpin + Send + 'static,
    {
        metrics::serve(&self.agent).await?;
        let service = Service::new(Arc::clone(&self.agent));
        let (health, health_service) = tonic_health::server::health_reporter();
        let reporter = tokio::spawn(report_health(health, self.agent.journal.clone()));
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let failed = |error: tonic_reflection::server::Error| StartError::Serve(error.to_string());
        let limits = &self.agent.config.limits;
        let bytes = limits.request_bytes;
        let answered = Arc::<Notify>::default();
        let routes = Server::builder()
            // More than are served: those past that are told so.
            .max_concurrent_streams(limits.requests_per_connection.saturating_add(TO_BE_REFUSED))
            .layer(Admission::new(limits, Arc::clone(&answered)))
            .layer(Gate::new(Arc::clone(&self.callers)))
            .add_service(AttachmentsServer::new(service.clone()).max_decoding_message_size(bytes))
            .add_service(VolumesServer::new(service.clone()).max_decoding_message_size(bytes))
            .add_service(ExportsServer::new(service.clone()).max_decoding_message_size(bytes))
            .add_service(InstancesServer::new(service.clone()).max_decoding_message_size(bytes))
            .add_service(OperationsServer::new(service.clone()).max_decoding_message_size(bytes))
            .add_service(HostServer::new(service).max_decoding_message_size(bytes))
            .add_service(health_service)
            .add_service(reflection().build_v1().map_err(failed)?)
            .add_service(reflection().build_v1alpha().map_err(failed)?);
        let agent = Arc::clone(&self.agent);
        let far = match self.door {
            Some(door) => door.open(&agent.stop),
            None => mpsc::channel(1).1,
        };
        let far = ReceiverStream::new(far).map(|session| Ok(Visitor::Far(Box::new(session))));
        let incoming = incoming.map(|stream| stream.map(Visitor::Near)).merge(far);
        let incoming = admission::admit(incoming, limits, Arc::clone(&self.callers), agent.stop.clone());
        let serving = tokio::spawn(routes.serve_with_incoming_shutdown(incoming, agent.stop.clone().cancelled_owned()));
        tokio::pin!(serving);
        let early = tokio::select! {
            ended = &mut serving => Some(ended),
            () = stop => None,
            never = self.agent.tell_of_losses() => match never {},
            never = rest::rest(Arc::clone(&agent.host), answered) => match never {},
        };
        reporter.abort();
        self.agent.stop.cancel();
        self.agent.tasks.close();
        if timeout(self.agent.config.limits.stop_timeout(), self.agent.tasks.wait()).await.is_err() {
            tracing::warn!("operations still run; they are recovered at the next start");
        }
        self.agent.journal.complete().await;
        /// For replies on their way; a client that keeps its connection open does not keep us.
        const LAST_REPLIES: std::time::Duration = std::time::Duration::from_secs(2);
        let ended = match early {
            Some(ended) => ended,
            None => match timeout(LAST_REPLIES, &mut serving).await {
                Ok(ended) => ended,
                Err(_) => {
                    serving.abort();
                    return Ok(());
                }
            },
        };
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(StartError::Serve(error.to_string())),
            Err(panic) => Err(StartError::Serve(panic.to_string())),
        }
    }
}

/// The machine as operations see it, and what they start on it.
fn attended(host: Arc<dyn Host>) -> (Arc<dyn Host>, Started) {
    let attended = Attended::new(host);
    let started = attended.started();
    (Arc::new(attended), started)
}

/// Requests on one connection that are refused at a time; a client that sends more waits for its turn to be refused.
const TO_BE_REFUSED: u32 = 64;

/// Every service, and all of them together (the empty name), until the journal is lost: then only what needs none.
async fn report_health(health: HealthReporter, journal: Journal) {
    health.set_serving::<HostServer<Service>>().await;
    let need_the_journal = [
        "",
        AttachmentsServer::<Service>::NAME,
        VolumesServer::<Service>::NAME,
        ExportsServer::<Service>::NAME,
        InstancesServer::<Service>::NAME,
        OperationsServer::<Service>::NAME,
    ];
    for name in need_the_journal {
        health.set_service_status(name, ServingStatus::Serving).await;
    }
    journal.is_lost().await;
    for name in need_the_journal {
        health.set_service_status(name, ServingStatus::NotServing).await;
    }
}

/// The hypervisor of a real machine, as the config says.
#[cfg(feature = "libvirt")]
pub fn hypervisor(config: &Config) -> Arc<dyn Hypervisor> {
    Arc::new(hypervisor::libvirt::Libvirt::new(&config.hypervisor.uri))
}

/// The hypervisor of a real machine: this build knows none.
#[cfg(not(feature = "libvirt"))]
pub fn hypervisor(_config: &Config) -> Arc<dyn Hypervisor> {
    Arc::new(no_hypervisor::NoHypervisor)
}

/// The daemon on a real machine: one agent, its socket, until `stop` ends. `ready` is called once it serves, with the
/// reason if it is read-only, and with what lets it have another config.
pub async fn run(
    config: Config,
    host: Arc<dyn Host>,
    hypervisor: Arc<dyn Hypervisor>,
    ready: impl FnOnce(Option<&str>, Reloader),
    stop: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let (host, started) = attended(host);
    let checked = Mortard::check(&config, &host).await?;
    let _only_one = socket::be_the_only_one(&config.agent)?;
    let socket = config.agent.clone();
    let mortard = Mortard::recover(config, host, started, checked, hypervisor).await?;
    let mut door = socket::listen(&socket)?;
    tracing::info!(socket = %socket.socket.display(), "serving");
    for address in mortard.addresses() {
        tracing::info!(%address, "serving other machines at {address}");
    }
    ready(mortard.agent.journal.lost().as_deref(), mortard.reloader());
    let _watched = watchdog::watched(&mortard.agent.journal);
    mortard.serve(door.incoming(), stop).await
}
