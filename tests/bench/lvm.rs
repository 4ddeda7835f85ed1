//! LVM: an LV taken into management, and a VG of 1,000 LVs listed.

use crate::{
    figures::{clocked, timed},
    machine::{agent, client, run, sh},
    processes::Watch,
    report::{Report, Row, Wanted},
};
use serde_json::json;
use std::fmt::Write;
use tests::{client::manage, peer::Peer};

const ROUNDS: usize = 7;
const MANY: usize = 1000;
/// Of how many LVs the peer is asked; it would take it many minutes for all.
const SAMPLE: usize = 10;

pub(crate) async fn measure(report: &mut Report) {
    let mut peer = Peer::start("/run/peer.log");
    rename(report, &mut peer).await;
    list(report, &mut peer).await;
}

async fn rename(report: &mut Report, peer: &mut Peer) {
    const ID: &str = "00000000-0000-4000-8000-000000000001";
    let pv = sh("vg_on_loop bench 256M --setautoactivation n
        lvcreate --quiet --yes --wipesignatures n -Zn -n data -L 64M bench >/dev/null");
    let managed = format!("volume-{ID}");
    let lvrename =
        |from: &str, to: &str| clocked(|| run("/usr/sbin/lvm", &["lvrename", "--devices", &pv, "bench", from, to])).0;
    let mut client = client();
    let mut request = manage("lvm:bench/data");
    request.id = ID.into();
    peer.ask(&json!({ "do": "open-group", "vg": "bench" }));
    let rename_by_peer = json!({ "do": "rename-lv", "vg": "bench", "lv": "data", "name": managed });

    let (mut there, mut back) = (Row::new("LV manage", []), Row::new("LV unmanage", []));
    for round in 0..=ROUNDS {
        let (floor_there, floor_back) = (lvrename("data", &managed), lvrename(&managed, "data"));
        let (our_there, answer) = timed(client.manage(request.clone())).await;
        assert_eq!(answer.unwrap().volume.unwrap().locator, format!("lvm:bench/{managed}"));
        let (our_back, answer) = timed(client.unmanage(ID, false)).await;
        answer.unwrap();
        let (peer_there, _) = clocked(|| peer.ask(&rename_by_peer));
        lvrename(&managed, "data");
        if round > 0 {
            there.ours.add(our_there);
            there.floor.add(floor_there);
            there.peer.add(peer_there);
            back.ours.add(our_back);
            back.floor.add(floor_back);
        }
    }
    {
        let watch = Watch::on(agent());
        client.manage(request).await.unwrap();
        let managed = watch.count();
        client.unmanage(ID, false).await.unwrap();
        (there.our_processes, back.our_processes) = (Some(managed), Some(watch.count() - managed));
    }
    {
        let watch = Watch::on(peer.pid());
        peer.ask(&rename_by_peer);
        there.peer_processes = Some(watch.count());
    }
    report.add(there);
    report.add(back);
    report.note(
        "**LV manage, unmanage.** The floor is one `lvrename`. Ours looks at the LV (it must not be somebody else's, nor in use), \
         writes its origin beside the data (tags), renames it, and looks again; unmanage gives the old name back. The peer is what Cinder's \
         `manage_existing` does: `lvs` of the LV, and `lvrename`; it remembers no old name, so it has no unmanage. \
         Ours starts the tags, the rename, and a look at what came of both. What the LV is before, that the id is free in every VG, and that the LV is \
         still as it was under the VG's lock, the PVs tell without a process, unless somebody has changed the VG since the last report, as the floor and the peer do here in each round.",
    );
    sh("vg_remove bench");
}

async fn list(report: &mut Report, peer: &mut Peer) {
    // Made one by one they would take many minutes. LVM reads its own metadata as text, so they are all written at once.
    let pv = sh("vg_on_loop many 8G --setautoactivation n --metadatasize 16m
        lvcreate --quiet --yes --wipesignatures n -an -Zn -n lv-0 -l 1 many >/dev/null
        vgcfgbackup --quiet --file /run/many.vg many >/dev/null");
    let text = std::fs::read_to_string("/run/many.vg").unwrap();
    std::fs::write("/run/many.vg", multiplied(&text)).unwrap();
    sh("vgcfgrestore --quiet --file /run/many.vg many >/dev/null");
    let mut client = client();
    peer.ask(&json!({ "do": "open-group", "vg": "many" }));
    let lvs = || {
        let fields = "lv_name,lv_uuid,lv_size,lv_attr,lv_tags";
        let arguments = ["lvs", "--devices", &pv, "--reportformat", "json", "--units", "b", "-o", fields, "many"];
        run("/usr/sbin/lvm", &arguments).matches("lv_uuid").count()
    };

    let mut row = Row::new("list of 1,000 LVs", [Wanted::Processes(1)]);
    for round in 0..=ROUNDS {
        let (floor, _) = clocked(|| assert_eq!(lvs(), MANY));
        let (ours, listed) = timed(client.manageable("lvm:many")).await;
        assert_eq!(listed.unwrap().len(), MANY);
        if round > 0 {
            row.ours.add(ours);
            row.floor.add(floor);
        }
        if round < 3 {
            let answer = peer.ask(&json!({ "do": "list-lvs", "vg": "many", "sample": SAMPLE }));
            assert_eq!(answer["count"], MANY);
            let seconds = |key: &str| answer[key].as_f64().unwrap();
            row.peer.add(std::time::Duration::from_secs_f64(
                seconds("list_seconds") + seconds("each_seconds") * MANY as f64,
            ));
        }
    }
    {
        let watch = Watch::on(agent());
        client.manageable("lvm:many").await.unwrap();
        row.our_processes = Some(watch.count());
    }
    {
        let watch = Watch::on(peer.pid());
        peer.ask(&json!({ "do": "list-lvs", "vg": "many", "sample": 0 }));
        let once = watch.count();
        peer.ask(&json!({ "do": "list-lvs", "vg": "many", "sample": 1 }));
        row.peer_processes = Some(once + (watch.count() - 2 * once) * MANY);
    }
    report.add(row);
    report.note(&format!(
        "**List of 1,000 LVs.** Ours is `Volumes.ListManageable` of the VG, with why each of them can or cannot be managed. The floor is one `lvs` of \
         the VG. The peer is what Cinder's `get_manageable_volumes` does: `lvs` of the VG, then `lvdisplay` twice for each LV; only {SAMPLE} of the 1,000 were asked about, \
         and the peer's time and processes are extrapolated from them."
    ));
    sh("vg_remove many");
}

/// A VG's metadata with so many LVs of one extent where there was one.
fn multiplied(text: &str) -> String {
    let start = text.find("\t\tlv-0 {").unwrap();
    let end = start + text[start..].find("\n\t\t}\n").unwrap() + "\n\t\t}\n".len();
    let one = &text[start..end];
    let id = one.split_once("id = \"").unwrap().1.split('"').next().unwrap();
    let mut all = String::new();
    for number in 0..MANY {
        let lv = one
            .replacen("lv-0", &format!("lv-{number}"), 1)
            .replacen(id, &format!("{number:06}-0000-0000-0000-0000-0000-{:06}", 0), 1)
            .replace("\"pv0\", 0\n", &format!("\"pv0\", {number}\n"));
        writeln!(all, "{lv}").unwrap();
    }
    format!("{}{all}{}", &text[..start], &text[end..])
}
