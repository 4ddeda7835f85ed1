//! The agent: a host, its drivers, a journal, locks; and the tasks that work with them.

use crate::{
    config::Config, drivers::Drivers, journal::Journal, locks::Locks, looks::Looks, metrics::Metrics, running::Running,
    watch::Watch,
};
use driver::{Error, Result};
use export::Exporter;
use host::Host;
use hypervisor::Hypervisor;
use std::{future::Future, sync::Arc};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Everything that an operation works with.
pub(crate) struct Agent {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) drivers: Drivers,
    pub(crate) exporter: Exporter,
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) journal: Journal,
    pub(crate) locks: Locks,
    pub(crate) looks: Looks,
    pub(crate) running: Running,
    pub(crate) watch: Watch,
    pub(crate) metrics: Metrics,
    pub(crate) config: Config,
    /// Of this boot of the host: what was noted in another means nothing now.
    pub(crate) boot_id: String,
    /// Operations under way.
    pub(crate) tasks: TaskTracker,
    /// Room for more of them.
    pub(crate) room: Arc<Semaphore>,
    /// Room for more who watch.
    pub(crate) seats: Arc<Semaphore>,
    /// Cancelled when the agent is to stop: no operation begins any more, watchers are let go, retries end.
    pub(crate) stop: CancellationToken,
}

impl Agent {
    /// Runs an operation in a task of its own: a caller that hangs up ends only its wait. Without a journal none is run.
    pub(crate) async fn in_own_task<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        if self.stop.is_cancelled() {
            return Err(Error::ShuttingDown);
        }
        self.journal.usable()?;
        let room = Arc::clone(&self.room).try_acquire_owned().map_err(|_| {
            let most = self.config.limits.operations;
            let what = format!("{most} operations run already; wait for one to end (`mortar operations --running`)");
            Error::Limit { what, key: "limits.operations" }
        })?;
        let work = async move {
            let _room = room;
            work.await
        };
        match self.tasks.spawn(work).await {
            Ok(result) => result,
            Err(failed) if failed.is_panic() => std::panic::resume_unwind(failed.into_panic()),
            Err(_) => Err(Error::ShuttingDown),
        }
    }
}
