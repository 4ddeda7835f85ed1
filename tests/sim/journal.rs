//! The journal's own faults: its disk is full, it is damaged or of a later layout, and the clock is set back.

#![expect(clippy::disallowed_methods, reason = "the journal's file, as something else could change it")]

use crate::machine::SimStage;
use driver::Backend;
use proto::v1;
use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};
use tests::{
    client::{attach, manage},
    stage::Stage,
};
use tokio::time::{Instant, sleep};
use tonic::Code;

const SIZE: u64 = 16 << 20;
const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8662";

#[tokio::test]
async fn a_full_disk_refuses_before_any_effect_and_reads_go_on() {
    for backend in [Backend::File, Backend::Iscsi, Backend::Lvm, Backend::Rbd] {
        let mut stage = SimStage::new().await;
        let (first, second) = (stage.volume(backend, "v", SIZE).await, stage.volume(backend, "w", SIZE).await);
        let mut client = stage.client();
        client.attach(attach("a", &first)).await.unwrap();
        let before = stage.snapshot().await;
        stage.machine.fill_disk(true);
        let mut refusals = vec![client.attach(attach("b", &second)).await.unwrap_err()];
        refusals.push(client.detach("a").await.unwrap_err());
        if backend != Backend::Iscsi {
            refusals.push(client.manage(manage(&second)).await.unwrap_err());
        }
        for refused in refusals {
            assert_eq!((refused.code, refused.reason.as_str()), (Code::ResourceExhausted, "NO_SPACE"));
            assert!(refused.message.contains("journal.sqlite is full: make room"), "{}", refused.message);
        }
        assert_eq!(stage.snapshot().await, before, "{backend}");
        assert_eq!(client.get("a").await.unwrap().state(), v1::AttachmentState::Ready);
        assert_eq!(client.list().await.unwrap().len(), 1);
        assert!(client.running().await.is_empty());
        // The same again has nothing to write.
        assert!(!client.attach(attach("a", &first)).await.unwrap().changed);

        stage.machine.fill_disk(false);
        client.attach(attach("b", &second)).await.unwrap();
        assert!(client.detach("a").await.unwrap().changed);
    }
}

/// What was under way is done, keeps its locks, and ends when there is room.
#[tokio::test]
async fn what_was_under_way_when_the_disk_filled_ends_when_there_is_room() {
    let mut stage = SimStage::new().await;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let bare = stage.snapshot().await;
    let mut client = stage.client();
    for attaching in [true, false] {
        let last = if attaching { "link /dev/mortar/a" } else { "remove /dev/mortar/a" };
        stage.machine.before_next(last, |machine| machine.fill_disk(true));
        let refused = match attaching {
            true => client.attach(attach("a", &locator)).await.map(drop),
            false => client.detach("a").await.map(drop),
        }
        .unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (Code::ResourceExhausted, "NO_SPACE"));
        assert!(refused.message.contains("it was done, and ends by itself"), "{}", refused.message);
        assert_eq!(client.running().await.len(), 1);
        let held = client.attach(attach("b", &locator)).await.unwrap_err();
        assert_eq!((held.code, held.reason.as_str()), (Code::Aborted, "BUSY"), "{}", held.message);
        stage.machine.fill_disk(false);
        let patience = Instant::now() + Duration::from_secs(20);
        while !client.running().await.is_empty() {
            assert!(Instant::now() < patience, "it does not end");
            sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(client.list().await.unwrap().len(), usize::from(attaching));
    }
    assert_eq!(stage.snapshot().await, bare);
}

impl SimStage {
    fn journal(&self) -> PathBuf {
        self.state_directory().join("journal.sqlite")
    }

