//! LVM: every sort of LV, everything that is not to be managed, and VGs that are none of the host's business.

use crate::{
    cli::{Execs, attach, detach, mortar, read, text, wrong_device},
    machine::{GuestStage, sh, try_sh},
};
use driver::Backend;
use serde_json::Value;
use std::collections::BTreeMap;
use tests::{
    reliability::{Row, Where, note},
    stage::Stage,
};

const MIB: u64 = 1 << 20;

/// Whether a device takes writes. (Opening it is no proof: LVM's read-only devices can be opened for writing.)
fn writable(device: &str) -> bool {
    try_sh(&format!("dd if=/dev/zero of={device} bs=4096 count=1 oflag=direct conv=fsync status=none")).status.success()
}

/// Thick, thin and a snapshot of the thin one: each is activated, of its size to the byte, and inactive again afterwards.
#[tokio::test]
async fn thick_thin_and_snapshot() {
    let stage = GuestStage::with_vg();
    let vg = stage.vg();
    sh(&format!(
        "lvcreate --quiet -y -an -Zn -n thick -L 64M {vg} >/dev/null
         lvcreate --quiet -y -n pool -L 64M -T {vg} >/dev/null
         lvcreate --quiet -y -n thin -V 1028M --thinpool pool {vg} >/dev/null 2>&1
         lvcreate --quiet -y -n snap -s {vg}/thin >/dev/null
         lvchange -an {vg}/thin {vg}/pool"
    ));
    let before = stage.snapshot().await;
    for (name, size) in [("thick", 64 * MIB), ("thin", 1028 * MIB), ("snap", 1028 * MIB)] {
        let there = attach(name, &format!("lvm:{vg}/{name}"));
        assert_eq!((&there["size_bytes"], &there["read_only"]), (&size.into(), &false.into()), "{there}");
        assert_eq!(there["paths"][0]["state"], "active");
        let device = text(&there, "path");
        assert!(writable(device), "{there}");
        let dm = format!("/sys/block/{}/dm/name", &device["/dev/".len()..]);
        assert_eq!(read(dm), format!("{vg}-{name}"));
        detach(name);
        assert_eq!(stage.snapshot().await, before, "{name}: something was left behind");
    }
}

/// lvm is asked for the same thing once: what it has reported of a VG is believed until somebody changes the VG, and no longer.
#[tokio::test]
async fn a_vg_is_reported_once_for_each_change() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", 16 * MIB).await;
    let vg = stage.vg();
    let execs = Execs::watch();
    let mut seen = 0;
    // How many reports, and how many other runs of lvm, something costs.
    let mut runs = |what: &dyn Fn()| {
        what();
        let ran = execs.seen();
        let ran: Vec<&str> = ran.lines().filter(|line| line.contains("execve(") && line.contains("/lvm\"")).collect();
        let new = ran[seen..].to_vec();
        seen = ran.len();
        let reports = new.iter().filter(|line| line.contains("\"fullreport\"")).count();
        (reports, new.len() - reports)
    };
    let there_and_back = || {
        attach("v", &locator);
        detach("v");
    };
    let at = |name: &str| format!("lvm:{vg}/{name}");
    assert_eq!(runs(&there_and_back), (1, 2));
    assert_eq!(runs(&there_and_back), (0, 2));
    let scope = format!("lvm:{vg}");
    assert_eq!(runs(&|| drop(mortar(&["volumes", &scope]).ok())), (0, 0));

    sh(&format!("lvrename --quiet {vg}/v {vg}/moved"));
    let gone = || drop(mortar(&["attach", &locator]).refused(3, "NOT_FOUND"));
    assert_eq!((runs(&gone), runs(&gone)), ((1, 0), (0, 0)));
    sh(&format!("lvrename --quiet {vg}/moved {vg}/v; lvextend --quiet -L 32M {vg}/v >/dev/null"));
    assert_eq!(attach("v", &locator)["size_bytes"], 32 * MIB);
    detach("v");
    sh(&format!("lvremove --quiet -f {vg}/v >/dev/null; lvcreate --quiet -y -an -Zn -n v -L 16M {vg} >/dev/null"));
    assert_eq!(runs(&there_and_back), (2, 4), "of the grown one as well");

    sh(&format!("lvcreate --quiet -y -an -Zn -n managed -L 16M {vg} >/dev/null"));
    let id = "4b1e4b5e-2f0a-4d39-9d6e-6a1a2f8a4c11";
    let manage = || drop(mortar(&["manage", &at("managed"), "--id", id]).ok());
    assert_eq!(runs(&manage), (2, 2), "a look, the tags, the name, and a look at what came of it");
    assert_eq!(runs(&|| drop(mortar(&["unmanage", id]).ok())), (1, 2));
    assert_eq!(runs(&manage), (1, 2));
    let why = |name: &str| {
        let listed = mortar(&["manageable", &scope]).ok();
        let of = |candidate: &&Value| candidate["reference"] == format!("lvm:{vg}/{name}");
        listed.as_array().unwrap().iter().find(of).unwrap()["reason_not_safe"].to_string()
    };
    // Whether an LV is open its PVs do not tell: that the kernel is asked.
    sh(&format!("lvchange --quiet -ay {vg}/v; udevadm settle"));
    assert_eq!(runs(&|| assert!(!why("v").contains("open"), "{}", why("v"))), (0, 0));
    let opened = std::fs::File::open(format!("/dev/{vg}/v")).unwrap();
    assert_eq!(runs(&|| assert!(why("v").contains("open by"), "{}", why("v"))), (0, 0));
    drop(opened);
    assert_eq!(runs(&|| assert!(!why("v").contains("open"), "{}", why("v"))), (0, 0));
}

