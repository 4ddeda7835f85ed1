//! A volume grows where it lives; `extend` lets this host see it, to the byte.

use crate::{
    cli::{attach, detach, mortar, text},
    machine::{GuestStage, sh},
};
use driver::Backend;
use tests::stage::Stage;

const MIB: u64 = 1 << 20;
const BEFORE: u64 = 32 * MIB;
const AFTER: u64 = 48 * MIB;

/// As the kernel tells it.
fn size_of(device: &str) -> u64 {
    sh(&format!("blockdev --getsize64 {device}")).parse().unwrap()
}

/// Attaches a volume, lets it grow by a script, and extends it; once more is the same.
fn grows(locator: &str, script: &str) {
    let there = attach("grows", locator);
    let device = text(&there, "path");
    assert_eq!((&there["size_bytes"], size_of(device)), (&BEFORE.into(), BEFORE));
    assert_eq!(mortar(&["extend", "grows"]).ok()["size_bytes"], BEFORE, "it has not grown yet");
    sh(script);
    for _ in 0..2 {
        let grown = mortar(&["extend", "grows"]).ok();
        assert_eq!((&grown["size_bytes"], size_of(device)), (&AFTER.into(), AFTER), "{grown}");
    }
    assert_eq!(mortar(&["show", "grows"]).ok()["size_bytes"], AFTER);
    sh(&format!("dd if=/dev/urandom of={device} bs=1M count=1 seek=47 oflag=direct status=none"));
    detach("grows");
}

#[tokio::test]
async fn a_file() {
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "v", BEFORE).await;
    grows(&locator, &format!("truncate -s {AFTER} {}", &locator["file:".len()..]));
}

#[tokio::test]
async fn an_lv() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", BEFORE).await;
    grows(&locator, &format!("lvextend --quiet -L {AFTER}b {} >/dev/null", &locator["lvm:".len()..]));
}

#[tokio::test]
async fn an_image() {
    let mut stage = GuestStage::with_pool();
    let locator = stage.volume(Backend::Rbd, "v", BEFORE).await;
    grows(&locator, &format!("rbd resize --no-progress --size {AFTER}B {}", &locator["rbd:".len()..]));
}

/// The kernel's target keeps the size of a file for ever, but follows that of a device.
#[tokio::test]
async fn a_logical_unit() {
    let stage = GuestStage::with_target();
    let (iqn, store) = (stage.iqn(), stage.store(0));
    sh(&format!(
        "loop=$(loop_file /var/tmp/grows {BEFORE}); lio_fileio {store} 00000000000000000000000e1 {BEFORE} $loop
         lio_map {iqn} 0 {store}"
    ));
    let of_the_file = "$(losetup --noheadings --output NAME --associated /var/tmp/grows)";
    grows(
        &format!("iscsi://{}/{iqn}/0", crate::machine::PORTAL),
        &format!("truncate -s {AFTER} /var/tmp/grows; losetup -c {of_the_file}"),
    );
    sh(&format!("lio_unmap {iqn} 0; lio_remove_backstore {store}; losetup --detach {of_the_file}; rm /var/tmp/grows"));
}
