//! What this driver is about to map, and what it has mapped but not yet settled upon.
//!
//! A write that maps may hang in the kernel for as long as the cluster does. Nobody waits for it for ever: who asked gets
//! his answer at his deadline, and the mapping, should it come after all, is taken away at once. Until then it is noted
//! here, so that an undo does not call gone what is still to come.
//!
//! It also tells two attaches of one image (by two names of it) apart: what is not settled is nobody's device yet.

use crate::mapping::{Mapping, Mark};
use driver::Image;
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Debug, Clone, Default)]
pub(crate) struct Underway(Arc<Mutex<HashSet<Mark>>>);

impl Underway {
    fn marks(&self) -> MutexGuard<'_, HashSet<Mark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a mark for as long as what is returned lives.
    pub(crate) fn note(&self, mark: &Mark) -> Noted {
        self.marks().insert(mark.clone());
        Noted { underway: self.clone(), mark: mark.clone() }
    }

    pub(crate) fn holds(&self, mark: &Mark) -> bool {
        self.marks().contains(mark)
    }

    /// Whether a mapping is somebody's device by now.
    pub(crate) fn is_settled(&self, mapping: &Mapping) -> bool {
        !mapping.mark.as_ref().is_some_and(|mark| self.holds(mark))
    }

    /// Whether this locator is still being mapped.
    pub(crate) fn maps(&self, image: &Image) -> bool {
        self.marks().iter().any(|mark| mark.is_for(image))
    }
}

/// A mark that is noted.
#[derive(Debug)]
pub(crate) struct Noted {
    underway: Underway,
    mark: Mark,
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.underway.marks().remove(&self.mark);
    }
}
