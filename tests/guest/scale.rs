//! A thousand attachments, and a crowd that asks for more than there is: how much memory it takes, how soon a restarted agent
//! answers, and that it sleeps while nobody calls.

use crate::{
    cli::{figure, main_pid, names, read, until},
    machine::{GuestStage, SOCKET, sh, try_sh},
};
use driver::Backend;
use proto::v1;
use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tests::{
    client::{Client, attach},
    reliability::{Row, note},
    stage::Stage,
};
use tokio::{sync::Semaphore, task::JoinSet};

const COUNT: usize = 1000;
const MIB: u64 = 1 << 20;

/// What is asked of an agent with a thousand attachments.
struct Bar {
    /// The part of its memory that counts, by its name in `/proc/PID/status`.
    memory: &'static str,
    /// How much that may be, in bytes.
    enough: u64,
    /// How soon it answers after a restart.
    soon: Duration,
    /// And with a list of all.
    all_soon: Duration,
}

impl Bar {
    /// As it is delivered, or as it is built for tests: then the program alone is more than all the rest may be, and is not
    /// counted, and everything takes several times as long, most of all in a guest whose processor others use, too.
    fn new() -> Self {
        let optimised = std::env::var("GUEST_BINARIES").is_ok_and(|at| at.ends_with("/release"));
        if optimised {
            let second = Duration::from_secs(1);
            return Self { memory: "VmRSS", enough: 20 * MIB, soon: second, all_soon: 2 * second };
        }
        Self { memory: "RssAnon", enough: 22 * MIB, soon: Duration::from_secs(5), all_soon: Duration::from_secs(8) }
    }
}

