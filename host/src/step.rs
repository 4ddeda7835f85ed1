//! What a piece of work waits for in the machine, told to whoever set it out; and how it is asked to give up.
//!
//! [`Attended`] stands between the drivers and the machine, so that no driver has to do anything for it. Each call that
//! changes something or may wait is a *step* of the work in whose scope it is made ([`Steps::during`]). A step lasts as long
//! as the machine is at it: a thread in the kernel or a tool that nobody waits for any more keeps it going. What is asked of
//! somebody else on this host than the trait `Host` ([`reads`], [`changes`]) is a step as well.
//!
//! ```text
//!                    ┌── a call that only reads or waits: left at once
//!   cancel is asked ─┼── a call that changes something: goes to its end, and the next one is not begun
//!                    └── refused, if there is no way back: something was changed already, or the end is being committed
//! ```

use crate::{Error, Result};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::watch, task_local, time::Instant};
use tracing::{Instrument, trace_span};

mod attended;

pub use attended::{Attended, Started};

/// The target of the spans that traces are made of. No log shows them.
pub const TRACES: &str = "traces";

task_local! {
    static WORK: Arc<Steps>;
    static STEP: Going;
}

/// The steps of one piece of work.
#[derive(Debug)]
pub struct Steps {
    state: Mutex<State>,
    /// Told of each change of the state.
    changed: watch::Sender<()>,
    /// What was changed can be taken back.
    undoable: bool,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    going: BTreeMap<u64, Step>,
    /// The first change that was begun.
    changed: Option<String>,
    asked: bool,
    closed: bool,
}

/// One call on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// In words: `run lvm lvchange …`, `flush /dev/sdb`.
    pub what: String,
    /// When it began.
    pub since: Instant,
    /// The process, if it is one.
    pub process: Option<u32>,
    /// It changes something.
    changes: bool,
}

impl Steps {
    /// Of work that is about to begin. `undoable`: it can be cancelled until its end, because what it changed is taken back.
    pub fn new(undoable: bool) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: watch::Sender::new(()), undoable })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a part of the work: its calls are steps, and end when a cancel is asked.
    pub async fn during<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        WORK.scope(Arc::clone(self), work).await
    }

    /// The step that goes on for longest.
    pub fn oldest(&self) -> Option<Step> {
        self.state().going.values().min_by_key(|step| step.since).cloned()
    }

    /// Whether the machine is still changing something, though nobody may wait for it.
    pub fn is_changing(&self) -> bool {
        self.state().going.values().any(|step| step.changes)
    }

    /// Ends when it is not.
    pub async fn settled(&self) {
        let mut changed = self.changed.subscribe();
        // The sender lives as long as `self`.
        let _seen = changed.wait_for(|()| !self.is_changing()).await;
    }

    /// Asks the work to give up. Refused with what it has changed already, if that cannot be taken back, or with nothing if
    /// its end is being committed.
    pub fn cancel(&self) -> std::result::Result<(), Option<String>> {
        let mut state = self.state();
        match &state.changed {
            _ if state.closed => return Err(None),
            Some(what) if !self.undoable && !state.asked => return Err(Some(what.clone())),
            _ => state.asked = true,
        }
        drop(state);
        self.changed.send_replace(());
        Ok(())
    }

    /// From now on it cannot be cancelled. `false`: it was.
    pub fn close(&self) -> bool {
        let mut state = self.state();
        state.closed = !state.asked;
        state.closed
    }

    /// Whether a cancel was asked.
    pub fn is_cancelled(&self) -> bool {
        self.state().asked
    }

    async fn until_cancelled(&self) {
        let mut changed = self.changed.subscribe();
        let _seen = changed.wait_for(|()| self.is_cancelled()).await;
    }

    fn begin(self: &Arc<Self>, what: &str, kind: Kind) -> Result<Going> {
        let mut state = self.state();
        if state.asked {
            return Err(Error::Cancelled);
        }
        if kind == Kind::Changes && state.changed.is_none() {
            state.changed = Some(what.to_owned());
        }
        let number = state.next;
        state.next += 1;
        let changes = kind != Kind::Reads;
        let step = Step { what: what.to_owned(), since: Instant::now(), process: None, changes };
        state.going.insert(number, step);
        Ok(Going(Arc::new(Mark { steps: Arc::clone(self), number })))
    }
}

/// What a call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It may be left at any time.
    Reads,
    /// It writes what was written already: it takes nothing that could not be had back.
    Flushes,
    Changes,
}

/// A step goes on for as long as one of these is kept.
#[derive(Debug, Clone)]
pub struct Going(Arc<Mark>);

#[derive(Debug)]
struct Mark {
    steps: Arc<Steps>,
    number: u64,
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.steps.state().going.remove(&self.number);
        self.steps.changed.send_replace(());
    }
}

/// The step that this call is, to be kept by whatever goes on with it; `None` if nobody set it out.
pub fn current() -> Option<Going> {
    STEP.try_with(Going::clone).ok()
}

