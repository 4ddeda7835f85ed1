//! What Cinder and os-brick have for a volume, handed over as it stands; and what this host tells them of itself.

use crate::{
    cli::{Execs, Ran, Reconfigured, attach, detach, mortar, mortar_reading, sessions, text, until},
    iscsi::{MARKER, PASSWORD, Spy, USER, that_hold},
    machine::{GuestStage, PORTAL, sh},
};
use driver::Backend;
use serde_json::{Value, json};
use std::{collections::BTreeSet, path::Path, time::Duration};
use tests::stage::Stage;

const MIB: u64 = 1 << 20;

/// Cinder's own, for a volume of its LVM driver with LIO: `cinder/volume/targets/iscsi.py`, and what its manager adds.
fn cinder(stage: &GuestStage, portal: &str, lun: Value) -> Value {
    json!({
        "target_discovered": false, "target_portal": portal, "target_iqn": stage.iqn(), "target_lun": lun,
        "volume_id": "af767c74-54f3-4dc3-8a43-1fa9f0c66f22", "qos_specs": null, "access_mode": "rw", "encrypted": false,
        "cacheable": false, "discard": true, "physical_block_size": "512", "logical_block_size": "512",
        "enforce_multipath": false,
    })
}

/// As `initialize_connection` and Nova have it.
fn envelope(data: &Value) -> Value {
    json!({"driver_volume_type": "iscsi", "data": data, "serial": data["volume_id"], "multiattach": false})
}

/// As the attachments API has it.
fn flat(data: &Value) -> Value {
    let mut flat = data.clone();
    flat["driver_volume_type"] = "iscsi".into();
    flat["attachment_id"] = "3b4db356-253d-4fab-bfa0-e3626c0b8405".into();
    flat
}

/// In a file, attached under this id.
fn attach_by(info: &Value, id: &str) -> Ran {
    std::fs::write("/root/connection.json", info.to_string()).unwrap();
    let ran = mortar(&["attach", "--connection-info", "/root/connection.json", "--id", id]);
    std::fs::remove_file("/root/connection.json").unwrap();
    ran
}

/// From stdin; it has to be there.
#[track_caller]
fn detach_by(info: &Value) {
    let gone = mortar_reading(&["detach", "--connection-info", "-"], &info.to_string()).ok();
    assert!(gone["changed"] == true && gone["residuals"] == Value::Array(Vec::new()), "{gone}");
}

#[tokio::test]
async fn both_forms_and_a_lun_in_any_form() {
    let mut stage = GuestStage::with_target();
    for lun in 0..2 {
        stage.volume(Backend::Iscsi, "", (16 + lun) * MIB).await;
    }
    let before = stage.snapshot().await;
    for lun in [json!(1), json!("1")] {
        let data = cinder(&stage, PORTAL, lun);
        for info in [envelope(&data), flat(&data)] {
            let there = attach_by(&info, "cinder").ok();
            assert_eq!((text(&there, "scsi_wwn"), &there["size_bytes"]), (&*stage.wwn(1), &(17 * MIB).into()));
            assert_eq!((&there["type"], &there["multipath_id"]), (&"block".into(), &Value::Null));
            assert_eq!(text(&there, "locator"), format!("iscsi://{PORTAL}/{}/1", stage.iqn()));
            let again = mortar_reading(&["attach", "--connection-info", "-"], &envelope(&data).to_string()).ok();
            assert_eq!((&again["changed"], &again["id"]), (&false.into(), &"cinder".into()));
            detach_by(&flat(&data));
            assert_eq!(stage.snapshot().await, before, "something was left behind");
            let none = mortar_reading(&["detach", "--connection-info", "-"], &info.to_string()).ok();
            assert_eq!(none["changed"], false);
        }
    }
}

