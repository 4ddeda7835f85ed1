//! Threads apart from the runtime's, for calls that nobody can end and that may last as long as a cluster is away. The runtime
//! has a limited number of threads, which everything else needs.

use crate::{Error, Result, step};
use std::{
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};
use tokio::sync::{Semaphore, oneshot};

type Work = Box<dyn FnOnce() + Send>;

/// A number of them. One that has nothing to do is kept for the next call: to start it is a good part of what a call costs.
#[derive(Debug, Clone)]
pub(super) struct Threads {
    free: Arc<Semaphore>,
    number: usize,
    idle: Arc<Mutex<Option<mpsc::Sender<Work>>>>,
}

impl Threads {
    pub(super) fn new(number: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(number)), number, idle: Arc::default() }
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
        let work = move || {
            let done = work();
            drop(step);
            drop(taken);
            let _nobody_waits = sender.send(done);
        };
        self.hand(Box::new(work))?;
        let panicked = |_| Error::Start { tool: "a thread", source: std::io::Error::other("it panicked") };
        receiver.await.map_err(panicked)?
    }

    /// To the one that is idle, or else to a new one.
    fn hand(&self, work: Work) -> Result<()> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = idle else { return self.start(work) };
        thread.send(work).or_else(|mpsc::SendError(work)| self.start(work))
    }

    fn start(&self, work: Work) -> Result<()> {
        let idle = Arc::downgrade(&self.idle);
        let run = move || {
            let mut next = Ok(work);
            while let Ok(work) = next {
                work();
                let (sender, receiver) = mpsc::channel();
                match idle.upgrade() {
                    Some(idle) => idle.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(sender),
                    None => return,
                };
                next = receiver.recv();
            }
        };
        let start = |source| Error::Start { tool: "a thread", source };
        thread::Builder::new().name("mortar-krbd".into()).spawn(run).map_err(start)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, time::Duration};
    use tokio::time::timeout;

    #[tokio::test]
    async fn one_that_is_idle_takes_the_next_call() {
        let threads = Threads::new(2);
        let id = || async { threads.run(|| Ok(thread::current().id())).await.unwrap() };
        let is_idle = || threads.idle.lock().unwrap().is_some();
        let soon = tokio::time::Instant::now() + Duration::from_secs(20);
        let first = id().await;
        while !is_idle() {
            assert!(tokio::time::Instant::now() < soon, "it does not wait for the next");
            thread::yield_now();
        }
        assert_eq!(id().await, first);
    }

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