/// Read-only is the kernel's word, whether the LV was inactive or active; and not for those it would take the writing from.
#[tokio::test]
async fn read_only() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "ro", 16 * MIB).await;
    let (vg, before) = (stage.vg(), stage.snapshot().await);
    let there = mortar(&["attach", &locator, "--id", "ro", "--read-only"]).ok();
    assert_eq!(there["read_only"], true);
    assert!(!writable(text(&there, "path")));
    detach("ro");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    // Active for writing before, it is that again afterwards.
    sh(&format!("lvchange -ay {vg}/ro; udevadm settle"));
    let active = stage.snapshot().await;
    let there = mortar(&["attach", &locator, "--id", "ro", "--read-only"]).ok();
    assert!(!writable(text(&there, "path")));
    let kept = mortar(&["detach", "ro"]).ok();
    assert!(kept["changed"] == true && kept["residuals"] == Value::Array(Vec::new()), "{kept}");
    assert_eq!(stage.snapshot().await, active, "the LV was active before");
    assert!(writable(&format!("/dev/{vg}/ro")));
    // Written to at this moment, it does not become read-only under the writer.
    stage.occupy(&format!("/dev/{vg}/ro")).await;
    let message = mortar(&["attach", &locator, "--read-only"]).refused(4, "WRONG_STATE");
    assert!(message.contains("in use"), "{message}");
    assert_eq!(stage.snapshot().await, active, "a refusal changed something");
}

/// An LV is managed, and another one is made under its managed name: that one is not handed out, until somebody says so.
#[tokio::test]
async fn what_took_a_managed_name() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", 16 * MIB).await;
    let managed = mortar(&["manage", &locator]).ok();
    let (id, at) = (text(&managed, "id"), text(&managed, "locator"));
    let was = text(&attach("a", at), "identity").to_owned();
    detach("a");
    let name = at.trim_start_matches("lvm:");
    sh(&format!(
        "lvremove --quiet -y {name}; lvcreate --quiet -y -an -Zn -n {} -L 16M {}",
        &name[name.len() - 43..],
        stage.vg()
    ));
    sh("systemctl restart mortard");
    let before = stage.snapshot().await;
    let said = mortar(&["attach", at, "--id", "a"]).refused(4, "IDENTITY_MISMATCH");
    assert!(said.contains(&format!("expected {was}")) && said.contains(" is lvm:") && said.contains(id), "{said}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    note(&Row::WrongDevice {
        attempt: "the LV is recreated under its managed name".into(),
        driver: Backend::Lvm.to_string(),
        shown: Where::Guest,
        refusal: said,
    });
    assert_eq!(mortar(&["unmanage", id]).ok()["changed"], true);
    attach("a", at);
    detach("a");
}

