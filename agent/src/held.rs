//! A connection and what goes with it: a place, or who is at its other end. It may be over at a time that is set beforehand.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// A connection, and what lives as long as it does.
pub(crate) struct Held<C, W> {
    pub(crate) stream: C,
    pub(crate) with: W,
    over: Option<Pin<Box<Sleep>>>,
}

impl<C, W> Held<C, W> {
    pub(crate) fn new(stream: C, with: W) -> Self {
        Self { stream, with, over: None }
    }

    /// From then on it is as if the other side had closed it.
    pub(crate) fn until(stream: C, with: W, over: Instant) -> Self {
        Self { stream, with, over: Some(Box::pin(sleep_until(over))) }
    }
}

impl<C: AsyncRead + Unpin, W: Unpin> AsyncRead for Held<C, W> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(over) = &mut self.over
            && over.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<C: AsyncWrite + Unpin, W: Unpin> AsyncWrite for Held<C, W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
