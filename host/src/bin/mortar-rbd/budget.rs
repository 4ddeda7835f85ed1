//! How long a change may go on beginning steps. Whoever asked stops waiting some time; what is begun after that would surprise
//! him.

use crate::text::ceph_said;
use host::rbd_job::{Failure, Step};
use std::time::{Duration, Instant};

/// When the last step may begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget(Option<Instant>);

impl Budget {
    pub(crate) fn new(begun: Instant, milliseconds: Option<u64>) -> Self {
        Self(milliseconds.and_then(|time| begun.checked_add(Duration::from_millis(time))))
    }

    /// To be asked before each step.
    pub(crate) fn allows(self, step: Step, doing: &str) -> Result<(), Failure> {
        match self.0.is_some_and(|until| Instant::now() >= until) {
            true => Err(Failure {
                message: "the time for the whole job was over before".into(),
                ..ceph_said(step, doing, -libc::ETIMEDOUT)
            }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_step_is_begun_late() {
        let begun = Instant::now();
        assert!(Budget::new(begun, None).allows(Step::Rename, "rename").is_ok());
        assert!(Budget::new(begun, Some(60_000)).allows(Step::Rename, "rename").is_ok());
        let failure = Budget::new(begun, Some(0)).allows(Step::Rename, "rename").unwrap_err();
        assert_eq!((failure.step, failure.errno), (Step::Rename, Some(libc::ETIMEDOUT)));
    }
}
