//! From the config to the drivers: the only file that names a concrete one.

use crate::config::{Config, ConfigError, Drivers as Wanted};
use driver::{Backend, Driver, Error, Readiness, Result};
use driver_file::{FileConfig, FileDriver};
use driver_iscsi::{IscsiConfig, IscsiDriver};
use driver_lvm::{LvmConfig, LvmDriver};
use driver_rbd::{RbdConfig, RbdDriver};
use host::Host;
use std::{collections::BTreeMap, sync::Arc};

/// The drivers of this host.
pub(crate) struct Drivers {
    all: BTreeMap<Backend, Arc<dyn Driver>>,
    /// Those that the config switches on.
    wanted: Vec<Backend>,
    /// A driver that cannot work stops the start.
    strict: bool,
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
#[error("agent.drivers: the {backend} driver cannot work here: {problem}")]
pub struct NotReady {
    backend: Backend,
    problem: String,
}

impl Drivers {
    pub(crate) fn new(host: &Arc<dyn Host>, config: &Config) -> std::result::Result<Self, ConfigError> {
        let templates = config.templates()?;
        let file = FileConfig { directories: config.file.directories.clone(), templates: templates.clone() };
        let mut all = BTreeMap::<Backend, Arc<dyn Driver>>::new();
        let iscsi = IscsiConfig::default();
        let rbd = RbdConfig { templates: templates.clone() };
        let lvm = LvmConfig { templates, exclude_links: config.agent.device_directory.clone() };
        all.insert(Backend::File, Arc::new(FileDriver::new(Arc::clone(host), file)));
        all.insert(Backend::Iscsi, Arc::new(IscsiDriver::new(Arc::clone(host), iscsi)));
        all.insert(Backend::Lvm, Arc::new(LvmDriver::new(Arc::clone(host), lvm)));
        all.insert(Backend::Rbd, Arc::new(RbdDriver::new(Arc::clone(host), rbd)));
        let (wanted, strict) = match &config.agent.drivers {
            Wanted::Auto(_) => (Backend::ALL.to_vec(), false),
            Wanted::List(list) => (list.clone(), true),
        };
        Ok(Self { all, wanted, strict })
    }

    /// Before anything is served: a driver that was asked for by name can work.
    pub(crate) async fn check(&self) -> std::result::Result<(), NotReady> {
        for backend in &self.wanted {
            if let Some(problem) = self.readiness(*backend).await.problem {
                if self.strict {
                    return Err(NotReady { backend: *backend, problem });
                }
                tracing::info!(%backend, problem, "the {backend} driver is not available: {problem}");
            }
        }
        Ok(())
    }

    /// What a driver needs, and whether it is here.
    pub(crate) async fn readiness(&self, backend: Backend) -> Readiness {
        match self.all.get(&backend) {
            Some(driver) if self.wanted.contains(&backend) => driver.readiness().await,
            _ => Readiness {
                problem: Some("it is switched off; add it to agent.drivers in the config".into()),
                tools: Vec::new(),
            },
        }
    }

    /// [`Driver::tidy`] of every driver.
    pub(crate) async fn tidy(&self) {
        for driver in self.all.values() {
            driver.tidy().await;
        }
    }

    /// A driver that can work here.
    pub(crate) async fn ready(&self, backend: Backend) -> Result<Arc<dyn Driver>> {
        let driver = self.get(backend)?;
        match driver.readiness().await.problem {
            None => Ok(driver),
            Some(problem) => {
                Err(Error::Unsupported { what: format!("the {backend} driver cannot work on this host: {problem}") })
            }
        }
    }

    /// A driver that is switched on.
    pub(crate) fn get(&self, backend: Backend) -> Result<Arc<dyn Driver>> {
        match self.all.get(&backend) {
            Some(driver) if self.wanted.contains(&backend) => Ok(Arc::clone(driver)),
            _ => Err(Error::Unsupported {
                what: format!("the {backend} driver is switched off; add it to agent.drivers in the config"),
            }),
        }
    }

    /// The backends that are switched on.
    pub(crate) fn wanted(&self) -> &[Backend] {
        &self.wanted
    }
}
