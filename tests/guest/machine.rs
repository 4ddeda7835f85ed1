//! The stage of the guest: the service under systemd, and volumes made with the tools an operator has.

use crate::witness;
use async_trait::async_trait;
use driver::Backend;
use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};
use tests::{client::Client, stage::Stage};

pub(crate) const SOCKET: &str = "/run/mortar/agent.sock";
pub(crate) const PORTAL: &str = "127.0.0.1:3260";

/// How long a script may run: nothing that comes to its end takes as long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs a shell script with the guest's library at hand; its output, whatever its exit code.
pub(crate) fn try_sh(script: &str) -> Output {
    let library = std::env::var("GUEST_LIB").expect("only tests/guest/suite runs this");
    let whole = format!(". {library}\nset -euo pipefail\n{script}");
    let mut command = Command::new("timeout");
    // One that hangs is to fail with its name.
    let (patience, begun) = (PATIENCE.as_secs().to_string(), Instant::now());
    let ran = command.args(["--kill-after", "10", &patience, "/bin/bash", "-c", &whole]).output().unwrap();
    if begun.elapsed() >= PATIENCE {
        let all = Command::new("ps").args(["axfo", "pid,stat,etime,wchan:24,args"]).output().unwrap();
        panic!("it hangs:\n{script}\n{}", String::from_utf8_lossy(&all.stdout));
    }
    ran
}

/// Runs a shell script that has to succeed; what it printed, without the last newline.
pub(crate) fn sh(script: &str) -> String {
    let output = try_sh(script);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}{err}");
    out.trim_end().to_owned()
}

/// multipathd runs as long as this lives.
pub(crate) struct Multipathd;

impl Multipathd {
    pub(crate) fn up() -> Self {
        sh("multipathd_up");
        Self
    }

    /// The disks that it takes for paths.
    pub(crate) fn paths() -> String {
        sh("multipathd show paths raw format %d | grep sd || true")
    }
}

impl Drop for Multipathd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said =
                try_sh("multipathd show paths; journalctl --unit multipathd --no-pager --lines 60; ip rule show; true");
            eprintln!("{}", String::from_utf8_lossy(&said.stdout));
            try_sh("for a in 1 2 3 4; do ip rule del pref 50 from 127.0.0.$a blackhole || true; done");
        }
        try_sh("multipathd_down");
    }
}

/// Each stage has a VG, a directory and a target of its own, so that one test's leftovers are not the next one's.
static STAGES: AtomicU32 = AtomicU32::new(0);

pub(crate) struct GuestStage {
    number: u32,
    next_lun: u32,
    /// The PV of its VG, once there is one.
    pv: Option<String>,
    has_target: bool,
    has_pool: bool,
    occupied: HashMap<String, File>,
}

