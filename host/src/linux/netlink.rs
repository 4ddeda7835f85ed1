//! The kernel's events, straight from its netlink socket: they come whether or not udev runs.

use crate::Uevent;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use std::{
    io,
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::broadcast,
};

/// The multicast group that the kernel itself sends to; group 2 is udev's.
const KERNEL_GROUP: u32 = 1;
/// Enough for the burst of a few thousand devices.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Sends every event to `events` for as long as the runtime lives.
pub(super) fn listen(events: broadcast::Sender<Uevent>) -> io::Result<()> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    // Without the privilege the default size remains: events may be lost then, and waiters look by themselves.
    let _default_size = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))?;
    // SAFETY: an owned descriptor stays open, and the same, for as long as the `AsyncFd` that owns it.
    #[expect(unsafe_code, reason = "every AsyncFd is made so")]
    let socket = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
    tokio::spawn(forward(socket, events));
    Ok(())
}

async fn forward(socket: AsyncFd<OwnedFd>, events: broadcast::Sender<Uevent>) {
    let mut message = vec![0_u8; 16 << 10];
    loop {
        let received =
            socket.async_io(Interest::READABLE, |fd| Ok(recv(fd.as_raw_fd(), &mut message, MsgFlags::empty())?)).await;
        match received {
            Ok(length) => {
                if let Some(event) = message.get(..length).and_then(Uevent::parse) {
                    // Nobody waiting is fine.
                    let _receivers = events.send(event);
                }
            }
            // The kernel dropped events because we were slow: the waiters look by themselves.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) => {
                tracing::error!(%error, "kernel events stopped");
                return;
            }
        }
    }
}

/// The host's addresses that another host could reach.
pub(super) fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut found: Vec<IpAddr> = interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::V4(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|address| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        })
        .collect();
    found.dedup();
    found
}
