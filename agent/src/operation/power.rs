//! Start, stop and reboot: the little that a rescue, and those who drive one, need.

use super::{
    InstanceNow, OperationId, Plan,
    rescue::{instance_key, until},
};
use crate::{agent::Agent, journal::Change};
use driver::Result;
use hypervisor::{InstanceName, Power, Stopped};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use uuid::Uuid;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PowerVerb {
    Start,
    Stop,
    Reboot,
}

/// What a caller asks for.
#[derive(Debug)]
pub(crate) struct PowerRequest {
    pub(crate) instance: InstanceName,
    pub(crate) power: PowerVerb,
    /// How long the guest may take to shut down.
    pub(crate) grace: Duration,
    pub(crate) deadline: Instant,
}

/// What he gets.
#[derive(Debug)]
pub(crate) struct PowerReply {
    /// `None`: it was transient, and is gone.
    pub(crate) instance: Option<InstanceNow>,
    pub(crate) changed: bool,
    /// `None` of a start.
    pub(crate) stopped: Option<Stopped>,
    pub(crate) operation: Option<OperationId>,
}

impl PowerVerb {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reboot => "reboot",
        }
    }
}

impl Agent {
    /// Starts, stops or reboots an instance, or finds that it is as asked.
    pub(crate) async fn power(self: Arc<Self>, request: PowerRequest) -> Result<PowerReply> {
        let PowerRequest { instance, power, grace, deadline } = request;
        let found = self.hypervisor.instance(&instance).await?;
        let held = self.locks.take(&format!("{} of {}", power.as_str(), found.name), [instance_key(found.uuid)])?;
        let by_uuid: InstanceName = found.uuid.to_string().parse()?;
        let now = self.hypervisor.instance(&by_uuid).await?;
        let stopped = (power == PowerVerb::Stop).then_some(Stopped::WasOff);
        match (power, now.power) {
            (PowerVerb::Start, Power::Running) | (PowerVerb::Stop, Power::Off) => {
                let instance = Some(self.instance_now(&by_uuid).await?);
                return Ok(PowerReply { instance, changed: false, stopped, operation: None });
            }
            _ => {}
        }
        let plan = Plan::Power { instance: now.uuid, name: now.name, power };
        let work = self.begin(plan, held, deadline).await?;
        let (uuid, hypervisor) = (now.uuid, &self.hypervisor);
        let effects = async {
            Ok(match power {
                PowerVerb::Start => hypervisor.start(uuid, deadline).await.map(|()| None)?,
                PowerVerb::Stop => Some(hypervisor.stop(uuid, until(grace, deadline), deadline).await?),
                PowerVerb::Reboot => Some(hypervisor.reboot(uuid, until(grace, deadline), deadline).await?),
            })
        };
        match self.effects(&work, effects).await {
            Ok(stopped) => {
                let operation = self.succeeded(work, Change::None).await?;
                let instance = self.instance_left(&by_uuid).await?;
                Ok(PowerReply { instance, changed: true, stopped, operation: Some(operation) })
            }
            Err(error) if work.goes_on(&error) => self.left_waiting(work, error),
            Err(error) => self.failed(work, error, Change::None).await,
        }
    }

    /// After a crash: a reboot starts what it stopped; the other two are looked at by whoever asked.
    pub(super) async fn recover_power(&self, instance: Uuid, power: PowerVerb) -> Result<bool> {
        if power == PowerVerb::Reboot {
            self.hypervisor.start(instance, self.usual_deadline()).await?;
        }
        Ok(power == PowerVerb::Reboot)
    }
}
