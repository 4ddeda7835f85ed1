//! Devices that go without the agent's doing: whoever watches hears of it, and when they are back.

use crate::machine::{POOL, SimStage, VG};
use driver::Backend;
use proto::v1::{self, AttachmentState, watch_event::Event};
use std::time::Duration;
use tests::{client::attach, stage::Stage};
use tokio::time::timeout;

const SIZE: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// The next attachment that a watcher hears of, and its state.
async fn next(heard: &mut tonic::Streaming<v1::WatchEvent>) -> (String, AttachmentState) {
    loop {
        let event = timeout(PATIENCE, heard.message()).await.expect("an event").unwrap().unwrap();
        match event.event.unwrap() {
            Event::Attachment(one) => return (one.id.clone(), one.state()),
            Event::AttachmentGone(id) => panic!("{id} is gone"),
            Event::Operation(_) => {}
        }
    }
}

#[tokio::test]
async fn a_watcher_hears_what_nobody_did() {
    let mut stage = SimStage::new().await;
    let (lv, image) = (stage.volume(Backend::Lvm, "v", SIZE).await, stage.volume(Backend::Rbd, "v", SIZE).await);
    let mut client = stage.client();
    client.attach(attach("lv", &lv)).await.unwrap();
    client.attach(attach("image", &image)).await.unwrap();
    let mut heard = client.attachments.watch(v1::WatchRequest {}).await.unwrap().into_inner();
    assert_eq!(next(&mut heard).await, ("image".into(), AttachmentState::Ready));
    assert_eq!(next(&mut heard).await, ("lv".into(), AttachmentState::Ready));
    stage.machine.deactivate_lv(VG, "v");
    assert_eq!(next(&mut heard).await, ("lv".into(), AttachmentState::Broken));
    stage.machine.unmap_image(0);
    assert_eq!(next(&mut heard).await, ("image".into(), AttachmentState::Broken));
    // What was told already is not told again; what is back is.
    stage.machine.activate_lv(VG, "v", false);
    assert_eq!(next(&mut heard).await, ("lv".into(), AttachmentState::Ready));
    stage.machine.map_image(&format!("127.0.0.1:6789 name=admin {POOL} v -"));
    assert_eq!(next(&mut heard).await, ("image".into(), AttachmentState::Ready));
}

/// A caller who attaches and detaches is told of that alone, by its own events.
#[tokio::test]
async fn what_an_operation_does_is_told_once() {
    let mut stage = SimStage::new().await;
    let lv = stage.volume(Backend::Lvm, "v", SIZE).await;
    let mut client = stage.client();
    let mut heard = client.attachments.watch(v1::WatchRequest {}).await.unwrap().into_inner();
    for _ in 0..3 {
        client.attach(attach("lv", &lv)).await.unwrap();
        client.detach("lv").await.unwrap();
    }
    let mut states = Vec::new();
    while let Ok(event) = timeout(Duration::from_secs(2), heard.message()).await {
        match event.unwrap().unwrap().event.unwrap() {
            Event::Attachment(one) => states.push(one.state()),
            Event::AttachmentGone(_) => states.push(AttachmentState::Unspecified),
            Event::Operation(_) => {}
        }
    }
    assert_eq!(states, [AttachmentState::Ready, AttachmentState::Unspecified].repeat(3));
}
