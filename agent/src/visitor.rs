//! Whoever comes in, by whichever way.

use crate::{
    callers::{Introduced, Peer},
    tls::Session,
};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// By one of two ways.
pub(crate) enum Visitor<C> {
    /// From this host.
    Near(C),
    /// From another machine.
    Far(Box<Session>),
}

impl<C: Introduced> Introduced for Visitor<C> {
    fn peer(&self) -> Peer {
        match self {
            Self::Near(stream) => stream.peer(),
            Self::Far(session) => session.peer(),
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Visitor<C> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Near(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Far(session) => Pin::new(session.as_mut()).poll_read(context, buffer),
        }
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Visitor<C> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Near(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Far(session) => Pin::new(session.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Near(stream) => Pin::new(stream).poll_flush(context),
            Self::Far(session) => Pin::new(session.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Near(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Far(session) => Pin::new(session.as_mut()).poll_shutdown(context),
        }
    }
}
