//! kill -9 of the agent in the middle of its work: after the restart all of it is done or none, and the repeated call gives
//! the right answer.

use crate::{
    cli::{Ran, figure, main_pid, mortar, start, text, until},
    machine::{GuestStage, sh, try_sh},
};
use driver::Backend;
use serde_json::Value;
use std::{
    io::Write,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tests::stage::Stage;

const SIZE: u64 = 16 << 20;
const ID: &str = "9394b827-4ad0-488e-8df8-26476b3a8680";
/// The kill comes after 0/6, 1/6, …, 5/6 of the time that the call takes undisturbed, and after its end.
const POINTS: u32 = 6;
const DROP_IN: &str = "/run/systemd/system/mortard.service.d";

/// An agent that is killed more often than systemd puts up with; as it was when this is dropped.
struct Cat;

impl Cat {
    fn new() -> Self {
        sh(&format!(
            "mkdir -p {DROP_IN}; printf '[Unit]\\nStartLimitIntervalSec=0\\n' >{DROP_IN}/crash.conf; systemctl daemon-reload"
        ));
        Self
    }
}

impl Drop for Cat {
    fn drop(&mut self) {
        try_sh(&format!("rm -r {DROP_IN}; systemctl daemon-reload"));
    }
}

/// A kill -9 of the service that needs no new process, so that it comes when it should.
struct Killer(Child);

impl Killer {
    fn arm() -> Self {
        let script = format!("read -r; kill -KILL {}", main_pid());
        Self(Command::new("/bin/bash").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap())
    }

    fn strike(mut self) {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert!(self.0.wait().unwrap().success(), "there was nobody to kill");
    }
}

/// Makes a call that takes so long undisturbed, kills the agent at one of the points of it, and starts it anew. How the call
/// ended is told only by 0, or by 5 with the reason that the agent is gone.
fn crash(args: &[&str], undisturbed: Duration, point: u32) -> Ran {
    let killer = Killer::arm();
    let call = start(args);
    let ran = if point < POINTS {
        // This is the point in time that the test is about.
        std::thread::sleep(undisturbed * point / POINTS);
        killer.strike();
        call.end()
    } else {
        let ran = call.end();
        killer.strike();
        ran
    };
    if ran.code != 0 {
        ran.refused(5, "UNREACHABLE");
    }
    sh("systemctl restart mortard");
    until("the recovery", Duration::from_secs(30), || {
        (mortar(&["operations", "--running"]).ok() == Value::Array(Vec::new())).then_some(())
    });
    ran
}

/// Which of two pictures it is: the one before the call, or the one after it.
#[track_caller]
fn came_to_its_end(now: &str, before: &str, after: &str, at: &str) -> bool {
    assert!(
        now == before || now == after,
        "{at}: neither before nor after\n{now}\n==== before\n{before}\n==== after\n{after}"
    );
    now == after
}

async fn attach_and_detach(mut stage: GuestStage, backend: Backend) {
    let _cat = Cat::new();
    let locator = stage.volume(backend, "crash", SIZE).await;
    let before = stage.snapshot().await;
    let (attach, detach) = (["attach", &*locator, "--id", "crash"], ["detach", "crash"]);
    let first = mortar(&attach);
    let attached = stage.snapshot().await;
    let last = mortar(&detach);
    let (attaching, detaching) = (first.took, last.took);
    figure(&format!("{backend} undisturbed"), format!("attach {attaching:.2?}, detach {detaching:.2?}"));
    let wanted = first.ok();
    last.ok();
    let (mut finished, mut undone) = (0, 0);
    for point in 0..=POINTS {
        let at = format!("attach killed after {point}/{POINTS}");
        let ran = crash(&attach, attaching, point);
        let listed = mortar(&["list"]).ok();
        let there = came_to_its_end(&stage.snapshot().await, &before, &attached, &at);
        assert_eq!(listed.as_array().unwrap().len(), usize::from(there), "{at}: {listed}");
        assert!(there || ran.code != 0, "{at}: it was said to be done");
        let again = mortar(&attach).ok();
        // The kernel may give it another name: udev can still have the old one open.
        for key in ["identity", "size_bytes", "scsi_wwn", "stable_path"] {
            assert_eq!(again[key], wanted[key], "{at}: {key} of the repetition");
        }
        assert_eq!(again["changed"], !there, "{at}");
        if there {
            finished += 1
        } else {
            undone += 1
        }

        let at = format!("detach killed after {point}/{POINTS}");
        let ran = crash(&detach, detaching, point);
        let gone = came_to_its_end(&stage.snapshot().await, &attached, &before, &at);
        assert!(gone || ran.code != 0, "{at}: it was said to be done");
        let again = mortar(&detach).ok();
        assert_eq!((&again["changed"], &again["residuals"]), (&(!gone).into(), &Value::Array(Vec::new())), "{at}");
        assert_eq!(mortar(&["list"]).ok(), Value::Array(Vec::new()), "{at}");
        if !gone {
            assert_eq!(stage.snapshot().await, before, "{at}: something was left behind");
        }
        if gone { finished += 1 } else { undone += 1 }
    }
    figure(&format!("{backend} after kills"), format!("{finished} done, {undone} as if never begun"));
    assert!(finished > 0 && undone > 0, "the kills came all too early or all too late");
}

#[tokio::test]
async fn file_attach_and_detach() {
    attach_and_detach(GuestStage::bare(), Backend::File).await;
}

#[tokio::test]
async fn iscsi_attach_and_detach() {
    attach_and_detach(GuestStage::with_target(), Backend::Iscsi).await;
}

#[tokio::test]
async fn lvm_attach_and_detach() {
    attach_and_detach(GuestStage::with_vg(), Backend::Lvm).await;
}

#[tokio::test]
async fn rbd_attach_and_detach() {
    attach_and_detach(GuestStage::with_pool(), Backend::Rbd).await;
}

async fn manage(mut stage: GuestStage, backend: Backend) {
    let _cat = Cat::new();
    let locator = stage.volume(backend, "crash", SIZE).await;
    let before = stage.snapshot().await;
    let manage = ["manage", &*locator, "--id", ID];
    let first = mortar(&manage);
    let managed = stage.snapshot().await;
    let managing = first.took;
    figure(&format!("{backend} undisturbed"), format!("manage {managing:.2?}"));
    first.ok();
    mortar(&["unmanage", ID]).ok();
    let mut finished = 0;
    for point in 0..=POINTS {
        let at = format!("manage killed after {point}/{POINTS}");
        let ran = crash(&manage, managing, point);
        let done = came_to_its_end(&stage.snapshot().await, &before, &managed, &at);
        assert!(done || ran.code != 0, "{at}: it was said to be done");
        let again = mortar(&manage).ok();
        assert_eq!((text(&again, "id"), text(&again, "origin")), (ID, &*locator), "{at}");
        assert!(text(&again, "locator").ends_with(&format!("volume-{ID}")), "{at}: {again}");
        assert_eq!(again["changed"], !done, "{at}");
        finished += u32::from(done);
        assert_eq!(text(&mortar(&["unmanage", ID]).ok(), "locator"), locator, "{at}");
        assert_eq!(stage.snapshot().await, before, "{at}: something was left behind");
    }
    figure(&format!("{backend} after kills"), format!("{finished} of {} managed", POINTS + 1));
    assert!(finished > 0, "no manage was finished");
}

#[tokio::test]
async fn file_manage() {
    manage(GuestStage::bare(), Backend::File).await;
}

#[tokio::test]
async fn lvm_manage() {
    manage(GuestStage::with_vg(), Backend::Lvm).await;
}

#[tokio::test]
async fn rbd_manage() {
    manage(GuestStage::with_pool(), Backend::Rbd).await;
}
