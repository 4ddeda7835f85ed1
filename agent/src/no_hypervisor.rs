//! A build without libvirt: there are no instances, and everything else works.

use async_trait::async_trait;
use driver::{Error, Readiness, Result};
use hypervisor::{Hypervisor, Instance, InstanceName, Stopped};
use tokio::time::Instant;
use uuid::Uuid;

/// Says of everything that it cannot be done.
#[derive(Debug)]
pub(crate) struct NoHypervisor;

const WHY: &str = "this build of mortard has no libvirt";

fn none<T>() -> Result<T> {
    Err(Error::Unsupported { what: WHY.into() })
}

#[async_trait]
impl Hypervisor for NoHypervisor {
    async fn readiness(&self) -> Readiness {
        Readiness { problem: Some(WHY.into()), tools: Vec::new() }
    }

    async fn instances(&self) -> Result<Vec<Instance>> {
        none()
    }

    async fn instance(&self, _name: &InstanceName) -> Result<Instance> {
        none()
    }

    async fn definition(&self, _instance: Uuid) -> Result<String> {
        none()
    }

    async fn running_definition(&self, _instance: Uuid) -> Result<Option<String>> {
        none()
    }

    async fn define(&self, _definition: &str) -> Result<String> {
        none()
    }

    async fn start(&self, _instance: Uuid, _deadline: Instant) -> Result<()> {
        none()
    }

    async fn stop(&self, _instance: Uuid, _grace: Instant, _deadline: Instant) -> Result<Stopped> {
        none()
    }
}
