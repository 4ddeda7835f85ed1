//! gRPC from other machines: who is let in, who is not, and that those who are not disturb nobody. All of it on loopback.

#![allow(clippy::disallowed_methods, reason = "certificates of a test's own, and pauses of an attacker")]

use crate::{
    audit::{heard, listen},
    callers::{call, promised, rpcs},
    machine::{SimStage, VG, rule},
};
use agent::config::{CallerRule, Callers, Config, Role};
use driver::Backend;
use hyper_util::rt::TokioIo;
use mortar_client::{Endpoint, Kind, Tls};
use proto::v1;
use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tests::{
    client::{Client, Refused, attach},
    pki::{Ca, Issued, Wanted, self_signed},
    stage::Stage,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
        version::{TLS12, TLS13},
    },
};
use tonic::{
    Code,
    transport::{self, Channel},
};
use tower::service_fn;

const HOST: &str = "hypervisor.example.org";
const PATIENCE: Duration = Duration::from_secs(20);

/// An agent that other machines can call, and the CAs of both sides.
struct Far {
    stage: SimStage,
    files: TempDir,
    servers: Ca,
    clients: Ca,
}

fn by(key: fn(&mut CallerRule) -> &mut Option<String>, name: &str, role: Role) -> CallerRule {
    let mut rule = CallerRule::giving(role);
    *key(&mut rule) = Some(name.into());
    rule
}

impl Far {
    async fn new(change: impl FnOnce(&mut Config)) -> Self {
        let files = TempDir::new().unwrap();
        let (servers, clients) = (Ca::new("servers"), Ca::new("clients"));
        let path = |name: &str| files.path().join(name);
        let mut config = Config::default();
        config.tls.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.tls.certificate = path("certificate.pem");
        config.tls.key = path("key.pem");
        config.tls.client_ca = path("client-ca.pem");
        config.tls.crl = vec![path("crl.pem")];
        config.callers = Callers {
            rules: vec![
                rule(Role::Admin, &[]),
                by(|rule| &mut rule.uri, "spiffe://example.org/viewer/*", Role::Viewer),
                by(|rule| &mut rule.dns, "*.Operators.example.org", Role::Operator),
                by(|rule| &mut rule.common_name, "the admin", Role::Admin),
            ],
            ..Callers::default()
        };
        change(&mut config);
        std::fs::write(path("client-ca.pem"), clients.pem()).unwrap();
        std::fs::write(path("crl.pem"), clients.crl(&[666], false)).unwrap();
        put_server(&files, &servers, 1);
        let stage = SimStage::with(config).await;
        Self { stage, files, servers, clients }
    }

    fn address(&self) -> SocketAddr {
        self.stage.addresses[0]
    }

    fn viewer(&self) -> Issued {
        self.clients.issue(&Wanted { serial: 10, uri: Some("spiffe://example.org/viewer/a"), ..Wanted::default() })
    }

    fn operator(&self) -> Issued {
        self.clients.issue(&Wanted { serial: 11, dns: Some("c1.operators.example.org"), ..Wanted::default() })
    }

    fn admin(&self) -> Issued {
        self.clients.issue(&Wanted { serial: 12, common_name: "the admin", ..Wanted::default() })
    }

    fn way<'a>(&'a self, certificate: Option<&'a Issued>) -> Way<'a> {
        Way { to: self.address(), ca: &self.servers, certificate, version: &TLS13, from: 1 }
    }

    fn client(&self, certificate: &Issued) -> Client {
        Client::over(self.way(Some(certificate)).channel())
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.files.path().join(name), text).unwrap();
    }
}

fn put_server(files: &TempDir, ca: &Ca, serial: u64) {
    let server = ca.issue(&Wanted { serial, dns: Some(HOST), server: true, ..Wanted::default() });
    std::fs::write(files.path().join("certificate.pem"), server.certificate).unwrap();
    std::fs::write(files.path().join("key.pem"), server.key).unwrap();
}

/// How somebody comes in.
#[derive(Clone, Copy)]
struct Way<'a> {
    to: SocketAddr,
    ca: &'a Ca,
    certificate: Option<&'a Issued>,
    version: &'static SupportedProtocolVersion,
    /// The last part of his address, 127.0.0.x.
    from: u8,
}

