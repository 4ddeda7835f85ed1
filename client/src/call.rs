//! One call, with the caller's patience: a deadline, and another try where the contract says that it is safe and helps.
//!
//! ```text
//!   send ──▶ an answer ──────────────────────────────────────────────────────────────▶ done
//!    ▲ │
//!    │ ├──▶ ABORTED: something else holds the volume, nothing was begun ──┐
//!    │ ├──▶ no connection: nothing was sent                               ├──▶ pause, if there is time
//!    │ ├──▶ of a call that may be repeated: it broke, or the agent stops ─┘      │    │
//!    │ └──▶ anything else ───────────────────────────────────────────────────────┼────┴▶ the error
//!    └───────────────────────────────────────────────────────────────────────────┘
//! ```

use crate::{
    ask::{Ask, sealed},
    client::Client,
    error::{Error, Kind},
    watch::Watch,
};
use proto::v1;
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
    /// Makes the call that the request is for, and returns its answer; with another try where that is safe and helps, until the
    /// timeout is over.
    ///
    /// The agent is told how many milliseconds are left (`timeout_ms`), unless the request says so itself; the gRPC deadline is two
    /// seconds later, so that the agent's own answer, which says what it waited for, comes first. Where a guest may take its time
    /// to shut down (`grace_ms`), that comes on top.
    ///
    /// Tried again, after pauses of 50 ms to a second that no two callers have alike, is:
    /// - ABORTED: another operation holds the volume; nothing was begun;
    /// - that there is no connection ([`Kind::Unreachable`]): nothing was sent;
    /// - a connection that broke ([`Kind::Lost`]) and SHUTTING_DOWN, of a call that means the same when it is made twice: what
    ///   only looks, and what names its volume, attachment or export by an id. Not those that have the id made up.
    ///
    /// ```no_run
    /// # async fn example(client: mortar_client::Client) -> Result<(), mortar_client::Error> {
    /// use mortar_client::v1;
    ///
    /// let grown = client.ask(v1::ExtendRequest { id: "web1-data".into(), ..Default::default() }).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// What the last try ended with; [`Kind::Late`] if the agent did not answer at all.
    pub async fn ask<Q: Ask>(&self, request: Q) -> Result<<Q as sealed::Ask>::Answer, Error> {
        let repeats = request.may_be_repeated();
        let mut tries = Tries::new(self, request.grace(), repeats);
        loop {
            let mut message = request.clone();
            message.within(tries.left_ms());
            let sent = Q::send(self, tries.request(message));
            match timeout(tries.patience(), sent).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => tries.go_on(status.into()).await?,
                Err(_) => tries.go_on(Error::late()).await?,
            }
        }
    }

    /// As [`Client::ask`], of a service client, for a request that is made anew for each try: `message` is given the milliseconds
    /// that are left. It is not known whether such a call may be repeated: a connection that breaks ends it. Its future cannot be
    /// sent to another thread.
    ///
    /// # Errors
    ///
    /// As of [`Client::ask`].
    pub async fn call<Q, R>(
        &self,
        grace: Duration,
        message: impl Fn(u64) -> Q,
        mut send: impl AsyncFnMut(Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Error> {
        let mut tries = Tries::new(self, grace, false);
        loop {
            let sent = send(tries.request(message(tries.left_ms())));
            match timeout(tries.patience(), sent).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => tries.go_on(status.into()).await?,
                Err(_) => tries.go_on(Error::late()).await?,
            }
        }
    }

    /// Hears what happens on the host: first every attachment as it is now, then each change.
    ///
    /// # Errors
    ///
    /// Those of [`Client::ask`], for its beginning. It ends as [`Watch::next`] says.
    pub async fn watch(&self) -> Result<Watch, Error> {
        self.ask(v1::WatchRequest {}).await
    }
}

/// The tries of one call, and the time that is left for them.
struct Tries {
    reconnects: bool,
    repeats: bool,
    grace: Duration,
    end: Instant,
    left: Duration,
    longest: Duration,
}

impl Tries {
    fn new(client: &Client, grace: Duration, repeats: bool) -> Self {
        let (reconnects, left) = (client.reconnects, client.timeout);
        Self { reconnects, repeats, grace, end: Instant::now() + left, left, longest: FIRST_PAUSE }
    }

    /// 0 would mean "the agent's default".
    fn left_ms(&self) -> u64 {
        u64::try_from(self.left.as_millis()).unwrap_or(u64::MAX).max(1)
    }

    /// How long one try may take. The gRPC deadline does not cover the wait for a connection, so it is kept here as well.
    fn patience(&self) -> Duration {
        self.left + self.grace + GRACE
    }

    fn request<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        request.set_timeout(self.patience());
        request
    }

    /// Waits for the next try, or says why there is none.
    async fn go_on(&mut self, error: Error) -> Result<(), Error> {
        if !self.helps(&error) {
            return Err(error);
        }
        pause(jittered(self.longest).min(self.end.saturating_duration_since(Instant::now()))).await;
        self.longest = (self.longest * 2).min(LONGEST_PAUSE);
        self.left = self.end.saturating_duration_since(Instant::now());
        if self.left < Duration::from_millis(1) { Err(error) } else { Ok(()) }
    }

    fn helps(&self, error: &Error) -> bool {
        match error.kind() {
            Kind::Refused if error.code() == Code::Aborted => true,
            Kind::Refused => self.reconnects && self.repeats && error.reason() == "SHUTTING_DOWN",
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

    #[tokio::test]
    async fn what_is_left_is_never_the_default() {
        let left = |timeout| {
            let client = Client::builder().timeout(timeout).lazy();
            Tries::new(&client, Duration::ZERO, false).left_ms()
        };
        assert_eq!(left(Duration::from_micros(1)), 1);
        assert_eq!(left(Duration::from_secs(30)), 30_000);
    }
}
