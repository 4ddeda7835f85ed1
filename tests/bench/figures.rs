//! What was measured of one thing, and what to say of it.

use crate::machine::settle;
use std::time::{Duration, Instant};

/// Times of the same thing, in milliseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn median(&self) -> f64 {
        self.quartile(2)
    }

    /// Quartile 0 is the least, 2 the median, 4 the most. Where it falls between two figures, it lies between them.
    pub(crate) fn quartile(&self, quarters: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let place = quarters * (sorted.len() - 1);
        let (below, above) = (sorted[place / 4], sorted[place.div_ceil(4)]);
        below + (above - below) * (place % 4) as f64 / 4.0
    }
}

/// How long it took, and what came of it. It begins when udev has nothing left to do of what was done before.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (Duration, T) {
    settle();
    let started = Instant::now();
    let result = work.await;
    (started.elapsed(), result)
}

/// As [`timed`], for what waits in this very thread.
pub(crate) fn clocked<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    settle();
    let started = Instant::now();
    let result = work();
    (started.elapsed(), result)
}
