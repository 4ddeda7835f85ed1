//! The audit log: one line for each call that changes something, and for each that was refused for who called. It goes to
//! the log under the target `audit`, with its parts as fields (in systemd's journal `F_WHO`, `F_RPC` and so on, under
//! `TARGET=audit`). No part is a secret, and none holds what a stranger wrote.

use super::Call;
use crate::{config::Role, status};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tonic::Code;

/// Written when the call ends, and also when its caller hangs up: then the work goes on without him.
pub(super) struct Entry {
    call: Arc<Call>,
    outcome: Option<Code>,
}

impl Entry {
    pub(super) fn of(call: Arc<Call>) -> Self {
        Self { call, outcome: None }
    }

    pub(super) fn ends(mut self, outcome: Code) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let seen = self.call.seen().clone();
        if !(self.call.rpc.changes || seen.changes || seen.refused) {
            return;
        }
        let outcome = self.outcome.map_or("HUNG_UP", status::name);
        let subject = if seen.dry_run { format!("{} (dry run)", seen.subject) } else { seen.subject };
        let (who, rpc) = (&self.call.peer, self.call.rpc.name);
        let role = self.call.role().map_or("none", Role::as_str);
        let operation = seen.operation.map(|id| id.to_string()).unwrap_or_default();
        tracing::info!(target: "audit", %who, role, rpc, subject, outcome, operation, "{who} ({role}): {rpc} {subject}: {outcome}");
    }
}

/// A call of somebody without any role. He may make as many as he likes, so that he is told of once a minute only.
pub(super) fn stranger(call: &Call, user: u32, quiet: &Quiet<u32>) {
    if let Some(unsaid) = quiet.speak_of(user) {
        let (who, rpc) = (&call.peer, call.rpc.name);
        let role = "none";
        tracing::info!(
            target: "audit", %who, role, rpc, outcome = "PERMISSION_DENIED", unsaid,
            "{who} (no role): {rpc}: PERMISSION_DENIED; {unsaid} more like this were not told of"
        );
    }
}

/// Remembers of whom was spoken, so that nobody fills the log.
#[derive(Debug)]
pub(crate) struct Quiet<K>(Mutex<HashMap<K, (Instant, u64)>>);

impl<K> Default for Quiet<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq> Quiet<K> {
    const PAUSE: Duration = Duration::from_secs(60);
    /// Of so many different ones is spoken in a minute.
    const MOST: usize = 128;

    /// `None`: not now. Else how often nothing was said since the last time.
    pub(crate) fn speak_of(&self, whom: K) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((since, unsaid)) = all.get_mut(&whom) {
            if now.duration_since(*since) < Self::PAUSE {
                *unsaid += 1;
                return None;
            }
            *since = now;
            return Some(std::mem::take(unsaid));
        }
        if all.len() >= Self::MOST {
            all.retain(|_, (since, _)| now.duration_since(*since) < Self::PAUSE);
            if all.len() >= Self::MOST {
                return None;
            }
        }
        all.insert(whom, (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_is_told_of_once_a_minute_and_not_too_many() {
        let quiet = Quiet::default();
        assert_eq!(
            [quiet.speak_of(1), quiet.speak_of(1), quiet.speak_of(2), quiet.speak_of(1)],
            [Some(0), None, Some(0), None]
        );
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!([quiet.speak_of(1), quiet.speak_of(1)], [Some(2), None]);
        let told = (10..10_000).filter(|who| quiet.speak_of(*who).is_some()).count();
        assert!(told <= Quiet::<u32>::MOST, "{told}");
    }
}
