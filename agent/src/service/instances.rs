//! The service of instances: convert, hand on, convert back.

use super::{Service, answer};
use crate::{callers::Call, convert, operation::PowerVerb};
use driver::Result as DriverResult;
use hypervisor::InstanceName;
use proto::v1;
use std::sync::Arc;
use tonic::{Request, Response, Status};

impl Service {
    /// The call is about an instance, whatever it is called in the request: a rule goes by its name.
    async fn about(&self, call: &Call, instance: &InstanceName) -> DriverResult<()> {
        let found = self.agent.hypervisor.instance(instance).await?;
        call.concerns_instance(&found.name)
    }

    async fn power<T>(
        &self,
        power: PowerVerb,
        request: Request<T>,
        asked: impl FnOnce(&T) -> (&str, Option<u64>, u64),
    ) -> Result<Response<v1::PowerResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let request = convert::power_request(power, asked(request.get_ref()), patience, &self.agent.config.rescue)?;
            self.about(&call, &request.instance).await?;
            let answer_by = patience.answer_by(Some(request.deadline));
            let work = Arc::clone(&self.agent).power(request);
            Ok(convert::power_response(self.run(&call, answer_by, "it", work).await?))
        };
        answer(work.await)
    }
}

#[tonic::async_trait]
impl v1::instances_server::Instances for Service {
    async fn list(
        &self,
        request: Request<v1::ListInstancesRequest>,
    ) -> Result<Response<v1::ListInstancesResponse>, Status> {
        let work = async {
            let call = Call::of(&request)?;
            let mut instances = self.agent.instances().await?;
            instances.retain(|now| call.shows_instance(&now.instance.name));
            Ok(v1::ListInstancesResponse { instances: instances.into_iter().map(convert::instance).collect() })
        };
        answer(work.await)
    }

    async fn get(&self, request: Request<v1::GetInstanceRequest>) -> Result<Response<v1::Instance>, Status> {
        let work = async {
            let call = Call::of(&request)?;
            let name = convert::instance_name(&request.into_inner().instance)?;
            self.about(&call, &name).await?;
            Ok(convert::instance(self.agent.instance_now(&name).await?))
        };
        answer(work.await)
    }

    async fn rescue(&self, request: Request<v1::RescueRequest>) -> Result<Response<v1::RescueResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let request = convert::rescue_request(request.into_inner(), patience, &self.agent.config.rescue)?;
            if request.dry_run {
                call.only_looks();
            }
            self.about(&call, &request.instance).await?;
            call.concerns_also(request.disk.locator())?;
            let answer_by = patience.answer_by(Some(request.deadline));
            let reply = self.run(&call, answer_by, "the rescue", Arc::clone(&self.agent).rescue(request)).await?;
            Ok(convert::rescue_response(reply))
        };
        answer(work.await)
    }

    async fn unrescue(&self, request: Request<v1::UnrescueRequest>) -> Result<Response<v1::UnrescueResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let request = convert::unrescue_request(request.get_ref(), patience, &self.agent.config.rescue)?;
            // It may be there no more, and its rescue is.
            let (_, name) = self.agent.rescued_by_name(&request.instance).await?;
            call.concerns_instance(&name)?;
            let answer_by = patience.answer_by(Some(request.deadline));
            let reply = self.run(&call, answer_by, "the unrescue", Arc::clone(&self.agent).unrescue(request)).await?;
            Ok(convert::unrescue_response(reply))
        };
        answer(work.await)
    }

    async fn start(&self, request: Request<v1::StartInstanceRequest>) -> Result<Response<v1::PowerResponse>, Status> {
        self.power(PowerVerb::Start, request, |asked| (&asked.instance, Some(0), asked.timeout_ms)).await
    }

    async fn stop(&self, request: Request<v1::StopInstanceRequest>) -> Result<Response<v1::PowerResponse>, Status> {
        self.power(PowerVerb::Stop, request, |asked| (&asked.instance, asked.grace_ms, asked.timeout_ms)).await
    }

    async fn reboot(&self, request: Request<v1::RebootInstanceRequest>) -> Result<Response<v1::PowerResponse>, Status> {
        self.power(PowerVerb::Reboot, request, |asked| (&asked.instance, asked.grace_ms, asked.timeout_ms)).await
    }
}
