//! A client of one agent: where it is, how long the caller waits, and the six services.

use crate::{
    endpoint::Endpoint,
    error::Error,
    tls::Tls,
    way::{Stream, Way},
};
use hyper_util::rt::TokioIo;
use proto::v1::{
    attachments_client::AttachmentsClient, exports_client::ExportsClient, host_client::HostClient,
    instances_client::InstancesClient, operations_client::OperationsClient, volumes_client::VolumesClient,
};
use std::{
    error::Error as _,
    io,
    path::PathBuf,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tonic::transport::{self, Channel};
use tower::service_fn;

/// A pool or volume group may hold more than fits into gRPC's usual 4 MiB.
const LARGEST_REPLY: usize = 256 << 20;

const SOCKET: &str = "/run/mortar/agent.sock";
const TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a connection to another machine is asked whether it still stands, and how long the answer may take. Who only
/// listens, as a watch does, would never learn otherwise that the machine has lost its power.
const PING: Duration = Duration::from_secs(20);

type Connecting = Pin<Box<dyn Future<Output = Result<TokioIo<Stream>, Error>> + Send + 'static>>;

/// A client of the agent of one host.
///
/// It may be cloned and used from many tasks at once: all clones share one connection. A connection that breaks is made again
/// for the next call (unless [`Builder::once`] says otherwise).
///
/// Calls are made by [`Client::ask`]. The service clients that tonic has generated from the contract are at hand too; by themselves
/// they know neither deadlines nor another try.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    pub(crate) timeout: Duration,
    pub(crate) reconnects: bool,
}

/// Makes a [`Client`].
#[derive(Clone, Debug)]
pub struct Builder {
    way: Way,
    timeout: Duration,
    connect_timeout: Duration,
    reconnects: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            way: Way::Socket(PathBuf::from(SOCKET)),
            timeout: TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            reconnects: true,
        }
    }
}

impl Builder {
    /// Asks the agent of this host, by its socket; the default is `/run/mortar/agent.sock`.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.way = Way::Socket(path.into());
        self
    }

    /// Asks the agent of another machine, by TLS 1.3, with certificates on both sides.
    #[must_use]
    pub fn endpoint(mut self, endpoint: Endpoint, tls: Tls) -> Self {
        self.way = Way::Tls(endpoint, tls);
        self
    }

    /// How long a call may take, its tries together; see [`Client::ask`]. The default is 30 seconds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long it may take until a connection stands. The default is 10 seconds.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// A connection that breaks is not made again: every call from then on is [`Kind::Lost`](crate::Kind::Lost).
    #[must_use]
    pub fn once(mut self) -> Self {
        self.reconnects = false;
        self
    }

    /// Connects now, and says at once if that does not work.
    ///
    /// # Errors
    ///
    /// [`Kind::Unreachable`](crate::Kind::Unreachable), [`Kind::NotTrusted`](crate::Kind::NotTrusted),
    /// [`Kind::NotLetIn`](crate::Kind::NotLetIn); [`Kind::Invalid`](crate::Kind::Invalid), if the socket's path or a PEM file
    /// cannot be used.
    pub async fn connect(self) -> Result<Client, Error> {
        let connected = self.transport().connect_with_connector(service_fn(self.connector())).await;
        let failed = |error: transport::Error| {
            Error::of_connector(error.source()).unwrap_or_else(|| self.way.failed(io::Error::other(error)))
        };
        let channel = connected.map_err(failed)?;
        Ok(self.client(channel))
    }

    /// Connects with the first call, and not before; that call has the errors of [`Builder::connect`]. It has to be used within
    /// a Tokio runtime.
    #[must_use]
    pub fn lazy(self) -> Client {
        let channel = self.transport().connect_with_connector_lazy(service_fn(self.connector()));
        self.client(channel)
    }

    fn client(self, channel: Channel) -> Client {
        let Self { timeout, reconnects, .. } = self;
        Client { channel, timeout, reconnects }
    }

    fn connector<T>(&self) -> impl FnMut(T) -> Connecting + Send + 'static {
        let (way, patience, reconnects) = (self.way.clone(), self.connect_timeout, self.reconnects);
        let used = AtomicBool::new(false);
        move |_| {
            let lost = used.swap(true, Ordering::Relaxed) && !reconnects;
            let way = way.clone();
            Box::pin(async move { if lost { Err(Error::lost()) } else { way.connect(patience).await } })
        }
    }

    fn transport(&self) -> transport::Endpoint {
        // The name says nothing here, but some servers look at it: `localhost` is what the contract asks for.
        let transport = transport::Endpoint::from_static("http://localhost");
        match self.way {
            Way::Socket(_) => transport,
            Way::Tls(..) => {
                transport.http2_keep_alive_interval(PING).keep_alive_timeout(PING).keep_alive_while_idle(true)
            }
        }
    }
}

impl Client {
    /// Begins with the socket of this host's agent.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The same client, with another timeout of its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The connection itself, for other services: health, reflection.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Volumes made present on the host.
    #[must_use]
    pub fn attachments(&self) -> AttachmentsClient<Channel> {
        AttachmentsClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    /// Volumes taken into management.
    #[must_use]
    pub fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    /// Logical volumes served to other hosts.
    #[must_use]
    pub fn exports(&self) -> ExportsClient<Channel> {
        ExportsClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    /// Virtual machines and their rescue.
    #[must_use]
    pub fn instances(&self) -> InstancesClient<Channel> {
        InstancesClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    /// Work that survives a crash of the agent.
    #[must_use]
    pub fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    /// What the machine is and can do.
    #[must_use]
    pub fn host(&self) -> HostClient<Channel> {
        HostClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }
}
