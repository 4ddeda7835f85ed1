//! The crate `hypervisor` and the real libvirtd with a real QEMU.

use crate::{
    instance::{Libvirtd, bootable, booted, domblklist, dumpxml, instance},
    machine::{GuestStage, sh, try_sh},
};
use driver::{Backend, DiskFormat, Error};
use hypervisor::{
    Hypervisor, Power, Stopped,
    definition::{Definition, Layout, Rescue, RescueSource},
    libvirt::{Libvirt, SYSTEM},
};
use std::time::Duration;
use tests::stage::Stage;
use tokio::time::Instant;
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// A start takes seconds here, and many where others use the processor, too.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(240)
}

fn plan(path: &str, layout: Layout) -> Rescue {
    Rescue {
        generation: Uuid::from_u128(7),
        source: RescueSource::File { path: path.into(), format: DiskFormat::Raw },
        seed: None,
        layout,
        bus: None,
        data_disks: true,
    }
}

fn shown(disks: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    disks.iter().map(|(target, source)| ((*target).to_owned(), (*source).to_owned())).collect()
}

/// What libvirt keeps is what it was given, for every sort of definition that it gave us before.
#[tokio::test]
async fn definitions_come_back_byte_for_byte() {
    let _libvirtd = Libvirtd::up();
    let libvirt = Libvirt::new(SYSTEM);
    let repository = std::env::var("GUEST_REPO").unwrap();
    for sort in ["virtio", "scsi", "rbd", "kernel"] {
        let file = format!("{repository}/hypervisor/testdata/{sort}.xml");
        let given = std::fs::read_to_string(&file).unwrap();
        let uuid = Definition::parse(&given).unwrap().uuid().unwrap();
        sh(&format!("virsh --quiet define {file}"));
        assert_eq!(dumpxml(uuid), given, "{sort}");
        assert_eq!(libvirt.definition(uuid).await.unwrap(), given, "{sort}");
        for layout in [Layout::Classic, Layout::Stable] {
            let rescued = Definition::parse(&given).unwrap().rescue(&plan("/var/tmp/rescue 'x'.img", layout)).unwrap();
            let kept = libvirt.define(&rescued).await.unwrap();
            let kept = Definition::parse(&kept).unwrap();
            assert_eq!(kept.marker(), Some(Uuid::from_u128(7).to_string()), "{sort}");
            let root = kept.root().unwrap();
            assert_eq!((root.source.path(), root.boot_order), (Some("/var/tmp/rescue 'x'.img"), Some(1)), "{sort}");
        }
        assert_eq!(libvirt.define(&given).await.unwrap(), given, "{sort}");
        assert_eq!(dumpxml(uuid), given, "{sort}");
    }
    let all = libvirt.instances().await.unwrap();
    let names: Vec<&str> = all.iter().map(|instance| instance.name.as_str()).collect();
    assert_eq!(names, ["a&b <c> 'd' \"e\"", "db", "instance-0000002a", "web-1"]);
    assert!(all.iter().all(|instance| instance.power == Power::Off && instance.persistent));
}

/// Both layouts boot the rescue disk, with the root disk beside it; then the instance is what it was.
#[tokio::test]
async fn layouts_boot_the_rescue_disk() {
    let mut stage = GuestStage::with_vg();
    stage.volume(Backend::Lvm, "root", 8 * MIB).await;
    stage.volume(Backend::Lvm, "data", 8 * MIB).await;
    let vg = stage.vg();
    sh(&format!("lvchange -ay {vg}/root {vg}/data; udevadm settle; truncate -s 8M /var/tmp/rescue.img"));
    let (root, data, rescue) = (format!("/dev/{vg}/root"), format!("/dev/{vg}/data"), "/var/tmp/rescue.img");
    bootable(&root, "BOOTED FROM ROOT");
    bootable(rescue, "BOOTED FROM RESCUE");
    let _libvirtd = Libvirtd::up();
    let libvirt = Libvirt::new(SYSTEM);
    let uuid = instance("box", &[&root, &data]);
    let original = libvirt.definition(uuid).await.unwrap();
    for (layout, disks) in [
        (Layout::Classic, [("vda", rescue), ("vdb", root.as_str()), ("vdc", data.as_str())]),
        (Layout::Stable, [("vda", root.as_str()), ("vdb", data.as_str()), ("vdc", rescue)]),
    ] {
        let rescued = Definition::parse(&original).unwrap().rescue(&plan(rescue, layout)).unwrap();
        libvirt.define(&rescued).await.unwrap();
        libvirt.start(uuid, soon()).await.unwrap();
        assert_eq!(booted("box"), "BOOTED FROM RESCUE", "{layout:?}");
        assert_eq!(domblklist(uuid), shown(&disks), "{layout:?}");
        // A guest sees the disks in the order of their addresses.
        let live = libvirt.running_definition(uuid).await.unwrap().unwrap();
        let mut places: Vec<(&str, &str)> = Vec::new();
        for disk in live.split("<disk ").skip(1) {
            let between = |from: &str, to: &str| disk.split(from).nth(1).unwrap().split(to).next().unwrap();
            places.push((between("<target dev='", "'"), between("slot='", "'")));
        }
        places.sort_unstable();
        assert!(places.windows(2).all(|two| two[0].1 < two[1].1), "{places:?}");
        assert_eq!(libvirt.stop(uuid, soon(), soon()).await.unwrap(), Stopped::Gracefully);
    }
    assert_eq!(libvirt.define(&original).await.unwrap(), original);
    libvirt.start(uuid, soon()).await.unwrap();
    assert_eq!(booted("box"), "BOOTED FROM ROOT");
    assert_eq!(dumpxml(uuid), original);
    libvirt.stop(uuid, Instant::now(), soon()).await.unwrap();
    sh("libvirt_down");
}

