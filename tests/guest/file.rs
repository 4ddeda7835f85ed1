//! Raw files on loop devices: the round trip, and everybody who may hold on to one.

use crate::{
    cli::{attach, detach, mortar, text, until},
    machine::{GuestStage, sh, try_sh},
};
use driver::Backend;
use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tests::stage::Stage;

const SIZE: u64 = 32 << 20;

/// What is written through the stable path is in the file, and is there again at the next attach.
#[tokio::test]
async fn a_file_system_survives_the_round_trip() {
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "disk", SIZE).await;
    let before = stage.snapshot().await;
    let there = attach("disk", &locator);
    assert_eq!((text(&there, "stable_path"), &there["size_bytes"]), ("/dev/mortar/disk", &SIZE.into()));
    let device = text(&there, "path");
    assert_eq!(sh(&format!("losetup --noheadings --output DIO {device}")).trim(), "1", "direct I/O");
    sh(
        "mkfs.ext4 -q /dev/mortar/disk; mkdir -p /mnt/disk; mount /dev/mortar/disk /mnt/disk; echo kept >/mnt/disk/file",
    );
    let message = mortar(&["detach", "disk"]).refused(4, "IN_USE");
    assert!(message.contains("mounted at /mnt/disk") && message.contains(device), "{message}");
    assert_eq!(text(&mortar(&["show", "disk"]).ok(), "state"), "ready");
    sh("umount /mnt/disk");
    detach("disk");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    attach("disk", &locator);
    assert_eq!(sh("mount /dev/mortar/disk /mnt/disk; cat /mnt/disk/file; umount /mnt/disk"), "kept");
    detach("/dev/mortar/disk");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// A mount that only another namespace sees holds the device all the same, and the refusal says where to look.
#[tokio::test]
async fn mounted_in_another_namespace() {
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "ns", SIZE).await;
    let before = stage.snapshot().await;
    attach("ns", &locator);
    sh("mkfs.ext4 -q /dev/mortar/ns; mkdir -p /mnt/ns; rm -f /run/ns.ready");
    let script = "mount /dev/mortar/ns /mnt/ns; : >/run/ns.ready; read -r; umount /mnt/ns";
    let mut other = Command::new("/usr/bin/unshare")
        .args(["--mount", "/bin/bash", "-c", script])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    until("the mount", Duration::from_secs(10), || Path::new("/run/ns.ready").exists().then_some(()));
    assert!(!try_sh("mountpoint -q /mnt/ns").status.success(), "it is mounted for everybody");
    let message = mortar(&["detach", "ns"]).refused(4, "IN_USE");
    assert!(message.contains("/mnt/ns") && message.contains(&format!("bash (pid {})", other.id())), "{message}");
    other.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(other.wait().unwrap().success());
    detach("ns");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// A process that has the device open is named with its pid; so is swap.
#[tokio::test]
async fn open_or_used_as_swap() {
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "busy", SIZE).await;
    let before = stage.snapshot().await;
    let there = attach("busy", &locator);
    let open = std::fs::File::open(text(&there, "stable_path")).unwrap();
    let message = mortar(&["detach", "busy"]).refused(4, "IN_USE");
    assert!(message.contains(&format!("(pid {})", std::process::id())), "{message}");
    drop(open);
    sh("mkswap -q /dev/mortar/busy; swapon /dev/mortar/busy");
    let message = mortar(&["detach", "busy"]).refused(4, "IN_USE");
    assert!(message.contains("swap"), "{message}");
    sh("swapoff /dev/mortar/busy");
    detach("busy");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

/// Read-only is the kernel's word, and leaves the file as it is.
#[tokio::test]
async fn read_only() {
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "ro", SIZE).await;
    let before = stage.snapshot().await;
    let there = mortar(&["attach", &locator, "--id", "ro", "--read-only"]).ok();
    assert_eq!(there["read_only"], true);
    let write = try_sh("dd if=/dev/urandom of=/dev/mortar/ro bs=4096 count=1 oflag=direct status=none");
    assert!(!write.status.success(), "it took a write");
    let device = &text(&there, "path")["/dev/".len()..];
    assert_eq!(sh(&format!("cat /sys/block/{device}/ro")), "1");
    detach("ro");
    assert_eq!(stage.snapshot().await, before, "something was left behind");
    let path = locator.strip_prefix("file:").unwrap();
    assert!(std::fs::read(path).unwrap().iter().all(|byte| *byte == 0), "the file changed");
}
