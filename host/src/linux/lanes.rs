//! The same call on the same device, one at a time. A device whose server is gone may keep a call in the kernel for ever, and
//! with it a thread; those who ask again wait for that one's end without a thread of their own, so that no device can use up
//! all of them.

use super::blocking;
use crate::{Error, Result};
use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout},
};

/// What is done on which path. It is kept as a digest: what is written may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    path: PathBuf,
    call: u64,
}

impl Lane {
    pub(super) fn of(path: &Path, call: &str) -> Self {
        let mut digest = DefaultHasher::new();
        call.hash(&mut digest);
        Self { path: path.to_owned(), call: digest.finish() }
    }
}

/// The calls that go on. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Lanes(Arc<Mutex<HashMap<Lane, Arc<AsyncMutex<()>>>>>);

impl Lanes {
    /// As [`blocking`], when no other call is in this lane. The wait for that counts.
    pub(super) async fn alone<T: Send + 'static>(
        &self,
        lane: Lane,
        what: String,
        limit: Duration,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let begun = Instant::now();
        let free = {
            let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
            Arc::clone(lanes.entry(lane).or_default())
        };
        let Ok(mine) = timeout(limit, free.lock_owned()).await else {
            return Err(Error::TimedOut { what: format!("an earlier {what}"), after: limit });
        };
        blocking(what, limit.saturating_sub(begun.elapsed()), move || {
            // As long as the thread is in the kernel, whether somebody waits for it or not.
            let _mine = mine;
            work()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    #[tokio::test]
    async fn a_call_that_hangs_has_one_thread_however_often_it_is_repeated() {
        let (lanes, begun) = (Lanes::default(), Arc::new(AtomicUsize::new(0)));
        let (answer, kernel) = mpsc::channel::<()>();
        let soon = Duration::from_millis(50);
        let call = |lane: Lane, work: Box<dyn FnOnce() + Send>| {
            let (lanes, begun) = (lanes.clone(), Arc::clone(&begun));
            async move {
                let work = move || {
                    begun.fetch_add(1, Ordering::SeqCst);
                    work();
                    Ok(())
                };
                lanes.alone(lane, "flush".into(), soon, work).await
            }
        };
        let lane = || Lane::of(Path::new("/dev/rbd0"), "flush");
        let hangs = move || {
            let _answered = kernel.recv();
        };
        assert!(call(lane(), Box::new(hangs)).await.is_err());
        for _ in 0..3 {
            assert!(matches!(call(lane(), Box::new(|| ())).await, Err(Error::TimedOut { .. })));
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1);
        call(Lane::of(Path::new("/dev/rbd1"), "flush"), Box::new(|| ())).await.unwrap();
        answer.send(()).unwrap();
        while call(lane(), Box::new(|| ())).await.is_err() {}
        assert_eq!(begun.load(Ordering::SeqCst), 3, "none of those that gave up was done later");
    }
}
