//! gRPC from other machines: TLS 1.3 with certificates on both sides, and in no other way.
//!
//! ```text
//!   accept ─▶ one of few handshakes ── proved in time ──▶ Session ─▶ admission, gate: as for the socket
//!                      └── else hung up; told of once a minute for each address
//!
//!   files (certificate, key, CAs, CRLs) ─▶ Identity: read again when they change
//!                                             ├── by the next handshake
//!                                             └── by the next request of those who are connected: revoked is revoked
//! ```

mod certificate;
mod door;
mod identity;

pub(crate) use certificate::Certificate;
pub(crate) use door::{Door, Session};
pub(crate) use identity::Identity;

use std::{io, net::SocketAddr, path::PathBuf};

/// Why nothing is served by TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of its files.
    #[error("tls.{key}: {}: {why}", path.display())]
    File {
        /// `certificate`
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// They do not go together.
    #[error("tls: {0}")]
    Together(String),
    /// The kernel said no.
    #[error("tls.listen: cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What it said.
        source: io::Error,
    },
}
