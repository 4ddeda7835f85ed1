//! Exports on the real kernel, with the initiator on the same host: whoever logs in must be the one, and an agent that is
//! killed forgets nothing.

use crate::{
    cli::{mortar, mortar_reading},
    machine::{GuestStage, Multipathd, sh, try_sh},
};
use driver::Backend;
use serde_json::Value;
use tests::stage::Stage;

const SIZE: u64 = 16 << 20;
const TARGETS: &str = "/sys/kernel/config/target";

fn own_name() -> String {
    sh("sed -n 's/^InitiatorName=//p' /etc/iscsi/initiatorname.iscsi")
}

/// What LIO holds that is ours.
fn served() -> String {
    let ours = "export-|iblock_3260|mortar";
    sh(&format!("find {TARGETS}/core {TARGETS}/iscsi -mindepth 1 -maxdepth 2 2>/dev/null | grep -E '{ours}' || true"))
}

/// The locator and the credentials of a connection_info.
fn parts(info: &Value) -> (String, String, String) {
    let text = |key: &str| info["data"][key].as_str().unwrap().to_owned();
    let locator = format!("iscsi://{}/{}/0", text("target_portal"), text("target_iqn"));
    (locator, text("auth_username"), text("auth_password"))
}

fn attach(info: &Value) -> Value {
    let (locator, user, password) = parts(info);
    let line = ["attach", &locator, "--id", "remote", "--chap-user", &user, "--chap-password-file", "-"];
    mortar_reading(&line, &password).ok()
}

#[tokio::test]
async fn one_initiator_gets_the_lv_and_its_data() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "lv", SIZE).await;
    let before = stage.snapshot().await;
    let own = own_name();
    // Names have no case.
    let shouted = own.to_ascii_uppercase().replacen("IQN", "iqn", 1);
    let line = ["export", &locator, "--initiator", &shouted, "--portal", "127.0.0.1", "--id", "guest"];
    let info = mortar(&line).ok();
    assert_ne!(served(), "", "what is looked for at the end is named otherwise");
    let (target, user, password) = parts(&info);
    assert_eq!(mortar(&line).ok(), info, "the second answer is another");
    let export = mortar(&["exports"]).ok()[0].clone();
    assert_eq!((&export["ready"], &export["size_bytes"]), (&true.into(), &SIZE.into()), "{export}");
    mortar(&["attach", &locator]).refused(4, "IN_USE");
    let secrets = "journalctl --unit mortard --no-pager; cat /var/lib/mortar/journal.sqlite*; cat /proc/[0-9]*/cmdline";
    assert!(!sh(&format!("({secrets}) | strings")).contains(&password), "the password is to be found");
    assert_eq!(sh("stat -c %a /var/lib/mortar/export.key"), "600");

    let wrong = ["attach", &target, "--id", "remote", "--chap-user", &user, "--chap-password-file", "-"];
    mortar_reading(&wrong, "wrong-wrong-wrong").refused(6, "DENIED");
    mortar(&["attach", &target, "--id", "remote"]).refused(6, "DENIED");

    let there = attach(&info);
    assert_eq!(there["scsi_wwn"], export["scsi_wwn"]);
    let (device, lv) = (there["path"].as_str().unwrap(), locator.replace("lvm:", "/dev/"));
    sh(&format!("echo over the wire | dd of={device} bs=512 conv=sync,fsync oflag=direct status=none"));
    assert_eq!(
        sh(&format!("dd if={lv} bs=512 count=1 iflag=direct status=none | tr -d '\\0' | head -n 1")),
        "over the wire"
    );
    let message = mortar(&["unexport", "guest"]).refused(4, "IN_USE");
    assert!(message.contains(&format!("{own} at 127.0.0.1")), "{message}");
    assert_eq!(mortar(&["exports"]).ok()[0]["ready"], true, "a refusal took something away");
    assert_eq!(sh(&format!("dd if={device} bs=512 count=1 iflag=direct status=none | tr -d '\\0'")), "over the wire");

    mortar(&["detach", "remote"]).ok();
    assert_eq!(mortar(&["unexport", &locator]).ok()["changed"], true);
    assert_eq!(mortar(&["unexport", &locator]).ok()["changed"], false);
    assert_eq!((served(), stage.snapshot().await), (String::new(), before));
}

