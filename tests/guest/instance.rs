//! Instances of the real libvirt: each is a boot sector that says where it is (`tests/guest/lib.sh`).

use crate::machine::{sh, try_sh};
use std::{collections::BTreeMap, path::Path};
use uuid::Uuid;

/// libvirtd runs as long as this lives; its instances go with it.
pub(crate) struct Libvirtd;

impl Libvirtd {
    pub(crate) fn up() -> Self {
        sh("libvirt_up");
        Self
    }

    /// Ends the daemon at once. The instances go on, and nothing starts it again.
    pub(crate) fn kill() {
        sh("systemctl stop libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket 2>/dev/null || true
            systemctl kill --signal KILL --kill-who main libvirtd.service || true
            systemctl stop libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket");
    }

    /// Starts it again.
    pub(crate) fn restart() {
        sh("libvirt_up");
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = try_sh(
                "virsh list --all; tail -n 5 /var/log/libvirt/qemu/*.log
                 journalctl --unit libvirtd --no-pager --lines 40; true",
            );
            eprintln!("{}", String::from_utf8_lossy(&said.stdout));
            try_sh("libvirt_up");
        }
        try_sh("libvirt_down");
    }
}

/// Defines an instance with these disks, as an operator would; see `instance` in `lib.sh`.
pub(crate) fn instance(name: &str, disks: &[&str]) -> Uuid {
    sh(&format!("instance {name} {}", disks.join(" "))).parse().unwrap()
}

/// Makes a disk boot, and print this.
pub(crate) fn bootable(disk: impl AsRef<Path>, says: &str) {
    sh(&format!("bootable {} '{says}'", disk.as_ref().display()));
}

/// What an instance printed since its last start.
pub(crate) fn booted(name: &str) -> String {
    sh(&format!("booted {name}"))
}

/// How an instance is defined, as libvirt keeps it.
pub(crate) fn dumpxml(instance: Uuid) -> String {
    // virsh ends it with a line more.
    sh(&format!("virsh dumpxml --inactive --security-info {instance}")) + "\n"
}

/// Its disks as `virsh domblklist` shows them: the target, and the source.
pub(crate) fn domblklist(instance: Uuid) -> BTreeMap<String, String> {
    let shown = sh(&format!("virsh domblklist {instance}"));
    let lines = shown.lines().skip(2).filter_map(|line| line.trim().split_once(char::is_whitespace));
    lines.map(|(target, source)| (target.to_owned(), source.trim().to_owned())).collect()
}