/// The list of a VG says of each LV whether and why not; and `manage` says the same.
#[tokio::test]
async fn what_is_not_to_be_managed() {
    let stage = GuestStage::with_vg();
    let vg = stage.vg();
    let named = "volume-9394b827-4ad0-488e-8df8-26476b3a8670";
    sh(&format!(
        "make() {{ lvcreate --quiet -y -Zn \"$@\"; }}
         make -an -n plain -L 8M {vg}
         make -an -n {named} -L 8M {vg}
         make -n held -L 16M {vg}
         make -n mounted -L 16M {vg}
         make -n origin -L 8M {vg}
         lvcreate --quiet -y -s -n thicksnap -L 8M {vg}/origin
         lvcreate --quiet -y -n pool -L 32M -T {vg}
         lvcreate --quiet -y -n thin -V 16M --thinpool pool {vg}
         lvcreate --quiet -y -s -n thinsnap {vg}/thin
         vgcreate --quiet -y --config devices/scan_lvs=1 {vg}in /dev/{vg}/held
         mkfs.ext4 -q /dev/{vg}/mounted; mkdir -p /mnt/mounted; mount /dev/{vg}/mounted /mnt/mounted"
    ));
    let managed = mortar(&["manage", &format!("lvm:{vg}/plain")]).ok();
    let before = stage.snapshot().await;
    let listed = mortar(&["manageable", &stage.scope(Backend::Lvm)]).ok();
    let entries: BTreeMap<&str, &Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (text(entry, "reference").rsplit_once('/').unwrap().1, entry))
        .collect();
    assert_eq!(
        text(entries[&text(&managed, "locator").rsplit_once('/').unwrap().1], "volume_id"),
        text(&managed, "id")
    );
    assert_eq!(entries["thin"]["size_bytes"], 16 * MIB);
    assert_eq!(
        entries["thin"]["reason_not_safe"],
        if entries["thin"]["safe_to_manage"] == true { Value::Null } else { Value::from("unsafe?") }
    );
    for name in ["thicksnap", "thinsnap"] {
        assert_eq!(
            (&entries[name]["safe_to_manage"], &entries[name]["snapshot"]),
            (&true.into(), &true.into()),
            "{listed}"
        );
    }
    assert_eq!(entries["origin"]["snapshot"], false);
    let internal: Vec<_> = entries.keys().filter(|name| name.contains("_t") || name.contains("pmspare")).collect();
    assert!(internal.is_empty(), "internal LVs are offered: {internal:?}");
    for (name, code, reason, words) in [
        (named, 4, "ALREADY_EXISTS", "named as the managed volume"),
        ("held", 4, "WRONG_STATE", "PV"),
        ("mounted", 4, "IN_USE", "mounted at /mnt/mounted"),
        ("pool", 4, "WRONG_STATE", "thin pool"),
        ("pool_tmeta", 3, "NOT_FOUND", "pool_tmeta"),
    ] {
        let said = mortar(&["manage", &format!("lvm:{vg}/{name}")]);
        if name == "pool_tmeta" {
            assert!(matches!(said.code, 2..=4), "{said:?}");
            continue;
        }
        let message = said.refused(code, reason);
        assert!(message.contains(words), "{name}: {message}");
        let Some(entry) = entries.get(name) else { panic!("{name} is not listed: {listed}") };
        assert_eq!(entry["safe_to_manage"], false, "{entry}");
        assert!(text(entry, "reason_not_safe").contains(words), "{entry}");
    }
    assert_eq!(stage.snapshot().await, before, "a refusal changed something");
    sh(&format!(
        "umount /mnt/mounted; vgremove -q -y --config devices/scan_lvs=1 {vg}in >/dev/null 2>&1; lvchange -an {vg}"
    ));
    // Another host's.
    sh(&format!("vgchange -q -y --systemid otherhost {vg} >/dev/null 2>&1"));
    let message = mortar(&["manage", &format!("lvm:{vg}/thin")]).refused(4, "WRONG_STATE");
    assert!(message.contains("otherhost"), "{message}");
    let message = mortar(&["attach", &format!("lvm:{vg}/thin")]).refused(4, "WRONG_STATE");
    assert!(message.contains("otherhost"), "{message}");
    let listed = mortar(&["manageable", &stage.scope(Backend::Lvm)]);
    if listed.code == 0 {
        let listed = listed.ok();
        assert!(listed.as_array().unwrap().iter().all(|entry| entry["safe_to_manage"] == false), "{listed}");
    } else {
        assert!(listed.refused(4, "WRONG_STATE").contains("otherhost"));
    }
    // Its own again, so that it can be removed.
    try_sh(&format!(
        "vgchange -q -y --config 'local{{extra_system_ids=[\"otherhost\"]}}' --systemid '' {vg} || \
         {{ losetup -D; rm -f /var/tmp/{vg}.pv; }}"
    ));
}

