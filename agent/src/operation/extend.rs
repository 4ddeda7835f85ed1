//! Extend: the volume grew on its backend; the kernel is told, and asked for the new size.

use super::{Plan, attach::AttachReply};
use crate::{agent::Agent, journal::Change, watch::Event};
use driver::{AttachmentId, Error, Result};
use std::sync::Arc;
use tokio::time::Instant;

impl Agent {
    /// Learns an attachment's size anew.
    pub(crate) async fn extend(self: Arc<Self>, id: AttachmentId, deadline: Instant) -> Result<AttachReply> {
        let held = self.hold("extend", &id, deadline).await?;
        let (held, record, _others) = held.ok_or_else(|| Error::NotFound { what: format!("attachment {id}") })?;
        let locator = record.attached.spec.locator.clone();
        let driver = self.drivers.get(locator.backend())?;
        let before = driver.prove(&record.attached).await?;
        let before = before.ok_or_else(|| Error::NotFound { what: format!("the device of attachment {id}") })?;
        let work = self.begin(Plan::Extend { id, locator }, held, deadline).await?;
        match self.effects(&work, driver.extend(&record.attached, deadline)).await {
            Ok(device) => {
                let changed = device.size_bytes != before.size_bytes;
                let operation = self.succeeded(work, Change::None).await?;
                let attachment = self.look(record, false).await;
                self.watch.send(Event::Attachment(attachment.clone()));
                Ok(AttachReply { attachment, changed, operation: Some(operation) })
            }
            Err(error) if work.goes_on(&error) => self.left_waiting(work, error),
            Err(error) => self.failed(work, error, Change::None).await,
        }
    }
}