/// What the agent has in memory, in bytes.
fn resident(pid: &str, memory: &str) -> u64 {
    let status = read(format!("/proc/{pid}/status"));
    let line = status.lines().find_map(|line| line.strip_prefix(memory)).unwrap();
    line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[track_caller]
fn is_enough(when: &str, bar: &Bar) {
    let found = resident(&main_pid(), bar.memory);
    let (what, mib) = (format!("{}, {when}", bar.memory), |bytes: u64| format!("{:.1} MiB", bytes as f64 / MIB as f64));
    said(&what, &format!("< {}", mib(bar.enough)), &mib(found));
    assert!(found < bar.enough, "{what}: {}", mib(found));
}

fn said(what: &str, wanted: &str, found: &str) {
    figure(what, found);
    note(&Row::Figure { what: what.into(), wanted: wanted.into(), found: found.into() });
}

/// How often a thread of the agent went to sleep, so far. A thread that has ended takes its number with it.
fn wakings() -> Vec<(String, String)> {
    let tasks = format!("/proc/{}/task", main_pid());
    let of = |thread: &String| {
        let status = read(format!("{tasks}/{thread}/status"));
        status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    names(&tasks).into_iter().map(|thread| (of(&thread), thread)).collect()
}

/// Makes many calls, some at a time.
async fn crowd<F: Future<Output = ()> + Send + 'static>(calls: impl Iterator<Item = F>) {
    let (turns, mut crowd) = (Arc::new(Semaphore::new(16)), JoinSet::new());
    for call in calls {
        let turn = Arc::clone(&turns).acquire_owned().await.unwrap();
        crowd.spawn(async move {
            call.await;
            drop(turn);
        });
    }
    while let Some(ended) = crowd.join_next().await {
        ended.unwrap();
    }
}

/// A journal of its own for a thousand records, and loop devices that go all at once: a thousand detaches would show nothing new.
struct Crowded;

impl Crowded {
    fn new() -> Self {
        sh(
            "systemctl stop mortard; mkdir /run/kept; mv /var/lib/mortar/journal.sqlite* /run/kept/; systemctl start mortard",
        );
        Self
    }
}

impl Drop for Crowded {
    fn drop(&mut self) {
        try_sh(
            "systemctl stop mortard
             losetup --noheadings --output NAME,BACK-FILE | awk '$2 ~ \"^/srv/volumes/\" { print $1 }' | xargs -r losetup --detach
             rm -f /var/lib/mortar/journal.sqlite*; mv /run/kept/* /var/lib/mortar/; rmdir /run/kept
             systemctl start mortard",
        );
    }
}

/// udev looks at each device several times, which takes far longer than all the rest; nobody asks it here.
struct WithoutUdev;

impl WithoutUdev {
    fn new() -> Self {
        sh("systemctl stop systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udevd");
        Self
    }
}

impl Drop for WithoutUdev {
    fn drop(&mut self) {
        try_sh(
            "systemctl start systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udevd; udevadm settle",
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_attachments() {
    let (stage, bar) = (GuestStage::bare(), Bar::new());
    let _udev = WithoutUdev::new();
    let directory = stage.directory();
    sh(&format!("cd {directory}; truncate -s 1M $(seq -f %04g.raw 0 {})", COUNT - 1));
    let before = stage.snapshot().await;
    let crowded = Crowded::new();
    let client = stage.client();
    let begun = Instant::now();
    crowd((0..COUNT).map(|number| {
        let (mut client, request) =
            (client.clone(), attach(&format!("{number:04}"), &format!("file:{directory}/{number:04}.raw")));
        async move { assert!(client.attach(request).await.unwrap().changed) }
    }))
    .await;
    figure("1,000 attaches", format!("{:.1?}", begun.elapsed()));
    let attached = client.clone().list().await.unwrap();
    assert_eq!(attached.iter().filter(|there| there.state() == v1::AttachmentState::Ready).count(), COUNT);
    // What only the crowd has needed is given back when it has been quiet for twelve seconds.
    tokio::time::sleep(Duration::from_secs(14)).await;
    is_enough("1,000 attachments just made", &bar);
    drop(client);

    // Processes start slowly in the guest when its host is busy, so the promise is for the quickest of a few.
    let (mut answers, mut lists) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let begun = Instant::now();
        sh("systemctl restart mortard");
        // It still looks at its attachments.
        let mut client = stage.client();
        assert!(client.running().await.is_empty());
        answers = answers.min(begun.elapsed());
        assert_eq!(client.list().await.unwrap(), attached);
        lists = lists.min(begun.elapsed());
    }
    for (what, wanted, found) in [("it answers", bar.soon, answers), ("`list` answers", bar.all_soon, lists)] {
        said(&format!("restart until {what}, 1,000 records"), &format!("< {wanted:?}"), &format!("{found:.2?}"));
        assert!(found < wanted, "{what}: {found:?}");
    }
    is_enough("1,000 attachments after a restart and a list", &bar);

    // It rests after twelve seconds, and the thread that does it goes ten seconds later.
    tokio::time::sleep(Duration::from_secs(24)).await;
    let asleep = wakings();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let still = wakings();
    said("times that a thread of the idle agent woke in 30 s", "0", &format!("{}", woken(&asleep, &still)));
    assert_eq!(asleep, still, "something wakes it");

    drop(crowded);
    assert_eq!(stage.snapshot().await, before, "something was left behind");
}

fn woken(before: &[(String, String)], after: &[(String, String)]) -> u64 {
    let sum =
        |wakings: &[(String, String)]| wakings.iter().map(|(count, _)| count.parse::<u64>().unwrap_or(0)).sum::<u64>();
    sum(after).saturating_sub(sum(before))
}

/// More callers than are let in, and all at once: those past the limit are refused or hung up on, what is held for the others
/// stays within what a connection may have under way, and whoever comes afterwards is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood() {
    const CALLERS: usize = 300;
    const REQUESTS: usize = 10;
    const BYTES: usize = 100 << 10;
    let mut stage = GuestStage::bare();
    let locator = stage.volume(Backend::File, "v", MIB).await;
    sh("systemctl restart mortard");
    let pid = main_pid();
    let quiet = resident(&pid, "RssAnon");
    let mut flood = JoinSet::new();
    for _ in 0..CALLERS {
        flood.spawn(async {
            let client = Client::on(Path::new(SOCKET));
            let mut calls = JoinSet::new();
            for _ in 0..REQUESTS {
                let mut client = client.clone();
                let request = v1::AttachRequest {
                    volume: Some(v1::attach_request::Volume::ConnectionInfo("x".repeat(BYTES))),
                    ..v1::AttachRequest::default()
                };
                calls.spawn(async move { client.attach(request).await.unwrap_err().reason });
            }
            calls.join_all().await
        });
    }
    let (mut peak, mut answers) = (quiet, Vec::new());
    while let Some(ended) = flood.join_next().await {
        answers.extend(ended.unwrap());
        peak = peak.max(resident(&pid, "RssAnon"));
    }
    let count = |reason: &str| answers.iter().filter(|answer| *answer == reason).count();
    figure(
        "a flood's answers",
        format!("{} INVALID, {} LIMIT, of {}", count("INVALID"), count("LIMIT"), answers.len()),
    );
    said("RssAnon, in a flood of 300 callers", "< 256 MiB", &format!("{} MiB", peak / MIB));
    // 256 connections, and a window of 1 MiB on each.
    assert!(peak < quiet + 256 * MIB, "it grew from {quiet} to {peak} bytes");
    until("the end of the flood", Duration::from_secs(10), || {
        names(&format!("/proc/{pid}/fd")).len().lt(&64).then_some(())
    });
    assert!(stage.client().attach(attach("a", &locator)).await.unwrap().changed);
    assert!(stage.client().detach("a").await.unwrap().changed);
}
