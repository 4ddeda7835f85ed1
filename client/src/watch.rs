//! What happens on the host, as it happens.

use crate::error::Error;
use proto::v1::{self, watch_event::Event};
use tonic::Streaming;

/// The events of one host, since [`Client::watch`](crate::Client::watch) began it. Dropped, it ends.
#[derive(Debug)]
pub struct Watch(Streaming<v1::WatchEvent>);

impl Watch {
    pub(crate) fn new(events: Streaming<v1::WatchEvent>) -> Self {
        Self(events)
    }

    /// Waits for the next event; `None` when the agent has ended the watch because it stops. Then begin another: its first events
    /// tell all that there is, so nothing is missed.
    ///
    /// # Errors
    ///
    /// [`Kind::Lost`](crate::Kind::Lost): the connection broke. RESOURCE_EXHAUSTED: more than 1,024 events were not fetched.
    /// FAILED_PRECONDITION: the rules for callers have changed. Begin another in all these cases. PERMISSION_DENIED: the caller's
    /// certificate was revoked.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        while let Some(event) = self.0.message().await? {
            // One that this build does not know has no body.
            if let Some(event) = event.event {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }
}
