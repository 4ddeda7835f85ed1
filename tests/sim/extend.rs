//! A volume grows on its backend, and the attachment with it.

use crate::machine::{CLUSTER, DIRECTORY, IQN, POOL, SimStage, VG};
use driver::Backend;
use proto::v1;
use tests::{
    client::{Refused, attach},
    stage::Stage,
};
use tonic::Code;

const SIZE: u64 = 16 << 20;

#[tokio::test]
async fn the_new_size_is_seen_once() {
    for backend in crate::machine::BACKENDS {
        let mut stage = SimStage::new().await;
        let locator = stage.volume(backend, "v", SIZE).await;
        stage.client().attach(attach("a", &locator)).await.unwrap();
        match backend {
            Backend::File => stage.machine.truncate(format!("{DIRECTORY}/v.raw"), 2 * SIZE),
            Backend::Iscsi => stage.machine.resize_lun(IQN, 0, 2 * SIZE),
            Backend::Lvm => stage.machine.extend_lv(VG, "v", 2 * SIZE),
            Backend::Rbd => stage.machine.grow_image(CLUSTER, POOL, "v", 2 * SIZE),
        }
        let request = || v1::ExtendRequest { id: "a".into(), timeout_ms: 0 };
        let grown = stage.client().attachments.extend(request()).await.unwrap().into_inner();
        assert_eq!(grown.attachment.unwrap().size_bytes, 2 * SIZE, "{backend}");
        // LVM itself tells the kernel; the others wait to be asked.
        assert_eq!(grown.changed, backend != Backend::Lvm, "{backend}");
        let again = stage.client().attachments.extend(request()).await.unwrap().into_inner();
        assert!(!again.changed, "{backend}");
        assert_eq!(stage.client().get("a").await.unwrap().size_bytes, 2 * SIZE, "{backend}");
    }
}

#[tokio::test]
async fn what_is_not_attached_does_not_grow() {
    let stage = SimStage::new().await;
    let request = v1::ExtendRequest { id: "nobody".into(), timeout_ms: 0 };
    let refused = Refused::from(stage.client().attachments.extend(request).await.unwrap_err());
    assert_eq!((refused.code, refused.reason.as_str()), (Code::NotFound, "NOT_FOUND"), "{}", refused.message);
}
