//! After the last call of a crowd, memory that only the crowd needed is given back: on a host that is full of guests an agent
//! that once listed a thousand attachments shall not keep what that took.

use host::Host;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::timeout};

/// How long nobody asks for anything before it is over. By then its threads have ended (`IDLE` in main.rs), and left what they
/// kept for themselves.
const QUIET: Duration = Duration::from_secs(12);

/// Rests after each crowd. Wakes for nothing else.
pub(crate) async fn rest(host: Arc<dyn Host>, answered: Arc<Notify>) -> Infallible {
    loop {
        answered.notified().await;
        while timeout(QUIET, answered.notified()).await.is_ok() {}
        host.rest().await;
    }
}