impl Way<'_> {
    fn config(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.pem().as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match self.certificate {
            None => config.with_no_client_auth(),
            Some(Issued { certificate, key }) => {
                let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        secure(self.config(), self.to, self.from).await
    }

    fn channel(&self) -> Channel {
        let (config, to, from) = (self.config(), self.to, self.from);
        transport::Endpoint::from_static("http://localhost").connect_with_connector_lazy(service_fn(move |_| {
            let config = Arc::clone(&config);
            async move { secure(config, to, from).await.map(TokioIo::new) }
        }))
    }
}

async fn tcp(to: SocketAddr, from: u8) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, from], 0)))?;
    socket.set_nodelay(true)?;
    socket.connect(to).await
}

async fn secure(config: Arc<ClientConfig>, to: SocketAddr, from: u8) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(HOST).unwrap();
    TlsConnector::from(config).connect(name, tcp(to, from).await?).await
}

/// Role × RPC again, by certificates: a URI, a DNS name, a common name; and one that no rule names.
#[tokio::test]
async fn every_rpc_by_every_certificate() {
    let far = Far::new(|_| {}).await;
    let stranger = far.clients.issue(&Wanted { serial: 13, common_name: "an admin", ..Wanted::default() });
    for (role, certificate) in [
        (None, stranger),
        (Some(Role::Viewer), far.viewer()),
        (Some(Role::Operator), far.operator()),
        (Some(Role::Admin), far.admin()),
    ] {
        for rpc in rpcs() {
            let refused = call(far.way(Some(&certificate)).channel(), &rpc).await.err();
            let is_forbidden = refused.as_ref().is_some_and(|status| status.code() == Code::PermissionDenied);
            assert_eq!(is_forbidden, role < Some(promised(&rpc)), "{rpc} as {role:?}: {refused:?}");
            let gone = refused.as_ref().is_some_and(|status| status.code() == Code::Unavailable);
            assert!(!gone, "{rpc}: {refused:?}");
        }
    }
    // A local user's name is nothing to a certificate, nor the other way round.
    let root = far.clients.issue(&Wanted { serial: 14, common_name: "root", ..Wanted::default() });
    assert_eq!(far.client(&root).list().await.unwrap_err().reason, "FORBIDDEN");
}

/// A client hello of TLS 1.1, as no library sends it any more: RFC 4346 section 7.4.1.2.
fn hello_of_1_1() -> Vec<u8> {
    let mut body = vec![3, 2];
    body.extend([7; 32]);
    // No session, one cipher suite (TLS_RSA_WITH_AES_128_CBC_SHA), no compression.
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let length = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let mut message = vec![1, 0];
    message.extend(length(body.len()));
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend(length(message.len()));
    record.extend(message);
    record
}

