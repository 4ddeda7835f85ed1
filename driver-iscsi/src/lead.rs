//! Who goes first of several ways to a unit.
//!
//! An attach needs one way; the logins of the others, all begun in the same moment, would only stand in its way: the daemon
//! takes logins one by one, and each is a process. So all connect at once, the first to whom a portal answers *leads*, and the
//! others have him a head start:
//!
//! ```text
//!   the first that connects ──▶ leads ──▶ in its map ──▶ the attach is recorded ─┐
//!                                 │ failed ──────────────────────────────────────┼─▶ all go
//!   the others ──▶ wait ──────────┴ 1 s is over ─────────────────────────────────┘
//! ```
//!
//! A portal that is dead never connects, and so never leads; one that connects and then is mute costs the head start.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// A target that is well is logged in to and in its map before it is over.
const HEAD_START: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Lead {
    taken: AtomicBool,
    over: watch::Sender<bool>,
}

impl Lead {
    /// Nobody has it yet.
    pub(crate) fn free() -> Self {
        Self { taken: AtomicBool::new(false), over: watch::Sender::new(false) }
    }

    /// There is none: all go at once.
    pub(crate) fn none() -> Self {
        Self { taken: AtomicBool::new(true), over: watch::Sender::new(true) }
    }

    /// The first who comes leads, and is told so. All others wait until they may go: of the time they have, at most the half.
    pub(crate) async fn take_or_follow(&self, deadline: Instant) -> bool {
        if !self.taken.swap(true, Ordering::Relaxed) {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let mut over = self.over.subscribe();
        let _told_or_late = timeout(HEAD_START.min(left / 2), over.wait_for(|over| *over)).await;
        false
    }

    /// All may go.
    pub(crate) fn end(&self) {
        self.over.send_replace(true);
    }
}
