//! A hypervisor whose every change is an effect on the machine, so that a test can refuse it or crash after it, and a step
//! of the operation that makes it, so that `mortar operations` shows what is waited for.

use crate::{Hypervisor, Instance, InstanceName, Stopped, definition::Definition};
use async_trait::async_trait;
use driver::{Error, Readiness, Result};
use host::{Host, step};
use std::{future::Future, sync::Arc};
use tokio::time::Instant;
use uuid::Uuid;

/// Another hypervisor, announced. Effects are named `libvirt: define NAME`, `libvirt: start UUID`, `libvirt: stop UUID`.
pub struct Announced {
    host: Arc<dyn Host>,
    inner: Arc<dyn Hypervisor>,
}

impl Announced {
    /// The same hypervisor, which runs on `host`.
    pub fn new(host: Arc<dyn Host>, inner: Arc<dyn Hypervisor>) -> Self {
        Self { host, inner }
    }

    /// Makes a call that may change something, and tells of it if `did` says that it has.
    async fn changes<T: Send>(
        &self,
        what: String,
        call: impl Future<Output = Result<T>> + Send,
        did: fn(&T) -> bool,
    ) -> Result<T> {
        self.host.commits(&what).await.map_err(Error::host(what.clone()))?;
        let done = step::changes(&what, call).await.map_err(Error::host(what.clone()))??;
        if did(&done) {
            self.host.effect(&what).await;
        }
        Ok(done)
    }

    async fn reads<T: Send>(&self, what: String, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        step::reads(&what, call).await.map_err(Error::host(what.clone()))?
    }
}

#[async_trait]
impl Hypervisor for Announced {
    async fn readiness(&self) -> Readiness {
        self.inner.readiness().await
    }

    async fn instances(&self) -> Result<Vec<Instance>> {
        self.reads("libvirt: list the instances".into(), self.inner.instances()).await
    }

    async fn instance(&self, name: &InstanceName) -> Result<Instance> {
        self.reads(format!("libvirt: look at {name}"), self.inner.instance(name)).await
    }

    async fn definition(&self, instance: Uuid) -> Result<String> {
        self.reads(format!("libvirt: read the definition of {instance}"), self.inner.definition(instance)).await
    }

    async fn running_definition(&self, instance: Uuid) -> Result<Option<String>> {
        self.reads(format!("libvirt: look how {instance} runs"), self.inner.running_definition(instance)).await
    }

    async fn define(&self, definition: &str) -> Result<String> {
        let name = Definition::parse(definition)?.name();
        self.changes(format!("libvirt: define {name}"), self.inner.define(definition), |_| true).await
    }

    async fn start(&self, instance: Uuid, deadline: Instant) -> Result<()> {
        self.changes(format!("libvirt: start {instance}"), self.inner.start(instance, deadline), |()| true).await
    }

    async fn stop(&self, instance: Uuid, grace: Instant, deadline: Instant) -> Result<Stopped> {
        let stop = self.inner.stop(instance, grace, deadline);
        self.changes(format!("libvirt: stop {instance}"), stop, |stopped| *stopped != Stopped::WasOff).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Domains;
    use host::{sim::Machine, step::Steps};
    use std::time::Duration;

    const DEFINITION: &str = "<domain type='qemu'><name>box</name><uuid>5f1e8f0a-0000-4000-8000-000000000001</uuid>\
        <devices><disk type='file' device='disk'><source file='/srv/a.raw'/><target dev='vda' bus='virtio'/></disk></devices>\
        </domain>";

    fn now() -> Instant {
        Instant::now() + Duration::from_secs(9)
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_something_is_an_effect_and_can_be_refused() {
        let (machine, domains) = (Machine::new(), Domains::new());
        machine.put_raw("/srv/a.raw", 4096);
        let uuid = domains.put(DEFINITION);
        let announced = Announced::new(Arc::new(machine.clone()), Arc::new(domains.on(machine.clone())));
        announced.instances().await.unwrap();
        let kept = announced.definition(uuid).await.unwrap();
        announced.define(&kept).await.unwrap();
        assert_eq!(announced.stop(uuid, now(), now()).await.unwrap(), Stopped::WasOff);
        announced.start(uuid, now()).await.unwrap();
        announced.stop(uuid, now(), now()).await.unwrap();
        let effects =
            ["libvirt: define box".to_owned(), format!("libvirt: start {uuid}"), format!("libvirt: stop {uuid}")];
        assert_eq!(machine.effects(), effects);

        machine.fail_next("libvirt: start", host::Error::Cancelled);
        assert!(announced.start(uuid, now()).await.is_err());
        assert_eq!(announced.running_definition(uuid).await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_comes_after_its_effect_and_a_cancel_before_the_next() {
        let (machine, domains) = (Machine::new(), Domains::new());
        machine.put_raw("/srv/a.raw", 4096);
        let uuid = domains.put(DEFINITION);
        let announced = Announced::new(Arc::new(machine.clone()), Arc::new(domains.on(machine.clone())));
        let steps = Steps::new(true);
        steps.cancel().unwrap();
        assert!(steps.during(announced.start(uuid, now())).await.is_err());
        assert_eq!(domains.booted_from(uuid), None);

        machine.crash_after(1);
        let start = tokio::time::timeout(Duration::from_secs(60), announced.start(uuid, now()));
        assert!(start.await.is_err());
        assert_eq!(domains.booted_from(uuid).as_deref(), Some("/srv/a.raw"));
        assert!(tokio::time::timeout(Duration::from_secs(60), announced.instances()).await.is_err());
    }
}
