//! Few are let in at a time, and none for long: whoever only asks for metrics must not take the agent's descriptors from
//! those who attach. The kernel keeps the others waiting.

use crate::held::Held;
use axum::serve::Listener;
use std::{future::pending, io, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

const AT_A_TIME: usize = 16;
/// Prometheus connects again without a word.
const STAY: Duration = Duration::from_secs(120);

/// A listener that lets few in.
pub(super) struct Few<L> {
    listener: L,
    places: Arc<Semaphore>,
}

impl<L> Few<L> {
    pub(super) fn of(listener: L) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl<L: Listener> Listener for Few<L> {
    type Io = Held<L::Io, OwnedSemaphorePermit>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // Nobody closes it.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return pending().await };
        let (stream, address) = self.listener.accept().await;
        (Held::until(stream, place, Instant::now() + STAY), address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
