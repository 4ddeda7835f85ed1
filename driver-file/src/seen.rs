//! Where the loop devices of ours were last seen. To ask all of them for each attachment would be a million questions for a
//! thousand attachments; so the one that had the file is asked first, and believed only in what it says now.

use crate::binding::{self, LABEL, proved};
use driver::{Device, Identity, Locator, Result};
use host::{Host, LoopDevice};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The names of loop devices, by the file that was below.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<HashMap<Identity, String>>);

impl Seen {
    /// The loop device that we bound to a file, unless it is on its way out.
    pub(crate) async fn find(
        &self,
        host: &dyn Host,
        locator: &Locator,
        identity: &Identity,
    ) -> Result<Option<LoopDevice>> {
        let is_it = |device: &LoopDevice| device.label == LABEL && !device.autoclear && proved(device) == *identity;
        let last = self.names().get(identity).cloned();
        if let Some(name) = last
            && let Some(device) = binding::one(host, &name).await?.filter(is_it)
        {
            return Ok(Some(device));
        }
        let all = binding::all(host).await?;
        let ours = all.iter().filter(|device| device.label == LABEL);
        *self.names() = ours.map(|device| (proved(device), device.name.clone())).collect();
        Ok(binding::among(host, all, locator, identity)?.into_iter().find(is_it))
    }

    /// A device that was just bound to a file.
    pub(crate) fn note(&self, identity: &Identity, device: &Device) {
        if let Some(name) = device.path.file_name() {
            self.names().insert(identity.clone(), name.to_string_lossy().into_owned());
        }
    }

    fn names(&self) -> MutexGuard<'_, HashMap<Identity, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
