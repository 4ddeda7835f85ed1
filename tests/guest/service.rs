//! The service as systemd keeps it: in its sandbox, on systemd's socket and without it, and under its watchdog.

use crate::{
    cli::{attach, detach, main_pid, mortar, start, text, until},
    machine::{GuestStage, SOCKET, sh, try_sh},
};
use driver::Backend;
use serde_json::Value;
use std::{os::unix::fs::MetadataExt, path::Path, time::Duration};
use tests::stage::Stage;

const DROP_IN: &str = "/run/systemd/system/mortard.service.d";

/// A change of the unit, for as long as this lives.
struct Changed;

impl Changed {
    fn with(lines: &str) -> Self {
        sh(&format!("mkdir -p {DROP_IN}; printf '{lines}' >{DROP_IN}/test.conf; systemctl daemon-reload"));
        Self
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        try_sh(&format!("rm -r {DROP_IN}; systemctl daemon-reload; systemctl restart mortard"));
    }
}

fn property(name: &str) -> String {
    sh(&format!("systemctl show --property {name} --value mortard"))
}

/// systemd's own judgement of the sandbox, and that the kernel keeps it.
#[tokio::test]
async fn the_sandbox_is_tight() {
    let _stage = GuestStage::bare();
    let said = sh("systemd-analyze security --no-pager mortard | tail -n 1");
    let level: f64 = said.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    assert!(level <= 4.0, "{said}");
    let pid = main_pid();
    // What the process has is what every tool that it starts has at most.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
    };
    // SYS_ADMIN (21), SYS_PTRACE (19), FOWNER (3), DAC_OVERRIDE (1).
    let few = format!("{:016x}", 1_u64 << 21 | 1 << 19 | 1 << 3 | 1 << 1);
    assert_eq!((field("CapEff:"), field("CapBnd:"), field("NoNewPrivs:")), (few.clone(), few, "1".into()));
    assert_eq!(field("Seccomp:"), "2");
    // As the agent, at one of the places that it has no business with.
    let within = |command: &str| try_sh(&format!("nsenter --target {pid} --mount -- {command}"));
    for place in ["/etc/passwd", "/usr/sbin/lvm", "/proc/sys/kernel/hostname", "/sys/kernel/uevent_helper"] {
        let written = within(&format!("/bin/sh -c 'exec 3>>{place}'"));
        assert!(String::from_utf8_lossy(&written.stderr).contains("Read-only"), "{place}: {written:?}");
    }
    for place in ["/etc/iscsi/test", "/etc/lvm/test", "/dev/mortar.test"] {
        let written = within(&format!("/bin/sh -c 'exec 3>>{place} && rm {place}'"));
        assert!(written.status.success(), "{place}: {written:?}");
    }
}

/// An LV of a kind whose kernel part is not loaded yet: LVM may not load it, so the unit has.
#[tokio::test]
async fn every_kind_of_lv_is_there() {
    let mut stage = GuestStage::with_vg();
    let vg = stage.vg();
    sh(&format!(
        "lvcreate -q -y -L 64M --thinpool pool {vg} >/dev/null 2>&1; lvcreate -q -y -V 32M --thinpool pool -n thin {vg} >/dev/null 2>&1
         vgchange -q -an {vg} >/dev/null; systemctl stop mortard.socket mortard
         rmmod dm_thin_pool; systemctl start mortard"
    ));
    attach("thin", &format!("lvm:{vg}/thin"));
    detach("thin");
    let _others = stage.volume(Backend::Lvm, "plain", 16 << 20).await;
}

/// A file system with an attached file on it is in use, however often the agent was restarted.
#[tokio::test]
async fn the_file_system_below_a_volume_stays_mounted() {
    let _stage = GuestStage::bare();
    sh("truncate -s 64M /var/tmp/below.img; mkfs.ext4 -q /var/tmp/below.img; mkdir -p /srv/below
        mount -o loop /var/tmp/below.img /srv/below; truncate -s 16M /srv/below/volume.raw");
    let there = attach("above", "file:/srv/below/volume.raw");
    sh("systemctl restart mortard");
    let refused = try_sh("umount /srv/below");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("busy"), "{refused:?}");
    let device = text(&there, "path").strip_prefix("/dev/").unwrap().to_owned();
    assert_eq!(crate::cli::read(format!("/sys/block/{device}/loop/backing_file")), "/srv/below/volume.raw");
    detach("above");
    sh("umount /srv/below; rm -r /srv/below /var/tmp/below.img");
}

