//! Whose turn it is at an image: between the look whether it is mapped already and the end of an attach or a detach, nobody
//! else may come or go. Awaited, short, and private to this driver; a cluster that hangs holds up none of another image.

use driver::{Error, Identity, Result};
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
pub(crate) struct Turns(Mutex<HashMap<Identity, Queue>>);

impl Turns {
    pub(crate) async fn take(&self, image: &Identity, deadline: Instant) -> Result<OwnedMutexGuard<()>> {
        let queue = {
            let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            queues.retain(|_, queue| Arc::strong_count(queue) > 1);
            queues.entry(image.clone()).or_default().clone()
        };
        timeout_at(deadline, queue.lock_owned())
            .await
            .map_err(|_| Error::TimedOut { waiting_for: format!("another attach or detach of {image}") })
    }
}
