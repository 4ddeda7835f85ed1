//! Every call of the contract by the request that is made for it: what it is sent to, how long it may take, and whether it means
//! the same when it is made twice.

use crate::{client::Client, watch::Watch};
use proto::v1::{self, detach_request, unexport_request};
use std::time::Duration;
use tonic::{Request, Status};

/// The longest that the config allows a guest to take to shut down; for a request that leaves it to the config.
const LONGEST_GRACE: Duration = Duration::from_secs(600);

/// A request of the contract. Each belongs to one call; [`Client::ask`] makes it.
pub trait Ask: sealed::Ask {}

impl<Q: sealed::Ask> Ask for Q {}

pub(crate) mod sealed {
    use super::*;

    pub trait Ask: Clone + Send + Sync {
        type Answer: Send;

        /// Says how long the agent may take, if there is a word for it and the caller has not used it.
        fn within(&mut self, _timeout_ms: u64) {}

        /// What it may first take on top of that.
        fn grace(&self) -> Duration {
            Duration::ZERO
        }

        /// Whether a second one has the answer that the first one would have had: it names what it means by the caller's own id,
        /// or it only looks.
        fn may_be_repeated(&self) -> bool;

        fn send(client: &Client, request: Request<Self>) -> impl Future<Output = Result<Self::Answer, Status>> + Send
        where
            Self: Sized;
    }
}

/// A line for each call: the service and its call, request and answer; the fields it has of those that say how long it may take;
/// and whether it may be repeated.
macro_rules! calls {
    ($($service:ident.$call:ident($request:ident) -> $answer:ident [$($field:ident)*], $again:expr;)*) => {
        $(
            impl sealed::Ask for v1::$request {
                type Answer = v1::$answer;

                $(calls!($field);)*

                fn may_be_repeated(&self) -> bool {
                    let may: fn(&Self) -> bool = $again;
                    may(self)
                }

                async fn send(client: &Client, request: Request<Self>) -> Result<Self::Answer, Status> {
                    Ok(client.$service().$call(request).await?.into_inner())
                }
            }
        )*
    };
    (timeout) => {
        fn within(&mut self, timeout_ms: u64) {
            if self.timeout_ms == 0 {
                self.timeout_ms = timeout_ms;
            }
        }
    };
    (grace) => {
        fn grace(&self) -> Duration {
            self.grace_ms.map_or(LONGEST_GRACE, Duration::from_millis)
        }
    };
}

calls! {
    attachments.attach(AttachRequest) -> AttachResponse [timeout], |request| !request.id.is_empty();
    attachments.detach(DetachRequest) -> DetachResponse [timeout],
        |request| matches!(request.target, Some(detach_request::Target::Id(_)));
    attachments.get(GetAttachmentRequest) -> Attachment [], |_| true;
    attachments.list(ListAttachmentsRequest) -> ListAttachmentsResponse [], |_| true;
    attachments.extend(ExtendRequest) -> ExtendResponse [timeout], |_| true;

    volumes.list_manageable(ListManageableRequest) -> ListManageableResponse [], |_| true;
    volumes.manage(ManageRequest) -> ManageResponse [], |request| !request.id.is_empty();
    volumes.unmanage(UnmanageRequest) -> UnmanageResponse [], |_| true;
    volumes.list(ListVolumesRequest) -> ListVolumesResponse [], |_| true;
    volumes.get(GetVolumeRequest) -> Volume [], |_| true;

    exports.export(ExportRequest) -> ExportResponse [timeout], |request| !request.id.is_empty();
    exports.unexport(UnexportRequest) -> UnexportResponse [timeout],
        |request| matches!(request.target, Some(unexport_request::Target::Id(_)));
    exports.get(GetExportRequest) -> Export [], |_| true;
    exports.list(ListExportsRequest) -> ListExportsResponse [], |_| true;

    instances.list(ListInstancesRequest) -> ListInstancesResponse [], |_| true;
    instances.get(GetInstanceRequest) -> Instance [], |_| true;
    // A password that is made up is in the first reply alone.
    instances.rescue(RescueRequest) -> RescueResponse [timeout grace], |request| {
        request.no_seed || !(request.password.is_empty() && request.ssh_keys.is_empty() && request.user_data.is_empty())
    };
    instances.unrescue(UnrescueRequest) -> UnrescueResponse [timeout grace], |_| true;
    instances.start(StartInstanceRequest) -> PowerResponse [timeout], |_| true;
    instances.stop(StopInstanceRequest) -> PowerResponse [timeout grace], |_| true;
    instances.reboot(RebootInstanceRequest) -> PowerResponse [timeout grace], |_| false;

    operations.get(GetOperationRequest) -> Operation [], |_| true;
    operations.list(ListOperationsRequest) -> ListOperationsResponse [], |_| true;
    operations.cancel(CancelOperationRequest) -> CancelOperationResponse [], |_| true;

    host.get_host(GetHostRequest) -> HostInfo [], |_| true;
    // What a repair did is in the first reply alone.
    host.diagnose(DiagnoseRequest) -> DiagnoseResponse [timeout], |request| !request.repair;
}

impl sealed::Ask for v1::WatchRequest {
    type Answer = Watch;

    fn may_be_repeated(&self) -> bool {
        true
    }

    async fn send(client: &Client, request: Request<Self>) -> Result<Watch, Status> {
        // It lasts until somebody ends it: the deadline is for its beginning only.
        let (_, _, message) = request.into_parts();
        Ok(Watch::new(client.attachments().watch(message).await?.into_inner()))
    }
}

#[cfg(test)]
mod tests {
    use super::{sealed::Ask, *};

    #[test]
    fn what_names_itself_may_be_repeated() {
        let attach = |id: &str| v1::AttachRequest { id: id.into(), ..Default::default() };
        assert!(attach("a").may_be_repeated() && !attach("").may_be_repeated());
        let detach = |target| v1::DetachRequest { target: Some(target), timeout_ms: 0 };
        assert!(detach(detach_request::Target::Id("a".into())).may_be_repeated());
        // The kernel may have given the name to another device by then.
        assert!(!detach(detach_request::Target::Device("/dev/sdb".into())).may_be_repeated());
        let rescue = |password: &str| v1::RescueRequest { password: password.into(), ..Default::default() };
        assert!(rescue("hush").may_be_repeated() && !rescue("").may_be_repeated());
        assert!(!v1::RebootInstanceRequest::default().may_be_repeated());
    }

    #[test]
    fn the_callers_own_timeout_stands() {
        let mut request = v1::ExtendRequest { id: "a".into(), timeout_ms: 0 };
        request.within(700);
        assert_eq!(request.timeout_ms, 700);
        request.within(300);
        assert_eq!(request.timeout_ms, 700);
        let graceless = v1::StopInstanceRequest { grace_ms: Some(0), ..Default::default() };
        assert_eq!((graceless.grace(), v1::StopInstanceRequest::default().grace()), (Duration::ZERO, LONGEST_GRACE));
    }
}
