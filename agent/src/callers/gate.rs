//! The one door to all services: a request passes it if its RPC is in the table and its caller has the role for it.

use super::{Call, Callers, Peer, audit, table};
use crate::{admission::Visit, status::status, telemetry};
use std::{
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{Code, Status, body::Body, codegen::http};
use tower::{Layer, Service};
use tracing::Instrument;

/// Around all services.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    callers: Arc<Callers>,
}

impl Gate {
    pub(crate) fn new(callers: Arc<Callers>) -> Self {
        Self { callers }
    }

    /// The call that a request is, if it may pass.
    fn pass(&self, request: &http::Request<Body>) -> Result<Arc<Call>, Status> {
        let Some(rpc) = table::rpc(request.uri().path()) else {
            return Err(Status::unimplemented("mortard has no such call"));
        };
        let peer =
            request.extensions().get::<Arc<Visit>>().map_or_else(|| Arc::new(Peer::Unknown), |visit| visit.peer());
        let span = telemetry::call(rpc.name, request.headers());
        let call = Arc::new(Call::new(rpc, peer, &self.callers, span));
        match call.may_be_made() {
            Ok(()) => Ok(call),
            Err(refused) => {
                match &*call.peer {
                    Peer::Local(peer) if call.is_strangers() => {
                        audit::stranger(&call, peer.user, &self.callers.strangers)
                    }
                    _ => audit::Entry::of(call).ends(Code::PermissionDenied),
                }
                Err(status(&refused))
            }
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.clone() }
    }
}

/// A service behind a [`Gate`].
#[derive(Debug, Clone)]
pub(crate) struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<S> Service<http::Request<Body>> for Gated<S>
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

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let call = match self.gate.pass(&request) {
            Ok(call) => call,
            Err(refused) => return Box::pin(ready(Ok(refused.into_http()))),
        };
        request.extensions_mut().insert(Arc::clone(&call));
        let span = call.span.clone();
        let (answer, entry) = (self.inner.call(request), audit::Entry::of(call));
        Box::pin(async move {
            let response = answer.instrument(span.clone()).await?;
            let outcome = outcome(&response);
            telemetry::answered(&span, outcome);
            entry.ends(outcome);
            Ok(response)
        })
    }
}

/// What changes something answers once, so that an error stands in the headers.
fn outcome(response: &http::Response<Body>) -> Code {
    let code = response.headers().get("grpc-status").map(http::HeaderValue::as_bytes);
    code.map_or(Code::Ok, Code::from_bytes)
}
