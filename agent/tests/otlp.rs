//! Traces, as a collector of OpenTelemetry's gets them: `cargo test -p agent --features otlp --test otlp`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use agent::{
    Mortard,
    config::{CallerRule, Config, Role},
    telemetry,
};
use host::{
    TRACES,
    sim::{Machine, iscsi::LogicalUnit},
};
use hypervisor::sim::Domains;
use mortar_client::{Client, Request, v1};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, status::StatusCode},
};
use prost::Message;
use std::{
    future::pending,
    os::unix::fs::MetadataExt,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tonic::{Response, Status, transport::Server};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

const IQN: &str = "iqn.2026-11.org.example:t1";
const PASSWORD: &str = "open-sesame-open";
/// The caller's trace and his span in it.
const TRACE: [u8; 16] =
    [0x4b, 0xf9, 0x2f, 0x35, 0x77, 0xb3, 0x4d, 0xa6, 0xa3, 0xce, 0x92, 0x9d, 0x0e, 0x0e, 0x47, 0x36];
const PARENT: [u8; 8] = [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7];
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Keeps what it is sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn spans(&self) -> Vec<Span> {
        let sent = self.0.lock().unwrap();
        let scopes = sent.iter().flat_map(|request| &request.resource_spans).flat_map(|of| &of.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|one| one.key == key).and_then(|one| one.value.clone()?.value);
    match found {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_its_operation_and_its_tools_are_one_trace_of_the_callers() {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config::default();
    config.telemetry.endpoint = format!("http://{}", listener.local_addr().unwrap());
    config.check().unwrap();
    let served = Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    tokio::spawn(served.serve_with_incoming(TcpListenerStream::new(listener)));
    let (layer, exporter) = telemetry::layer(&config.telemetry).unwrap();
    let filter = EnvFilter::new(format!("off,{TRACES}=trace"));
    tracing_subscriber::registry().with(filter).with(layer).init();

    let machine = Machine::new();
    machine.add_target(IQN, &["127.0.0.1:3260"]);
    machine.require_chap(IQN, "user", PASSWORD);
    machine.map_lun(IQN, 0, LogicalUnit::disk("60014050000000000000000000000001", 16 << 20));
    let directory = TempDir::new().unwrap();
    config.agent.state_directory = directory.path().into();
    let user = std::fs::metadata("/proc/self").unwrap().uid().to_string();
    config.callers.rules = vec![CallerRule { user: Some(user), ..CallerRule::giving(Role::Admin) }];
    let domains = Arc::new(Domains::new().on(machine.clone()));
    let mortard = Mortard::start(config, Arc::new(machine), domains).await.unwrap();
    let socket = directory.path().join("agent.sock");
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    tokio::spawn(mortard.serve(incoming, pending()));

    let client = Client::builder().socket(socket).lazy();
    let chap = v1::Chap { user: "user".into(), password: PASSWORD.into() };
    let mut request = Request::new(v1::AttachRequest {
        id: "a".into(),
        volume: Some(v1::attach_request::Volume::Locator(format!("iscsi://127.0.0.1/{IQN}/0"))),
        credentials: Some(v1::Credentials { kind: Some(v1::credentials::Kind::Chap(chap)) }),
        ..Default::default()
    });
    request.metadata_mut().insert("traceparent", TRACEPARENT.parse().unwrap());
    let reply = client.attachments().attach(request).await.unwrap().into_inner();
    let refused = v1::AttachRequest {
        id: "b".into(),
        volume: Some(v1::attach_request::Volume::Locator(format!("iscsi://127.0.0.1/{IQN}/7"))),
        ..Default::default()
    };
    client.ask(refused).await.unwrap_err();
    tokio::task::spawn_blocking(move || exporter.stop()).await.unwrap();

    let spans = collector.spans();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    let one = |what: &str, is: &dyn Fn(&&Span) -> bool| -> Span {
        spans.iter().find(is).unwrap_or_else(|| panic!("no {what} in {names:?}")).clone()
    };
    let call = one("call", &|span| span.parent_span_id == PARENT);
    assert_eq!((call.trace_id.as_slice(), call.name.as_str()), (&TRACE[..], "mortar.agent.v1.Attachments/Attach"));
    assert_eq!(attribute(&call, "rpc.grpc.status_code"), "0");
    let operation = one("operation", &|span| span.parent_span_id == call.span_id && span.name == "Attach");
    assert_eq!(attribute(&operation, "operation"), reply.operation_id);
    assert_eq!(attribute(&operation, "subject"), "a");
    assert_eq!(operation.status.as_ref().unwrap().code(), StatusCode::Ok);
    let login = one("login", &|span| span.name.starts_with("run iscsiadm") && span.name.contains("--login"));
    assert_eq!((&login.trace_id, &login.parent_span_id), (&call.trace_id, &operation.span_id));
    // One without a caller's trace has one of its own; what failed says so.
    let failed = one("failed", &|span| span.name == "Attach" && attribute(span, "subject") == "b");
    assert_ne!(failed.trace_id, TRACE);
    assert_eq!(failed.status.as_ref().unwrap().code(), StatusCode::Error);
    assert_ne!(attribute(&failed, "reason"), "None");
    // And nothing of it is secret.
    for request in collector.0.lock().unwrap().iter() {
        let bytes = request.encode_to_vec();
        assert!(!bytes.windows(PASSWORD.len()).any(|window| window == PASSWORD.as_bytes()));
    }
}
