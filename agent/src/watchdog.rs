//! systemd's watchdog (`WatchdogSec=`): it kills and restarts an agent that does not say in time that it works. So it is
//! said by work, not by a timer: a task of the runtime has to be run, and the journal's thread has to come to it.
//!
//! ```text
//!   half of systemd's time ─▶ a task is run ─▶ the journal's thread answers ─▶ WATCHDOG=1
//!           ▲                     │                    │                          │
//!           └─────────────────────┼────────────────────┼──────────────────────────┘
//!                                 └── stuck ───────────┴── stuck, or gone: nothing is said any more
//! ```
//!
//! It wakes an idle agent twice in systemd's time, and not more often.

use crate::journal::Journal;
use sd_notify::NotifyState;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

/// Tells systemd for as long as this is kept; `None` if it does not ask.
pub(crate) fn watched(journal: &Journal) -> Option<AbortOnDropHandle<()>> {
    let within = sd_notify::watchdog_enabled()?;
    let tell = || {
        let _not_under_systemd = sd_notify::notify(&[NotifyState::Watchdog]);
    };
    Some(AbortOnDropHandle::new(tokio::spawn(tell_while_it_works(journal.clone(), within / 2, tell))))
}

async fn tell_while_it_works(journal: Journal, every: Duration, tell: impl Fn()) {
    let mut time = interval(every);
    // After a pause (a machine that slept) one is enough.
    time.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        time.tick().await;
        let journal = journal.clone();
        let works = tokio::spawn(async move { journal.answers().await });
        if works.await.unwrap_or(false) {
            tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use host::sim::Machine;
    use std::{
        path::Path,
        sync::{Arc, mpsc},
    };
    use tokio::{sync::watch, time::timeout};

    const EVERY: Duration = Duration::from_millis(5);

    /// How often it was told, as it is.
    fn told(path: &Path) -> (Journal, watch::Receiver<usize>, AbortOnDropHandle<()>) {
        let journal = Journal::open(path, Arc::new(Machine::new()));
        let (count, told) = watch::channel(0);
        let tell = move || count.send_modify(|times| *times += 1);
        let task = tokio::spawn(tell_while_it_works(journal.clone(), EVERY, tell));
        (journal, told, AbortOnDropHandle::new(task))
    }

    #[tokio::test]
    async fn systemd_hears_nothing_while_the_journal_is_stuck() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, mut told, _task) = told(&directory.path().join("journal.sqlite"));
        told.wait_for(|times| *times == 3).await.unwrap();
        let (answers, disk) = mpsc::channel::<()>();
        let stuck = journal.stuck_until(disk);
        tokio::pin!(stuck);
        assert!(timeout(10 * EVERY, &mut stuck).await.is_err());
        let before = *told.borrow_and_update();
        assert!(timeout(20 * EVERY, told.changed()).await.is_err(), "a stuck agent said that it works");
        drop(answers);
        stuck.await;
        told.wait_for(|times| *times > before).await.unwrap();
    }

    #[tokio::test]
    async fn without_a_journal_it_works_read_only() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, mut told, _task) = told(directory.path());
        assert!(journal.lost().is_some());
        told.wait_for(|times| *times == 2).await.unwrap();
    }
}
