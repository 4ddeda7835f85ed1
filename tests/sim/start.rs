//! What a starting agent waits for: the tools that the dead one had started. And what it serves while it still looks at its
//! attachments, one of which does not answer.

use crate::machine::SimStage;
use driver::Backend;
use host::{Host, sim::Held};
use proto::v1::{self, AttachmentState};
use std::time::Duration;
use tests::{client::attach, stage::Stage};
use tokio::time::{Instant, timeout};
use tonic::Code;

const SIZE: u64 = 16 << 20;
/// Far less than a look takes that does not end.
const AT_ONCE: Duration = Duration::from_secs(5);

/// An agent that has just been started, with the attachments `stuck`, whose device does not answer, and `well`. Their stable
/// paths went missing meanwhile.
async fn started(stage: &mut SimStage) -> (String, Held) {
    let (stuck, well) = (stage.volume(Backend::Iscsi, "v", SIZE).await, stage.volume(Backend::File, "w", SIZE).await);
    for (id, locator) in [("stuck", &stuck), ("well", &well)] {
        stage.client().attach(attach(id, locator)).await.unwrap();
    }
    stage.kill();
    for id in ["stuck", "well"] {
        stage.machine.remove_tree(format!("/dev/mortar/{id}"));
    }
    let held = stage.machine.hang(0, "inquiry");
    stage.looks_first = false;
    timeout(AT_ONCE, stage.start()).await.expect("it does not serve");
    held.reached().await;
    (stuck, held)
}

/// It activates the LV when the agent is dead already. Undone before that, it would be active for ever.
#[tokio::test]
async fn a_tool_that_outlived_the_agent_is_waited_for() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let before = stage.snapshot().await;
    stage.machine.crash_as_it_begins("lvchange", Duration::from_millis(300));
    let mut client = stage.client();
    let _call = tokio::spawn(async move { client.attach(attach("a", &locator)).await });
    timeout(AT_ONCE, stage.machine.crashed()).await.expect("it activates nothing");
    stage.kill();
    stage.start().await;
    assert!(stage.machine.outlived(Instant::now() + AT_ONCE).await.unwrap().is_empty());
    assert!(stage.machine.effects().iter().any(|effect| effect.contains("lvchange")), "the tool did nothing");
    assert!(stage.client().running().await.is_empty());
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

#[tokio::test]
async fn others_are_served_while_a_device_does_not_answer() {
    let mut stage = SimStage::new().await;
    let (_, held) = started(&mut stage).await;
    let another = stage.volume(Backend::Lvm, "x", SIZE).await;
    let mut client = stage.client();
    let served = async {
        assert_eq!(client.list().await.unwrap().len(), 2);
        assert!(client.running().await.is_empty());
        assert!(client.host.get_host(v1::GetHostRequest {}).await.is_ok() && client.serves().await);
        let well = client.get("well").await.unwrap();
        assert_eq!(well.state(), AttachmentState::Ready);
        assert!(stage.snapshot().await.contains("/dev/mortar/well ->"), "its path was told before it was there");
        assert!(client.detach("well").await.unwrap().changed);
        assert!(client.attach(attach("x", &another)).await.unwrap().changed);
        assert!(client.detach("x").await.unwrap().changed);
    };
    timeout(AT_ONCE, served).await.expect("one that does not answer holds up others");
    held.let_go();
    assert_eq!(client.get("stuck").await.unwrap().state(), AttachmentState::Ready);
    assert!(stage.snapshot().await.contains("/dev/mortar/stuck ->"));
}

#[tokio::test]
async fn who_wants_that_device_waits_until_his_deadline() {
    let mut stage = SimStage::new().await;
    let (locator, held) = started(&mut stage).await;
    let (mut client, timeout_ms) = (stage.client(), 700);
    // The other one's path comes by itself.
    client.get("well").await.unwrap();
    let before = stage.snapshot().await;
    for call in ["attach", "attach by its locator", "detach", "extend", "show"] {
        let begun = Instant::now();
        let target = Some(v1::detach_request::Target::Id("stuck".into()));
        let refused = match call {
            "attach" => client.attach(v1::AttachRequest { timeout_ms, ..attach("stuck", &locator) }).await.err(),
            "attach by its locator" => {
                client.attach(v1::AttachRequest { timeout_ms, ..attach("", &locator) }).await.err()
            }
            "detach" => client.attachments.detach(v1::DetachRequest { target, timeout_ms }).await.err().map(Into::into),
            "extend" => {
                let request = v1::ExtendRequest { id: "stuck".into(), timeout_ms };
                client.attachments.extend(request).await.err().map(Into::into)
            }
            _ => {
                let mut request = tonic::Request::new(v1::GetAttachmentRequest { id: "stuck".into() });
                request.set_timeout(Duration::from_millis(timeout_ms));
                client.attachments.get(request).await.err().map(Into::into)
            }
        };
        let refused = refused.unwrap_or_else(|| panic!("{call}: it was handed out before it was proved"));
        assert_eq!((refused.code, refused.reason.as_str()), (Code::DeadlineExceeded, "TIMED_OUT"), "{call}");
        assert!(refused.message.contains("the device of stuck"), "{call}: {}", refused.message);
        let waited = Duration::from_millis(300)..Duration::from_secs(3);
        assert!(waited.contains(&begun.elapsed()), "{call}: {:?}", begun.elapsed());
        assert_eq!(stage.snapshot().await, before, "{call} touched something");
    }
    let mut patient = stage.client();
    let waiting = tokio::spawn(async move { patient.attach(attach("stuck", &locator)).await });
    tokio::task::yield_now().await;
    held.let_go();
    let there = waiting.await.unwrap().unwrap();
    assert!(!there.changed);
    assert!(stage.snapshot().await.contains("/dev/mortar/stuck ->"));
    assert!(client.detach("stuck").await.unwrap().changed);
}

/// It is killed, and told to stop, while it looks: neither takes longer for it, and the next one looks again.
#[tokio::test]
async fn the_end_comes_while_it_looks() {
    let mut stage = SimStage::new().await;
    let (locator, _held) = started(&mut stage).await;
    stage.kill();
    let held = stage.machine.hang(0, "inquiry");
    stage.start().await;
    held.reached().await;
    timeout(AT_ONCE, stage.stop()).await.expect("it does not stop");
    stage.looks_first = true;
    stage.start().await;
    assert!(!stage.client().attach(attach("stuck", &locator)).await.unwrap().changed);
    for id in ["stuck", "well"] {
        assert!(stage.snapshot().await.contains(&format!("/dev/mortar/{id} ->")), "{id}");
        assert!(stage.client().detach(id).await.unwrap().changed);
    }
}