/// A mounted LV is managed when its owner says so: the mount goes on, and the file in it stays.
#[tokio::test]
async fn manage_while_mounted() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "int32bit-test-LV", 16 * MIB).await;
    let vg = stage.vg();
    sh(&format!(
        "lvchange -ay {vg}/int32bit-test-LV; mkfs.ext4 -q /dev/{vg}/int32bit-test-LV
         mkdir -p /mnt/lv; mount /dev/{vg}/int32bit-test-LV /mnt/lv; echo one >/mnt/lv/file; udevadm settle"
    ));
    let before = stage.snapshot().await;
    let message = mortar(&["manage", &locator]).refused(4, "IN_USE");
    assert!(message.contains("/mnt/lv"), "{message}");
    assert_eq!(stage.snapshot().await, before, "a refusal changed something");
    let managed = mortar(&["manage", &locator, "--name", "int32bit-test-manage", "--allow-in-use"]).ok();
    let id = text(&managed, "id");
    assert_eq!((text(&managed, "name"), text(&managed, "origin")), ("int32bit-test-manage", &*locator));
    let lvs = sh(&format!("echo two >>/mnt/lv/file; sync -f /mnt/lv/file; lvs --noheadings -o lv_name {vg}"));
    assert_eq!(lvs.trim(), format!("volume-{id}"));
    let back = mortar(&["unmanage", id]).ok();
    assert_eq!(text(&back, "locator"), locator);
    assert_eq!(sh("cat /mnt/lv/file"), "one\ntwo");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    sh("umount /mnt/lv");
}

/// Snapshots, thick and thin, and their origins: each is renamed in place while all of them are active and one is mounted,
/// keeps its data and its origin, and gets its name back.
#[tokio::test]
async fn snapshots() {
    let stage = GuestStage::with_vg();
    let vg = stage.vg();
    sh(&format!(
        "lvcreate --quiet -y -Zn --wipesignatures n -n thick -L 16M {vg}
         echo thick-before | dd of=/dev/{vg}/thick conv=notrunc,fsync status=none
         lvcreate --quiet -y -s -n thicksnap -L 8M {vg}/thick
         lvcreate --quiet -y -s -n thicksnap2 -L 8M {vg}/thick
         lvcreate --quiet -y -n pool -L 64M -T {vg}
         lvcreate --quiet -y -n thin -V 16M --thinpool pool {vg} 2>/dev/null
         echo thin-before | dd of=/dev/{vg}/thin conv=notrunc,fsync status=none
         lvcreate --quiet -y -s -n thinsnap {vg}/thin
         lvchange -ay -K {vg}/thinsnap; udevadm settle"
    ));
    let told = || sh(&format!("lvs --noheadings --separator ' ' -o lv_uuid,origin_uuid,lv_active {vg} | sort"));
    let (before, tree) = (stage.snapshot().await, told());
    let write = |name: &str, text: &str| {
        sh(&format!("echo {text} | dd of=/dev/{vg}/{name} conv=notrunc,fsync status=none"));
    };
    let first = |name: &str| sh(&format!("head -c 64 /dev/{vg}/{name} | head -n 1"));
    let mut managed = Vec::new();
    for name in ["thicksnap", "thick", "thinsnap", "thin"] {
        let volume = mortar(&["manage", &format!("lvm:{vg}/{name}")]).ok();
        let (id, snapshot) = (text(&volume, "id").to_owned(), name.ends_with("snap"));
        let now = format!("{}-{id}", if snapshot { "snap" } else { "volume" });
        assert_eq!((&volume["snapshot"], text(&volume, "locator")), (&snapshot.into(), &*format!("lvm:{vg}/{now}")));
        assert_eq!(told(), tree, "{name}: another LV, origin or activation");
        let again = mortar(&["manage", &format!("lvm:{vg}/{name}")]).ok();
        assert_eq!((&again["changed"], &again["id"]), (&false.into(), &volume["id"]));
        managed.push((name, now, id));
    }
    let now = |name: &str| managed.iter().find(|(was, ..)| *was == name).map(|(_, now, _)| now.as_str()).unwrap();
    for sort in ["thick", "thin"] {
        write(now(sort), "after");
        assert_eq!(first(now(&format!("{sort}snap"))), format!("{sort}-before"), "the snapshot follows its origin");
    }
    assert_eq!(first("thicksnap2"), "thick-before");
    let listed = mortar(&["volumes", &stage.scope(Backend::Lvm)]).ok();
    let snapshots = listed.as_array().unwrap().iter().filter(|volume| volume["snapshot"] == true).count();
    assert_eq!((listed.as_array().unwrap().len(), snapshots), (4, 2), "{listed}");
    // A managed snapshot is attached and detached like any volume.
    let there = attach("snap", &format!("lvm:{vg}/{}", now("thinsnap")));
    assert_eq!(there["size_bytes"], 16 * MIB);
    let kept = mortar(&["detach", "snap"]).ok();
    assert!(kept["changed"] == true && kept["residuals"] == Value::Array(Vec::new()), "{kept}");
    for (name, _, id) in &managed {
        assert_eq!(text(&mortar(&["unmanage", id]).ok(), "locator"), format!("lvm:{vg}/{name}"));
    }
    assert_eq!((told(), stage.snapshot().await), (tree, before), "something was left behind");
}

