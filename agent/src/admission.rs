//! Who is let in: so many connections, and so many requests on each. Whoever comes past that is told so at once and keeps
//! nobody waiting; what is held for him is small, and gone soon.
//!
//! ```text
//!   accept ──▶ a rule names him, and a place is free? ── yes ──▶ served: a request past its connection's limit is refused
//!                    │
//!                    └── no ──▶ few are being refused? ── yes ──▶ each request is refused, and soon it is hung up
//!                                          └── no ──▶ hung up
//! ```
//!
//! So strangers, who may connect to the socket like anybody on this host, take no places from others.

mod heard;

use crate::{
    callers::{Callers, Introduced, Peer},
    config::Limits,
    held::Held,
    status::status,
};
use driver::Error;
use heard::{Complaints, Heard};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout},
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, body::Body, codegen::http, transport::server::Connected};
use tower::{Layer, Service};

/// How many connections are told at a time that there are too many.
const REFUSED: usize = 16;
/// How long each of them has to hear it.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long nobody is let in after the kernel could not: it has no descriptor for him.
pub(crate) const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(100);

/// One connection, as its requests know it.
#[derive(Debug)]
pub(crate) struct Visit {
    /// For requests; none are to be had on a connection that is one too many.
    free: Arc<Semaphore>,
    too_many: Option<usize>,
    peer: Arc<Peer>,
    _place: Option<OwnedSemaphorePermit>,
}

/// A connection that was let in, or is about to hear why not.
pub(crate) type Connection<C> = Held<Heard<C>, Arc<Visit>>;

/// The connections that are let in, until `stop`. An accept that fails for want of descriptors ends nothing.
pub(crate) fn admit<S, C>(
    incoming: S,
    limits: &Limits,
    callers: Arc<Callers>,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<Connection<C>>>
where
    S: Stream<Item = io::Result<C>> + Send + 'static,
    C: Introduced + Send + 'static,
{
    let (connections, requests) = (limits.connections, limits.requests_per_connection);
    let (places, farewells) = (Arc::new(Semaphore::new(connections)), Arc::new(Semaphore::new(REFUSED)));
    let complaints = Arc::new(Complaints::default());
    let (let_in, stream) = mpsc::channel(1);
    let door = async move {
        tokio::pin!(incoming);
        let mut well = true;
        while let Some(next) = incoming.next().await {
            let stream = match next {
                Ok(stream) => stream,
                Err(error) => {
                    if well {
                        tracing::error!(%error, "cannot let anybody in: {error}");
                    }
                    well = false;
                    // The kernel keeps him waiting meanwhile; to ask again at once would be to spin.
                    let _a_pause = timeout(OUT_OF_DESCRIPTORS, std::future::pending::<()>()).await;
                    continue;
                }
            };
            if !well {
                tracing::info!("others are let in again");
            }
            well = true;
            let free = Arc::new(Semaphore::new(requests as usize));
            let stream = Heard::new(stream, Arc::clone(&complaints));
            let peer = stream.peer();
            let known = callers.know(&peer);
            let place = known.then(|| Arc::clone(&places).try_acquire_owned().ok()).flatten();
            let connection = match place {
                Some(place) => {
                    let visit = Visit { free, too_many: None, peer, _place: Some(place) };
                    Held::new(stream, Arc::new(visit))
                }
                None => {
                    let Ok(place) = Arc::clone(&farewells).try_acquire_owned() else { continue };
                    let too_many = known.then_some(connections);
                    let visit = Visit { free, too_many, peer, _place: Some(place) };
                    Held::until(stream, Arc::new(visit), Instant::now() + FAREWELL)
                }
            };
            if let_in.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = door => {}
            () = stop.cancelled() => {}
        }
    });
    ReceiverStream::new(stream)
}

impl Visit {
    /// Who it is.
    pub(crate) fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }

    /// Room for one more request on this connection.
    fn enter(&self) -> Result<OwnedSemaphorePermit, Error> {
        if let Some(most) = self.too_many {
            let what = format!("there are {most} connections already; close one, or use it for several calls");
            return Err(Error::Limit { what, key: "limits.connections" });
        }
        Arc::clone(&self.free).try_acquire_owned().map_err(|_| Error::Limit {
            what: "too many requests are under way on this connection; wait for one to end".into(),
            key: "limits.requests_per_connection",
        })
    }
}

impl<C> Connected for Connection<C> {
    type ConnectInfo = Arc<Visit>;

    fn connect_info(&self) -> Arc<Visit> {
        Arc::clone(&self.with)
    }
}

/// Refuses requests past the limits; around all services.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    request_bytes: usize,
    /// Told of each answer.
    answered: Arc<Notify>,
}

impl Admission {
    pub(crate) fn new(limits: &Limits, answered: Arc<Notify>) -> Self {
        Self { request_bytes: limits.request_bytes, answered }
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, admission: self.clone() }
    }
}

/// A service that is reached through [`Admission`].
#[derive(Debug, Clone)]
pub(crate) struct Admitted<S> {
    inner: S,
    admission: Admission,
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let room = request.extensions().get::<Arc<Visit>>().map(|visit| visit.enter()).transpose();
        let room = match room {
            Ok(room) => room,
            Err(refused) => return Box::pin(std::future::ready(Ok(status(&refused).into_http()))),
        };
        let (answer, Admission { request_bytes: most, answered }) = (self.inner.call(request), self.admission.clone());
        Box::pin(async move {
            let response = answer.await?;
            drop(room);
            answered.notify_one();
            Ok(if is_too_long(&response) { too_long(most) } else { response })
        })
    }
}

/// tonic's word for a request that is larger than it may be; nobody else says it.
fn is_too_long(response: &http::Response<Body>) -> bool {
    let code = response.headers().get("grpc-status").map(http::HeaderValue::as_bytes);
    code.is_some_and(|code| Code::from_bytes(code) == Code::OutOfRange)
}

fn too_long(most: usize) -> http::Response<Body> {
    let what = format!("the request is larger than {most} bytes");
    status(&Error::Limit { what, key: "limits.request_bytes" }).into_http()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Introduced for &str {
        fn peer(&self) -> Peer {
            Peer::Local(host::LocalPeer { user: 0, groups: vec![0] })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_accept_that_fails_ends_nothing_and_does_not_spin() {
        let failed = || Err(io::Error::from_raw_os_error(24));
        let incoming = tokio_stream::iter([failed(), failed(), failed(), Ok("first"), failed(), Ok("second")]);
        let start = Instant::now();
        let callers = Arc::new(Callers::new(&crate::config::Callers::default()));
        let mut let_in = admit(incoming, &Limits::default(), callers, CancellationToken::new());
        for who in ["first", "second"] {
            assert_eq!(let_in.next().await.unwrap().unwrap().stream.stream, who);
        }
        assert_eq!(start.elapsed(), 4 * OUT_OF_DESCRIPTORS);
    }
}
