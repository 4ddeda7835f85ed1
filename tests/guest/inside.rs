//! What a virtual machine keeps inside its volume is no business of the host's: nothing of it is activated, the agent does
//! not see it, and the volume can be detached.

use crate::{
    cli::{attach, detach, mortar, names, text},
    machine::{GuestStage, Multipathd, sh},
};
use driver::Backend;
use tests::stage::Stage;

const MIB: u64 = 1 << 20;

/// Makes a VG of a device, as a virtual machine would.
fn make_vg(device: &str) -> String {
    format!(
        "vgcreate -q -y --devices {device} guests {device} >/dev/null
         lvcreate -q -y --devices {device} -an -Zn -n root -L 8M guests >/dev/null"
    )
}

/// In the file that is the unit of a stage. The loop device is no guest's, and the host would start what is on it: so udev
/// sees it only when it is empty again.
fn make_vg_in_store(stage: &GuestStage) {
    sh(&format!(
        "udevadm settle; udevadm control --stop-exec-queue; trap 'udevadm control --start-exec-queue; udevadm settle' EXIT
         loop=$(loop_file /var/tmp/{}.img 32M)
         {}
         losetup -d $loop",
        stage.store(0),
        make_vg("$loop")
    ));
}

/// Attaches a volume with a VG inside, and nobody starts that.
async fn is_left_alone(stage: &GuestStage, locator: &str) {
    let before = stage.snapshot().await;
    let there = attach("guests", locator);
    let device = text(&there, "path").strip_prefix("/dev/").unwrap().to_owned();
    sh("udevadm settle; while systemctl list-jobs --no-legend | grep -q lvm; do :; done; udevadm settle");
    for seen in names(&format!("/sys/block/{device}/slaves")).into_iter().chain([device.clone()]) {
        let properties = sh(&format!("udevadm info --query property --name {seen}"));
        assert!(properties.contains("UDISKS_IGNORE=1"), "{properties}");
        assert!(!properties.contains("ID_FS_TYPE=LVM2_member"), "{properties}");
    }
    let properties = sh(&format!("udevadm info --query property --name {device}"));
    // Debian 12's udev does not look into images by itself; others do.
    let is_looked_into = !device.starts_with("rbd") || properties.contains("ID_FS_TYPE=");
    assert!(!is_looked_into || properties.contains("ID_FS_TYPE=mortar_volume"), "{properties}");
    assert_eq!(names(&format!("/sys/block/{device}/holders")), Vec::<String>::new());
    assert!(!names("/dev/mapper").contains(&"guests-root".to_owned()));
    mortar(&["manageable", "lvm:guests"]).refused(3, "NOT_FOUND");
    mortar(&["attach", "lvm:guests/root"]).refused(3, "NOT_FOUND");
    detach("guests");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

#[tokio::test]
async fn a_vg_in_a_disk() {
    let mut stage = GuestStage::with_target();
    let locator = stage.volume(Backend::Iscsi, "", 32 * MIB).await;
    make_vg_in_store(&stage);
    is_left_alone(&stage, &locator).await;
}

#[tokio::test]
async fn a_vg_in_a_map() {
    let _multipathd = Multipathd::up();
    let mut stage = GuestStage::with_target();
    stage.volume(Backend::Iscsi, "", 32 * MIB).await;
    make_vg_in_store(&stage);
    let iqn = stage.iqn();
    sh(&format!("lio_portal {iqn} 127.0.0.2:3260"));
    is_left_alone(&stage, &format!("iscsi://127.0.0.1,127.0.0.2/{iqn}/0")).await;
}

#[tokio::test]
async fn a_vg_in_an_image() {
    let mut stage = GuestStage::with_pool();
    let locator = stage.volume(Backend::Rbd, "v", 32 * MIB).await;
    let there = attach("to-fill", &locator);
    sh(&make_vg(text(&there, "path")));
    detach("to-fill");
    is_left_alone(&stage, &locator).await;
}