/// An image that QEMU opens by itself, with libvirt's secret, stands beside a rescue disk of the same cluster.
#[tokio::test]
async fn an_rbd_image_that_qemu_opens() {
    let mut stage = GuestStage::with_pool();
    stage.volume(Backend::Rbd, "root", 8 * MIB).await;
    stage.volume(Backend::Rbd, "rescue", 8 * MIB).await;
    let pool = stage.pool();
    sh(&format!("bootable_image {pool}/root 'BOOTED FROM ROOT'; bootable_image {pool}/rescue 'BOOTED FROM RESCUE'"));
    let _libvirtd = Libvirtd::up();
    let libvirt = Libvirt::new(SYSTEM);
    let secret = sh("ceph_secret admin");
    let uuid = instance("cloud", &[&format!("rbd:{pool}/root:admin:{secret}")]);
    let original = libvirt.definition(uuid).await.unwrap();
    let source = RescueSource::Rbd { image: format!("{pool}/rescue") };
    let rescue = Rescue { source, ..plan("", Layout::Classic) };
    let rescued = Definition::parse(&original).unwrap().rescue(&rescue).unwrap();
    libvirt.define(&rescued).await.unwrap();
    libvirt.start(uuid, soon()).await.unwrap();
    assert_eq!(booted("cloud"), "BOOTED FROM RESCUE");
    assert_eq!(domblklist(uuid), shown(&[("vda", &format!("{pool}/rescue")), ("vdb", &format!("{pool}/root"))]));
    libvirt.stop(uuid, Instant::now(), soon()).await.unwrap();
    assert_eq!(libvirt.define(&original).await.unwrap(), original);
    libvirt.start(uuid, soon()).await.unwrap();
    assert_eq!(booted("cloud"), "BOOTED FROM ROOT");
    libvirt.stop(uuid, Instant::now(), soon()).await.unwrap();
    sh(&format!("virsh --quiet secret-undefine {secret} >/dev/null"));
}

/// A guest that goes off when it is asked to, one that does not, and a daemon that is killed meanwhile.
#[tokio::test]
async fn power_and_a_daemon_that_is_killed() {
    let _libvirtd = Libvirtd::up();
    let libvirt = Libvirt::new(SYSTEM);
    sh("truncate -s 1M /var/tmp/deaf.img; bootable /var/tmp/deaf.img DEAF deaf");
    let uuid = instance("deaf", &["/var/tmp/deaf.img"]);
    assert_eq!(libvirt.stop(uuid, soon(), soon()).await.unwrap(), Stopped::WasOff);
    libvirt.start(uuid, soon()).await.unwrap();
    libvirt.start(uuid, soon()).await.unwrap();
    assert_eq!(booted("deaf"), "DEAF");
    let found = libvirt.instance(&"deaf".parse().unwrap()).await.unwrap();
    assert_eq!((found.uuid, found.power, found.snapshots), (uuid, Power::Running, 0));

    // It waits for the guest, and the daemon goes away under it.
    let stop = libvirt.stop(uuid, soon(), soon());
    let kill = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        tokio::task::spawn_blocking(Libvirtd::kill).await.unwrap();
    };
    let (stopped, ()) = tokio::join!(stop, kill);
    assert!(matches!(stopped, Err(Error::Unreachable { .. })), "{stopped:?}");
    let error = libvirt.instances().await.unwrap_err();
    assert!(error.to_string().contains("start it (systemctl start libvirtd)"), "{error}");
    assert!(matches!(libvirt.define(&nobodys()).await, Err(Error::Unreachable { .. })));
    Libvirtd::restart();
    assert_eq!(libvirt.instance(&"deaf".parse().unwrap()).await.unwrap().power, Power::Running, "it went on without");

    let grace = Instant::now() + Duration::from_secs(2);
    assert_eq!(libvirt.stop(uuid, grace, soon()).await.unwrap(), Stopped::Hard);
    assert_eq!(try_sh("pgrep qemu-system").status.code(), Some(1), "it is gone when that is said");
}

/// A definition of nobody.
fn nobodys() -> String {
    format!("<domain type='qemu'><name>x</name><uuid>{}</uuid></domain>", Uuid::from_u128(99))
}

/// What QEMU says when it does not start, is told.
#[tokio::test]
async fn what_qemu_refuses_is_told() {
    let _libvirtd = Libvirtd::up();
    let libvirt = Libvirt::new(SYSTEM);
    sh("truncate -s 1M /var/tmp/there.img");
    let uuid = instance("refused", &["/var/tmp/there.img", "/var/tmp/nowhere.img"]);
    let error = libvirt.start(uuid, soon()).await.unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }), "{error:?}");
    let words = error.to_string();
    assert!(words.starts_with("libvirt could not start refused: "), "{words}");
    assert!(words.contains("/var/tmp/nowhere.img") && words.contains("No such file or directory"), "{words}");

    let kept = libvirt.definition(uuid).await.unwrap();
    sh("truncate -s 1M /var/tmp/nowhere.img");
    let large = kept.replace(">16384<", ">999999999<");
    libvirt.define(&large).await.unwrap();
    let words = libvirt.start(uuid, soon()).await.unwrap_err().to_string();
    assert!(words.contains("Cannot allocate memory"), "{words}");
    assert!(!words.contains('\n'), "{words}");
    assert_eq!(libvirt.instance(&"refused".parse().unwrap()).await.unwrap().power, Power::Off);
    let error = libvirt.define(&kept.replace("'virtio'", "'nothing'")).await.unwrap_err();
    assert!(error.to_string().starts_with("libvirt could not define refused: "), "{error}");
}