impl Going {
    /// How far it is, for whoever asks what the work waits for.
    pub(crate) fn says(&self, what: impl Into<String>) {
        let Self(mark) = self;
        if let Some(step) = mark.steps.state().going.get_mut(&mark.number) {
            step.what = what.into();
        }
    }

    /// Whether the work was asked to give up.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.steps.is_cancelled()
    }
}

/// The step that this call is, is this process.
pub(crate) fn is_process(process: Option<u32>) {
    let _nobody_asks = STEP.try_with(|Going(mark)| {
        if let Some(step) = mark.steps.state().going.get_mut(&mark.number) {
            step.process = process;
        }
    });
}

/// [`Error::Cancelled`] if the work that this is part of was asked to give up.
pub(crate) fn proceed() -> Result<()> {
    match WORK.try_with(|steps| steps.is_cancelled()) {
        Ok(true) => Err(Error::Cancelled),
        _ => Ok(()),
    }
}

/// Ends when the work that this is part of is asked to give up: for waits that are no call on the machine.
pub async fn cancelled() {
    match WORK.try_with(Arc::clone) {
        Ok(steps) => steps.until_cancelled().await,
        Err(_) => std::future::pending().await,
    }
}

/// The same work in another task: for what is spawned.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let steps = WORK.try_with(Arc::clone).ok();
    async move {
        match steps {
            Some(steps) => WORK.scope(steps, work).await,
            None => work.await,
        }
    }
}

/// Makes a call that only reads, of somebody else than the trait [`crate::Host`], as a step of the work that it is part of.
/// [`Error::Cancelled`] if that was asked to give up; else what the call answered.
pub async fn reads<T>(what: &str, call: impl Future<Output = T>) -> Result<T> {
    step(Kind::Reads, || what.to_owned(), async { Ok(call.await) }).await
}

/// As [`reads`], of a call that changes something: once begun it goes to its end.
pub async fn changes<T>(what: &str, call: impl Future<Output = T>) -> Result<T> {
    step(Kind::Changes, || what.to_owned(), async { Ok(call.await) }).await
}

/// Makes a call, as a step of the work that it is part of.
async fn step<T>(kind: Kind, what: impl FnOnce() -> String, call: impl Future<Output = Result<T>>) -> Result<T> {
    let what = what();
    let call = call.instrument(trace_span!(target: TRACES, "step", otel.name = what.as_str()));
    let Ok(steps) = WORK.try_with(Arc::clone) else { return call.await };
    let going = steps.begin(&what, kind)?;
    let call = STEP.scope(going, call);
    match kind {
        Kind::Changes => call.await,
        Kind::Reads | Kind::Flushes => tokio::select! {
            done = call => done,
            () = steps.until_cancelled() => Err(Error::Cancelled),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_is_left_and_a_change_is_not() {
        let steps = Steps::new(true);
        let work = steps.during(async {
            let name = || "read".to_owned();
            let read = step(Kind::Reads, name, std::future::pending::<Result<()>>());
            let (read, asked) = tokio::join!(read, async { steps.cancel() });
            assert!(matches!((read, asked), (Err(Error::Cancelled), Ok(()))));
            assert!(matches!(step(Kind::Changes, name, async { Ok(()) }).await, Err(Error::Cancelled)));
            assert!(matches!(proceed(), Err(Error::Cancelled)));
        });
        work.await;
        assert!(!steps.close());
        let steps = Steps::new(true);
        let change = steps.during(step(Kind::Changes, || "change".into(), async {
            steps.cancel().unwrap();
            tokio::task::yield_now().await;
            Ok(7)
        }));
        assert_eq!(change.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn what_cannot_be_taken_back_is_not_cancelled() {
        let steps = Steps::new(false);
        steps.during(step(Kind::Flushes, || "flush".into(), async { Ok(()) })).await.unwrap();
        steps.during(step(Kind::Changes, || "rename".into(), async { Ok(()) })).await.unwrap();
        assert_eq!(steps.cancel(), Err(Some("rename".into())));
        let steps = Steps::new(true);
        assert!(steps.close());
        assert_eq!(steps.cancel(), Err(None));
    }

    #[tokio::test]
    async fn a_step_lasts_as_long_as_somebody_is_at_it() {
        let steps = Steps::new(true);
        let (free, held) = tokio::sync::oneshot::channel::<()>();
        let call = steps.during(step(Kind::Changes, || "write".into(), async {
            let going = current();
            tokio::spawn(async move {
                let _let_go = held.await;
                drop(going);
            });
            is_process(Some(7));
            Ok(())
        }));
        call.await.unwrap();
        let step = steps.oldest().unwrap();
        assert_eq!((step.what.as_str(), step.process), ("write", Some(7)));
        assert!(steps.is_changing());
        free.send(()).unwrap();
        steps.settled().await;
        assert_eq!(steps.oldest(), None);
    }
}
