//! A process of this host that talks to us.

/// What the kernel says of the process at the other end of a Unix socket. Not which process: its number may be another's
/// by now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPeer {
    /// Its user.
    pub user: u32,
    /// Its groups, its own first.
    pub groups: Vec<u32>,
}
