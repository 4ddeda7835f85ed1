//! Tells whoever watches of attachments whose device goes, or comes back, without the agent's doing. The kernel's events are
//! only a reason to look; sysfs is what we believe, as everywhere, and no device is asked.
//!
//! ```text
//!   an event ─▶ a pause, for what else comes ─▶ does anybody watch? ─▶ look at all attachments ─▶ tell what is otherwise than before
//!      ▲                                              └─ no ─┐                     │
//!      └─────────────────────────────────────────────────────┴─────────────────────┘
//! ```
//!
//! An event may be missed, or come where the kernel sends none: so a controller still looks now and then.

use crate::{
    agent::Agent,
    operation::{State, attachment_key},
    watch::Event,
};
use driver::{AttachmentId, Result};
use std::{collections::HashSet, convert::Infallible, time::Duration};
use tokio::time::{Instant, timeout};

/// Devices seldom come or go alone.
const PAUSE: Duration = Duration::from_millis(250);
/// However many attachments there are and whatever goes on: so much of the time nobody looks at them, for each part in which
/// somebody does.
const REST: u32 = 10;

impl Agent {
    /// For as long as this is waited for.
    pub(crate) async fn tell_of_losses(&self) -> Infallible {
        let (mut events, mut pause, mut lost) = (self.host.uevents(), PAUSE, HashSet::new());
        loop {
            events.next().await;
            let _others_come = timeout(pause, std::future::pending::<()>()).await;
            // What comes from now on is a reason to look again.
            events = self.host.uevents();
            if self.seats.available_permits() == self.config.limits.watchers {
                // Whoever begins to watch is told of every attachment as it is then.
                lost.clear();
                continue;
            }
            let begun = Instant::now();
            if let Err(error) = self.tell_what_changed(&mut lost).await {
                tracing::warn!("cannot see which devices are gone: {}", error.chain());
            }
            pause = PAUSE.max(begun.elapsed() * REST);
        }
    }

    /// `lost` are those that were told to be broken.
    async fn tell_what_changed(&self, lost: &mut HashSet<AttachmentId>) -> Result<()> {
        for attachment in self.look_at_each(self.journal.attachments().await?).await {
            let record = &attachment.record;
            let is_lost = attachment.state == State::Broken;
            if is_lost == lost.contains(&record.id) {
                continue;
            }
            // An operation tells of its own doing.
            let is_changing = self.locks.is_held(&attachment_key(&record.id));
            if is_changing || self.journal.attachment(&record.id).await?.as_ref() != Some(record) {
                continue;
            }
            if is_lost {
                lost.insert(record.id.clone());
            } else {
                lost.remove(&record.id);
            }
            self.watch.send(Event::Attachment(attachment));
        }
        Ok(())
    }
}
