//! Rescue on the real libvirt, with real QEMU and real storage: what an instance prints when it boots says from which disk.

mod killed;
mod trouble;

use crate::{
    cli::{Ran, detach, mortar, mortar_reading},
    instance::{Libvirtd, bootable, booted, domblklist, dumpxml, instance},
    machine::{GuestStage, sh},
};
use driver::Backend;
use serde_json::Value;
use std::collections::BTreeMap;
use tests::stage::Stage;
use uuid::Uuid;

const SIZE: u64 = 4 << 20;
const ROOT: &str = "BOOTED FROM ROOT";
const RESCUE: &str = "BOOTED FROM RESCUE";
/// What it is called when it is defined, and where it prints.
const WEB1: &str = "web1";
const SEEDS: &str = "/var/lib/mortar-rescue";

/// An instance with its root on a backend, and what it is rescued with, on the same.
struct Bench {
    stage: GuestStage,
    backend: Backend,
    name: String,
    uuid: Uuid,
    /// As the definition has it.
    root: String,
    /// The options of `mortar rescue` that say with what.
    with: [String; 2],
    _libvirtd: Libvirtd,
}

impl Bench {
    async fn new(backend: Backend) -> Self {
        Self::named(backend, WEB1).await
    }

    async fn named(backend: Backend, name: &str) -> Self {
        let libvirtd = Libvirtd::up();
        let mut stage = GuestStage::bare();
        let volume = stage.volume(backend, "root", SIZE).await;
        let image = stage.volume(backend, "image", SIZE).await;
        let option = if backend == Backend::Iscsi { "--volume" } else { "--image" };
        let root = match backend {
            Backend::Rbd => {
                let native = volume.replace("rbd:", "");
                sh(&format!(
                    "bootable_image {native} '{ROOT}'; bootable_image {} '{RESCUE}'",
                    image.replace("rbd:", "")
                ));
                native
            }
            Backend::File => {
                bootable(volume.trim_start_matches("file:"), ROOT);
                bootable(image.trim_start_matches("file:"), RESCUE);
                volume.trim_start_matches("file:").to_owned()
            }
            Backend::Lvm | Backend::Iscsi => {
                mortar(&["attach", &image, "--id", "image"]).ok();
                bootable("/dev/mortar/image", RESCUE);
                detach("image");
                mortar(&["attach", &volume, "--id", "root", "--persistent"]).ok();
                bootable("/dev/mortar/root", ROOT);
                "/dev/mortar/root".to_owned()
            }
        };
        let disk = match backend {
            Backend::Rbd => sh(&format!("echo rbd:{root}:admin:$(ceph_secret admin)")),
            _ => root.clone(),
        };
        let uuid = instance(WEB1, &[&disk]);
        if name != WEB1 {
            sh(&format!("virsh --quiet domrename {WEB1} \"{name}\""));
        }
        let name = name.to_owned();
        Self { stage, backend, name, uuid, root, with: [option.to_owned(), image], _libvirtd: libvirtd }
    }

    fn start(&self) {
        sh(&format!("virsh --quiet start {}", self.uuid));
        assert_eq!(booted(WEB1), ROOT);
    }

    fn rescue(&self, options: &[&str]) -> Ran {
        let uuid = self.uuid.to_string();
        let [option, locator] = &self.with;
        mortar(&[&["rescue", &uuid, option, locator, "--grace", "0", "--timeout", "3m"], options].concat())
    }

    fn unrescue(&self) -> Value {
        mortar(&["unrescue", &self.name, "--grace", "0", "--timeout", "3m"]).ok()
    }

    fn runs(&self) -> bool {
        sh(&format!("virsh domstate {}", self.uuid)).trim() == "running"
    }

    /// The source of the rescue disk, as `virsh domblklist` shows it.
    fn rescue_source(&self) -> String {
        let uuid = self.uuid;
        match self.backend {
            Backend::File => format!("{}/rescue-{uuid}.img", self.stage.directory()),
            Backend::Rbd => format!("{}/rescue-{uuid}", self.stage.pool()),
            Backend::Lvm | Backend::Iscsi => format!("/dev/mortar/rescue-{uuid}"),
        }
    }

    /// Of all that is on the original.
    fn checksum(&self) -> String {
        match self.backend {
            Backend::Rbd => sh(&format!("rbd export --no-progress {} - | sha256sum", self.root)),
            _ => sh(&format!("blockdev --flushbufs {0} 2>/dev/null || true; sha256sum <{0}", self.root)),
        }
    }

    /// All that a rescue could leave.
    async fn picture(&self) -> String {
        let seeds = sh(&format!("ls {SEEDS}"));
        let listed = mortar(&["list"]).ok();
        let ids: Vec<&str> = listed.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
        format!("{}\nseeds: {seeds}\nattachments: {ids:?}", self.stage.snapshot().await)
    }

