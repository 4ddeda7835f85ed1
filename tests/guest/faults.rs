//! What goes wrong around the agent: its journal's disk, its journal, its share of the host's processes and descriptors, a
//! device that stands still; below it, what goes wrong with the wire, the daemons and the storage.

mod daemons;
mod storage;
mod wire;

use crate::{
    cli::{Ran, attach, detach, figure, main_pid, mortar, start, text, until},
    machine::{GuestStage, SOCKET, sh, try_sh},
};
use driver::Backend;
use serde_json::Value;
use std::{
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};
use tests::{
    reliability::{Row, note},
    stage::Stage,
};

const SIZE: u64 = 16 << 20;
const STATE: &str = "/var/lib/mortar";

/// Puts something back as it was, also after a failure.
struct Afterwards<S: AsRef<str>>(S);

impl<S: AsRef<str>> Drop for Afterwards<S> {
    fn drop(&mut self) {
        try_sh(self.0.as_ref());
    }
}

/// The reason and the sentence of a call that was refused.
fn said_of(ran: &Ran) -> (String, String) {
    let error: Value = serde_json::from_str(&ran.err).unwrap_or_default();
    let part = |key: &str| error["error"][key].as_str().unwrap_or_default().to_owned();
    (part("reason"), part("message"))
}

/// What went wrong, what the caller saw of it, and what came of it.
fn observed(what: &str, ran: &Ran, afterwards: &str) {
    let caller_saw = match ran.code {
        0 => "success".to_owned(),
        code => {
            let (reason, message) = said_of(ran);
            format!("exit code {code}, {reason}: {message}")
        }
    };
    figure(what, &caller_saw);
    note(&Row::Fault { what: what.into(), caller_saw, afterwards: afterwards.into() });
}

/// Waits until an operation of this kind runs.
fn running(kind: &str) -> Value {
    until("the operation to run", Duration::from_secs(20), || {
        let operations = mortar(&["operations", "--running"]).ok();
        operations.as_array().unwrap().iter().find(|operation| operation["kind"] == kind).cloned()
    })
}

/// Waits until no operation runs.
fn ended() {
    until("the operations to end", Duration::from_secs(150), || {
        (mortar(&["operations", "--running"]).ok() == Value::Array(Vec::new())).then_some(())
    });
}

/// The journal's disk is full: refused before any effect, reads go on, and when there is room so does the rest.
#[tokio::test]
async fn a_full_journal() {
    let mut stage = GuestStage::bare();
    let (first, second) = (stage.volume(Backend::File, "v", SIZE).await, stage.volume(Backend::File, "w", SIZE).await);
    sh(&format!("systemctl stop mortard; mount -t tmpfs -o size=512k none {STATE}; systemctl start mortard"));
    let _afterwards = Afterwards("systemctl stop mortard; umount /var/lib/mortar; systemctl start mortard");
    attach("a", &first);
    let before = stage.snapshot().await;
    sh(&format!("dd if=/dev/zero of={STATE}/filler bs=1k status=none || true"));
    for call in [&["attach", &*second, "--id", "b"][..], &["detach", "a"], &["manage", &*second]] {
        let ran = mortar(call);
        let said = ran.refused(5, "NO_SPACE");
        assert!(said.contains("journal.sqlite is full: make room"), "{said}");
        observed(&format!("the journal's disk is full, {}", call[0]), &ran, "nothing was begun; reads went on");
    }
    assert_eq!(stage.snapshot().await, before);
    assert_eq!(text(&mortar(&["show", "a"]).ok(), "state"), "ready");
    assert_eq!(mortar(&["list"]).ok().as_array().unwrap().len(), 1);
    assert_eq!(mortar(&["operations", "--running"]).ok(), Value::Array(Vec::new()));
    sh(&format!("rm {STATE}/filler"));
    attach("b", &second);
    detach("a");
    detach("b");
}