/// Another LV under the name of an attached one is said to be another, and is not touched.
#[tokio::test]
async fn recreated_under_the_same_name() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "same", 16 * MIB).await;
    let vg = stage.vg();
    // As the kernel has it, without the dashes.
    let uuid = || sh(&format!("lvs --noheadings -o lv_uuid {vg}/same")).trim().replace('-', "");
    let was = uuid();
    attach("same", &locator);
    sh(&format!(
        "lvremove -q -f -y {vg}/same >/dev/null; lvcreate -q -y -ay -Zn --wipesignatures n -n same -L 16M {vg} >/dev/null; udevadm settle"
    ));
    let is = uuid();
    let broken = mortar(&["show", "same"]).ok();
    assert_eq!(text(&broken, "state"), "broken");
    let problem = text(&broken, "problem");
    assert!(problem.contains(&was) && problem.contains(&is), "{problem}");
    let message = mortar(&["attach", &locator, "--id", "same"]).refused(4, "IDENTITY_MISMATCH");
    assert!(message.contains(&was) && message.contains(&is), "{message}");
    wrong_device("an LV is recreated under its name while it is attached", "LVM", &message);
    mortar(&["detach", "same"]).ok();
    let active = sh(&format!("lvs --noheadings -o lv_active {vg}/same"));
    assert_eq!((uuid(), active.trim()), (is.clone(), "active"), "the new LV is not ours to touch");
    let new = attach("same", &locator);
    assert!(text(&new, "identity").contains(&is), "{new}");
    detach("same");
}

/// A volume is managed, and before it is attached another LV has its managed name: the attach is refused, with both.
#[tokio::test]
async fn recreated_between_manage_and_attach() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", 16 * MIB).await;
    let managed = mortar(&["manage", &locator]).ok();
    let (at, id) = (text(&managed, "locator").to_owned(), text(&managed, "id").to_owned());
    let name = at.strip_prefix("lvm:").unwrap().to_owned();
    let uuid = || sh(&format!("lvs --noheadings -o lv_uuid {name}")).trim().replace('-', "");
    let was = uuid();
    let (vg, lv) = name.split_once('/').unwrap();
    sh(&format!(
        "lvremove -q -f -y {name} >/dev/null; lvcreate -q -y -an -Zn --wipesignatures n -n {lv} -L 16M {vg} >/dev/null"
    ));
    let before = stage.snapshot().await;
    let refused = mortar(&["attach", &at, "--id", "a"]).refused(4, "IDENTITY_MISMATCH");
    assert!(refused.contains(&was) && refused.contains(&uuid()), "{refused}");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    wrong_device("an LV is recreated under its managed name before it is attached", "LVM", &refused);
    // Who means it says so.
    mortar(&["unmanage", &id]).ok();
    attach("a", &at);
    detach("a");
}
