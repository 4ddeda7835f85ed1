//! The way to the agent: HTTP/2 over its Unix socket, or over TLS to that of another machine.

use crate::{
    args::To,
    error::{Error, Failure},
    remote,
};
use hyper_util::rt::TokioIo;
use proto::v1::{
    attachments_client::AttachmentsClient, exports_client::ExportsClient, host_client::HostClient,
    instances_client::InstancesClient, operations_client::OperationsClient, volumes_client::VolumesClient,
};
use std::{future, io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixStream,
};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// A pool or volume group may hold more than fits into gRPC's usual 4 MiB.
const LARGEST_REPLY: usize = 256 << 20;

/// A connection to mortard, and how long the user is willing to wait for it.
pub(crate) struct Agent {
    channel: Channel,
    pub(crate) timeout: Duration,
}

impl Agent {
    /// Connects once. A connection that breaks is not made again: the caller hears of it and decides.
    pub(crate) async fn connect(to: &To, timeout: Duration) -> Result<Self, Error> {
        let socket = &to.socket;
        let channel = match &to.endpoint {
            Some(endpoint) => {
                let stream = remote::connect(endpoint, to, timeout).await?;
                over(stream).await.map_err(|error| Failure::unreachable(&endpoint.to_string(), &error))?
            }
            None => {
                let stream = UnixStream::connect(socket).await.map_err(|error| Failure::no_agent(socket, &error))?;
                over(stream).await.map_err(|error| Failure::no_agent(socket, &error))?
            }
        };
        Ok(Self { channel, timeout })
    }

    pub(crate) fn attachments(&self) -> AttachmentsClient<Channel> {
        AttachmentsClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    pub(crate) fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    pub(crate) fn exports(&self) -> ExportsClient<Channel> {
        ExportsClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    pub(crate) fn instances(&self) -> InstancesClient<Channel> {
        InstancesClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    pub(crate) fn operations(&self) -> OperationsClient<Channel> {
        OperationsClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }

    pub(crate) fn host(&self) -> HostClient<Channel> {
        HostClient::new(self.channel.clone()).max_decoding_message_size(LARGEST_REPLY)
    }
}

/// HTTP/2 over a connection that stands.
async fn over<S>(stream: S) -> io::Result<Channel>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut stream = Some(stream);
    let connector = service_fn(move |_| {
        let broken = || io::Error::from(io::ErrorKind::NotConnected);
        future::ready(stream.take().map(TokioIo::new).ok_or_else(broken))
    });
    // The name says nothing here, but some servers look at it: `localhost` is what the contract asks for.
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.map_err(io::Error::other)
}
