//! What happens on this host, told to whoever watches.

use crate::operation::{Attachment, Operation};
use driver::AttachmentId;
use std::sync::Arc;
use tokio::sync::broadcast;

/// How far a watcher may fall behind before it is cut off.
const BACKLOG: usize = 1024;

/// One thing that happened.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Attachment(Attachment),
    Gone(AttachmentId),
    Operation(Operation),
}

/// Where events go. The room for all that a watcher may be behind by is taken from the beginning, so it is room for pointers.
#[derive(Debug, Clone)]
pub(crate) struct Watch(broadcast::Sender<Arc<Event>>);

impl Watch {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }

    pub(crate) fn send(&self, event: Event) {
        // Nobody watching is fine.
        let _watchers = self.0.send(Arc::new(event));
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.subscribe()
    }
}