/// Everybody who has not the right certificate, and everything that is not TLS 1.3: refused, told of once, nobody disturbed.
#[tokio::test]
async fn who_is_not_let_in() {
    listen();
    let far = Far::new(|config| config.tls.handshake_timeout_ms = 1000).await;
    let wanted = Wanted { common_name: "the admin", ..Wanted::default() };
    let expired = far.clients.issue(&Wanted { serial: 20, expired: true, ..wanted.clone() });
    let revoked = far.clients.issue(&Wanted { serial: 666, ..wanted.clone() });
    let for_servers = far.clients.issue(&Wanted { serial: 21, server: true, ..wanted.clone() });
    let of_another = Ca::new("clients").issue(&wanted);
    let alone = self_signed(&wanted);
    let good = far.admin();
    let way = far.way(None);
    let cases = [
        (2, Way { ..way }, "no certificates"),
        (3, Way { certificate: Some(&expired), ..way }, "xpired"),
        (4, Way { certificate: Some(&revoked), ..way }, "evoked"),
        (5, Way { certificate: Some(&for_servers), ..way }, "key usage"),
        (6, Way { certificate: Some(&of_another), ..way }, "nvalid peer certificate"),
        (7, Way { certificate: Some(&alone), ..way }, "nvalid peer certificate"),
        (8, Way { certificate: Some(&good), version: &TLS12, ..way }, "Tls12NotOffered"),
    ];
    let mut expected = Vec::new();
    for (from, way, why) in cases {
        for _ in 0..3 {
            let channel = Way { from, ..way }.channel();
            let refused = Client::over(channel).list().await.unwrap_err();
            assert!(![Code::Ok, Code::PermissionDenied].contains(&refused.code), "{why}: {refused:?}");
        }
        expected.push((format!("127.0.0.{from}"), why));
    }
    let raw: [(u8, Vec<u8>, &str); 6] = [
        (9, hello_of_1_1(), ""),
        (10, PREFACE.to_vec(), ""),
        (11, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), ""),
        // A record of more than there may be in one.
        (12, [&[22, 3, 1, 0xff, 0xff][..], &[0; 70_000]].concat(), ""),
        // The beginning of one, and nothing more.
        (13, hello_of_1_1()[..20].to_vec(), "slow"),
        (14, Vec::new(), "slow"),
    ];
    for (from, bytes, why) in raw {
        for _ in 0..3 {
            let mut stream = tcp(far.address(), from).await.unwrap();
            // It may hang up before all of it is sent.
            let _sent = stream.write_all(&bytes).await;
            let mut answer = Vec::new();
            let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "127.0.0.{from} is not hung up");
            // An alert at most (RFC 8446 section 6): no HTTP, and nothing of ours.
            assert!(answer.len() <= 7 && answer.first().is_none_or(|kind| *kind == 21), "{from}: {answer:?}");
        }
        expected.push((format!("127.0.0.{from}"), why));
    }
    // Half a hello, and gone.
    let mut stream = tcp(far.address(), 15).await.unwrap();
    stream.write_all(&hello_of_1_1()[..20]).await.unwrap();
    drop(stream);
    far.client(&good).list().await.unwrap();

    let told = heard();
    for (who, why) in expected {
        let lines: Vec<_> = told.iter().filter(|line| line["who"] == who).collect();
        assert_eq!(lines.len(), 1, "{who}: {lines:?}");
        assert!(lines[0]["outcome"] == "NO_HANDSHAKE" && lines[0]["why"].contains(why), "{why}: {lines:?}");
    }
}

/// What a client of HTTP/2 begins with, and its settings.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What no agent answers by anything but the end of the connection.
pub(crate) fn no_frames() -> [Vec<u8>; 4] {
    [
        // 16 MiB of headers; data of no stream; settings of a wrong length; no HTTP/2 at all.
        [PREFACE, &[0xff, 0xff, 0xff, 1, 4, 0, 0, 0, 1], &[0; 40_000]].concat(),
        [PREFACE, &[0, 0, 1, 0, 0, 0, 0, 0, 1, 0]].concat(),
        [PREFACE, &[0, 0, 5, 4, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]].concat(),
        b"nonsense, and more of it, and more of it, and more".to_vec(),
    ]
}

/// The beginning of a frame, and no more of it.
pub(crate) fn cut_off() -> Vec<u8> {
    [PREFACE, &[0, 1, 0, 1, 4, 0, 0]].concat()
}

/// Who is let in is not let do more than his frames may: too long, cut off, out of order; others do not notice.
#[tokio::test]
async fn frames_that_are_none() {
    listen();
    let far = Far::new(|_| {}).await;
    let viewer = far.viewer();
    let mut others = far.client(&far.admin());
    let mut near = far.stage.client();
    for frames in no_frames() {
        let mut stream = far.way(Some(&viewer)).connect().await.unwrap();
        let _sent = stream.write_all(&frames).await;
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is hung up").ok();
        others.list().await.unwrap();
        near.list().await.unwrap();
    }
    let mut stream = far.way(Some(&viewer)).connect().await.unwrap();
    stream.write_all(&cut_off()).await.unwrap();
    drop(stream);
    others.list().await.unwrap();
    let told: Vec<_> = heard().into_iter().filter(|line| line["outcome"] == "NO_GRPC").collect();
    assert!(told.len() == 1 && told[0]["who"].contains("spiffe://example.org/viewer/a"), "{told:?}");
}

