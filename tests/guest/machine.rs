//! The stage of the guest: the service under systemd, and volumes made with the tools an operator has.

use async_trait::async_trait;
use driver::Backend;
use std::{
    collections::HashMap,
    fs::File,
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};
use tests::{client::Client, stage::Stage};

pub(crate) const SOCKET: &str = "/run/mortar/agent.sock";
pub(crate) const PORTAL: &str = "127.0.0.1:3260";

/// Runs a shell script with the guest's library at hand; its output, whatever its exit code.
pub(crate) fn try_sh(script: &str) -> Output {
    let library = std::env::var("GUEST_LIB").expect("only tests/guest/suite runs this");
    let script = format!(". {library}\nset -euo pipefail\n{script}");
    Command::new("/bin/bash").args(["-c", &script]).output().unwrap()
}

/// Runs a shell script that has to succeed; what it printed, without the last newline.
pub(crate) fn sh(script: &str) -> String {
    let output = try_sh(script);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}{err}");
    out.trim_end().to_owned()
}

/// Each stage has a VG, a directory and a target of its own, so that one test's leftovers are not the next one's.
static STAGES: AtomicU32 = AtomicU32::new(0);

pub(crate) struct GuestStage {
    number: u32,
    next_lun: u32,
    has_vg: bool,
    has_target: bool,
    occupied: HashMap<String, File>,
}

impl GuestStage {
    pub(crate) async fn new() -> Self {
        assert!(Path::new("/mnt/host").exists(), "only tests/guest/suite runs this, in the guest");
        let number = STAGES.fetch_add(1, Ordering::Relaxed) + std::process::id() * 100;
        let mut stage = Self { number, next_lun: 0, has_vg: false, has_target: false, occupied: HashMap::new() };
        sh(&format!("mkdir -p {}", stage.directory()));
        sh("systemctl is-active --quiet mortard || systemctl start mortard");
        // A VG and a target that are made later would show in a snapshot taken earlier.
        stage.make_vg();
        stage.make_target();
        stage
    }

    pub(crate) fn vg(&self) -> String {
        format!("vg{}", self.number)
    }

    pub(crate) fn iqn(&self) -> String {
        format!("iqn.2026-11.org.example:t{}", self.number)
    }

    pub(crate) fn directory(&self) -> String {
        format!("/srv/volumes/{}", self.number)
    }

    fn make_vg(&mut self) {
        sh(&format!("vg_on_loop {} 512M", self.vg()));
        self.has_vg = true;
    }

    fn make_target(&mut self) {
        sh(&format!("lio_target {0}; lio_portal {0} {PORTAL}", self.iqn()));
        self.has_target = true;
    }
}

impl Drop for GuestStage {
    fn drop(&mut self) {
        self.occupied.clear();
        if std::thread::panicking() {
            // What a failed test leaves is looked at by a person, and must not trip the next test.
            let state =
                try_sh("systemctl status --no-pager --lines 30 mortard; lsblk; dmsetup ls; iscsiadm -m session; true");
            eprintln!("{}", String::from_utf8_lossy(&state.stdout));
            try_sh(
                "mortar --output json list | jq -r '.[].id' | while read -r id; do mortar detach \"$id\" || true; done",
            );
        }
        if self.has_target {
            let number = self.number;
            try_sh(&format!(
                "lio_remove_target {}; for s in {LIO}/core/fileio_0/t{number}-*; do [[ ! -d $s ]] || rmdir $s; done; \
                 rm -f /var/tmp/t{number}-*.img",
                self.iqn(),
                LIO = "/sys/kernel/config/target"
            ));
        }
        if self.has_vg {
            try_sh(&format!("vg_remove {}", self.vg()));
        }
        try_sh(&format!("rm -rf {}", self.directory()));
    }
}

#[async_trait]
impl Stage for GuestStage {
    fn client(&self) -> Client {
        Client::on(Path::new(SOCKET))
    }

    async fn volume(&mut self, backend: Backend, name: &str, size: u64) -> String {
        match backend {
            Backend::File => {
                let path = format!("{}/{name}.raw", self.directory());
                sh(&format!("truncate -s {size} {path}"));
                format!("file:{path}")
            }
            Backend::Iscsi => {
                let (lun, number, iqn) = (self.next_lun, self.number, self.iqn());
                self.next_lun += 1;
                let (store, serial) = (format!("t{number}-{lun}"), format!("{number:016x}{lun:09x}"));
                sh(&format!("lio_fileio {store} {serial} {size}; lio_map {iqn} {lun} {store}"));
                format!("iscsi://{PORTAL}/{iqn}/{lun}")
            }
            Backend::Lvm => {
                let vg = self.vg();
                sh(&format!("lvcreate --quiet --yes --wipesignatures n -an -Zn -n {name} -L {size}b {vg} >/dev/null"));
                format!("lvm:{vg}/{name}")
            }
        }
    }

    fn scope(&self, backend: Backend) -> String {
        match backend {
            Backend::File => format!("file:{}", self.directory()),
            Backend::Iscsi => unreachable!("no scope"),
            Backend::Lvm => format!("lvm:{}", self.vg()),
        }
    }

    fn nowhere(&self, backend: Backend) -> String {
        match backend {
            Backend::File => format!("file:{}/nowhere.raw", self.directory()),
            Backend::Iscsi => format!("iscsi://{PORTAL}/{}/99", self.iqn()),
            Backend::Lvm => format!("lvm:{}/nowhere", self.vg()),
        }
    }

    async fn occupy(&mut self, device: &str) {
        self.occupied.insert(device.into(), open_exclusively(device));
    }

    async fn vacate(&mut self, device: &str) {
        self.occupied.remove(device);
    }

    async fn snapshot(&self) -> String {
        // udev's own work ends first: its links are no part of the picture, but a device it holds open is.
        sh(r#"
            set +e
            udevadm settle
            echo "-- sessions"; for s in /sys/class/iscsi_session/*; do [[ -e $s ]] && cat $s/targetname; done | sort
            echo "-- records"; find /etc/iscsi/nodes /etc/iscsi/send_targets -mindepth 1 2>/dev/null | sort
            echo "-- block"; for b in /sys/block/*; do n=${b##*/}; [[ $(cat $b/size) = 0 ]] || echo "$n $(cat $b/size) $(cat $b/ro)"; done
            echo "-- dm"; for d in /sys/block/dm-*; do [[ -e $d ]] && cat $d/dm/name $d/dm/uuid; done
            echo "-- loop"; for l in /sys/block/loop*/loop/backing_file; do [[ -e $l ]] && cat $l; done
            echo "-- links"; ls /dev/mortar 2>/dev/null
            echo "-- LVs"; lvs -a --noheadings -o vg_name,lv_name,lv_uuid,lv_tags,lv_active,lv_permissions
            echo "-- files"; find /srv/volumes -type f -printf '%p %s %i\n' | sort; 
            python3 -c 'import os; [print(e.path, n, os.getxattr(e.path, n)) for d in os.scandir("/srv/volumes") for e in os.scandir(d) for n in os.listxattr(e.path)]'
            true
        "#)
    }

    async fn kill_and_restart(&mut self) {
        sh("systemctl kill --signal KILL --kill-whom main mortard; systemctl restart mortard");
    }
}

/// As a mount does it: nobody else may claim the device.
fn open_exclusively(device: &str) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    const O_EXCL: i32 = 0o200;
    std::fs::OpenOptions::new().read(true).custom_flags(O_EXCL).open(device).unwrap()
}
