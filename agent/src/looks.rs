//! The attachments that the start has not looked at yet. It looks at them while others are served; a call that is about one of
//! them has that one looked at first, and waits for no other.
//!
//! ```text
//!   expected ──▶ begun ──▶ ended
//!      │           ▲         ▲
//!      │           │         └── a call that is about it goes on from here, or ends at its deadline
//!      └── in its turn, or as soon as a call is about it
//! ```

use driver::AttachmentId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio_util::sync::CancellationToken;

/// Those that are not looked at yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Looks(Arc<Mutex<BTreeMap<AttachmentId, Look>>>);

#[derive(Debug, Default)]
struct Look {
    begun: bool,
    /// Cancelled when it has ended.
    ended: CancellationToken,
}

/// A look that goes on until this is dropped.
#[derive(Debug)]
pub(crate) struct Begun {
    looks: Looks,
    pub(crate) id: AttachmentId,
}

impl Looks {
    fn all(&self) -> MutexGuard<'_, BTreeMap<AttachmentId, Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The start is going to look at these.
    pub(crate) fn expect(&self, ids: impl IntoIterator<Item = AttachmentId>) {
        self.all().extend(ids.into_iter().map(|id| (id, Look::default())));
    }

    /// Whoever gets it has to look. `None`: somebody does or did, or it is nothing that the start looks at.
    pub(crate) fn begin(&self, id: &AttachmentId) -> Option<Begun> {
        let mut all = self.all();
        let look = all.get_mut(id).filter(|look| !look.begun)?;
        look.begun = true;
        Some(Begun { looks: self.clone(), id: id.clone() })
    }

    /// One that has not begun.
    pub(crate) fn next(&self) -> Option<Begun> {
        let id = self.all().iter().find(|(_, look)| !look.begun).map(|(id, _)| id.clone())?;
        self.begin(&id)
    }

    /// Cancelled when it has ended; `None` if it has.
    pub(crate) fn end_of(&self, id: &AttachmentId) -> Option<CancellationToken> {
        self.all().get(id).map(|look| look.ended.clone())
    }

    /// Ends when all have.
    pub(crate) async fn have_ended(&self) {
        loop {
            let one = self.all().values().next().map(|look| look.ended.clone());
            match one {
                Some(ended) => ended.cancelled().await,
                None => return,
            }
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(look) = self.looks.all().remove(&self.id) {
            look.ended.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn each_is_looked_at_once_and_waited_for_until_then() {
        let (looks, id) = (Looks::default(), |id: &str| id.parse::<AttachmentId>().unwrap());
        looks.expect([id("a"), id("b")]);
        let b = looks.begin(&id("b")).unwrap();
        assert!(looks.begin(&id("b")).is_none(), "it is looked at twice");
        let a = looks.next().unwrap();
        assert_eq!(a.id, id("a"));
        assert!(looks.next().is_none());
        let (end_of_a, end_of_b) = (looks.end_of(&id("a")).unwrap(), looks.end_of(&id("b")).unwrap());
        drop(b);
        assert!(end_of_b.is_cancelled() && !end_of_a.is_cancelled());
        assert!(looks.end_of(&id("b")).is_none() && looks.end_of(&id("c")).is_none());
        let all = looks.have_ended();
        tokio::pin!(all);
        assert!(timeout(Duration::ZERO, &mut all).await.is_err());
        drop(a);
        all.await;
    }
}
