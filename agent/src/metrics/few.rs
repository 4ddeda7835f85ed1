//! Few are let in at a time, and none for long: whoever only asks for metrics must not take the agent's descriptors from
//! those who attach. The kernel keeps the others waiting.

use axum::serve::Listener;
use std::{
    future::{Future, pending},
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until},
};

const AT_A_TIME: usize = 16;
/// Prometheus connects again without a word.
const STAY: Duration = Duration::from_secs(120);

/// A listener that lets few in.
pub(super) struct Few<L> {
    listener: L,
    places: Arc<Semaphore>,
}

impl<L> Few<L> {
    pub(super) fn of(listener: L) -> Self {
        Self { listener, places: Arc::new(Semaphore::new(AT_A_TIME)) }
    }
}

impl<L: Listener> Listener for Few<L> {
    type Io = Visit<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // Nobody closes it.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return pending().await };
        let (stream, address) = self.listener.accept().await;
        (Visit { stream, over: Box::pin(sleep_until(Instant::now() + STAY)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// One who was let in.
pub(super) struct Visit<C> {
    stream: C,
    over: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl<C: AsyncRead + Unpin> AsyncRead for Visit<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.over.as_mut().poll(context).is_ready() {
            // As if he had closed it.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Visit<C> {
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