/// One byte now and then: the patience is for all of the handshake.
#[tokio::test]
async fn a_slow_loris() {
    let far = Far::new(|config| config.tls.handshake_timeout_ms = 600).await;
    let mut stream = tcp(far.address(), 2).await.unwrap();
    let start = Instant::now();
    for byte in hello_of_1_1() {
        if stream.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut answer = Vec::new();
    let _closed = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is hung up");
    assert!(answer.is_empty() && start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// The certificates are others from one call to the next, without a restart; what cannot be used changes nothing.
#[tokio::test]
async fn files_that_change() {
    let mut far = Far::new(|_| {}).await;
    let file = far.stage.volume(Backend::File, "v", 16 << 20).await;
    let admin = far.admin();
    let mut connected = far.client(&admin);
    connected.list().await.unwrap();
    let serial = async || {
        let stream = far.way(Some(&admin)).connect().await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = serial().await;
    put_server(&far.files, &far.servers, 2);
    far.stage.reload();
    let second = serial().await;
    assert_ne!(first, second);
    // What is wrong is not taken.
    far.write("key.pem", "no key");
    far.stage.reload();
    assert_eq!(serial().await, second);
    connected.list().await.unwrap();
    put_server(&far.files, &far.servers, 3);
    // Nobody says so: the next handshake looks by itself, but not more often than once a second.
    let end = Instant::now() + PATIENCE;
    while serial().await == second {
        assert!(Instant::now() < end, "it was never read");
    }
    // Revoked is revoked, for those who are connected, too: what they wait for ends.
    let mut heard = connected.attachments.watch(v1::WatchRequest {}).await.unwrap().into_inner();
    far.write("crl.pem", &far.clients.crl(&[12], false));
    far.stage.reload();
    let refused = connected.list().await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::PermissionDenied, "DENIED"), "{}", refused.message);
    assert!(refused.message.contains("evoked"), "{}", refused.message);
    assert_ne!(far.client(&admin).list().await.unwrap_err().code, Code::Ok);
    far.stage.client().attach(attach("a", &file)).await.unwrap();
    let ended = Refused::from(timeout(PATIENCE, heard.message()).await.unwrap().unwrap_err());
    assert_eq!((ended.code, ended.reason.as_str()), (Code::PermissionDenied, "DENIED"), "{}", ended.message);
    far.client(&far.viewer()).list().await.unwrap();
    // A list that is out of date lets nobody in; then there is a new one.
    far.write("crl.pem", &far.clients.crl(&[], true));
    far.stage.reload();
    far.client(&far.viewer()).list().await.unwrap_err();
    far.write("crl.pem", &far.clients.crl(&[], false));
    far.stage.reload();
    connected.list().await.unwrap();
}

/// A certificate whose reach ends at one VG sees and hears of nothing else.
#[tokio::test]
async fn a_reach_by_certificate() {
    let place = format!("lvm:{VG}");
    let mut far = Far::new(|config| {
        let mut limited = by(|rule| &mut rule.common_name, "one vg", Role::Operator);
        limited.only = vec![place.clone()];
        config.callers.rules.push(limited);
    })
    .await;
    let certificate = far.clients.issue(&Wanted { serial: 30, common_name: "one vg", ..Wanted::default() });
    let (file, lv) =
        (far.stage.volume(Backend::File, "v", 16 << 20).await, far.stage.volume(Backend::Lvm, "v", 16 << 20).await);
    let (mut limited, mut near) = (far.client(&certificate), far.stage.client());
    let mut watch = limited.attachments.watch(v1::WatchRequest {}).await.unwrap().into_inner();
    near.attach(attach("file", &file)).await.unwrap();
    near.detach("file").await.unwrap();
    limited.attach(attach("lv", &lv)).await.unwrap();
    limited.detach("lv").await.unwrap();
    let refused = limited.attach(attach("file", &file)).await.unwrap_err();
    assert!(refused.reason == "FORBIDDEN" && refused.message.contains("\"one vg\""), "{}", refused.message);
    loop {
        let event = timeout(PATIENCE, watch.message()).await.unwrap().unwrap().unwrap();
        match event.event.unwrap() {
            v1::watch_event::Event::Attachment(one) => assert_eq!(one.locator, lv),
            v1::watch_event::Event::Operation(one) => assert_eq!(one.locator, lv),
            v1::watch_event::Event::AttachmentGone(id) => {
                assert_eq!(id, "lv");
                break;
            }
        }
    }
}

/// The client library: both sides prove who they are, and its files may change under it.
#[tokio::test]
async fn by_the_client_library() {
    let far = Far::new(|_| {}).await;
    let revoked = far.clients.issue(&Wanted { serial: 666, common_name: "the admin", ..Wanted::default() });
    let put = |issued: &Issued| {
        far.write("mine.pem", &issued.certificate);
        far.write("mine-key.pem", &issued.key);
    };
    put(&far.admin());
    far.write("servers-ca.pem", &far.servers.pem());
    far.write("others-ca.pem", &Ca::new("servers").pem());
    let path = |name: &str| far.files.path().join(name);
    let tls = |ca: &str| {
        let files = Tls::builder().ca(path(ca)).certificate(path("mine.pem")).key(path("mine-key.pem"));
        files.server_name(HOST).build().unwrap()
    };
    let endpoint = |port: u16| Endpoint { host: "127.0.0.1".into(), port };
    let to = |port: u16, tls: Tls| mortar_client::Client::builder().endpoint(endpoint(port), tls).timeout(PATIENCE);
    let here = far.address().port();
    let list = async |client: &mortar_client::Client| client.ask(v1::ListAttachmentsRequest {}).await;
    let client = to(here, tls("servers-ca.pem")).connect().await.unwrap();
    list(&client).await.unwrap();

    let refused = to(here, tls("others-ca.pem")).connect().await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::NotTrusted, Code::Unauthenticated), "{refused}");
    let unnamed = Tls::builder().ca(path("servers-ca.pem")).certificate(path("mine.pem")).key(path("mine-key.pem"));
    let refused = to(here, unnamed.build().unwrap()).connect().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::NotTrusted, "it is a certificate for {HOST}: {refused}");
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = to(closed.local_addr().unwrap().port(), tls("servers-ca.pem")).connect().await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::Unreachable, Code::Unavailable), "{refused}");

    // The files are read anew for each connection: what is revoked is not let in, what is renewed is.
    put(&revoked);
    let changing = to(here, tls("servers-ca.pem")).lazy();
    let refused = list(&changing).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code()), (Kind::NotLetIn, Code::Unauthenticated), "{refused}");
    assert!(refused.message().contains("mine.pem") && !refused.may_be_tried_again(), "{refused}");
    put(&far.admin());
    list(&changing).await.unwrap();
}