#[tokio::test]
async fn how_it_is_attached() {
    let mut stage = GuestStage::with_target();
    stage.volume(Backend::Iscsi, "", 16 * MIB).await;
    let before = stage.snapshot().await;
    let with = |key: &str, value: Value| {
        let mut data = cinder(&stage, PORTAL, json!(0));
        data[key] = value;
        envelope(&data)
    };
    let there = attach_by(&with("access_mode", "ro".into()), "ro").ok();
    assert_eq!(there["read_only"], true);
    attach_by(&with("access_mode", "rw".into()), "ro").refused(4, "ALREADY_EXISTS");
    detach("ro");
    let there = attach_by(&with("wwn", stage.wwn(0).into()), "right").ok();
    assert_eq!(text(&there, "scsi_wwn"), stage.wwn(0));
    detach("right");
    let message = attach_by(&with("wwn", stage.wwn(1).into()), "wrong").refused(4, "IDENTITY_MISMATCH");
    assert!(message.contains(&stage.wwn(0)) && message.contains(&stage.wwn(1)), "{message}");
    let message = attach_by(&with("encrypted", true.into()), "luks").refused(1, "UNSUPPORTED");
    assert!(message.contains("LUKS is not there yet"), "{message}");
    let message = attach_by(&with("target_lun", json!([])), "odd").refused(2, "INVALID");
    assert!(message.contains("target_lun: expected a number"), "{message}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// A unit that its target has by the flat method is 16384 more for Linux.
#[tokio::test]
async fn flat_addressing() {
    let mut stage = GuestStage::with_target();
    stage.volume(Backend::Iscsi, "", 16 * MIB).await;
    let (iqn, store) = (stage.iqn(), stage.store(0));
    sh(&format!("lio_unmap {iqn} 0; lio_map {iqn} 16385 {store}; lio_map {iqn} 16640 {store}"));
    let before = stage.snapshot().await;
    for (mode, lun) in [("SAM3-flat", 1), ("SAM3-flat", 256), ("SAM2", 256)] {
        let mut data = cinder(&stage, PORTAL, json!(lun));
        data["addressing_mode"] = mode.into();
        let there = attach_by(&envelope(&data), "flat").ok();
        assert_eq!(text(&there, "scsi_wwn"), stage.wwn(0), "{mode} {lun}");
        detach_by(&envelope(&data));
        assert_eq!(stage.snapshot().await, before, "something was left behind");
    }
    let plain = cinder(&stage, PORTAL, json!(1));
    attach_by(&envelope(&plain), "plain").refused(3, "NOT_FOUND");
}

/// However a portal is written, at the attach or at the detach.
#[tokio::test]
async fn an_ipv6_portal_in_any_spelling() {
    let mut stage = GuestStage::with_target();
    stage.volume(Backend::Iscsi, "", 16 * MIB).await;
    let iqn = stage.iqn();
    sh(&format!(
        "ip address replace fd00::ab/128 dev lo nodad; lio_portal {iqn} '[fd00::ab]:3260'; lio_portal {iqn} '[::1]:3260'"
    ));
    let before = stage.snapshot().await;
    for (at, gone, canonical) in [
        ("[::1]:3260", "[0:0:0:0:0:0:0:1]:3260", "[::1]:3260"),
        ("[0:0:0:0:0:0:0:1]", "[::1]:3260", "[::1]:3260"),
        ("[FD00::AB]:3260", "[fd00::ab]:3260", "[fd00::ab]:3260"),
        ("[fd00:0:0::00ab]:3260", "[FD00::aB]", "[fd00::ab]:3260"),
    ] {
        let there = attach_by(&envelope(&cinder(&stage, at, json!(0))), "six").ok();
        assert_eq!((text(&there["paths"][0], "portal"), text(&there, "scsi_wwn")), (canonical, &*stage.wwn(0)));
        assert_eq!(sessions().len(), 1);
        detach_by(&flat(&cinder(&stage, gone, json!("0"))));
        assert_eq!(stage.snapshot().await, before, "{at}, {gone}: something was left behind");
    }
    sh(&format!(
        "lio_remove_portal {iqn} '[fd00::ab]:3260'; lio_remove_portal {iqn} '[::1]:3260'; ip address del fd00::ab/128 dev lo"
    ));
}

/// The password in it opens the door, and shows up nowhere; not even when the whole is handed over at the detach.
#[tokio::test]
async fn chap_inside_it_stays_secret() {
    let mut stage = GuestStage::with_target();
    stage.volume(Backend::Iscsi, "", 16 * MIB).await;
    let iqn = stage.iqn();
    std::fs::write("/root/right", PASSWORD).unwrap();
    sh(&format!("lio_chap {iqn} {USER} \"$(cat /root/right)\""));
    let before = stage.snapshot().await;
    let _tracing = Reconfigured::new("log = \"info\"", "log = \"trace,h2=trace\"");
    sh("journalctl --rotate --quiet; journalctl --vacuum-time=1s --quiet || true");
    let (execs, spy) = (Execs::watch(), Spy::start(MARKER));

    let mut data = cinder(&stage, PORTAL, json!("0"));
    for (key, value) in [("auth_method", "CHAP"), ("auth_username", USER), ("auth_password", PASSWORD)] {
        data[key] = value.into();
    }
    for (key, value) in [("discovery_auth_method", "CHAP"), ("discovery_auth_password", "mortar-hush-discovery")] {
        data[key] = value.into();
    }
    let info = envelope(&data).to_string();
    let there = mortar_reading(&["attach", "--connection-info", "-", "--id", "secret"], &info);
    let files = that_hold(MARKER, "/etc /var/lib /run");
    let mut said = vec![there.out.clone(), there.err.clone(), mortar(&["show", "secret"]).out];
    assert_eq!(text(&there.ok(), "scsi_wwn"), stage.wwn(0));
    let gone = mortar_reading(&["detach", "--connection-info", "-"], &info);
    said.extend([gone.out.clone(), gone.err.clone()]);
    assert_eq!(gone.ok()["changed"], true);
    // Wrong in itself, and wrong for the target.
    for (key, value, code, reason) in [
        ("target_lun", json!("x"), 2, "INVALID"),
        ("auth_method", json!("PAP"), 1, "UNSUPPORTED"),
        ("auth_password", json!(["mortar-hush"]), 2, "INVALID"),
        ("auth_password", json!("mortar-hush-wrong-51"), 6, "DENIED"),
    ] {
        let mut odd = data.clone();
        odd[key] = value;
        let refused = mortar_reading(&["attach", "--connection-info", "-"], &envelope(&odd).to_string());
        said.push(refused.refused(code, reason));
    }
    said.push(mortar(&["operations"]).out);

    let leaks = spy.leaks();
    let ran = execs.seen();
    drop(execs);
    assert_eq!(leaks, BTreeSet::new(), "the password was in");
    assert!(ran.contains("iscsiadm") && !ran.contains(MARKER), "{ran}");
    assert!(said.iter().all(|said| !said.contains(MARKER)), "{said:?}");
    let log = sh("journalctl --no-pager --output export");
    assert!(log.contains("attach secret (") && !log.contains("Suppressed"), "the log is not there: {log}");
    if let Some(line) = log.lines().find(|line| line.contains(MARKER)) {
        panic!("in the log: {line}");
    }
    assert_eq!(files + &that_hold(MARKER, "/etc /var/lib /run"), "", "in files");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh("rm /root/right /root/marker");
}

/// What is on this host already, by its path.
#[tokio::test]
async fn a_local_volume() {
    let mut stage = GuestStage::with_vg();
    let lv = stage.volume(Backend::Lvm, "volume-1-a", 16 * MIB).await;
    let file = stage.volume(Backend::File, "a", 16 * MIB).await;
    let (vg, before) = (stage.vg(), stage.snapshot().await);
    let local = |path: &str| json!({"driver_volume_type": "local", "data": {"device_path": path}});
    for (path, locator) in [
        (format!("/dev/{vg}/volume-1-a"), &lv),
        (format!("/dev/mapper/{vg}-volume--1--a"), &lv),
        (file["file:".len()..].to_owned(), &file),
    ] {
        assert_eq!(text(&attach_by(&local(&path), "local").ok(), "locator"), *locator);
        detach_by(&local(&path));
        assert_eq!(stage.snapshot().await, before, "{path}: something was left behind");
    }
    attach_by(&local("/dev/ubda"), "root").refused(2, "INVALID");
}

/// os-brick's properties of this host, without its privileged daemon: this is root already.
const OS_BRICK: &str = "import json, os_brick.privileged
os_brick.privileged.default.set_client_mode(False)
from os_brick.initiator import connector
print(json.dumps(connector.get_connector_properties('', '10.9.9.9', True, False)))";

/// Key by key what os-brick would tell Cinder, except for what only its caller knows; and nothing is made on the way.
#[tokio::test]
async fn the_connector_is_os_bricks() {
    let _stage = GuestStage::bare();
    let connector = || mortar(&["host"]).ok()["connector"].clone();
    sh("rm -rf /etc/nvme; ip address replace 10.9.9.9/32 dev lo");
    let bare = connector();
    assert!(bare.get("nqn").is_none() && !Path::new("/etc/nvme").exists(), "{bare}");
    std::fs::write("/root/os-brick.py", OS_BRICK).unwrap();
    for running in [true, false] {
        sh(&format!("systemctl {} multipathd.socket multipathd", if running { "start" } else { "stop" }));
        // It makes /etc/nvme/hostnqn, so that ours finds one afterwards.
        let theirs = sh("python3 /root/os-brick.py 2>/dev/null | tail -n 1");
        let theirs: Value = serde_json::from_str(&theirs).unwrap_or_else(|error| panic!("{error}: {theirs}"));
        let ours = until("multipathd", Duration::from_secs(20), || {
            Some(connector()).filter(|connector| connector["multipath"] == running)
        });
        for (key, value) in theirs.as_object().unwrap() {
            match key.as_str() {
                // os-brick's caller says both: with the second, an image is mapped by the kernel.
                "do_local_attach" | "enforce_multipath" => assert_eq!(ours[key], true, "{key}: {ours}"),
                // LightOS only.
                "found_dsc" | "host_ips" => {}
                _ => assert_eq!(&ours[key], value, "{key}, multipathd running: {running}; {ours} and {theirs}"),
            }
        }
        for key in ["initiator", "uuid", "host", "platform", "os_type", "multipath", "nqn", "nvme_native_multipath"] {
            assert!(!ours[key].is_null() && theirs.get(key).is_some(), "{key}: {ours} and {theirs}");
        }
        assert!(ours.as_object().unwrap().values().all(|value| !value.is_null()), "{ours}");
    }
    sh("echo 3c4b9f0e-67a4-4ecf-a40a-b3d3f3f3f3f3 >/etc/nvme/hostid");
    assert_eq!(text(&connector(), "nvme_hostid"), "3c4b9f0e-67a4-4ecf-a40a-b3d3f3f3f3f3");
    sh("rm -r /etc/nvme /root/os-brick.py; ip address del 10.9.9.9/32 dev lo");
}

/// The id of Cinder's attachment is one of ours.
#[tokio::test]
async fn attached_by_a_locator_detached_by_its_connection_info() {
    let mut stage = GuestStage::with_target();
    let locator = stage.volume(Backend::Iscsi, "", 16 * MIB).await;
    let before = stage.snapshot().await;
    attach("3b4db356-253d-4fab-bfa0-e3626c0b8405", &locator);
    detach_by(&envelope(&cinder(&stage, PORTAL, json!("0"))));
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}
