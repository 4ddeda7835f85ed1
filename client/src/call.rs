//! One call, with the caller's patience: a deadline, and another try where the contract says that it is safe and helps.
//!
//! ```text
//!   send ──▶ an answer ─────────────────────────────────────────────────────────▶ done
//!    ▲ │
//!    │ ├──▶ ABORTED: something else holds the volume, nothing was begun ──┐
//!    │ ├──▶ no connection: nothing was sent                               ├──▶ pause, while there is time
//!    │ ├──▶ of a call that may be repeated: it broke, or the agent stops ─┘      │
//!    │ └──▶ anything else ───────────────────────────────────────────────────────┼▶ the error
//!    └───────────────────────────────────────────────────────────────────────────┘
//! ```

use crate::{
    client::Client,
    error::{Error, Kind},
};
use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};
use tokio::time::{Instant, timeout};
use tonic::{Code, Request, Response, Status};

/// The gRPC deadline comes so much later than the agent's own, so that its better explanation arrives first.
const GRACE: Duration = Duration::from_secs(2);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Client {
    /// Makes one call and returns its answer, with another try where that is safe and helps, until the timeout is over.
    ///
    /// `message` makes the request for the milliseconds that are left: they belong into its `timeout_ms`, if it has one. `send`
    /// hands it to one of the service clients. The gRPC deadline is two seconds later than that, so that the agent's own answer,
    /// which says what it waited for, comes first.
    ///
    /// Tried again, after pauses of 50 ms to a second that no two callers have alike, is:
    /// - ABORTED: another operation holds the volume; nothing was begun;
    /// - that there is no connection ([`Kind::Unreachable`]): nothing was sent;
    /// - through [`Client::repeating`] alone: a connection that broke ([`Kind::Lost`]), and SHUTTING_DOWN.
    ///
    /// ```no_run
    /// # async fn example(client: mortar_client::Client) -> Result<(), mortar_client::Error> {
    /// use mortar_client::v1;
    ///
    /// let mut attachments = client.attachments();
    /// let message = |timeout_ms| v1::ExtendRequest { id: "web1-data".into(), timeout_ms };
    /// let grown = client.call(message, async |request| attachments.extend(request).await).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// What the last try ended with; [`Kind::Late`] if the agent did not answer at all.
    pub async fn call<Q, R>(
        &self,
        message: impl Fn(u64) -> Q,
        mut send: impl AsyncFnMut(Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let end = Instant::now() + self.timeout;
        let mut left = self.timeout;
        let mut longest = FIRST_PAUSE;
        loop {
            let mut request = Request::new(message(millis(left)));
            let patience = left + self.grace + GRACE;
            request.set_timeout(patience);
            // tonic's own deadline does not cover the wait for a connection.
            let error = match timeout(patience, send(request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Error::from(status),
                Err(_) => Error::late(),
            };
            if !self.tries_again(&error) {
                return Err(error);
            }
            pause(jittered(longest).min(end.saturating_duration_since(Instant::now()))).await;
            longest = (longest * 2).min(LONGEST_PAUSE);
            left = end.saturating_duration_since(Instant::now());
            if left < Duration::from_millis(1) {
                return Err(error);
            }
        }
    }

    fn tries_again(&self, error: &Error) -> bool {
        match error.kind() {
            Kind::Refused if error.code() == Code::Aborted => true,
            Kind::Refused => self.repeats && error.reason() == "SHUTTING_DOWN",
            Kind::Unreachable => self.reconnects,
            Kind::Lost => self.reconnects && self.repeats,
            _ => false,
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the agent gives no event when a lock is free; this is the backoff it asks for"
)]
async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Between half and all of it, so that twenty callers that were refused together do not come back together.
fn jittered(longest: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 512;
    longest.mul_f64(0.5 + random as f64 / 1024.0)
}

/// 0 would mean "the agent's default".
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_in_its_half() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_millis(100));
            assert!((Duration::from_millis(50)..Duration::from_millis(100)).contains(&pause));
        }
    }

    #[test]
    fn what_is_left_is_never_the_default() {
        assert_eq!(millis(Duration::from_micros(1)), 1);
        assert_eq!(millis(Duration::from_secs(30)), 30_000);
    }
}
