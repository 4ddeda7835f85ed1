//! Cancel: an operation is asked to give up. What it has done is undone; what has no way back is refused, and goes on.
//!
//! ```text
//!   attach, export:   until the outcome is committed ──▶ undone, and ended as failed: CANCELLED
//!   everything else:  until its first change          ──▶ nothing was touched: CANCELLED
//!                     after it                        ──▶ refused
//! ```

use super::{Operation, OperationId};
use crate::agent::Agent;
use driver::{Error, Result};

impl Agent {
    /// Asks an operation to give up, and waits for its end. What has ended is as it is: no error, and nothing changed.
    pub(crate) async fn cancel(&self, id: OperationId) -> Result<(Operation, bool)> {
        let absent = || Error::NotFound { what: format!("operation {id}") };
        let operation = self.journal.operation(id).await?.ok_or_else(absent)?;
        if operation.ended {
            return Ok((operation, false));
        }
        let what = format!("operation {id} ({} {})", operation.plan.verb(), operation.plan.subject());
        let refused =
            |why: String| Error::WrongState { what: format!("{what} cannot be cancelled: {why}; it goes on") };
        let Some(course) = self.running.get(id) else {
            // It has just ended; or it waits for an older one that is stuck.
            let operation = self.journal.operation(id).await?.ok_or_else(absent)?;
            return match operation.ended {
                true => Ok((operation, false)),
                false => Err(refused("it waits to be finished".into())),
            };
        };
        if let Err(done) = course.steps.cancel() {
            return Err(refused(match done {
                Some(done) => format!("it has changed something already ({done})"),
                None => "it is being finished or undone".into(),
            }));
        }
        tracing::info!(operation = %id, "{what} is asked to give up");
        course.ended.cancelled().await;
        let operation = self.journal.operation(id).await?.ok_or_else(absent)?;
        Ok((operation, true))
    }
}