/// Served at two portals, it is attached by both.
#[tokio::test]
async fn by_two_portals() {
    let _multipathd = Multipathd::up();
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "lv", SIZE).await;
    sh("ip address replace 10.7.7.7/32 dev lo");
    let (before, own) = (stage.snapshot().await, own_name());
    let portals = ["--portal", "127.0.0.1", "--portal", "10.7.7.7"];
    let info = mortar(&[&["export", &locator, "--initiator", &own, "--id", "both"], &portals[..]].concat()).ok();
    let line = ["attach", "--connection-info", "-", "--id", "remote", "--all-paths"];
    let there = mortar_reading(&line, &info.to_string()).ok();
    let paths = there["paths"].as_array().unwrap();
    let portals: Vec<&str> = paths.iter().map(|path| path["portal"].as_str().unwrap()).collect();
    assert_eq!(portals, ["127.0.0.1:3260", "10.7.7.7:3260"], "{there}");
    assert!(paths.iter().all(|path| path["state"] == "running"), "{there}");
    let (device, lv) = (there["path"].as_str().unwrap(), locator.replace("lvm:", "/dev/"));
    assert!(device.starts_with("/dev/dm-"), "{there}");
    sh(&format!("echo by both | dd of={device} bs=512 conv=sync,fsync oflag=direct status=none"));
    assert_eq!(sh(&format!("dd if={lv} bs=512 count=1 iflag=direct status=none | tr -d '\\0'")), "by both");
    mortar(&["detach", "remote"]).ok();
    mortar(&["unexport", "both"]).ok();
    assert_eq!((served(), stage.snapshot().await), (String::new(), before));
    sh("ip address del 10.7.7.7/32 dev lo");
}

#[tokio::test]
async fn others_are_not_let_in_and_see_nothing() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "lv", SIZE).await;
    let line = ["export", &locator, "--initiator", "iqn.2026-11.org.example:somebody", "--portal", "127.0.0.1"];
    let info = mortar(&line).ok();
    let (target, user, password) = parts(&info);
    let right = ["attach", &target, "--id", "remote", "--chap-user", &user, "--chap-password-file", "-"];
    mortar_reading(&right, &password).refused(6, "DENIED");
    let found = try_sh("iscsiadm -m discovery -t st -p 127.0.0.1 -o nonpersistent");
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(!found.contains("export-"), "discovery shows it to everybody: {found}");
    mortar(&["unexport", &locator]).ok();
    assert_eq!(served(), "");
}

#[tokio::test]
async fn an_agent_that_is_killed_serves_on_and_makes_whole_what_is_missing() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "lv", SIZE).await;
    let own = own_name();
    let line = ["export", &locator, "--initiator", &own, "--portal", "127.0.0.1", "--id", "killed"];
    let info = mortar(&line).ok();
    attach(&info);
    stage.kill_and_restart().await;
    assert_eq!(mortar(&line).ok(), info);
    mortar(&["unexport", "killed"]).refused(4, "IN_USE");
    mortar(&["detach", "remote"]).ok();

    // Somebody at the shell.
    sh(&format!("rmdir {TARGETS}/iscsi/*:export-killed/tpgt_1/np/127.0.0.1:3260"));
    let broken = mortar(&["exports"]).ok()[0].clone();
    assert_eq!(broken["ready"], false, "{broken}");
    assert_eq!(mortar(&line).ok(), info);
    attach(&info);
    mortar(&["detach", "remote"]).ok();
    mortar(&["unexport", "killed"]).ok();
    assert_eq!(served(), "");
    // It is as before the export, so its name is given back and it can be attached here.
    mortar(&["attach", &locator, "--id", "here"]).ok();
    mortar(&["detach", "here"]).ok();
}

#[tokio::test]
async fn what_is_in_use_or_nothing_is_refused() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "lv", SIZE).await;
    let before = stage.snapshot().await;
    let own = own_name();
    let export = |locator: &str| mortar(&["export", locator, "--initiator", &own, "--portal", "127.0.0.1"]);
    let device = mortar(&["attach", &locator, "--id", "here"]).ok()["path"].as_str().unwrap().to_owned();
    assert!(export(&locator).refused(4, "IN_USE").contains("attached as here"));
    mortar(&["detach", "here"]).ok();
    // Active before, and held by somebody who asked for nobody else.
    let lv = locator.replace("lvm:", "");
    sh(&format!("lvchange -ay {lv}"));
    stage.occupy(&device).await;
    assert!(export(&locator).refused(4, "IN_USE").contains("open by"));
    stage.vacate(&device).await;
    export(&locator).ok();
    mortar(&["unexport", &locator]).ok();
    assert_eq!(sh(&format!("lvs --noheadings -o lv_active {lv}")).trim(), "active", "it was active before");
    sh(&format!("lvchange -an {lv}"));
    export(&stage.nowhere(Backend::Lvm)).refused(3, "NOT_FOUND");
    mortar(&["export", &locator, "--initiator", &own, "--portal", "10.9.9.9"]).refused(2, "INVALID");
    assert_eq!((served(), stage.snapshot().await), (String::new(), before));
}
