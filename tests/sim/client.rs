//! The client library against the whole agent: what it tries again and what not, its deadlines, and connections that break.

use crate::machine::{PORTAL, SimStage};
use driver::Backend;
use mortar_client::{Client, Code, Error, Kind, v1};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tempfile::TempDir;
use tests::{client::attach, stage::Stage};
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    task::{JoinHandle, JoinSet, yield_now},
    time::Instant,
};

const SIZE: u64 = 16 << 20;
const LONG: Duration = Duration::from_secs(60);

/// What stands between a client and an agent. Dropped, every connection through it breaks, and nobody listens there.
struct Between(JoinHandle<()>);

impl Between {
    #[expect(clippy::disallowed_methods, reason = "a socket of the test's own")]
    fn new(at: &Path, agent: PathBuf) -> Self {
        let _absent = std::fs::remove_file(at);
        let listener = UnixListener::bind(at).unwrap();
        Self(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut caller, _) = listener.accept().await.unwrap();
                let agent = agent.clone();
                connections.spawn(async move {
                    let mut agent = UnixStream::connect(agent).await.unwrap();
                    let _broken = copy_bidirectional(&mut caller, &mut agent).await;
                });
            }
        }))
    }

    async fn cut(self) {
        self.0.abort();
        let _aborted = self.0.await;
    }
}

async fn attached(client: &Client, id: &str, locator: &str) -> Result<v1::AttachResponse, Error> {
    client.ask(attach(id, locator)).await
}

async fn listed(client: &Client) -> Result<v1::ListAttachmentsResponse, Error> {
    client.ask(v1::ListAttachmentsRequest {}).await
}

fn client(socket: &Path) -> Client {
    Client::builder().socket(socket).timeout(LONG).lazy()
}

#[tokio::test]
async fn busy_is_waited_for_and_then_done() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    let client = client(&stage.socket());
    let held = stage.machine.hang(1, "");
    let (first, volume) = (client.clone(), locator.clone());
    let first = tokio::spawn(async move { attached(&first, "a", &volume).await });
    held.reached().await;

    // Its time is over before the volume is free: the agent's own words.
    let start = Instant::now();
    let busy = attached(&client.with_timeout(Duration::from_millis(1500)), "b", &locator).await.unwrap_err();
    assert_eq!((busy.kind(), busy.code(), busy.reason()), (Kind::Refused, Code::Aborted, "BUSY"), "{busy}");
    assert!(busy.metadata()["holder"].contains("attach") && busy.may_be_tried_again(), "{busy:?}");
    assert!((Duration::from_millis(1500)..Duration::from_secs(6)).contains(&start.elapsed()), "{:?}", start.elapsed());

    let (second, volume) = (client.clone(), locator.clone());
    let second = tokio::spawn(async move { attached(&second, "b", &volume).await });
    // It is refused before these are answered, and comes again.
    for _ in 0..3 {
        listed(&client).await.unwrap();
    }
    assert!(!second.is_finished());
    held.let_go();
    let path = |reply: v1::AttachResponse| reply.attachment.unwrap().path;
    assert_eq!(path(first.await.unwrap().unwrap()), path(second.await.unwrap().unwrap()));
}

#[tokio::test]
async fn a_deadline_is_kept_and_the_agents_words_come_first() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Iscsi, "v", SIZE).await;
    stage.machine.silence(PORTAL);
    let start = Instant::now();
    let client = client(&stage.socket()).with_timeout(Duration::from_millis(500));
    let refused = attached(&client, "a", &locator).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (Kind::Refused, "UNREACHABLE"), "{refused}");
    assert!((Duration::from_millis(400)..Duration::from_secs(2)).contains(&start.elapsed()), "{:?}", start.elapsed());

    // Nobody answers at all: the wait ends two seconds later.
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("agent.sock");
    let _mute = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let start = Instant::now();
    let late = listed(&self::client(&socket).with_timeout(Duration::from_millis(200))).await.unwrap_err();
    assert_eq!((late.kind(), late.code(), late.reason()), (Kind::Late, Code::DeadlineExceeded, "TIMED_OUT"), "{late}");
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn refusals_have_their_reasons_and_names() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    let other = stage.volume(Backend::File, "w", SIZE).await;
    let client = client(&stage.socket());
    let device = attached(&client, "a", &locator).await.unwrap().attachment.unwrap().path;
    let expect = |refused: Error, code: Code, reason: &str, names: &str| {
        assert_eq!((refused.kind(), refused.code(), refused.reason()), (Kind::Refused, code, reason), "{refused}");
        assert!(!refused.may_be_tried_again() && format!("{:?}", refused.metadata()).contains(names), "{refused:?}");
    };
    let nowhere = stage.nowhere(Backend::File);
    expect(attached(&client, "b", &nowhere).await.unwrap_err(), Code::NotFound, "NOT_FOUND", "");
    expect(attached(&client, "a", &other).await.unwrap_err(), Code::AlreadyExists, "ALREADY_EXISTS", "");
    expect(attached(&client, "../a", &other).await.unwrap_err(), Code::InvalidArgument, "INVALID", "id");
    stage.occupy(&device).await;
    let target = Some(v1::detach_request::Target::Id("a".into()));
    let refused = client.ask(v1::DetachRequest { target, timeout_ms: 0 }).await.unwrap_err();
    expect(refused, Code::FailedPrecondition, "IN_USE", "/mnt/data");
}

