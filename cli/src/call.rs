//! One call to the agent, with the user's patience: a deadline, and another try while something else holds the volume.

use crate::{connect::Agent, error::Error};
use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

/// The gRPC deadline comes so much later than the agent's own, so that its better explanation arrives first.
const GRACE: Duration = Duration::from_secs(2);

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

impl Agent {
    /// Sends a request and returns the answer; while the agent says ABORTED, again, until the timeout is over.
    ///
    /// `message` makes the request for the milliseconds that are left. Only ABORTED is tried again: it alone says that
    /// nothing was begun and that waiting helps.
    pub(crate) async fn call<Q, R>(
        &self,
        message: impl Fn(u64) -> Q,
        send: impl AsyncFnMut(Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        self.call_with_grace(Duration::ZERO, message, send).await
    }

    /// As [`Agent::call`], for what may first take as long as `grace`, on top of the timeout.
    pub(crate) async fn call_with_grace<Q, R>(
        &self,
        grace: Duration,
        message: impl Fn(u64) -> Q,
        mut send: impl AsyncFnMut(Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let end = Instant::now() + self.timeout;
        let mut left = self.timeout;
        let mut longest = FIRST_PAUSE;
        loop {
            let mut request = Request::new(message(millis(left)));
            request.set_timeout(left + grace + GRACE);
            let status = match send(request).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            if status.code() != Code::Aborted {
                return Err(status.into());
            }
            pause(jittered(longest).min(end.saturating_duration_since(Instant::now()))).await;
            longest = (longest * 2).min(LONGEST_PAUSE);
            left = end.saturating_duration_since(Instant::now());
            if left < Duration::from_millis(1) {
                return Err(status.into());
            }
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
