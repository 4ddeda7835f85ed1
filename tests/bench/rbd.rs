//! RBD: images mapped and unmapped, taken into management, and 1,000 of them listed.

use crate::{
    figures::{clocked, timed},
    machine::{agent, client, entries, read, run, sh, spin},
    processes::{self, Watch},
    report::{Report, Row, Wanted},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tests::{
    client::{attach, manage},
    peer::Peer,
};

const ROUNDS: usize = 7;
const MANY: usize = 1000;
/// Of how many images the peer is asked; it would take it half an hour for all.
const SAMPLE: usize = 5;
const RBD: &str = "/usr/bin/rbd";

/// Both works may come in one run.
fn cluster() {
    sh("[[ -e /etc/ceph/ceph.conf ]] || {
            ceph_up; ceph_pool bench many
            for image in data floor peer; do rbd create --size 64M bench/$image; done
        }");
}

pub(crate) async fn measure(report: &mut Report) {
    cluster();
    sh("rbd create --size 64M bench/mapped-by-floor");
    let mut peer = Peer::start("/run/peer.log");
    for warm in [false, true] {
        map(report, &mut peer, warm).await;
    }
    report.note(
        "**RBD attach, detach.** A cluster of one monitor and one OSD (in memory) in the guest itself. The floor is the write to \
         `/sys/bus/rbd/add_single_major` or `remove_single_major`, with the monitor's address and the key at hand, and a busy loop until the node is there or gone. \
         The first image of a cluster makes the kernel connect to it; for a further one, another image stays mapped all the time. \
         The peers are the command `rbd`, and os-brick, which starts it.",
    );
}

pub(crate) async fn measure_images(report: &mut Report) {
    cluster();
    rename(report).await;
    list(report, &mut Peer::start("/run/peer.log")).await;
}

/// What the kernel's own client is told, and nothing else.
struct Floor {
    /// `MONITORS OPTIONS`
    cluster: String,
}

impl Floor {
    const BUS: &str = "/sys/bus/rbd";

    fn new() -> Self {
        let key = sh("sed -n 's/.*key = //p' /etc/ceph/ceph.client.admin.keyring");
        Self { cluster: format!("127.0.0.1:6789 name=admin,secret={key}") }
    }

    fn mapped() -> BTreeSet<PathBuf> {
        entries(format!("{}/devices", Self::BUS)).into_iter().collect()
    }

    /// The number of the device.
    fn map(&self, pool: &str, image: &str) -> String {
        let before = Self::mapped();
        fs::write(format!("{}/add_single_major", Self::BUS), format!("{} {pool} {image} -", self.cluster)).unwrap();
        spin(|| {
            let new = Self::mapped().into_iter().find(|device| !before.contains(device))?;
            let number = new.file_name()?.to_str()?.to_owned();
            Path::new(&format!("/dev/rbd{number}")).exists().then_some(number)
        })
    }

    fn unmap(number: &str) {
        fs::write(format!("{}/remove_single_major", Self::BUS), number).unwrap();
        spin(|| (!Path::new(&format!("/dev/rbd{number}")).exists()).then_some(()));
    }
}

/// `warm`: the kernel is connected to the cluster already.
async fn map(report: &mut Report, peer: &mut Peer, warm: bool) {
    let (mut client, floor) = (client(), Floor::new());
    let request = attach("bench", "rbd:bench/data");
    let kept = warm.then(|| floor.map("bench", "floor"));
    let which = if warm { "a further image" } else { "the first image" };
    let properties = json!({ "name": "bench/peer", "hosts": ["127.0.0.1"], "ports": ["6789"], "cluster_name": "ceph", "auth_enabled": true,
        "auth_username": "admin", "keyring": read("/etc/ceph/ceph.client.admin.keyring"), "volume_id": "x" });
    let by_brick = |job: &str, device: Option<&Value>| {
        let mut job = json!({ "do": job, "protocol": "rbd", "properties": properties, "local": true });
        if let Some(device) = device {
            job["device"] = device.clone();
        }
        job
    };

    let wanted = [Wanted::OfFloor(1.2), Wanted::Processes(0)];
    let mut up = Row::new(format!("RBD attach, {which} (peer: `rbd map`)"), wanted);
    let mut down = Row::new(format!("RBD detach, {which} (peer: `rbd unmap`)"), []);
    let mut brick_up = Row::new(format!("RBD attach, {which} (peer: os-brick, `do_local_attach`)"), []);
    let mut brick_down = Row::new(format!("RBD detach, {which} (peer: os-brick, `do_local_attach`)"), []);
    for round in 0..=ROUNDS {
        let (floor_up, number) = clocked(|| floor.map("bench", "mapped-by-floor"));
        let (floor_down, _) = clocked(|| Floor::unmap(&number));

        let (our_up, there) = timed(client.attach(request.clone())).await;
        assert_eq!(there.unwrap().attachment.unwrap().size_bytes, 64 << 20);
        let (our_down, gone) = timed(client.detach("bench")).await;
        assert!(gone.unwrap().changed);

        let (peer_up, device) = clocked(|| run(RBD, &["map", "bench/peer"]));
        let (peer_down, _) = clocked(|| run(RBD, &["unmap", &device]));

        let (by_brick_up, there) = clocked(|| peer.ask(&by_brick("attach", None)));
        let (by_brick_down, _) = clocked(|| peer.ask(&by_brick("detach", Some(&there["device"]))));
        if round > 0 {
            for (row, times) in [
                (&mut up, [our_up, floor_up, peer_up]),
                (&mut down, [our_down, floor_down, peer_down]),
                (&mut brick_up, [our_up, floor_up, by_brick_up]),
                (&mut brick_down, [our_down, floor_down, by_brick_down]),
            ] {
                row.ours.add(times[0]);
                row.floor.add(times[1]);
                row.peer.add(times[2]);
            }
        }
    }
    {
        let watch = Watch::on(agent());
        client.attach(request).await.unwrap();
        let came = watch.count();
        client.detach("bench").await.unwrap();
        let went = watch.count() - came;
        (up.our_processes, down.our_processes) = (Some(came), Some(went));
        (brick_up.our_processes, brick_down.our_processes) = (Some(came), Some(went));
    }
    {
        let (came, device) = processes::of_command(RBD, &["map", "bench/peer"]);
        let (went, _) = processes::of_command(RBD, &["unmap", &device]);
        (up.peer_processes, down.peer_processes) = (Some(came), Some(went));
    }
    {
        let watch = Watch::on(peer.pid());
        let there = peer.ask(&by_brick("attach", None));
        let came = watch.count();
        peer.ask(&by_brick("detach", Some(&there["device"])));
        (brick_up.peer_processes, brick_down.peer_processes) = (Some(came), Some(watch.count() - came));
    }
    if let Some(kept) = kept {
        Floor::unmap(&kept);
    }
    let times = up.peer.median() / up.ours.median();
    up.wanted.push(Wanted::Else(format!("`rbd map` ≥ 4 × ours (is {times:.1})"), times >= 4.0));
    for row in [up, down, brick_up, brick_down] {
        report.add(row);
    }
}

async fn rename(report: &mut Report) {
    const ID: &str = "00000000-0000-4000-8000-000000000002";
    let managed = format!("bench/volume-{ID}");
    let mut client = client();
    let mut request = manage("rbd:bench/data");
    request.id = ID.into();
    let rename = |from: &str, to: &str| clocked(|| run(RBD, &["rename", from, to])).0;
    let by_peer = || {
        let both = || {
            run(RBD, &["info", "--format", "json", "bench/peer"]);
            run(RBD, &["rename", "bench/peer", &managed])
        };
        clocked(both).0
    };

    let (mut there, mut back) = (Row::new("image manage", []), Row::new("image unmanage", []));
    for round in 0..=ROUNDS {
        let (floor_there, floor_back) = (rename("bench/floor", &managed), rename(&managed, "bench/floor"));
        let (our_there, answer) = timed(client.manage(request.clone())).await;
        assert_eq!(answer.unwrap().volume.unwrap().locator, format!("rbd:{managed}"));
        let (our_back, answer) = timed(client.unmanage(ID, false)).await;
        answer.unwrap();
        let peer_there = by_peer();
        rename(&managed, "bench/peer");
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
        let (info, _) = processes::of_command(RBD, &["info", "--format", "json", "bench/peer"]);
        let (renamed, _) = processes::of_command(RBD, &["rename", "bench/peer", &managed]);
        there.peer_processes = Some(info + renamed);
        run(RBD, &["rename", &managed, "bench/peer"]);
    }
    report.add(there);
    report.add(back);
    report.note(
        "**Image manage, unmanage.** The floor is one `rbd rename`. Ours looks at the image (its watchers, parent, mirroring, trash), writes its origin into its metadata and \
         renames it. The peer is `rbd info` and `rbd rename`: Cinder asks librbd for the same, from a process that has it loaded.",
    );
}

async fn list(report: &mut Report, peer: &mut Peer) {
    peer.ask(&json!({ "do": "make-images", "pool": "many", "count": MANY }));
    let mut client = client();
    let mut row = Row::new("list of 1,000 images", []);
    for round in 0..=3 {
        let (floor, listed) = clocked(|| run(RBD, &["ls", "--long", "--format", "json", "many"]));
        let listed: Value = serde_json::from_str(&listed).unwrap();
        assert_eq!(listed.as_array().unwrap().len(), MANY);
        let (ours, listed) = timed(client.manageable("rbd:many")).await;
        assert_eq!(listed.unwrap().len(), MANY);
        let answer = peer.ask(&json!({ "do": "list-images", "pool": "many", "sample": SAMPLE }));
        assert_eq!(answer["count"], MANY);
        let seconds = |key: &str| answer[key].as_f64().unwrap();
        if round > 0 {
            row.ours.add(ours);
            row.floor.add(floor);
            row.peer.add(Duration::from_secs_f64(seconds("list_seconds") + seconds("each_seconds") * MANY as f64));
        }
    }
    {
        let watch = Watch::on(agent());
        client.manageable("rbd:many").await.unwrap();
        row.our_processes = Some(watch.count());
    }
    {
        let watch = Watch::on(peer.pid());
        peer.ask(&json!({ "do": "list-images", "pool": "many", "sample": 0 }));
        let once = watch.count();
        peer.ask(&json!({ "do": "list-images", "pool": "many", "sample": 1 }));
        row.peer_processes = Some(once + (watch.count() - 2 * once) * MANY);
    }
    let few = row.our_processes.is_some_and(|count| count <= 1);
    row.wanted.push(Wanted::Else("no process for each image".into(), few));
    report.add(row);
    report.note(&format!(
        "**List of 1,000 images.** Ours is `Volumes.ListManageable` of the pool, with why each of them can or cannot be managed. The floor is one `rbd ls --long`, which opens each image too. \
         The peer is what Cinder's `get_manageable_volumes` does: it opens each image by librbd and runs `rbd status` for it; \
         only {SAMPLE} of the 1,000 were asked about, and the peer's time and processes are extrapolated from them."
    ));
}
