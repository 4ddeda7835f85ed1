//! Threads apart from the runtime's, for calls that nobody can end and that may last as long as a cluster is away. The runtime
//! has a limited number of threads, which everything else needs.

use crate::{Error, Result, step};
use std::{sync::Arc, thread};
use tokio::sync::{Semaphore, oneshot};

/// A number of them.
#[derive(Debug, Clone)]
pub(super) struct Threads {
    free: Arc<Semaphore>,
    number: usize,
}

impl Threads {
    pub(super) fn new(number: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(number)), number }
    }

    /// Runs it to its end, whether somebody waits for it or not. [`Error::Unreachable`] if all are taken.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let Ok(taken) = Arc::clone(&self.free).try_acquire_owned() else {
            return Err(Error::Unreachable {
                why: format!(
                    "{} earlier calls have not been answered by the kernel; see to their clusters first",
                    self.number
                ),
            });
        };
        let (sender, receiver) = oneshot::channel();
        let step = step::current();
        let run = move || {
            let done = work();
            drop(step);
            drop(taken);
            let _nobody_waits = sender.send(done);
        };
        let start = |source| Error::Start { tool: "a thread", source };
        thread::Builder::new().name("mortar-krbd".into()).spawn(run).map_err(start)?;
        receiver.await.map_err(|_| start(std::io::Error::other("it panicked")))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};
    use tokio::time::timeout;

    #[tokio::test]
    async fn those_that_hang_are_counted_and_more_are_refused() {
        let threads = Threads::new(2);
        let mut answers = Vec::new();
        for _ in 0..2 {
            let (answer, kernel) = mpsc::channel::<()>();
            let hangs = threads.run(move || {
                let _answered = kernel.recv();
                Ok(())
            });
            assert!(timeout(Duration::from_millis(20), hangs).await.is_err());
            answers.push(answer);
        }
        let refused = threads.run(|| Ok(())).await.unwrap_err();
        assert!(refused.to_string().contains("2 earlier calls"), "{refused}");
        drop(answers);
        let soon = tokio::time::Instant::now() + Duration::from_secs(20);
        while threads.run(|| Ok(())).await.is_err() {
            assert!(tokio::time::Instant::now() < soon, "a thread is not given back");
        }
    }
}