/// The journal is overwritten: the agent says so, changes nothing, tells what it sees, and is well again when it is told to.
#[tokio::test]
async fn a_damaged_journal() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let path = text(&attach("a", &locator), "path").to_owned();
    let other = stage.volume(Backend::Lvm, "managed", SIZE).await;
    let managed = mortar(&["manage", &other]).ok();
    sh(&format!(
        "systemctl stop mortard; mkdir /run/kept; cp -a {STATE}/journal.sqlite* /run/kept/
         dd if=/dev/urandom of={STATE}/journal.sqlite bs=1k count=8 conv=notrunc status=none; systemctl start mortard"
    ));
    let _afterwards = Afterwards("rm -rf /run/kept /run/damaged");
    let before = (stage.snapshot().await, sh(&format!("sha256sum {STATE}/journal.sqlite")));
    let ran = mortar(&["detach", "a"]);
    let said = ran.refused(4, "WRONG_STATE");
    assert!(said.contains("mortard is read-only") && said.contains("move it away"), "{said}");
    mortar(&["attach", &locator]).refused(4, "WRONG_STATE");
    mortar(&["manage", &locator]).refused(4, "WRONG_STATE");
    let listed = mortar(&["list"]).ok();
    assert_eq!((text(&listed[0], "id"), text(&listed[0], "path")), ("a", &*path), "{listed}");
    let volumes = mortar(&["volumes"]).ok();
    assert!(volumes.to_string().contains(text(&managed, "id")), "{volumes}");
    assert_eq!(mortar(&["manageable", &stage.scope(Backend::Lvm)]).ok().as_array().unwrap().len(), 2);
    mortar(&["host"]).ok();
    let status = sh("systemctl show --property StatusText --value mortard");
    assert!(status.contains("is damaged"), "{status}");
    assert_eq!((stage.snapshot().await, sh(&format!("sha256sum {STATE}/journal.sqlite"))), before);
    // As it says; then with the one that was kept, so that nothing of the test is left.
    sh(&format!("mkdir /run/damaged; mv {STATE}/journal.sqlite* /run/damaged/; systemctl restart mortard"));
    let again = mortar(&["attach", &locator, "--id", "a"]).ok();
    assert_eq!(text(&again, "path"), path);
    sh(&format!(
        "systemctl stop mortard; rm {STATE}/journal.sqlite*; cp -a /run/kept/* {STATE}/; systemctl start mortard"
    ));
    detach("a");
    mortar(&["unmanage", text(&managed, "id")]).ok();
    observed("the journal is damaged", &ran, "volumes were still listed from the storage; well again as it said");
}

/// The process's own time in ticks of the clock (proc_pid_stat(5)).
fn ticks() -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", main_pid())).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Leaves so many descriptors to the agent.
fn leave_descriptors(free: usize) {
    let pid = main_pid();
    let mut used: Vec<usize> =
        crate::cli::names(&format!("/proc/{pid}/fd")).iter().map(|name| name.parse().unwrap()).collect();
    used.sort_unstable();
    let limit = (0..).find(|limit| limit - used.iter().filter(|used| **used < *limit).count() == free).unwrap();
    sh(&format!("prlimit --pid {pid} --nofile={limit}:"));
}

/// Without descriptors nobody is let in, and the agent neither dies nor spins; a device that cannot be opened is a clear
/// error, and nothing is left.
#[tokio::test]
async fn no_descriptors() {
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    mortar(&["list"]).ok();
    let pid = main_pid();
    let _afterwards = Afterwards("prlimit --pid \"$(systemctl show -P MainPID mortard)\" --nofile=65536:");
    leave_descriptors(4);
    let crowd: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(SOCKET).unwrap()).collect();
    let (before, watched) = (ticks(), Duration::from_secs(2));
    std::thread::sleep(watched);
    let spent = ticks() - before;
    figure("ticks in 2 s without descriptors", spent);
    assert!(spent < 50, "it spins: {spent} of 200 ticks");
    drop(crowd);
    until("the next caller", Duration::from_secs(10), || (mortar(&["list"]).code == 0).then_some(()));
    assert_eq!(main_pid(), pid, "it died");

    let before = stage.snapshot().await;
    // One is the caller's.
    leave_descriptors(2);
    let ran = mortar(&["attach", &locator, "--id", "a"]);
    let said = ran.refused(5, "NO_RESOURCES");
    assert!(said.contains("no file descriptors left"), "{said}");
    observed("file descriptors are exhausted", &ran, "nothing was left; the retry succeeded");
    assert_eq!(stage.snapshot().await, before);
    sh(&format!("prlimit --pid {pid} --nofile=65536:"));
    attach("a", &locator);
    detach("a");
}

