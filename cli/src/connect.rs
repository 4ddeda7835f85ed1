//! The way to the agent, by the client library, as the command line says: connected once, and with the user's patience.

use crate::{
    args::To,
    error::{Error, Failure},
};
use mortar_client::{Client, Kind, Tls};
use proto::v1::{
    attachments_client::AttachmentsClient, exports_client::ExportsClient, host_client::HostClient,
    instances_client::InstancesClient, operations_client::OperationsClient, volumes_client::VolumesClient,
};
use std::time::Duration;
use tonic::{Request, Response, Status, transport::Channel};

/// A connection to mortard, and how long the user is willing to wait for it.
pub(crate) struct Agent(Client);

impl Agent {
    /// Connects once. A connection that breaks is not made again: the caller hears of it and decides.
    pub(crate) async fn connect(to: &To, timeout: Duration) -> Result<Self, Error> {
        let builder = Client::builder().timeout(timeout).connect_timeout(timeout).once();
        let Some(endpoint) = &to.endpoint else {
            return Ok(Self(builder.socket(&to.socket).connect().await.map_err(Failure::from)?));
        };
        let (Some(cert), Some(key), Some(ca)) = (&to.cert, &to.key, &to.ca) else {
            return Err(Failure::invalid("--endpoint needs --cert, --key and --ca as well; see --help").into());
        };
        let tls = Tls::builder().certificate(cert).key(key).ca(ca).build().map_err(Failure::from)?;
        let connected = builder.endpoint(endpoint.clone(), tls).connect().await;
        Ok(Self(connected.map_err(|error| match error.kind() {
            Kind::NotTrusted => Failure::not_trusted(endpoint, &error),
            Kind::NotLetIn => Failure::refused_us(endpoint, &error),
            _ => error.into(),
        })?))
    }

    /// Sends a request and returns the answer; while the agent says ABORTED, again, until the timeout is over.
    ///
    /// `message` makes the request for the milliseconds that are left.
    pub(crate) async fn call<Q, R>(
        &self,
        message: impl Fn(u64) -> Q,
        send: impl AsyncFnMut(Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        Ok(self.0.call(Duration::ZERO, message, send).await.map_err(Failure::from)?)
    }

    /// As [`Agent::call`], for what may first take as long as `grace`, on top of the timeout.
    pub(crate) async fn call_with_grace<Q, R>(
        &self,
        grace: Duration,
        message: impl Fn(u64) -> Q,
        send: impl AsyncFnMut(Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        Ok(self.0.call(grace, message, send).await.map_err(Failure::from)?)
    }

    pub(crate) fn attachments(&self) -> AttachmentsClient<Channel> {
        self.0.attachments()
    }

    pub(crate) fn volumes(&self) -> VolumesClient<Channel> {
        self.0.volumes()
    }

    pub(crate) fn exports(&self) -> ExportsClient<Channel> {
        self.0.exports()
    }

    pub(crate) fn instances(&self) -> InstancesClient<Channel> {
        self.0.instances()
    }

    pub(crate) fn operations(&self) -> OperationsClient<Channel> {
        self.0.operations()
    }

    pub(crate) fn host(&self) -> HostClient<Channel> {
        self.0.host()
    }
}
