//! The command line as people and scripts use it: the examples of its help, bare values, the screen of a host, dry runs, and
//! what a shell completes.

use crate::{
    cli::{attach, detach, mortar, read, text},
    machine::{GuestStage, sh, try_sh},
};
use driver::Backend;
use serde_json::{Value, json};
use tests::stage::Stage;

const MIB: u64 = 1 << 20;
const ID: &str = "0193a1c2-7a5e-7cc0-9d1b-3f2c5a7e9b10";

/// The examples of a command's help.
fn examples(command: &str) -> Vec<String> {
    let help = sh(&format!("mortar {command} --help"));
    let (_, examples) = help.split_once("Examples:\n").unwrap_or_else(|| panic!("{help}"));
    examples.lines().filter_map(|line| line.strip_prefix("  mortar ")).map(|line| format!("mortar {line}")).collect()
}

/// Those of volumes that a guest has, one after the other, as they stand there but for the names of VG and directory.
#[tokio::test]
async fn the_examples_of_the_help() {
    let mut stage = GuestStage::with_vg();
    stage.volume(Backend::Lvm, "data", 16 * MIB).await;
    stage.volume(Backend::File, "a", 16 * MIB).await;
    let (vg, directory) = (stage.vg(), stage.directory());
    let here = |line: &str| line.replace("vg0", &vg).replace("/srv/volumes/a.raw", &format!("{directory}/a.raw"));
    // An export is for others, and needs an address that they could reach.
    sh("ip address add 10.0.0.5/32 dev lo");
    let mut ran = 0;
    for (command, names) in [
        ("attach", &["lvm:vg0/data", "file:"][..]),
        ("detach", &["web1-data", "lvm:vg0/data"]),
        ("export", &["lvm:vg0/data --initiator iqn.1993-08.org.debian:01:abc --output", "unexport"]),
        ("manage", &["manageable", "lvm:vg0/data"]),
        ("explain", &["explain"]),
        ("doctor", &["--all", "--repair"]),
    ] {
        let lines = examples(command);
        let lines: Vec<_> = lines.iter().filter(|line| names.iter().any(|name| line.contains(name))).collect();
        assert!(lines.len() >= names.len(), "{command}: {lines:?}");
        for line in lines {
            let output = try_sh(&format!("cd /run; {}", here(line)));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // The doctor may find something.
            let amiss = command == "doctor" && output.status.code() == Some(1);
            assert!(output.status.success() || amiss, "{line}: {said}");
            ran += 1;
        }
    }
    assert!(ran >= 14, "{ran}");
    let info: Value = serde_json::from_str(&read("/run/data.json")).unwrap();
    assert_eq!(info["driver_volume_type"], "iscsi", "the file that the example of export writes");
    sh("ip address del 10.0.0.5/32 dev lo");
    for attachment in mortar(&["list"]).ok().as_array().unwrap() {
        detach(text(attachment, "id"));
    }
    for volume in mortar(&["volumes"]).ok().as_array().unwrap() {
        mortar(&["unmanage", text(volume, "id")]).ok();
    }
}

/// Values for scripts, and the host on one screen, which says when an attachment has lost its device.
#[tokio::test]
async fn values_and_status() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", 16 * MIB).await;
    let there = attach("v", &locator);
    let values = sh("mortar list --output value --column id,size,locator");
    assert_eq!(values, format!("v\t{}\t{locator}", 16 * MIB));
    assert_eq!(sh("mortar show v -o value -c path"), text(&there, "path"));
    assert!(sh("mortar show v -o yaml").contains("\nlocator: lvm:"));
    let well = mortar(&["status"]).ok();
    assert_eq!(well["attachments"], json!({ "count": 1, "states": { "ready": 1 }, "not_ready": [] }), "{well}");

    sh(&format!("lvchange -an {}/v; udevadm settle", stage.vg()));
    let amiss = try_sh("mortar status");
    assert_eq!(amiss.status.code(), Some(1), "{amiss:?}");
    let screen = String::from_utf8(amiss.stdout).unwrap();
    assert!(screen.contains("| not ready   | v is broken: "), "{screen}");
    detach("v");
    mortar(&["status"]).ok();
}

/// A dry run of a manage changes nothing on the storage, and what it tells is what comes.
#[tokio::test]
async fn a_dry_run() {
    let mut stage = GuestStage::with_vg();
    for backend in [Backend::Lvm, Backend::File] {
        let locator = stage.volume(backend, "v", 16 * MIB).await;
        let before = stage.snapshot().await;
        let told = mortar(&["manage", &locator, "--id", ID, "--dry-run"]).ok();
        assert_eq!(stage.snapshot().await, before, "{backend}");
        assert_eq!(mortar(&["volumes"]).ok(), json!([]));
        assert!(told["operation_id"].is_null() && told["would"].as_array().unwrap().len() == 2, "{told}");
        let done = mortar(&["manage", &locator, "--id", ID]).ok();
        assert_eq!((&done["locator"], &done["origin"]), (&told["locator"], &told["origin"]), "{backend}");
        mortar(&["unmanage", ID]).ok();

        attach("v", &locator);
        let dry = mortar(&["manage", &locator, "--dry-run"]).refused(4, "IN_USE");
        assert_eq!(dry, mortar(&["manage", &locator]).refused(4, "IN_USE"), "{backend}");
        detach("v");
    }
}

/// bash asks the program by the script that it prints.
#[tokio::test]
async fn a_shell_completes() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", 16 * MIB).await;
    attach("known-by-the-agent", &locator);
    let script = "eval \"$(mortar completions bash)\"; COMP_WORDS=(mortar detach kn); COMP_CWORD=2; COMP_TYPE=9
                  _clap_complete_mortar mortar kn detach; printf '%s\\n' \"${COMPREPLY[@]}\"";
    assert_eq!(sh(script), "known-by-the-agent");
    detach("known-by-the-agent");
}
