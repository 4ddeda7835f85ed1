//! Where the loop devices of ours were last seen. To ask all of them for each attachment would be a million questions for a
//! thousand attachments; so the one that had the file is asked first, and believed only in what it says now. Where many
//! attachments are looked for at once, all devices are asked once.

use crate::binding::{self, LABEL, proved};
use driver::{Device, Identity, Locator, Result};
use host::{Host, LoopDevice};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The names of loop devices, by the file that was below.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    names: Mutex<HashMap<Identity, String>>,
    /// Held by who asks all devices: those who want the same meanwhile wait for his answer.
    asking: tokio::sync::Mutex<()>,
}

impl Seen {
    /// The loop device that we bound to a file, unless it is on its way out.
    pub(crate) async fn find(
        &self,
        host: &dyn Host,
        locator: &Locator,
        identity: &Identity,
    ) -> Result<Option<LoopDevice>> {
        if let Some(device) = self.where_it_was(host, identity).await? {
            return Ok(Some(device));
        }
        let (_asking, waited) = match self.asking.try_lock() {
            Ok(asking) => (asking, false),
            Err(_) => (self.asking.lock().await, true),
        };
        if waited && let Some(device) = self.where_it_was(host, identity).await? {
            return Ok(Some(device));
        }
        self.list(host).await?.find(host, locator, identity)
    }

    /// All loop devices as they are now.
    pub(crate) async fn list(&self, host: &dyn Host) -> Result<Listed> {
        let all = binding::all(host).await?;
        let ours = || all.iter().enumerate().filter(|(_, device)| device.label == LABEL);
        *self.names() = ours().map(|(_, device)| (proved(device), device.name.clone())).collect();
        let staying = ours().filter(|(_, device)| !device.autoclear).map(|(at, device)| (proved(device), at)).collect();
        Ok(Listed { all, staying })
    }

    /// The device that had the file, if it has it still.
    async fn where_it_was(&self, host: &dyn Host, identity: &Identity) -> Result<Option<LoopDevice>> {
        let Some(name) = self.names().get(identity).cloned() else { return Ok(None) };
        let device = binding::one(host, &name).await?;
        let is_it = |device: &LoopDevice| device.label == LABEL && !device.autoclear && proved(device) == *identity;
        Ok(device.filter(is_it))
    }

    /// A device that was just bound to a file.
    pub(crate) fn note(&self, identity: &Identity, device: &Device) {
        if let Some(name) = device.path.file_name() {
            self.names().insert(identity.clone(), name.to_string_lossy().into_owned());
        }
    }

    fn names(&self) -> MutexGuard<'_, HashMap<Identity, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All loop devices, at one moment.
pub(crate) struct Listed {
    all: Vec<LoopDevice>,
    /// Where those of ours are in it that are not on their way out, by the file below.
    staying: HashMap<Identity, usize>,
}

impl Listed {
    /// As [`Seen::find`].
    pub(crate) fn find(&self, host: &dyn Host, locator: &Locator, identity: &Identity) -> Result<Option<LoopDevice>> {
        match self.staying.get(identity) {
            Some(at) => Ok(self.all.get(*at).cloned()),
            None => binding::is_known_to_be_absent(host, &self.all, locator).map(|()| None),
        }
    }
}
