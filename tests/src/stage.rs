//! What a test needs of the machine it plays on, simulated or real: volumes nobody knows of yet, somebody who uses a
//! device, a look at everything, and an agent that can be killed.

use crate::client::Client;
use async_trait::async_trait;
use driver::Backend;

/// A machine with an agent.
#[async_trait]
pub trait Stage: Send {
    /// A client of the agent that runs now.
    fn client(&self) -> Client;

    /// Makes a volume of this size in bytes, not present on the host, and returns its locator. Volumes of one stage and
    /// backend lie beside each other: in one VG, one directory, on one target.
    async fn volume(&mut self, backend: Backend, name: &str, size: u64) -> String;

    /// The scope that the LVM or file volumes of this stage lie in.
    fn scope(&self, backend: Backend) -> String;

    /// A locator like that of `volume`, where nothing is.
    fn nowhere(&self, backend: Backend) -> String;

    /// Somebody opens a device, as a mount or an exclusive opener would, until `vacate`.
    async fn occupy(&mut self, device: &str);

    /// The end of `occupy`.
    async fn vacate(&mut self, device: &str);

    /// Everything on the machine that an attach, a detach, a manage or an unmanage could change.
    async fn snapshot(&self) -> String;

    /// Kills the agent at once and starts it anew.
    async fn kill_and_restart(&mut self);
}
