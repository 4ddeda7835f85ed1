//! The sockets that systemd has opened for us (`sd_listen_fds(3)`).

use nix::sys::socket::{SockType, getsockopt, sockopt};
use std::{
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
};

/// The Unix sockets on which systemd listens for this service, in the order of its unit; none if it does not. An error if
/// it has something else for us: nothing else is served.
pub fn inherited_listeners() -> io::Result<Vec<UnixListener>> {
    sd_notify::listen_fds()?.map(|number| listener(copy(number)?)).collect()
}

/// A descriptor of our own: the one that we were given stays open, so that nobody can close it twice.
fn copy(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: systemd has opened it for this process, `listen_fds` has found it open, and nobody here closes it.
    #[expect(unsafe_code, reason = "it comes as a number")]
    let given = unsafe { BorrowedFd::borrow_raw(number) };
    given.try_clone_to_owned()
}

fn listener(socket: OwnedFd) -> io::Result<UnixListener> {
    let listens =
        getsockopt(&socket, sockopt::AcceptConn)? && getsockopt(&socket, sockopt::SockType)? == SockType::Stream;
    let listener = UnixListener::from(socket);
    // Fails for an address of any other family.
    let _address = listener.local_addr()?;
    match listens {
        true => Ok(listener),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no stream socket that listens")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::TcpListener,
        os::unix::net::{UnixDatagram, UnixStream},
    };

    #[test]
    fn only_a_unix_socket_that_listens_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let served = listener(UnixListener::bind(&path).unwrap().into()).unwrap();
        assert_eq!(served.local_addr().unwrap().as_pathname(), Some(&*path));
        assert!(listener(UnixStream::connect(&path).unwrap().into()).is_err());
        assert!(listener(UnixDatagram::unbound().unwrap().into()).is_err());
        assert!(listener(TcpListener::bind("127.0.0.1:0").unwrap().into()).is_err());
    }

    #[test]
    fn who_was_not_started_by_systemd_inherits_nothing() {
        assert_eq!(inherited_listeners().unwrap().len(), 0);
    }
}
