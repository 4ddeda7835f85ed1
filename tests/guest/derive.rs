//! Rescue disks on real storage, by the drivers themselves: what is written to one never comes to its image.

use crate::machine::sh;
use driver::{Attached, Attempt, Derivation, Derived, DiskFormat, Driver, Error, Locator, Means, Spec, Templates};
use driver_file::{FileConfig, FileDriver};
use driver_lvm::{LvmConfig, LvmDriver};
use driver_rbd::{RbdConfig, RbdDriver};
use host::Linux;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

const MIB: u64 = 1 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn owner(number: u8) -> String {
    format!("1b671a64-40d5-491e-99b0-da01ff1f33{number:02x}")
}

fn lvm() -> LvmDriver {
    LvmDriver::new(
        Arc::new(Linux::new(4)),
        LvmConfig { templates: Templates::default(), exclude_links: "/dev/mortar".into() },
    )
}

fn file() -> FileDriver {
    FileDriver::new(Arc::new(Linux::new(4)), FileConfig { directories: Vec::new(), templates: Templates::default() })
}

fn locator(text: &str) -> Locator {
    text.parse().unwrap()
}

/// Attaches a derived volume, writes to it, and detaches it.
async fn write_to(driver: &dyn Driver, to: &Locator, size_bytes: u64) {
    let spec = Spec::of(to.clone());
    let footprint = driver.prepare(&spec).await.unwrap();
    let device = driver.attach(&spec, &footprint, &Attempt::until(soon())).await.unwrap();
    assert_eq!((device.size_bytes, device.read_only), (size_bytes, false));
    let node = device.path.display();
    sh(&format!(
        "[[ $(head -c 9 {node}) == 'the image' ]]; (yes 'the copy' || true) | dd of={node} bs=1M count=8 iflag=fullblock oflag=direct status=none"
    ));
    let at = Attached { spec, footprint, identity: Some(device.identity) };
    driver.detach(&at, soon()).await.unwrap();
}

/// Makes it twice, which is once, and takes it away twice.
async fn there_and_back(driver: &dyn Driver, image: &str, owner: &str, sum: &str, list: &str) -> Derived {
    let (bytes, before) = (sh(sum), sh(list));
    let plan = driver.plan_derivation(&locator(image), owner).await.unwrap();
    let derived = driver.derive(&plan, soon()).await.unwrap();
    assert_eq!(driver.derive(&plan, soon()).await.unwrap(), derived);
    let listed = driver.derivations(Some(&plan.to.scope().unwrap())).await.unwrap();
    assert!(listed.iter().any(|listed| listed.owner == owner && listed.to == plan.to), "{listed:?}");
    let refusal = driver.inspect(&plan.to).await.unwrap().refusal.unwrap().to_string();
    assert!(refusal.contains(owner), "{refusal}");
    let again = driver.plan_derivation(&locator(image), owner).await.unwrap_err();
    assert!(again.to_string().contains("is there already"), "{again}");
    if derived.format == DiskFormat::Raw {
        write_to(driver, &plan.to, derived.size_bytes).await;
    } else {
        let Locator::File(file) = &plan.to else { panic!("{}", plan.to) };
        let path = file.path().display();
        sh(&format!(
            "qemu-io -f qcow2 -c 'read -v 0 16' {path} | grep 'the.image' >/dev/null; qemu-io -f qcow2 -c 'write -P 7 0 1M' {path} >/dev/null"
        ));
    }
    assert_eq!(sh(sum), bytes, "the image was written");
    for _ in 0..2 {
        driver.discard(&plan, soon()).await.unwrap();
    }
    assert_eq!((sh(sum), sh(list)), (bytes, before), "something is left, or the image is another");
    derived
}

/// Opens what a derived volume is on, and it is not discarded.
async fn is_kept_while_open(driver: &dyn Driver, plan: &Derivation, path: &str) {
    // Open before it is there.
    let script = format!("exec 9<{path}; sleep 60 </dev/null >/dev/null 2>&1 & echo $!");
    let pid = sh(&script);
    let error = driver.discard(plan, soon()).await.unwrap_err();
    sh(&format!("kill {pid}; while kill -0 {pid} 2>/dev/null; do :; done; udevadm settle"));
    assert!(matches!(&error, Error::InUse { by, .. } if by.join(",").contains(&format!("(pid {pid})"))), "{error}");
}