impl GuestStage {
    pub(crate) async fn new() -> Self {
        Self::bare()
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

    /// The VG is made when the first LV is: it takes a while.
    fn make_vg(&mut self) {
        if self.pv.is_none() {
            // Or else udev activates the LVs when it sees the PV, at a moment of its own.
            self.pv = Some(sh(&format!("vg_on_loop {} 512M --setautoactivation n", self.vg())));
        }
    }

    pub(crate) fn pool(&self) -> String {
        format!("pool{}", self.number)
    }

    /// The cluster is started, and the pool made, with its first image.
    pub(crate) fn make_pool(&mut self) {
        if !self.has_pool {
            sh(&format!("ceph_up; ceph_pool {}", self.pool()));
            self.has_pool = true;
        }
    }

    /// The target is made with its first LUN.
    fn make_target(&mut self) {
        if !self.has_target {
            sh(&format!("lio_target {0}; lio_portal {0} {PORTAL}", self.iqn()));
            self.has_target = true;
        }
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
                "mortar --output json list | jq -r '.[].id' | while read -r id; do mortar detach \"$id\" || true; done; \
                 multipath -F || true; iscsiadm -m session --logout || true; rm -rf /etc/iscsi/nodes/* /etc/iscsi/send_targets",
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
        if self.has_pool {
            try_sh(&format!("ceph_forget_pool {}", self.pool()));
        }
        if self.pv.is_some() {
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
                self.make_target();
                let (lun, number, iqn) = (self.next_lun, self.number, self.iqn());
                self.next_lun += 1;
                let (store, serial) = (format!("t{number}-{lun}"), format!("{number:016x}{lun:09x}"));
                sh(&format!("lio_fileio {store} {serial} {size}; lio_map {iqn} {lun} {store}"));
                format!("iscsi://{PORTAL}/{iqn}/{lun}")
            }
            Backend::Lvm => {
                self.make_vg();
                let vg = self.vg();
                sh(&format!("lvcreate --quiet --yes --wipesignatures n -an -Zn -n {name} -L {size}b {vg} >/dev/null"));
                format!("lvm:{vg}/{name}")
            }
            Backend::Rbd => {
                self.make_pool();
                let pool = self.pool();
                sh(&format!("rbd_image {pool}/{name} {size}"));
                format!("rbd:{pool}/{name}")
            }
        }
    }

    fn scope(&self, backend: Backend) -> String {
        match backend {
            Backend::File => format!("file:{}", self.directory()),
            Backend::Iscsi => unreachable!("no scope"),
            Backend::Lvm => format!("lvm:{}", self.vg()),
            Backend::Rbd => format!("rbd:{}", self.pool()),
        }
    }

    fn nowhere(&self, backend: Backend) -> String {
        match backend {
            Backend::File => format!("file:{}/nowhere.raw", self.directory()),
            Backend::Iscsi => format!("iscsi://{PORTAL}/{}/99", self.iqn()),
            Backend::Lvm => format!("lvm:{}/nowhere", self.vg()),
            Backend::Rbd => format!("rbd:{}/nowhere", self.pool()),
        }
    }

    async fn occupy(&mut self, device: &str) {
        self.occupied.insert(device.into(), open_exclusively(device));
    }

    async fn vacate(&mut self, device: &str) {
        self.occupied.remove(device);
    }

