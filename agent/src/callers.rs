//! Who calls, and what he may do. Every RPC passes one gate, which knows for each what it needs (`table`), and no service
//! is reached by another way.
//!
//! ```text
//!   connection ─ peer: the kernel's word, or a certificate ─▶ rules of the config ─▶ grants: roles, each with its reach
//!                                                                                        │
//!   request ─ path ─▶ table: the role it needs ──────────────────────▶ gate ◀────────────┘
//!                                                                       │ Call: goes with the request
//!                               service: is what it names in reach? ◀───┤
//!                     operation: is what it is about to change? ◀───────┘──▶ audit: one line at its end
//! ```
//!
//! The gate sees the path only. What a request names is known when it is parsed, and what that stands for when it is looked
//! up: the service asks as soon as it knows ([`Call::concerns`]), and no operation begins without being asked once more
//! ([`begins`]), under its locks, about what it really is going to change.

mod audit;
mod call;
mod gate;
mod pattern;
mod peer;
mod policy;
mod reach;
mod table;

pub(crate) use audit::Quiet;
pub(crate) use call::{Call, begins, ended, may_begin};
pub(crate) use gate::Gate;
pub use peer::{Introduced, Peer};
pub(crate) use policy::Policy;
pub(crate) use reach::Reach;

use crate::config;
use std::sync::{Arc, PoisonError, RwLock};

/// The rules that hold now; all connections share them.
#[derive(Debug)]
pub(crate) struct Callers {
    policy: RwLock<Arc<Policy>>,
    /// Strangers are told of once a minute each.
    strangers: Quiet<u32>,
}

impl Callers {
    pub(crate) fn new(config: &config::Callers) -> Self {
        Self { policy: RwLock::new(Arc::new(Policy::of(config))), strangers: Quiet::default() }
    }

    /// From now on these hold, for those who are connected, too.
    pub(crate) fn set(&self, config: &config::Callers) {
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Policy::of(config));
    }

    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a rule names him.
    pub(crate) fn know(&self, peer: &Peer) -> bool {
        !self.policy().grants(peer).is_empty()
    }
}
