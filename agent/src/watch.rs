//! What happens on this host, told to whoever watches.

use crate::operation::{Attachment, Operation};
use driver::AttachmentId;
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

/// Where events go.
#[derive(Debug, Clone)]
pub(crate) struct Watch(broadcast::Sender<Event>);

impl Watch {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }

    pub(crate) fn send(&self, event: Event) {
        // Nobody watching is fine.
        let _watchers = self.0.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