    async fn snapshot(&self) -> String {
        let mut text = Vec::new();
        let mut put = |what: &str, line: String| text.push(format!("{what}: {line}"));
        for session in entries("/sys/class/iscsi_session") {
            put("session", format!("{} {}", read(&session.join("targetname")), read(&session.join("ifacename"))));
        }
        for record in tree("/etc/iscsi/nodes").into_iter().chain(tree("/etc/iscsi/ifaces")) {
            put("record", record.display().to_string());
        }
        for block in entries("/sys/block") {
            let size = read(&block.join("size"));
            if size != "0" {
                let (name, uuid) =
                    (block.file_name().unwrap().to_string_lossy().into_owned(), read(&block.join("dm/uuid")));
                let file = read(&block.join("loop/backing_file"));
                put("block", format!("{name} {size} ro={} {uuid}{file}", read(&block.join("ro"))));
            }
        }
        for link in entries("/dev/mortar") {
            put("link", link.display().to_string());
        }
        for file in tree("/srv/volumes").into_iter().filter(|path| path.is_file()) {
            let meta = std::fs::metadata(&file).unwrap();
            put("file", format!("{} {} {}", file.display(), meta.len(), meta.ino()));
        }
        for line in witness::attributes("/srv/volumes") {
            put("attribute", line);
        }
        for object in lio_objects() {
            put("LIO", object);
        }
        for mapping in entries("/sys/bus/rbd/devices") {
            let part = |name| read(&mapping.join(name));
            let name = mapping.file_name().unwrap().to_string_lossy().into_owned();
            put(
                "mapping",
                format!("{name} {}/{}/{} {}", part("pool_id"), part("pool_ns"), part("image_id"), part("snap_id")),
            );
        }
        if self.has_pool {
            for line in witness::images(&self.pool()) {
                put("image", line);
            }
        }
        if let Some(pv) = &self.pv {
            let fields = "lv_name,lv_uuid,lv_size,lv_tags,lv_active,lv_permissions";
            let lvs = ["-a", "--noheadings", "--devices", pv, "-o", fields, &self.vg()];
            let output = Command::new("/usr/sbin/lvs").args(lvs).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                put("LV", line.trim().to_owned());
            }
        }
        text.sort();
        text.join("\n")
    }

    async fn kill_and_restart(&mut self) {
        sh("systemctl kill --signal KILL --kill-whom main mortard; systemctl restart mortard");
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn entries(directory: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Everything below a directory.
fn tree(directory: &str) -> Vec<PathBuf> {
    let mut found = entries(directory);
    for path in found.clone().into_iter().filter(|path| path.is_dir() && !path.is_symlink()) {
        found.extend(tree(path.to_str().unwrap()));
    }
    found
}

/// The kernel's targets and backstores; of those that are exports all that they consist of, but not of a test's own, which it
/// changes as it likes.
fn lio_objects() -> Vec<String> {
    let (stores, targets) = ("/sys/kernel/config/target/core", "/sys/kernel/config/target/iscsi");
    let below = |path: &PathBuf| entries(path.to_str().unwrap());
    let mut found: Vec<PathBuf> = entries(stores).iter().flat_map(below).collect();
    found.extend(entries(targets));
    for group in entries(targets).iter().filter(|target| target.to_string_lossy().contains(":export-")).flat_map(below)
    {
        for part in ["np", "lun", "acls"].map(|part| group.join(part)) {
            // An access list has its own LUNs below it, and all have attributes without end.
            let objects = tree(part.to_str().unwrap()).into_iter().filter(|path| path.is_dir() || path.is_symlink());
            found.extend(objects.filter(|path| !path.to_string_lossy().contains("/statistics")));
        }
        found.push(group);
    }
    found.iter().filter(|path| path.is_dir()).map(|path| path.display().to_string()).collect()
}

/// As a mount does it: nobody else may claim the device.
fn open_exclusively(device: &str) -> File {
    const O_EXCL: i32 = 0o200;
    std::fs::OpenOptions::new().read(true).custom_flags(O_EXCL).open(device).unwrap()
}

impl GuestStage {
    /// A stage with a target but no VG, which takes a while to make.
    pub(crate) fn with_target() -> Self {
        let mut stage = Self::bare();
        stage.make_target();
        stage
    }

    /// A stage with an empty VG.
    pub(crate) fn with_vg() -> Self {
        let mut stage = Self::bare();
        stage.make_vg();
        stage
    }

    /// A stage with an empty pool.
    pub(crate) fn with_pool() -> Self {
        let mut stage = Self::bare();
        stage.make_pool();
        stage
    }

    /// A stage with neither target nor VG.
    pub(crate) fn bare() -> Self {
        assert!(Path::new("/mnt/host").exists(), "only tests/guest/suite runs this, in the guest");
        let number = STAGES.fetch_add(1, Ordering::Relaxed) + std::process::id() * 100;
        let stage =
            Self { number, next_lun: 0, pv: None, has_target: false, has_pool: false, occupied: HashMap::new() };
        std::fs::create_dir_all(stage.directory()).unwrap();
        if !Path::new(SOCKET).exists() {
            sh("systemctl start mortard");
        }
        stage
    }

    /// The backstore of the volume at this LUN.
    pub(crate) fn store(&self, lun: u32) -> String {
        format!("t{}-{lun}", self.number)
    }

    /// The WWN of the volume that was made for this LUN, wherever it is mapped now.
    pub(crate) fn wwn(&self, lun: u32) -> String {
        format!("36001405{:016x}{lun:09x}", self.number)
    }
}