/// systemd listens: who connects while there is no agent is kept waiting until there is, whether it is started by that or
/// restarted.
#[tokio::test]
async fn the_socket_outlives_the_agent() {
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "kept", 16 << 20).await;
    let inode = || std::fs::metadata(SOCKET).unwrap().ino();
    attach("kept", &locator);
    let before = inode();
    sh("systemctl stop mortard");
    assert_eq!((property("ActiveState").as_str(), inode()), ("inactive", before));
    // This starts it.
    assert_eq!(mortar(&["list"]).ok()[0]["id"], "kept");
    let calls: Vec<_> = (0..8).map(|_| start(&["list"])).collect();
    sh("systemctl restart mortard");
    let more = start(&["list"]);
    let mut answered = 0;
    for call in calls.into_iter().chain([more]) {
        let ran = call.end();
        // A call that was under way may be told that the agent went.
        answered += usize::from(ran.code == 0);
        assert!(ran.code == 0 || ran.err.contains("UNREACHABLE"), "{ran:?}");
    }
    assert!(answered > 0);
    sh("systemctl kill --signal KILL --kill-whom main mortard");
    assert_eq!(mortar(&["list"]).ok()[0]["id"], "kept", "after a kill");
    assert_eq!(inode(), before);
    detach("kept");
}

/// Without systemd's socket the agent makes its own, lets the group in, and takes it away.
#[tokio::test]
async fn without_systemds_socket_it_makes_its_own() {
    let _stage = GuestStage::bare();
    sh("systemctl stop mortard.socket mortard; systemctl mask --runtime mortard.socket; systemctl start mortard");
    let meta = std::fs::metadata(SOCKET);
    let answer = mortar(&["list"]);
    sh("systemctl stop mortard");
    let left = Path::new(SOCKET).exists();
    sh("systemctl unmask --runtime mortard.socket; systemctl start mortard");
    let meta = meta.unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.gid()), (0o666, 0));
    answer.ok();
    assert!(!left, "it left its socket behind");
    mortar(&["list"]).ok();
}

/// An agent that hangs is killed and started again, and what is attached is there as before.
#[tokio::test]
async fn an_agent_that_hangs_is_restarted() {
    let mut stage = GuestStage::with_target();
    let mut there = Vec::new();
    for backend in [Backend::File, Backend::Lvm, Backend::Iscsi] {
        let locator = stage.volume(backend, "hung", 16 << 20).await;
        there.push(attach(&format!("hung-{backend}"), &locator));
    }
    let _soon = Changed::with("[Service]\\nWatchdogSec=4\\n");
    sh("systemctl restart mortard");
    let (pid, restarts) = (main_pid(), property("NRestarts"));
    // It says that it works: nobody kills it for longer than the time it has.
    let calm = std::time::Instant::now();
    until("two rounds of the watchdog", Duration::from_secs(20), || {
        assert_eq!(main_pid(), pid, "it was killed though it works");
        (calm.elapsed() > Duration::from_secs(9)).then_some(())
    });
    let before = stage.snapshot().await;
    sh(&format!("kill -STOP {pid}"));
    until("the watchdog", Duration::from_secs(30), || (property("NRestarts") != restarts).then_some(()));
    let listed = mortar(&["list"]).ok();
    assert_ne!(main_pid(), pid);
    let said = sh("journalctl --unit mortard --no-pager --lines 40 --output cat");
    assert!(said.contains("Watchdog timeout"), "{said}");
    assert_eq!(listed.as_array().unwrap().len(), there.len(), "{listed}");
    assert_eq!(stage.snapshot().await, before, "something changed");
    for was in there {
        let id = text(&was, "id");
        let now = mortar(&["show", id]).ok();
        for key in ["path", "stable_path", "size_bytes", "identity", "state"] {
            assert_eq!(now[key], was[key], "{key} of {id}");
        }
        detach(id);
    }
    assert_eq!(mortar(&["operations", "--running"]).ok(), Value::Array(Vec::new()));
}
