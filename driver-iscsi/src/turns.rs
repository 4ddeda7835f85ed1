//! Whose turn it is at a target's portal.
//!
//! The units of a target share a session, so between the look whether there is one and the login, and between the look
//! whether it is empty and the logout, nobody else may come or go. Awaited, short, and private to this driver; a stuck target
//! holds up nobody else.

use crate::place::Place;
use driver::{Error, Iqn, Portal, Result};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::{Instant, timeout_at},
};

type Queue = Arc<AsyncMutex<()>>;

#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<(Iqn, Portal), Queue>>);

impl Turns {
    pub(crate) async fn take(&self, place: &Place, deadline: Instant) -> Result<OwnedMutexGuard<()>> {
        let queue = {
            let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            queues.retain(|_, queue| Arc::strong_count(queue) > 1);
            queues.entry((place.iqn.clone(), place.portal)).or_default().clone()
        };
        timeout_at(deadline, queue.lock_owned())
            .await
            .map_err(|_| Error::TimedOut { waiting_for: format!("another login or logout at {}", place.target()) })
    }
}
