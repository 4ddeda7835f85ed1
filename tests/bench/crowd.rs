//! One, ten and a hundred attaches at once, each of a target of its own.

use crate::{
    figures::{clocked, timed},
    floor, iscsi,
    machine::{PORTAL, agent, client, sh},
    processes::Watch,
    report::{Report, Row, Wanted},
};
use proto::v1;
use serde_json::json;
use std::time::Duration;
use tests::{
    client::{Client, attach},
    peer::Peer,
    targets::Targets,
};
use tokio::task::JoinSet;

/// How many come at once, and how many rounds of it there are.
const CROWDS: [(usize, usize); 3] = [(1, 7), (10, 5), (100, 2)];
/// How long a call may take: a hundred of them wait for each other.
const TIMEOUT_MS: u64 = 600_000;
/// How long the peer is given; what it has not done then does not count.
const PATIENCE: Duration = Duration::from_secs(900);

/// All at once; each caller has a client of its own.
async fn come(targets: &Targets, count: usize) {
    let mut calls = JoinSet::new();
    for number in 0..count {
        let (mut client, mut request) = (client(), attach(&format!("crowd-{number}"), &targets.locator(number)));
        request.timeout_ms = TIMEOUT_MS;
        let wwn = targets.wwn(number);
        calls.spawn(async move {
            let there = client.attach(request).await.unwrap().attachment.unwrap();
            assert_eq!(there.scsi_wwn, wwn);
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
}

async fn go(count: usize) {
    let mut calls = JoinSet::new();
    for number in 0..count {
        let mut client: Client = client();
        let target = Some(v1::detach_request::Target::Id(format!("crowd-{number}")));
        let request = v1::DetachRequest { target, timeout_ms: TIMEOUT_MS };
        calls.spawn(async move {
            let gone = client.attachments.detach(request).await.unwrap().into_inner();
            assert!(gone.changed && gone.residuals.is_empty(), "{gone:?}");
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.unwrap();
    }
}

pub(crate) async fn measure(report: &mut Report) {
    let targets = Targets::new("crowd", 100, &[PORTAL]);
    let mut at_ten = 0.0;
    for (count, rounds) in CROWDS {
        let mut up = Row::new(format!("{count} iSCSI attaches at once, each of them"), []);
        let mut down = Row::new(format!("{count} iSCSI detaches at once, each of them"), []);
        let share = |time: Duration| time / u32::try_from(count).unwrap();
        for _ in 0..rounds {
            up.ours.add(share(timed(come(&targets, count)).await.0));
            down.ours.add(share(timed(go(count)).await.0));

            // Its records are there in its own turn only: each iscsiadm walks through all there are.
            let floor = floor::Crowd::new(&(0..count).map(|number| targets.iqn(number)).collect::<Vec<_>>(), PORTAL);
            let (floor_up, disks) = clocked(|| floor.attach());
            up.floor.add(share(floor_up));
            down.floor.add(share(clocked(|| floor.detach(&disks)).0));
        }
        // The peer takes one after the other; once is enough for a crowd of ten or more.
        for _ in 0..(if count == 1 { rounds } else { 1 }) {
            up.peer.add(by_peer(&targets, count).0);
        }
        // A hundred under strace take a quarter of an hour, and tell nothing that ten do not.
        if count < 100 {
            let watch = Watch::on(agent());
            come(&targets, count).await;
            let came = watch.count();
            go(count).await;
            up.our_processes = Some(came.div_ceil(count));
            down.our_processes = Some((watch.count() - came).div_ceil(count));
            up.peer_processes = by_watched_peer(&targets, count);
        }
        match count {
            10 => at_ten = up.ours.median(),
            100 => {
                let (ratio, times) = (up.ours.median() / at_ten, up.peer.median() / up.ours.median());
                up.wanted.push(Wanted::Else(format!("≤ 1.3 × that at 10 (is {ratio:.2})"), ratio <= 1.3));
                up.wanted.push(Wanted::Else(format!("≥ 10 × the peer's throughput (is {times:.1})"), times >= 10.0));
            }
            _ => {}
        }
        report.add(up);
        report.add(down);
    }
    report.note(&format!(
        "**Attaches at once.** Each is of a target of its own, by a caller of its own. The figure is the time from the first request to the last reply, \
         divided by their number: the cost of each, and the inverse of the throughput. os-brick lets one through at a time (its lock is for the whole \
         host). It was given {} s; where that was too short for all, the figure is that time divided by how many were there by then. \
         The floor is a thread for each, which runs iscsiadm and scans, and one that looks for all the nodes. Processes are those of each attach, too, rounded up. \
         What a login costs grows with the sessions that there are: iscsiadm and iscsid (open-iscsi 2.1.8) each read some twenty attributes of every session for it, \
         and iscsiadm for a logout as well, with some 200 system calls a session and program (strace). mortard shows its iscsiadm no session but the one that it is \
         about; iscsid's part is left, for everybody. The most of the rest is udev's, which runs its helpers for each disk: at ten attaches a part of that comes \
         after the last reply, at a hundred hardly any.",
        PATIENCE.as_secs()
    ));
}

/// What each costs the peer, and how many came.
fn by_peer(targets: &Targets, count: usize) -> (Duration, usize) {
    ask(&mut Peer::start("/run/peer.log"), targets, count)
}

/// How many processes each costs it, in a round of its own; `None` if some were still on their way.
fn by_watched_peer(targets: &Targets, count: usize) -> Option<usize> {
    let mut peer = Peer::start("/run/peer.log");
    let watch = Watch::on(peer.pid());
    let (_, came) = ask(&mut peer, targets, count);
    (came == count).then(|| watch.count().div_ceil(count))
}

fn ask(peer: &mut Peer, targets: &Targets, count: usize) -> (Duration, usize) {
    let connections: Vec<_> = (0..count).map(|number| iscsi::properties(targets, number)).collect();
    let seconds = PATIENCE.as_secs();
    let answer =
        peer.ask(&json!({ "do": "crowd", "protocol": "iscsi", "connections": connections, "seconds": seconds }));
    let came = answer["came"].as_array().unwrap();
    assert!(!came.is_empty(), "the peer attached nothing");
    let took = if came.len() == count { answer["seconds"].as_f64().unwrap() } else { PATIENCE.as_secs_f64() };
    println!("   the peer: {} of {count} in {took:.1} s", came.len());
    peer.end();
    // What it has not done, and what it has, goes by hand: a hundred detaches of its own would take minutes.
    sh("gone() { ! pgrep -x iscsiadm >/dev/null; }; guest_wait 60 gone
        iscsiadm -m session --logout >/dev/null 2>&1 || true
        rm -rf /etc/iscsi/nodes/*
        [[ -z $(iscsiadm -m session 2>/dev/null) ]]");
    (Duration::from_secs_f64(took / came.len() as f64), came.len())
}