    /// The agent ends, and with it whoever has the journal open.
    async fn close_journal(&mut self) {
        self.stop().await;
        let patience = Instant::now() + Duration::from_secs(20);
        while self.state_directory().join("journal.sqlite-wal").exists() {
            assert!(Instant::now() < patience, "the journal is still open");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

fn overwrite(bytes: &mut [u8], what: &[u8], with: u8) {
    let at = bytes.windows(what.len()).position(|window| window == what).expect("it is there");
    bytes[at..at + what.len()].fill(with);
}

/// A way to damage a journal, and what the agent says of it.
type Damage = (&'static str, fn(&mut Vec<u8>), &'static str);

const DAMAGES: [Damage; 8] = [
    ("its first page overwritten", |bytes| bytes[..4096].fill(0), "is damaged"),
    ("a page in its middle overwritten", |bytes| bytes[4096..8192].fill(0xff), "is damaged"),
    ("a record overwritten", |bytes| overwrite(bytes, b"\"persistent\"", b'x'), "is damaged"),
    ("truncated", |bytes| bytes.truncate(6000), "is damaged"),
    ("empty", Vec::clear, "is damaged"),
    ("something else", |bytes| *bytes = b"not a data base at all".repeat(400), "is damaged"),
    ("of nobody's layout", |bytes| bytes[60..64].fill(0), "is damaged"),
    ("of a later layout", |bytes| bytes[63] = 99, "has layout 99"),
];

#[tokio::test]
async fn without_its_journal_the_agent_reads_and_changes_nothing() {
    for (damage, mangle, words) in DAMAGES {
        let mut stage = SimStage::new().await;
        let (attached, free) =
            (stage.volume(Backend::Lvm, "v", SIZE).await, stage.volume(Backend::Lvm, "w", SIZE).await);
        let mut client = stage.client();
        client.manage(v1::ManageRequest { id: ID.into(), ..manage(&free) }).await.unwrap();
        let path = client.attach(attach("a", &attached)).await.unwrap().attachment.unwrap().path;
        assert!(client.serves().await);
        drop(client);
        stage.close_journal().await;
        let mut bytes = std::fs::read(stage.journal()).unwrap();
        mangle(&mut bytes);
        std::fs::write(stage.journal(), &bytes).unwrap();
        let before = stage.snapshot().await;

        stage.start().await;
        let mut client = stage.client();
        assert!(!client.serves().await, "{damage}");
        let mut refusals = vec![
            client.attach(attach("b", &attached)).await.unwrap_err(),
            client.detach("a").await.unwrap_err(),
            client.manage(manage(&attached)).await.unwrap_err(),
            client.unmanage(ID, false).await.unwrap_err(),
            client.get("a").await.unwrap_err(),
        ];
        let extend = v1::ExtendRequest { id: "a".into(), timeout_ms: 0 };
        refusals.push(client.attachments.extend(extend).await.unwrap_err().into());
        let export = v1::ExportRequest {
            locator: attached.clone(),
            initiator: "iqn.2026-11.org.example:other".into(),
            ..Default::default()
        };
        refusals.push(client.export(export).await.unwrap_err());
        refusals.push(client.unexport("a").await.unwrap_err());
        for refused in refusals {
            assert_eq!((refused.code, refused.reason.as_str()), (Code::FailedPrecondition, "WRONG_STATE"), "{damage}");
            assert!(refused.message.contains("mortard is read-only: the journal"), "{}", refused.message);
            assert!(refused.message.contains(words), "{damage}: {}", refused.message);
        }
        let listed = client.list().await.unwrap();
        let [one] = listed.as_slice() else { panic!("{damage}: {listed:?}") };
        assert_eq!((one.id.as_str(), &one.path, one.size_bytes), ("a", &path, SIZE), "{damage}");
        assert_eq!(one.state(), v1::AttachmentState::Broken);
        assert_eq!(client.volumes("").await.unwrap().len(), 1, "{damage}");
        assert_eq!(client.manageable(&stage.scope(Backend::Lvm)).await.unwrap().len(), 2, "{damage}");
        client.host.get_host(v1::GetHostRequest {}).await.unwrap();
        assert_eq!(stage.snapshot().await, before, "{damage}: something was changed");
        stage.kill();
        assert!(std::fs::read(stage.journal()).unwrap() == bytes, "{damage}: the journal was written to");

        // As it says: out of the way, a start, and the same again.
        for end in ["", "-wal", "-shm"] {
            let name = stage.state_directory().join(format!("journal.sqlite{end}"));
            let _not_there = std::fs::rename(&name, stage.state_directory().join(format!("old{end}")));
        }
        stage.start().await;
        let mut client = stage.client();
        assert!(client.serves().await);
        assert_eq!(client.attach(attach("a", &attached)).await.unwrap().attachment.unwrap().path, path);
        assert!(client.detach("a").await.unwrap().changed);
        assert!(client.unmanage(ID, false).await.unwrap().changed);
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_changes_nothing_but_what_people_read() {
    let mut stage = SimStage::new().await;
    stage.config.journal.keep_operations = 3;
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let year = Duration::from_secs(365 * 24 * 3600);
    stage.machine.set_now(SystemTime::UNIX_EPOCH + 80 * year);
    stage.kill_and_restart().await;
    let mut client = stage.client();
    client.attach(attach("a", &locator)).await.unwrap();
    client.detach("a").await.unwrap();
    let newest = |years: u32, rounds: u32| {
        let (machine, locator, mut client) = (stage.machine.clone(), locator.clone(), stage.client());
        async move {
            machine.set_now(SystemTime::UNIX_EPOCH + years * year);
            let mut ids = Vec::new();
            for _ in 0..rounds {
                ids.insert(0, client.attach(attach("a", &locator)).await.unwrap().operation_id);
                ids.insert(0, client.detach("a").await.unwrap().operation_id);
            }
            ids
        }
    };
    let ids = newest(40, 2).await;
    let request = v1::ListOperationsRequest { running_only: false, limit: 0 };
    let listed = client.operations.list(request).await.unwrap().into_inner().operations;
    let listed: Vec<String> = listed.into_iter().map(|operation| operation.id).collect();
    assert_eq!(listed, ids[..3], "the newest are kept, and come first");
    // And on the way there a crash: what is under way is taken up.
    client.attach(attach("a", &locator)).await.unwrap();
    stage.machine.set_now(SystemTime::UNIX_EPOCH);
    stage.kill_and_restart().await;
    assert_eq!(stage.client().get("a").await.unwrap().state(), v1::AttachmentState::Ready);
    assert!(stage.client().detach("a").await.unwrap().changed);
}