    /// It is rescued and put back, and neither its definition nor its root disk has changed.
    async fn there_and_back(&self, layout: &str, was_running: bool) {
        let at = format!("{} {layout} running={was_running}", self.backend);
        if was_running {
            self.start();
        }
        let (before, definition, sum) = (self.picture().await, dumpxml(self.uuid), self.checksum());
        let told = self.rescue(&["--layout", layout, "--dry-run"]).ok();
        assert_eq!(
            (self.picture().await, dumpxml(self.uuid), self.runs()),
            (before.clone(), definition.clone(), was_running)
        );
        let would = told["would"].as_array().unwrap();
        assert_eq!(would.iter().any(|step| step.as_str().unwrap().starts_with("end ")), was_running, "{at}: {told}");
        let reply = self.rescue(&["--layout", layout]).ok();
        assert_eq!(reply["password"].as_str().unwrap().len(), 16, "{at}: {reply}");
        assert_eq!(booted(WEB1), RESCUE, "{at}");
        let (rescue, root) = (self.rescue_source(), self.root.clone());
        let seed = format!("{SEEDS}/seed-{}.img", self.uuid);
        let order = if layout == "classic" { [rescue, root, seed] } else { [root, rescue, seed] };
        let expected: BTreeMap<String, String> =
            ["vda", "vdb", "vdc"].map(str::to_owned).into_iter().zip(order).collect();
        assert_eq!(domblklist(self.uuid), expected, "{at}");
        assert_eq!(
            mortar(&["rescue", &self.name, &self.with[0], &self.with[1], "--layout", layout]).ok()["changed"],
            false
        );

        assert_eq!(self.unrescue()["changed"], true);
        assert_eq!(dumpxml(self.uuid), definition, "{at}: the definition is another one");
        assert_eq!(self.runs(), was_running, "{at}");
        if was_running {
            assert_eq!(booted(WEB1), ROOT, "{at}");
            sh(&format!("virsh --quiet destroy {}", self.uuid));
            assert_eq!(self.checksum(), sum, "{at}: the original was written to");
            self.start();
        } else {
            assert_eq!(self.checksum(), sum, "{at}: the original was written to");
        }
        assert_eq!(self.picture().await, before, "{at}: something was left behind");
        assert_eq!(self.unrescue()["changed"], false);
        if was_running {
            sh(&format!("virsh --quiet destroy {}", self.uuid));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        sh(&format!("virsh --quiet destroy {0} 2>/dev/null || true; virsh --quiet undefine {0}", self.uuid));
        if matches!(self.backend, Backend::Lvm | Backend::Iscsi) {
            detach("root");
        }
    }
}

/// Both layouts, running and off: all four on a file, and on the others each once.
async fn everywhere(backend: Backend) {
    let bench = Bench::new(backend).await;
    for (layout, was_running) in [("classic", true), ("stable", false), ("classic", false), ("stable", true)] {
        if backend == Backend::File || (layout == "classic") == was_running {
            bench.there_and_back(layout, was_running).await;
        }
    }
}

#[tokio::test]
async fn file_root() {
    everywhere(Backend::File).await;
}

#[tokio::test]
async fn lvm_root() {
    everywhere(Backend::Lvm).await;
}

#[tokio::test]
async fn iscsi_root() {
    everywhere(Backend::Iscsi).await;
}

#[tokio::test]
async fn rbd_root() {
    everywhere(Backend::Rbd).await;
}

/// What reaches the rescue system, and where its password is not to be found.
#[tokio::test]
async fn a_password_and_user_data_by_the_seed() {
    const PASSWORD: &str = "correct horse </disk> battery";
    const DATA: &str = "#!/bin/sh\necho '</source>\"}]' $(reboot)\n";
    let bench = Bench::named(Backend::File, "a&b<c>'d").await;
    sh(&format!("cat >/run/user-data <<'END'\n{DATA}END"));
    sh("echo 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ0 \"}]: me' >/run/key.pub");
    let [option, locator] = &bench.with;
    let line = [
        "rescue",
        &bench.name,
        option,
        locator,
        "--grace",
        "0",
        "--timeout",
        "3m",
        "--password-file",
        "-",
        "--user-data",
    ];
    let line = [&line[..], &["/run/user-data", "--ssh-key", "/run/key.pub"]].concat();
    let reply = mortar_reading(&line, PASSWORD).ok();
    assert_eq!((&reply["password"], &reply["instance"]["name"]), (&Value::Null, &"a&b<c>'d".into()));
    assert_eq!(booted(WEB1), RESCUE);
    let seed = format!("{SEEDS}/seed-{}.img", bench.uuid);
    let told = sh(&format!("blkid --probe --output export {seed}"));
    assert!(told.contains("LABEL=CIDATA") && told.contains("TYPE=vfat"), "{told}");
    assert_eq!(sh(&format!("stat -c %a {seed}")), "600");
    let inside = sh(&format!("strings -n 1 {seed}"));
    for part in ["$(reboot)", "$6$", "ssh-ed25519 AAAAC3", "instance-id"] {
        assert!(inside.contains(part), "{part} is missing");
    }
    let kept = "journalctl --unit mortard --no-pager; cat /var/lib/mortar/journal.sqlite*; cat /proc/[0-9]*/cmdline";
    let kept = sh(&format!("({kept}; cat {seed}) | strings"));
    assert!(!kept.contains("correct horse"), "the password is to be found");
    bench.unrescue();
    assert!(!std::path::Path::new(&seed).exists());
}