/// No process can be started: said, nothing left, and the retry works.
#[tokio::test]
async fn no_processes() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    // So that its threads are there.
    attach("a", &locator);
    detach("a");
    let before = stage.snapshot().await;
    let _afterwards = Afterwards("echo max >/sys/fs/cgroup/system.slice/mortard.service/pids.max");
    sh("cd /sys/fs/cgroup/system.slice/mortard.service; cat pids.current >pids.max");
    let ran = mortar(&["attach", &locator, "--id", "a"]);
    let said = ran.refused(5, "NO_RESOURCES");
    assert!(said.contains("no processes left"), "{said}");
    observed("no process can be started (EAGAIN)", &ran, "nothing was left; the retry succeeded");
    assert_eq!(stage.snapshot().await, before);
    sh("echo max >/sys/fs/cgroup/system.slice/mortard.service/pids.max");
    attach("a", &locator);
    detach("a");
}

/// A device that stands still: the detach is seen to wait for it, nobody else does, and it ends when the device goes on.
#[tokio::test]
async fn a_stuck_device() {
    let mut stage = GuestStage::with_vg();
    let (locator, other) = (stage.volume(Backend::Lvm, "v", SIZE).await, stage.volume(Backend::File, "w", SIZE).await);
    let before = stage.snapshot().await;
    let device = text(&attach("a", &locator), "path").to_owned();
    let map = format!("{}-v", stage.vg());
    sh(&format!("dmsetup suspend --nolockfs --noflush {map}"));
    let begun = Instant::now();
    let ran = start(&["--timeout", "2s", "detach", "a"]).end();
    ran.refused(5, "TIMED_OUT");
    assert!(ran.took < Duration::from_secs(5), "{:?}", ran.took);
    attach("b", &other);
    detach("b");
    let waiting = until("the detach to be wedged", Duration::from_secs(20), || {
        let operations = mortar(&["operations", "--running"]).ok();
        let waiting = operations[0]["waiting"].clone();
        (waiting["wedged"] == true).then_some(waiting)
    });
    figure("wedged after", format!("{:.1?}: {waiting}", begun.elapsed()));
    assert!(text(&waiting, "for").contains(&device), "{waiting}");
    sh(&format!("dmsetup resume {map}"));
    until("the end of the detach", Duration::from_secs(20), || {
        (mortar(&["operations", "--running"]).ok() == Value::Array(Vec::new())).then_some(())
    });
    assert_eq!(mortar(&["list"]).ok(), Value::Array(Vec::new()));
    assert_eq!(stage.snapshot().await, before);
    observed(
        "a device stands still during a detach",
        &ran,
        "shown as wedged; the detach ended when the device went on",
    );
}

/// A device that stands still, and the agent is restarted or killed meanwhile: the next one answers at once, and the detach
/// ends when the device goes on.
#[tokio::test]
async fn a_stuck_device_keeps_no_agent_from_restarting() {
    let mut stage = GuestStage::with_vg();
    let locator = stage.volume(Backend::Lvm, "v", SIZE).await;
    let before = stage.snapshot().await;
    let map = format!("{}-v", stage.vg());
    let resume = format!("dmsetup resume {map}");
    for again in [
        "timeout 30 systemctl restart mortard",
        "systemctl kill --signal KILL mortard; timeout 30 systemctl start mortard",
    ] {
        attach("a", &locator);
        // So that there is something to be written.
        sh("dd if=/dev/zero of=/dev/mortar/a bs=4096 count=4 status=none & sync; wait");
        sh(&format!("dmsetup suspend --nolockfs --noflush {map}"));
        start(&["--timeout", "2s", "detach", "a"]).end().refused(5, "TIMED_OUT");
        let begun = Instant::now();
        let restarted = try_sh(again);
        let listed = start(&["--timeout", "10s", "list"]).end();
        figure(again, format!("{:.1?}, {}", begun.elapsed(), restarted.status));
        let running = mortar(&["--timeout", "10s", "operations", "--running"]);
        sh(&resume);
        assert!(restarted.status.success(), "{again}: {restarted:?}");
        assert_eq!(listed.ok().as_array().unwrap().len(), 1, "{again}");
        assert_eq!(running.ok()[0]["kind"], "detach", "{again}");
        until("the end of the detach", Duration::from_secs(90), || {
            (mortar(&["operations", "--running"]).ok() == Value::Array(Vec::new())).then_some(())
        });
        assert_eq!(mortar(&["list"]).ok(), Value::Array(Vec::new()), "{again}");
        assert_eq!(stage.snapshot().await, before, "{again}");
    }
}
