//! The operations that have not ended, as they are now: what each waits for, and how it is asked to give up. The journal
//! knows what they are; this is of this process only.

use crate::operation::OperationId;
use host::{Host, Step, Steps};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// All of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Running(Arc<Mutex<HashMap<OperationId, Arc<Course>>>>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) steps: Arc<Steps>,
    /// When it should have ended.
    deadline: Instant,
    /// Cancelled when it has ended.
    pub(crate) ended: CancellationToken,
}

/// What an operation waits for.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) what: String,
    pub(crate) since: Duration,
    pub(crate) process: Option<u32>,
    /// It should have come back by now.
    pub(crate) wedged: bool,
}

/// An operation is listed until this is dropped.
#[derive(Debug)]
pub(crate) struct Listed {
    running: Running,
    id: OperationId,
    pub(crate) course: Arc<Course>,
}

impl Running {
    fn all(&self) -> MutexGuard<'_, HashMap<OperationId, Arc<Course>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self, id: OperationId, undoable: bool, deadline: Instant) -> Listed {
        let course = Course { steps: Steps::new(undoable), deadline, ended: CancellationToken::new() };
        let course = Arc::new(course);
        self.all().insert(id, Arc::clone(&course));
        Listed { running: self.clone(), id, course }
    }

    /// How many there are, and how many of them are wedged.
    pub(crate) fn counts(&self, host: &dyn Host, patience: Duration) -> (usize, usize) {
        let all: Vec<Arc<Course>> = self.all().values().cloned().collect();
        let wedged = all.iter().filter_map(|course| course.waiting(host, patience)).filter(|waiting| waiting.wedged);
        (all.len(), wedged.count())
    }

    pub(crate) fn get(&self, id: OperationId) -> Option<Arc<Course>> {
        self.all().get(&id).cloned()
    }
}

impl Course {
    /// What it waits for in the machine now. Wedged: `patience` past its deadline; or past it at all, if the process is in
    /// the kernel and cannot be woken.
    pub(crate) fn waiting(&self, host: &dyn Host, patience: Duration) -> Option<Waiting> {
        let Step { what, since, process, .. } = self.steps.oldest()?;
        let late = Instant::now().checked_duration_since(self.deadline);
        let asleep = || process.is_some_and(|process| cannot_be_woken(host, process));
        let wedged = late.is_some_and(|late| late >= patience || asleep());
        Some(Waiting { what, since: since.elapsed(), process, wedged })
    }
}

/// State D of proc_pid_stat(5): `PID (COMMAND) STATE …`; the command may hold anything.
fn cannot_be_woken(host: &dyn Host, process: u32) -> bool {
    let stat = host.read(Path::new(&format!("/proc/{process}/stat"))).ok().flatten().unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.running.all().remove(&self.id);
        self.course.ended.cancel();
    }
}
