//! The virtual machines of this host, as far as a rescue has to know them: which there are, how they are defined, and how
//! they are started and stopped. It knows nothing of volumes, nor of what a rescue is for.

mod announced;
pub mod definition;
#[cfg(feature = "libvirt")]
pub mod libvirt;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub use announced::Announced;

use async_trait::async_trait;
use driver::{Readiness, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use tokio::time::Instant;
use uuid::Uuid;

/// A hypervisor on this host. Every verb may be repeated; the second time changes nothing.
///
/// [`driver::Error::Unreachable`] of any of them: it does not run, or it went away in the middle. It heals by itself once
/// it is back. [`driver::Error::NotFound`]: there is no such instance.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// What it needs on this host, and whether it is there.
    async fn readiness(&self) -> Readiness;

    /// Every instance, by name.
    async fn instances(&self) -> Result<Vec<Instance>>;

    /// One instance, by its UUID or its name; a UUID decides.
    async fn instance(&self, name: &InstanceName) -> Result<Instance>;

    /// How an instance is defined to start the next time, byte for byte, passwords included.
    /// [`driver::Error::WrongState`] if it is transient, so that nothing of it would outlive its stop.
    async fn definition(&self, instance: Uuid) -> Result<String>;

    /// How it runs now; `None` if it does not.
    async fn running_definition(&self, instance: Uuid) -> Result<Option<String>>;

    /// Puts a definition in the place of the one that has its UUID, and returns it as it is kept. A running instance goes
    /// on as it is. [`driver::Error::WrongState`] with the hypervisor's own words if it refuses it.
    async fn define(&self, definition: &str) -> Result<String>;

    /// Lets it run. [`driver::Error::WrongState`] with the hypervisor's own words if it does not start.
    async fn start(&self, instance: Uuid, deadline: Instant) -> Result<()>;

    /// Lets it not run any more: asks its guest to shut down and, if it is still there at the end of `grace`, ends it.
    /// Returns once its absence was seen.
    async fn stop(&self, instance: Uuid, grace: Instant, deadline: Instant) -> Result<Stopped>;

    /// Stops it as [`Hypervisor::stop`] does, and starts it again.
    async fn reboot(&self, instance: Uuid, grace: Instant, deadline: Instant) -> Result<Stopped> {
        let stopped = self.stop(instance, grace, deadline).await?;
        self.start(instance, deadline).await?;
        Ok(stopped)
    }
}

/// How an instance is named by people: its UUID, or the name it was given.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceName(String);

/// An instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// What it is, whatever its name.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Whether it runs.
    pub power: Power,
    /// It is defined, and stays when it is stopped.
    pub persistent: bool,
    /// It starts with the host.
    pub autostart: bool,
    /// Its memory was saved to go on from there at its next start.
    pub managed_save: bool,
    /// How many snapshots the hypervisor knows of it.
    pub snapshots: u32,
}

/// Whether an instance runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// It runs.
    Running,
    /// It was halted where it was, and has its memory.
    Paused,
    /// It does not run.
    Off,
    /// Anything else: it shuts down, it crashed, its guest sleeps.
    Other,
}

/// How an instance came to a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It was off already.
    WasOff,
    /// Its guest shut down.
    Gracefully,
    /// It was ended, as by pulling the plug.
    Hard,
}

impl InstanceName {
    /// The longest name that is taken, in bytes.
    pub const LONGEST: usize = 255;

    /// Its UUID, if that is what it is.
    pub fn uuid(&self) -> Option<Uuid> {
        Uuid::parse_str(&self.0).ok()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for InstanceName {
    type Err = driver::Error;

    fn from_str(text: &str) -> Result<Self> {
        let why = match text {
            "" => "it is empty",
            long if long.len() > Self::LONGEST => "it is longer than 255 bytes",
            odd if odd.contains('/') || odd.chars().any(char::is_control) => {
                "it has a slash or a control character in it"
            }
            _ => return Ok(Self(text.to_owned())),
        };
        Err(driver::Error::Invalid {
            field: "instance",
            why: format!("{why}; give a name or a UUID, as `mortar instances` lists them"),
        })
    }
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
