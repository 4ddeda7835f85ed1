//! multipathd's own socket, which `multipathd -k` uses: the length of the request (a `size_t`), the request with a NUL at
//! its end, and the same back (`libmpathcmd/mpath_cmd.c` of multipath-tools).

use crate::{Error, Result};
use std::{
    io,
    os::{linux::net::SocketAddrExt, unix::net::SocketAddr},
    path::Path,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

/// In the abstract name space, since 2013.
const NAME: &str = "/org/kernel/linux/storage/multipathd";

/// No answer is longer; a map of a thousand paths takes 100 KiB.
const LONGEST: usize = 16 << 20;

pub(super) async fn ask(request: &str, limit: Duration) -> Result<String> {
    let answered = timeout(limit, converse(request)).await;
    answered.map_err(|_| Error::TimedOut { what: format!("multipathd's answer to `{request}`"), after: limit })?
}

async fn converse(request: &str) -> Result<String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            Error::Unreachable { why: "multipathd does not run".into() }
        }
        _ => Error::io("ask multipathd at", Path::new(NAME))(error),
    };
    let address = SocketAddr::from_abstract_name(NAME).map_err(failed)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address).map_err(failed)?;
    stream.set_nonblocking(true).map_err(failed)?;
    let mut stream = UnixStream::from_std(stream).map_err(failed)?;
    let mut message = (request.len() + 1).to_ne_bytes().to_vec();
    message.extend_from_slice(request.as_bytes());
    message.push(0);
    stream.write_all(&message).await.map_err(failed)?;
    let mut length = [0; size_of::<usize>()];
    stream.read_exact(&mut length).await.map_err(failed)?;
    let length = usize::from_ne_bytes(length);
    if length > LONGEST {
        return Err(failed(io::Error::other(format!("its answer to `{request}` has {length} bytes"))));
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await.map_err(failed)?;
    let text = String::from_utf8_lossy(&answer);
    Ok(text.trim_end_matches(['\0', '\n']).to_owned())
}
