//! A client of the agent for tests, over the connection of the client library, with short words for the calls that tests make often.

use proto::{
    reasons::NEXT_STEP,
    v1::{
        self, attachments_client::AttachmentsClient, exports_client::ExportsClient, host_client::HostClient,
        instances_client::InstancesClient, operations_client::OperationsClient, volumes_client::VolumesClient,
    },
};
use std::path::Path;
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_types::StatusExt;

/// All six services, and the agent's health.
#[derive(Debug, Clone)]
pub struct Client {
    pub attachments: AttachmentsClient<Channel>,
    pub volumes: VolumesClient<Channel>,
    pub exports: ExportsClient<Channel>,
    pub instances: InstancesClient<Channel>,
    pub operations: OperationsClient<Channel>,
    pub host: HostClient<Channel>,
    pub health: HealthClient<Channel>,
}

/// The code, reason and message of a refusal.
#[derive(Debug)]
pub struct Refused {
    pub code: Code,
    pub reason: String,
    pub message: String,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.clone()).unwrap_or_default();
        let says_what_to_do = details.error_info().is_none_or(|info| info.metadata.contains_key(NEXT_STEP));
        assert!(says_what_to_do, "no next step: {status:?}");
        Self { code: status.code(), reason, message: status.message().to_owned() }
    }
}

/// The way to an agent's socket.
pub fn channel(socket: &Path) -> Channel {
    mortar_client::Client::builder().socket(socket).lazy().channel()
}

pub type Answer<T> = Result<T, Refused>;

impl Client {
    pub fn on(socket: &Path) -> Self {
        Self::over(channel(socket))
    }

    pub fn over(channel: Channel) -> Self {
        Self {
            attachments: AttachmentsClient::new(channel.clone()),
            volumes: VolumesClient::new(channel.clone()),
            exports: ExportsClient::new(channel.clone()),
            instances: InstancesClient::new(channel.clone()),
            operations: OperationsClient::new(channel.clone()),
            host: HostClient::new(channel.clone()),
            health: HealthClient::new(channel),
        }
    }

    pub async fn attach(&mut self, request: v1::AttachRequest) -> Answer<v1::AttachResponse> {
        Ok(self.attachments.attach(request).await?.into_inner())
    }

    /// As a caller that tries again while somebody else is at it.
    pub async fn attach_patiently(&mut self, request: v1::AttachRequest) -> Answer<v1::AttachResponse> {
        loop {
            match self.attach(request.clone()).await {
                Err(refused) if refused.code == Code::Aborted => tokio::task::yield_now().await,
                other => return other,
            }
        }
    }

    /// Detaches by id, locator (it has a colon) or device (it begins with a slash).
    pub async fn detach(&mut self, target: &str) -> Answer<v1::DetachResponse> {
        use v1::detach_request::Target;
        let target = match target {
            path if path.starts_with('/') => Target::Device(path.into()),
            locator if locator.contains(':') => Target::Locator(locator.into()),
            id => Target::Id(id.into()),
        };
        Ok(self.attachments.detach(v1::DetachRequest { target: Some(target), timeout_ms: 0 }).await?.into_inner())
    }

    pub async fn get(&mut self, id: &str) -> Answer<v1::Attachment> {
        Ok(self.attachments.get(v1::GetAttachmentRequest { id: id.into() }).await?.into_inner())
    }

    pub async fn list(&mut self) -> Answer<Vec<v1::Attachment>> {
        Ok(self.attachments.list(v1::ListAttachmentsRequest {}).await?.into_inner().attachments)
    }

    pub async fn manage(&mut self, request: v1::ManageRequest) -> Answer<v1::ManageResponse> {
        Ok(self.volumes.manage(request).await?.into_inner())
    }

    pub async fn unmanage(&mut self, id: &str, keep_name: bool) -> Answer<v1::UnmanageResponse> {
        Ok(self.volumes.unmanage(v1::UnmanageRequest { id: id.into(), keep_name }).await?.into_inner())
    }

    pub async fn export(&mut self, request: v1::ExportRequest) -> Answer<v1::ExportResponse> {
        Ok(self.exports.export(request).await?.into_inner())
    }

    /// Takes an export away by its id, or by the locator (it has a colon) of what is exported.
    pub async fn unexport(&mut self, target: &str) -> Answer<v1::UnexportResponse> {
        use v1::unexport_request::Target;
        let target = match target {
            locator if locator.contains(':') => Target::Locator(locator.into()),
            id => Target::Id(id.into()),
        };
        Ok(self.exports.unexport(v1::UnexportRequest { target: Some(target), timeout_ms: 0 }).await?.into_inner())
    }

    pub async fn rescue(&mut self, request: v1::RescueRequest) -> Answer<v1::RescueResponse> {
        Ok(self.instances.rescue(request).await?.into_inner())
    }

    pub async fn unrescue(&mut self, instance: &str) -> Answer<v1::UnrescueResponse> {
        let request = v1::UnrescueRequest { instance: instance.into(), ..v1::UnrescueRequest::default() };
        Ok(self.instances.unrescue(request).await?.into_inner())
    }

    pub async fn instance(&mut self, instance: &str) -> Answer<v1::Instance> {
        Ok(self.instances.get(v1::GetInstanceRequest { instance: instance.into() }).await?.into_inner())
    }

    pub async fn exported(&mut self, id: &str) -> Answer<v1::Export> {
        Ok(self.exports.get(v1::GetExportRequest { id: id.into() }).await?.into_inner())
    }

    /// Whether the agent says that all of it can be used.
    pub async fn serves(&mut self) -> bool {
        let reply = self.health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        reply.status() == ServingStatus::Serving
    }

    /// The operations that have not ended, newest first.
    pub async fn running(&mut self) -> Vec<v1::Operation> {
        let request = v1::ListOperationsRequest { running_only: true, limit: 0 };
        self.operations.list(request).await.unwrap().into_inner().operations
    }

    pub async fn volumes(&mut self, scope: &str) -> Answer<Vec<v1::Volume>> {
        Ok(self.volumes.list(v1::ListVolumesRequest { scope: scope.into() }).await?.into_inner().volumes)
    }

    pub async fn manageable(&mut self, scope: &str) -> Answer<Vec<v1::Manageable>> {
        let request = v1::ListManageableRequest { scope: scope.into() };
        Ok(self.volumes.list_manageable(request).await?.into_inner().entries)
    }
}

/// A request to attach `locator`, with everything else left to the agent.
pub fn attach(id: &str, locator: &str) -> v1::AttachRequest {
    v1::AttachRequest {
        id: id.into(),
        volume: Some(v1::attach_request::Volume::Locator(locator.into())),
        ..v1::AttachRequest::default()
    }
}

/// A request to manage `locator`, with everything else left to the agent.
pub fn manage(locator: &str) -> v1::ManageRequest {
    v1::ManageRequest { locator: locator.into(), ..v1::ManageRequest::default() }
}