#[tokio::test]
async fn after_a_restart_of_the_agent_the_next_call_connects_again() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    let directory = TempDir::new().unwrap();
    let at = directory.path().join("agent.sock");
    let between = Between::new(&at, stage.socket());
    let client = Client::builder().socket(&at).timeout(LONG).connect().await.unwrap();
    let once = Client::builder().socket(&at).timeout(LONG).once().connect().await.unwrap();
    let mut watch = client.watch().await.unwrap();
    attached(&client, "a", &locator).await.unwrap();
    listed(&once).await.unwrap();
    stage.stop().await;
    between.cut().await;
    while let Ok(Some(_)) = watch.next().await {}

    // It is not there yet.
    let away = listed(&client.with_timeout(Duration::from_millis(200))).await.unwrap_err();
    assert_eq!((away.kind(), away.code(), away.reason()), (Kind::Unreachable, Code::Unavailable, "UNREACHABLE"));
    assert!(away.message().contains("mortard is not running") && away.may_be_tried_again(), "{away}");
    let refused = Client::builder().socket(&at).connect().await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unreachable, "{refused}");
    // Whoever asks meanwhile gets his answer when it is back.
    let asked = client.clone();
    let asked = tokio::spawn(async move { listed(&asked).await });
    yield_now().await;
    stage.start().await;
    let _between = Between::new(&at, stage.socket());
    assert_eq!(asked.await.unwrap().unwrap().attachments.len(), 1);
    let mut watch = client.watch().await.unwrap();
    let first = watch.next().await.unwrap();
    assert!(matches!(first, Some(v1::watch_event::Event::Attachment(there)) if there.id == "a"));
    // But not who asked for one connection only.
    for _ in 0..2 {
        assert_eq!(listed(&once).await.unwrap_err().kind(), Kind::Lost);
    }
}

/// The agent is killed in the middle of an attach. With an id of the caller's it is made again, and he gets the device of the next
/// agent; without one he is told.
#[tokio::test]
async fn a_call_with_an_id_survives_the_agents_death() {
    for id in ["a", ""] {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
        let directory = TempDir::new().unwrap();
        let at = directory.path().join("agent.sock");
        let between = Between::new(&at, stage.socket());
        let held = stage.machine.hang(1, "");
        let client = client(&at);
        let (caller, volume) = (client.clone(), locator.clone());
        let call = tokio::spawn(async move { attached(&caller, id, &volume).await });
        held.reached().await;
        stage.kill();
        between.cut().await;
        drop(held);
        stage.start().await;
        let _between = Between::new(&at, stage.socket());
        let answer = call.await.unwrap();
        if id.is_empty() {
            let lost = answer.unwrap_err();
            assert_eq!((lost.kind(), lost.code(), lost.reason()), (Kind::Lost, Code::Unavailable, "UNREACHABLE"));
            assert!(lost.may_be_tried_again(), "{lost}");
            attached(&client, id, &locator).await.unwrap();
        } else {
            let there = answer.unwrap().attachment.unwrap();
            assert_eq!((there.id.as_str(), there.state()), ("a", v1::AttachmentState::Ready));
        }
        assert_eq!(listed(&client).await.unwrap().attachments.len(), 1);
    }
}
