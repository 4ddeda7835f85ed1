//! The other end of a connection, as the kernel or a handshake proved it.

use crate::tls::Certificate;
use driver::Result;
use host::LocalPeer;
use std::{fmt, sync::Arc};
use tokio::net::UnixStream;

/// Who it is.
#[derive(Debug, Clone)]
pub enum Peer {
    /// A process of this host.
    Local(LocalPeer),
    /// Somebody on another machine.
    Certified(Arc<Certificate>),
    /// The kernel would not say. Nobody has a rule for him.
    Unknown,
}

impl Peer {
    /// A user stays who he is; a certificate may be good no longer.
    pub(super) fn is_still_good(&self) -> Result<()> {
        match self {
            Self::Certified(certificate) => certificate.is_still_good(),
            Self::Local(_) | Self::Unknown => Ok(()),
        }
    }
}

/// A connection that knows who is at its other end.
pub trait Introduced {
    /// Who.
    fn peer(&self) -> Peer;
}

impl Introduced for UnixStream {
    fn peer(&self) -> Peer {
        match LocalPeer::of(self) {
            Ok(peer) => Peer::Local(peer),
            Err(error) => {
                tracing::error!(%error, "the kernel does not say who has connected: {error}");
                Peer::Unknown
            }
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(peer) => write!(f, "uid {}", peer.user),
            Self::Certified(certificate) => certificate.fmt(f),
            Self::Unknown => f.write_str("an unknown caller"),
        }
    }
}
