//! Who is at the other end of a Unix socket, as the kernel noted it when he connected.

use crate::LocalPeer;
use nix::sys::socket::{getsockopt, sockopt};
use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// The most that a process can be in (`NGROUPS_MAX`).
const MOST_GROUPS: usize = 65_536;

impl LocalPeer {
    /// Asks the kernel: SO_PEERCRED and SO_PEERGROUPS, unix(7). The groups are those that the process had, its own first:
    /// no database is asked, so nothing can hang, and a process that gave a group up does not have it.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        let own = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
        let mut groups = vec![own.gid()];
        groups.extend(supplementary(socket)?);
        Ok(Self { user: own.uid(), groups })
    }
}

fn supplementary(socket: &impl AsFd) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let room = groups.len() * size_of::<libc::gid_t>();
        let mut length = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open for as long as it is borrowed; the kernel writes at most `length` bytes into a
        // buffer that is as long, and any bytes are a number.
        #[expect(unsafe_code, reason = "nix has no such option")]
        let failed = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        } != 0;
        let told = usize::try_from(length).map_err(io::Error::other)? / size_of::<libc::gid_t>();
        match failed.then(io::Error::last_os_error) {
            None => {
                groups.truncate(told);
                return Ok(groups);
            }
            // It has said how much room it needs.
            Some(error)
                if error.raw_os_error() == Some(libc::ERANGE) && (groups.len()..=MOST_GROUPS).contains(&told) =>
            {
                groups.resize(told + 1, 0);
            }
            Some(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::{getgroups, getuid};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_process_knows_itself() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = LocalPeer::of(&one).unwrap();
        assert_eq!(peer.user, getuid().as_raw());
        let groups: Vec<u32> = getgroups().unwrap().iter().map(|group| group.as_raw()).collect();
        assert!(groups.iter().all(|group| peer.groups.contains(group)), "{groups:?} {peer:?}");
    }
}