/// The median of a few calls.
pub(crate) async fn latency(client: &mut Client) -> Duration {
    let mut took = Vec::new();
    for _ in 0..31 {
        let start = Instant::now();
        client.list().await.unwrap();
        took.push(start.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

/// Ten thousand who connect and then say nothing: they are few at any time, and the others do not wait for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_half_open_connections() {
    const ALL: usize = 10_000;
    const AT_A_TIME: usize = 200;
    let far = Far::new(|config| {
        config.tls.handshake_timeout_ms = 60_000;
        config.tls.handshakes = 64;
    })
    .await;
    let admin = far.admin();
    let (mut connected, mut near) = (far.client(&admin), far.stage.client());
    let (mut before, mut during) = (Vec::new(), Vec::new());
    for client in [&mut connected, &mut near] {
        latency(client).await;
        before.push(latency(client).await);
    }
    let mut opened = 0;
    let mut worst = Duration::ZERO;
    while opened < ALL {
        let mut silent = Vec::with_capacity(AT_A_TIME);
        for _ in 0..AT_A_TIME {
            silent.push(tcp(far.address(), 2).await.unwrap());
        }
        opened += AT_A_TIME;
        // Those past the limit were hung up, the oldest first.
        let mut first = silent.swap_remove(0);
        let mut byte = [0];
        let read = timeout(PATIENCE, first.read(&mut byte)).await.expect("the oldest are hung up");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        if opened % (ALL / 10) == 0 {
            during.push((latency(&mut connected).await, latency(&mut near).await));
            // Somebody new, while all places for handshakes are taken.
            let start = Instant::now();
            Client::over(Way { from: 3, ..far.way(Some(&admin)) }.channel()).list().await.unwrap();
            worst = worst.max(start.elapsed());
        }
    }
    // A busy machine may be slow at any moment; if it was as quick at some, nobody waited for the silent ones.
    let best = |which: fn(&(Duration, Duration)) -> Duration| during.iter().map(which).min().unwrap();
    let after = [best(|pair| pair.0), best(|pair| pair.1)];
    println!(
        "median of a list by TLS and by the socket: {before:?} before, {after:?} during; a new connection {worst:?} at worst"
    );
    for (before, after) in before.into_iter().zip(after) {
        assert!(after <= before * 2, "{before:?} before, {after:?} during");
    }
    assert!(worst < Duration::from_secs(5), "{worst:?}");
    let refused = Refused::from(call(far.way(Some(&admin)).channel(), "no.such/Call").await.unwrap_err());
    assert_eq!(refused.code, Code::Unimplemented);
}
