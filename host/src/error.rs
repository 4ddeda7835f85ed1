//! How the machine fails: what we were doing, on what, and what it said.

use std::{io, path::PathBuf, time::Duration};

/// The result of everything a host is asked.
pub type Result<T> = std::result::Result<T, Error>;

/// How the machine fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, an attribute or a device node.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// `read`, `write`, `open`, …
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A tool could not be started.
    #[error("cannot start {tool}")]
    Start {
        /// `iscsiadm`
        tool: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something did not end in time. What it did is unknown.
    #[error("{what} did not end within {} ms", after.as_millis())]
    TimedOut {
        /// The command line, or the request.
        what: String,
        /// How long it was given.
        after: Duration,
    },
    /// Somebody has mounted or holds the device.
    #[error("{} is mounted or held", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// The name is taken.
    #[error("{} is already there", path.display())]
    Exists {
        /// The name.
        path: PathBuf,
    },
    /// The work that the call is part of was asked to give up; the call did nothing.
    #[error("it was cancelled")]
    Cancelled,
    /// Nobody answers at an address.
    #[error("{why}")]
    Unreachable {
        /// `connection refused`, `no answer`, …
        why: String,
    },
}

impl Error {
    /// For `map_err`: what we were `doing`, on which path.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
