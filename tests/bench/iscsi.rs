//! iSCSI: attach and detach by one path.

use crate::{
    figures::{clocked, timed},
    floor::Floor,
    machine::{PORTAL, agent, client},
    processes::Watch,
    report::{Report, Row, Wanted},
};
use proto::v1;
use serde_json::{Value, json};
use tests::{
    client::{Client, attach},
    peer::Peer,
    targets::Targets,
};

const ROUNDS: usize = 9;
/// The most processes that a work may start.
const PROCESSES: usize = 2;

/// What Cinder hands to os-brick for a volume of these targets.
pub(crate) fn properties(targets: &Targets, number: usize) -> Value {
    json!({
        "target_discovered": false,
        "target_portal": PORTAL,
        "target_iqn": targets.iqn(number),
        "target_lun": 0,
        "volume_id": "00000000-0000-4000-8000-000000000000",
        "access_mode": "rw",
        "encrypted": false,
    })
}

/// Attaches and detaches by the agent; the reply was right.
pub(crate) async fn come(client: &mut Client, targets: &Targets, request: v1::AttachRequest, number: usize) {
    let there = client.attach(request).await.unwrap().attachment.unwrap();
    assert_eq!(there.scsi_wwn, targets.wwn(number));
}

pub(crate) async fn measure(report: &mut Report) {
    let targets = Targets::new("bench", 2, &[PORTAL]);
    let mut client = client();
    // A target of its own: os-brick removes node records.
    let floor = Floor::new(&targets.iqn(1), PORTAL);
    let mut peer = Peer::start("/run/peer.log");
    let request = attach("bench", &targets.locator(0));
    let properties = properties(&targets, 0);
    let come_by_peer = json!({ "do": "attach", "protocol": "iscsi", "properties": properties });
    let go_by_peer = |there: &Value| json!({ "do": "detach", "protocol": "iscsi", "properties": properties, "device": there["device"] });

    let wanted = || [Wanted::OfFloor(1.25), Wanted::Processes(PROCESSES)];
    let mut up = Row::new("iSCSI attach, one path", wanted());
    let mut down = Row::new("iSCSI detach, one path", wanted());
    for round in 0..=ROUNDS {
        let (floor_up, disk) = clocked(|| floor.attach());
        let (floor_down, _) = clocked(|| floor.detach(&disk));

        let (our_up, ()) = timed(come(&mut client, &targets, request.clone(), 0)).await;
        let (our_down, gone) = timed(client.detach("bench")).await;
        assert!(gone.unwrap().changed);

        let (peer_up, there) = clocked(|| peer.ask(&come_by_peer));
        assert_eq!(there["device"]["scsi_wwn"], targets.wwn(0));
        let (peer_down, _) = clocked(|| peer.ask(&go_by_peer(&there)));
        if round > 0 {
            for (row, times) in [(&mut up, [our_up, floor_up, peer_up]), (&mut down, [our_down, floor_down, peer_down])]
            {
                row.ours.add(times[0]);
                row.floor.add(times[1]);
                row.peer.add(times[2]);
            }
        }
    }

    {
        let watch = Watch::on(agent());
        come(&mut client, &targets, request, 0).await;
        let came = watch.count();
        client.detach("bench").await.unwrap();
        (up.our_processes, down.our_processes) = (Some(came), Some(watch.count() - came));
    }
    {
        let watch = Watch::on(peer.pid());
        let there = peer.ask(&come_by_peer);
        let came = watch.count();
        peer.ask(&go_by_peer(&there));
        (up.peer_processes, down.peer_processes) = (Some(came), Some(watch.count() - came));
    }
    report.add(up);
    report.add(down);
    report.note(
        "**iSCSI, one path.** A target of the kernel (LIO) on the guest's loopback. The floor of an attach: `iscsiadm --login` with a node record that is there already, \
         the write to the SCSI host's `scan`, and a busy loop until the node `/dev/sdX` is there; of a detach: the write to `delete`, `iscsiadm --logout`, \
         and a busy loop until node and session are gone. The peer is os-brick's `connect_volume` and `disconnect_volume`.",
    );
}
