//! The way to the agent: HTTP/2 over its Unix socket, or over TLS to that of another machine.

use crate::{endpoint::Endpoint, error::Error, tls::Tls};
use hyper_util::rt::TokioIo;
use std::{
    io,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Where the agent is.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Socket(PathBuf),
    Tls(Endpoint, Tls),
}

impl Way {
    /// A connection on which both sides have proved who they are.
    pub(crate) async fn connect(&self, patience: Duration) -> Result<TokioIo<Stream>, Error> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let stream = match self {
            Self::Socket(path) => {
                let reached = timeout(patience, UnixStream::connect(path)).await.unwrap_or_else(|_| Err(late()));
                Stream::Socket(reached.map_err(|error| Error::no_agent(path, error))?)
            }
            Self::Tls(endpoint, tls) => {
                let reached = timeout(patience, secure(endpoint, tls)).await;
                Stream::Tls(Box::new(reached.unwrap_or_else(|_| Err(Error::unreachable(endpoint, late())))?))
            }
        };
        Ok(TokioIo::new(stream))
    }

    /// That there is no connection, without a reason of our own.
    pub(crate) fn failed(&self, error: io::Error) -> Error {
        match self {
            Self::Socket(path) => Error::no_agent(path, error),
            Self::Tls(endpoint, _) => Error::unreachable(endpoint, error),
        }
    }
}

async fn secure(endpoint: &Endpoint, tls: &Tls) -> Result<BufReader<TlsStream<TcpStream>>, Error> {
    let (ca, certificate) = tls.files();
    let (config, name) = (tls.config()?, tls.name(&endpoint.host)?);
    let reached = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await;
    let stream = reached.map_err(|error| Error::unreachable(endpoint, error))?;
    stream.set_nodelay(true).map_err(|error| Error::unreachable(endpoint, error))?;
    let proved = TlsConnector::from(config).connect(name, stream).await;
    let stream = proved.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => Error::unreachable(endpoint, error),
        _ => Error::not_trusted(endpoint, ca, error),
    })?;
    let mut stream = BufReader::new(stream);
    // In TLS 1.3 the agent looks at our certificate after our side is done. What it thinks of it is known with its first
    // byte: it speaks first.
    match stream.fill_buf().await {
        Ok([]) => {
            let hung_up = io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up");
            Err(Error::not_let_in(endpoint, certificate, hung_up))
        }
        Ok(_) => Ok(stream),
        Err(error) => Err(Error::not_let_in(endpoint, certificate, error)),
    }
}

/// What HTTP/2 is spoken over.
#[derive(Debug)]
pub(crate) enum Stream {
    Socket(UnixStream),
    Tls(Box<BufReader<TlsStream<TcpStream>>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
