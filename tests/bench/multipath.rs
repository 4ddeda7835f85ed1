//! iSCSI by four paths, with multipathd.

use crate::{
    figures::{clocked, timed},
    floor::Floor,
    iscsi,
    machine::{PORTAL, agent, client, entries, sh},
    processes::Watch,
    report::{Report, Row, Wanted},
};
use serde_json::{Value, json};
use tests::{client::attach, peer::Peer, targets::Targets};

const ROUNDS: usize = 7;
/// The peer takes half a minute and more for each of its own.
const PEER_ROUNDS: usize = 3;
const PORTALS: [&str; 4] = [PORTAL, "127.0.0.2:3260", "127.0.0.3:3260", "127.0.0.4:3260"];

pub(crate) async fn measure(report: &mut Report) {
    sh("printf 'defaults {\\n  find_multipaths strict\\n  user_friendly_names no\\n  retrigger_tries 0\\n}\\n' >/etc/multipath.conf
        guest_modules dm-multipath dm-round-robin || guest_modules dm-multipath
        systemctl start multipathd");
    let targets = Targets::new("paths", 1, &PORTALS);
    let alone = Targets::new("alone", 1, &[PORTAL]);
    let mut client = client();
    // The floor is that of one path, and nobody makes a map of its disk: multipathd is not asked to look at it.
    let floor = Floor::new(&alone.iqn(0), PORTAL);
    let mut peer = Peer::start("/run/peer.log");
    let mut first = attach("first", &targets.locator(0));
    first.timeout_ms = 60_000;
    let mut all = first.clone();
    all.all_paths = true;
    let mut properties = iscsi::properties(&targets, 0);
    properties["target_portals"] = json!(PORTALS);
    properties["target_iqns"] = json!(vec![targets.iqn(0); PORTALS.len()]);
    properties["target_luns"] = json!(vec![0; PORTALS.len()]);
    let come_by_peer = json!({ "do": "attach", "protocol": "iscsi", "properties": properties, "multipath": true });
    let go_by_peer = |there: &Value| json!({ "do": "detach", "protocol": "iscsi", "properties": properties, "device": there["device"], "multipath": true });

    let mut up = Row::new("iSCSI attach, four paths: the first proven path", [Wanted::OfFloor(2.0)]);
    let mut up_all = Row::new("iSCSI attach, four paths: all of them", []);
    let mut down = Row::new("iSCSI detach, four paths", []);
    for round in 0..=ROUNDS {
        let (floor_up, disk) = clocked(|| floor.attach());
        let (floor_down, _) = clocked(|| floor.detach(&disk));

        let (our_up, there) = timed(client.attach(first.clone())).await;
        let there = there.unwrap().attachment.unwrap();
        assert!(there.path.starts_with("/dev/dm-"), "{there:?}");
        assert_eq!(there.scsi_wwn, targets.wwn(0));
        client.detach("first").await.unwrap();
        left_behind();

        let (our_up_all, there) = timed(client.attach(all.clone())).await;
        assert_eq!(there.unwrap().attachment.unwrap().paths.len(), PORTALS.len());
        let (our_down, gone) = timed(client.detach("first")).await;
        assert!(gone.unwrap().residuals.is_empty());
        left_behind();

        let by_peer = (round <= PEER_ROUNDS).then(|| {
            let (peer_up, there) = clocked(|| peer.ask(&come_by_peer));
            assert_eq!(there["device"]["scsi_wwn"], targets.wwn(0));
            let (peer_down, _) = clocked(|| peer.ask(&go_by_peer(&there)));
            [peer_up, peer_up, peer_down]
        });
        if round > 0 {
            let (floor, ours) = ([floor_up, floor_up, floor_down], [our_up, our_up_all, our_down]);
            for (which, row) in [&mut up, &mut up_all, &mut down].into_iter().enumerate() {
                row.ours.add(ours[which]);
                row.floor.add(floor[which]);
                if let Some(peer) = by_peer {
                    row.peer.add(peer[which]);
                }
            }
        }
    }
    {
        let watch = Watch::on(agent());
        client.attach(all).await.unwrap();
        let came = watch.count();
        client.detach("first").await.unwrap();
        (up.our_processes, up_all.our_processes) = (Some(came), Some(came));
        down.our_processes = Some(watch.count() - came);
    }
    {
        let watch = Watch::on(peer.pid());
        let there = peer.ask(&come_by_peer);
        let came = watch.count();
        peer.ask(&go_by_peer(&there));
        (up.peer_processes, up_all.peer_processes) = (Some(came), Some(came));
        down.peer_processes = Some(watch.count() - came);
    }
    for row in [up, up_all, down] {
        report.add(row);
    }
    drop(floor);
    sh("systemctl stop multipathd.socket multipathd");
    report.note(
        "**iSCSI, four paths.** One target with four portals on loopback addresses of their own, and multipathd (`find_multipaths strict`, `retrigger_tries 0`: \
         it asks the disk itself for its WWID, and does not wait until udev has looked at it, which takes seconds in this guest). The floor is that of *one* path, \
         while multipathd runs; there is none for four. os-brick returns when all paths are there or failed; ours, unless it is asked for all paths, \
         with the first that has proved itself, in its map, and the others join.",
    );
}

/// Paths that were still on their way must not be the next one's burden.
fn left_behind() {
    assert!(entries("/sys/class/iscsi_session").is_empty(), "a session was left");
}