#[tokio::test]
async fn an_lv_thick_or_thin_active_or_not() {
    sh("guest_modules dm-mod dm-snapshot dm-thin-pool loop
        d=$(loop_file /var/tmp/derive.img 512M); vgcreate -q --setautoactivation n vgd $d
        lvcreate -q -y -an -Zn -L 40M -n thick vgd
        lvcreate -q -y --type thin-pool -L 64M -n tp vgd; lvcreate -q -y -V 40M -n thin --thinpool tp vgd
        lvchange -ay vgd/thick; udevadm settle; for lv in thick thin; do
          (yes 'the image' || true) | dd of=/dev/vgd/$lv bs=1M count=40 iflag=fullblock oflag=direct status=none; done
        lvcreate -q -y --snapshot -n thin-s vgd/thin; lvchange -an vgd/thick vgd/thin");
    let driver = lvm();
    let list = "lvs --noheadings -o lv_name,lv_uuid,lv_size,lv_tags,origin,lv_active -S 'lv_name!=tp' vgd; dmsetup ls | grep rescue || true";
    for (number, (image, active)) in
        [("thick", false), ("thick", true), ("thin", false), ("thin", true), ("thin-s", false)].into_iter().enumerate()
    {
        // The bytes are read by a device that is there only for that, so that being active is as the case says.
        let sum = format!(
            "was=$(lvs --noheadings -o lv_active vgd/{image} | tr -d ' '); lvchange -ay -K -y vgd/{image}; udevadm settle; sha256sum </dev/vgd/{image}
             [[ $was ]] || lvchange -an -y vgd/{image}"
        );
        sh(&format!("lvchange -a{} -K -y vgd/{image}", if active { "y" } else { "n" }));
        let number = u8::try_from(number).unwrap();
        let derived = there_and_back(&driver, &format!("lvm:vgd/{image}"), &owner(number), &sum, list).await;
        assert_eq!(derived, Derived { means: Means::Snapshot, format: DiskFormat::Raw, size_bytes: 40 * MIB });
        sh(&format!("lvchange -an -y vgd/{image}"));
    }

    let plan = driver.plan_derivation(&locator("lvm:vgd/thick"), &owner(9)).await.unwrap();
    driver.derive(&plan, soon()).await.unwrap();
    let name = Derivation::name(&owner(9)).unwrap();
    sh(&format!("lvchange -ay -y vgd/{name}; udevadm settle"));
    is_kept_while_open(&driver, &plan, &format!("/dev/vgd/{name}")).await;
    // Somebody has taken the mark away: now it is his.
    sh(&format!("lvchange -q --deltag mortar.rescue={} vgd/{name}", owner(9)));
    let error = driver.discard(&plan, soon()).await.unwrap_err();
    assert!(error.to_string().contains("does not bear the mark"), "{error}");
    sh(&format!("lvchange -q --addtag mortar.rescue={} vgd/{name}", owner(9)));
    driver.discard(&plan, soon()).await.unwrap();

    // Room for less than all of the origin is none; a full pool neither; nor is a thick snapshot an image.
    let refused = async |image: &str, reason: &str, part: &str| {
        let error = driver.plan_derivation(&locator(&format!("lvm:vgd/{image}")), &owner(10)).await.unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    let plan = driver.plan_derivation(&locator("lvm:vgd/thick"), &owner(10)).await.unwrap();
    sh("lvcreate -q -y -an -Zn -l $(($(vgs --noheadings -o vg_free_count vgd) - 10)) -n fill vgd");
    refused("thick", "NO_SPACE", "4194304 of them are missing").await;
    assert_eq!(driver.derive(&plan, soon()).await.unwrap_err().reason(), "NO_SPACE");
    sh("lvremove -q -f vgd/fill; lvcreate -q -y --snapshot -l 2 -n thick-s vgd/thick");
    refused("thick-s", "WRONG_STATE", "thick snapshot").await;
    refused("tp", "WRONG_STATE", "pool").await;
    sh("lvcreate -q -y -V 64M -n more --thinpool tp vgd
        dd if=/dev/urandom of=/dev/vgd/more bs=1M count=24 oflag=direct status=none || true");
    refused("thin", "NO_SPACE", "100 % of its data").await;
    sh("vgremove -q -f -y vgd");
}

#[tokio::test]
async fn an_image_and_a_snapshot_of_a_cluster() {
    sh("ceph_up; ceph_pool derive
        rbd create derive/a --size 40M --image-feature layering,exclusive-lock,object-map,fast-diff,deep-flatten
        d=$(rbd map derive/a); (yes 'the image' || true) | dd of=$d bs=1M count=40 iflag=fullblock oflag=direct status=none
        rbd unmap $d; rbd snap create derive/a@s 2>/dev/null");
    let driver = RbdDriver::new(Arc::new(Linux::new(4)), RbdConfig::default());
    let sum = "rbd export --no-progress derive/a - | sha256sum";
    let list = "rbd ls derive; rbd snap ls derive/a; rbd image-meta ls derive/a 2>/dev/null; rbd showmapped";
    for (number, image) in ["rbd:derive/a", "rbd:derive/a@s"].into_iter().enumerate() {
        let owner = owner(u8::try_from(number).unwrap());
        let derived = there_and_back(&driver, image, &owner, sum, list).await;
        assert_eq!(derived, Derived { means: Means::Clone, format: DiskFormat::Raw, size_bytes: 40 * MIB });
    }
    let plan = driver.plan_derivation(&locator("rbd:derive/a"), &owner(9)).await.unwrap();
    driver.derive(&plan, soon()).await.unwrap();
    // By this kernel, and by another client.
    let device = sh(&format!("rbd map derive/{}", Derivation::name(&owner(9)).unwrap()));
    let error = driver.discard(&plan, soon()).await.unwrap_err();
    assert!(matches!(&error, Error::InUse { by, .. } if by == &[format!("mapped as {device}")]), "{error}");
    sh(&format!("rbd unmap {device}"));
    driver.discard(&plan, soon()).await.unwrap();
    sh("ceph_forget_pool derive");
}

#[tokio::test]
async fn a_file_where_blocks_are_shared_and_where_they_are_not() {
    sh("guest_modules loop xfs
        truncate -s 512M /var/tmp/xfs.img; mkfs.xfs -q -m reflink=1 /var/tmp/xfs.img
        mkdir -p /var/tmp/shared /var/tmp/plain; mount -o loop /var/tmp/xfs.img /var/tmp/shared
        for at in shared plain; do (yes 'the image' || true) | head -c 40M >/var/tmp/$at/a.raw; done");
    let driver = file();
    let with_qemu = !sh("command -v qemu-img || true").is_empty();
    for (at, means) in [("shared", Means::Reflink), ("plain", if with_qemu { Means::Overlay } else { Means::Copy })] {
        let directory = format!("/var/tmp/{at}");
        let sum = format!("sha256sum {directory}/a.raw");
        let list = format!("ls -A {directory}; losetup --list --noheadings -O NAME,BACK-FILE | sort");
        let derived = there_and_back(&driver, &format!("file:{directory}/a.raw"), &owner(1), &sum, &list).await;
        let format = if means == Means::Overlay { DiskFormat::Qcow2 } else { DiskFormat::Raw };
        assert_eq!(derived, Derived { means, format, size_bytes: 40 * MIB }, "{at}");

        let plan = driver.plan_derivation(&locator(&format!("file:{directory}/a.raw")), &owner(2)).await.unwrap();
        driver.derive(&plan, soon()).await.unwrap();
        let Locator::File(made) = &plan.to else { panic!("{}", plan.to) };
        assert_eq!(sh(&format!("stat -c %a {}", made.path().display())), "600");
        is_kept_while_open(&driver, &plan, &made.path().display().to_string()).await;
        driver.discard(&plan, soon()).await.unwrap();
    }
    if with_qemu {
        sh(
            "cd /var/tmp/plain; qemu-img convert -q -O qcow2 a.raw a.qcow2; qemu-img create -q -f qcow2 -F raw -b a.raw over.qcow2",
        );
        let sum = "sha256sum /var/tmp/plain/a.qcow2";
        let derived =
            there_and_back(&driver, "file:/var/tmp/plain/a.qcow2", &owner(3), sum, "ls -A /var/tmp/plain").await;
        assert_eq!(derived, Derived { means: Means::Overlay, format: DiskFormat::Qcow2, size_bytes: 40 * MIB });
        let over = driver.plan_derivation(&locator("file:/var/tmp/plain/over.qcow2"), &owner(3)).await.unwrap_err();
        assert!(over.to_string().contains("over another file"), "{over}");
    }
    sh("umount /var/tmp/shared; rm -r /var/tmp/xfs.img /var/tmp/shared /var/tmp/plain");
}
