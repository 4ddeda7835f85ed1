//! The way to the agent: HTTP/2 over its Unix socket.

use crate::error::{Error, Failure};
use hyper_util::rt::TokioIo;
use proto::v1::{
    attachments_client::AttachmentsClient, exports_client::ExportsClient, host_client::HostClient,
    instances_client::InstancesClient, operations_client::OperationsClient, volumes_client::VolumesClient,
};
use std::{future, io, path::Path, time::Duration};
use tokio::net::UnixStream;
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
    pub(crate) async fn connect(socket: &Path, timeout: Duration) -> Result<Self, Error> {
        let stream = UnixStream::connect(socket).await.map_err(|error| Failure::no_agent(socket, &error))?;
        let mut stream = Some(stream);
        let connector = service_fn(move |_| {
            let broken = || io::Error::from(io::ErrorKind::NotConnected);
            future::ready(stream.take().map(TokioIo::new).ok_or_else(broken))
        });
        // The name says nothing here, but some servers look at it: `localhost` is what the contract asks for.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|error| Failure::no_agent(socket, &io::Error::other(error)))?;
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
