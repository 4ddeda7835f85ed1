//! Beside os-brick: for the same `connection_info` the same device; and where os-brick is known to go wrong, what it does and
//! what we do. The peer is os-brick itself, in `tests/bench/peer`.

use crate::{
    cli::{names, read, sessions},
    machine::{SOCKET, sh, try_sh},
};
use proto::v1;
use serde_json::{Value, json};
use std::path::Path;
use tests::{client::Client, peer::Peer, targets::Targets};

const LOG: &str = "/run/peer.log";

/// What the two of them are asked, and how.
struct Beside {
    peer: Peer,
    client: Client,
}

/// What is held against each other.
#[derive(Debug, PartialEq, Eq)]
struct Given {
    scsi_wwn: String,
    type_: String,
    /// What the kernel says of the device at the path that was given.
    size_bytes: u64,
}

impl Drop for Beside {
    fn drop(&mut self) {
        // For each image os-brick leaves a file with the cluster's key, which another test would take for ours.
        try_sh("rm -f /tmp/brickrbd_*");
    }
}

impl Beside {
    fn new() -> Self {
        // An agent that was stopped by an earlier test comes back.
        sh("systemctl start mortard");
        Self { peer: Peer::start(LOG), client: Client::on(Path::new(SOCKET)) }
    }

    /// os-brick's device.
    fn come_by_peer(&mut self, job: &Value) -> Value {
        let mut job = job.clone();
        job["do"] = "attach".into();
        self.peer.ask(&job)["device"].clone()
    }

    fn go_by_peer(&mut self, job: &Value, device: &Value) -> Result<Value, String> {
        let mut job = job.clone();
        job["do"] = "detach".into();
        job["device"] = device.clone();
        self.peer.try_ask(&job)
    }

    /// Attaches by the same connection_info.
    async fn come(&mut self, id: &str, job: &Value) -> v1::Attachment {
        let info = json!({ "driver_volume_type": job["protocol"], "data": job["properties"] });
        let request = v1::AttachRequest {
            id: id.into(),
            volume: Some(v1::attach_request::Volume::ConnectionInfo(info.to_string())),
            all_paths: job["multipath"] == true,
            ..v1::AttachRequest::default()
        };
        self.client.attach(request).await.unwrap().attachment.unwrap()
    }

    async fn go(&mut self, target: &str) {
        let gone = self.client.detach(target).await.unwrap();
        assert!(gone.changed && gone.residuals.is_empty(), "{gone:?}");
    }

    /// First the one, then the other, each to its end.
    async fn same(&mut self, job: &Value) {
        let device = self.come_by_peer(job);
        let path = device["path"].as_str().unwrap();
        let peers = Given {
            scsi_wwn: device["scsi_wwn"].as_str().unwrap_or_default().to_owned(),
            type_: device["type"].as_str().unwrap().to_owned(),
            size_bytes: size_of(path),
        };
        let paths = (name_of(path).starts_with("dm-"), device.clone());
        self.go_by_peer(job, &device).unwrap();
        assert!(!Path::new(path).exists(), "os-brick left {path}");

        let there = self.come("beside", job).await;
        let ours =
            Given { scsi_wwn: there.scsi_wwn.clone(), type_: there.r#type.clone(), size_bytes: size_of(&there.path) };
        assert_eq!(ours.size_bytes, there.size_bytes);
        assert_eq!(ours, peers, "{there:?} beside {device}");
        assert_eq!(name_of(&there.path).starts_with("dm-"), paths.0, "{there:?} beside {device}");
        self.go("beside").await;
        assert!(!Path::new(&there.path).exists(), "{} is left", there.path);
    }
}

/// `sdb`, whatever link leads to it.
fn name_of(path: &str) -> String {
    let node = std::fs::canonicalize(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    node.file_name().unwrap().to_string_lossy().into_owned()
}

fn size_of(path: &str) -> u64 {
    read(format!("/sys/block/{}/size", name_of(path))).parse::<u64>().unwrap() * 512
}

fn disks() -> Vec<String> {
    names("/sys/block").into_iter().filter(|name| name.starts_with("sd") || name.starts_with("rbd")).collect()
}

fn iscsi(targets: &Targets, portal: &str, lun: &Value) -> Value {
    json!({ "protocol": "iscsi", "properties": {
        "target_discovered": false, "target_portal": portal, "target_iqn": targets.iqn(0), "target_lun": lun,
        "volume_id": "00000000-0000-4000-8000-000000000000", "access_mode": "rw", "encrypted": false,
    } })
}

fn rbd(name: &str) -> Value {
    json!({ "protocol": "rbd", "local": true, "properties": {
        "name": name, "hosts": ["127.0.0.1"], "ports": ["6789"], "cluster_name": "ceph", "auth_enabled": true,
        "auth_username": "admin", "keyring": read("/etc/ceph/ceph.client.admin.keyring"),
        "volume_id": "00000000-0000-4000-8000-000000000000", "access_mode": "rw", "encrypted": false, "do_local_attach": true,
    } })
}

/// What os-brick has left, by hand.
fn tidy() {
    sh("iscsiadm -m node --logoutall=all >/dev/null 2>&1 || true; rm -rf /etc/iscsi/nodes/*");
}

#[tokio::test]
async fn one_iscsi_path_is_the_same_device() {
    let targets = Targets::new("beside", 1, &["127.0.0.1:3260"]);
    Beside::new().same(&iscsi(&targets, "127.0.0.1:3260", &json!(0))).await;
    assert_eq!(sessions(), Vec::<String>::new());
}

#[tokio::test]
async fn two_iscsi_paths_are_the_same_map() {
    const PORTALS: [&str; 2] = ["127.0.0.1:3260", "127.0.0.2:3260"];
    sh("printf 'defaults {\\n find_multipaths no\\n user_friendly_names no\\n}\\n' >/etc/multipath.conf
        guest_modules dm-multipath; systemctl start multipathd");
    let targets = Targets::new("beside", 1, &PORTALS);
    let mut job = iscsi(&targets, PORTALS[0], &json!(0));
    job["multipath"] = json!(true);
    job["properties"]["target_portals"] = json!(PORTALS);
    job["properties"]["target_iqns"] = json!([targets.iqn(0), targets.iqn(0)]);
    job["properties"]["target_luns"] = json!([0, 0]);
    Beside::new().same(&job).await;
    assert_eq!(sessions(), Vec::<String>::new());
    sh("systemctl stop multipathd.socket multipathd; rm /etc/multipath.conf");
}

#[tokio::test]
async fn an_image_is_the_same_device() {
    sh("ceph_up; ceph_pool beside; rbd_image beside/image 48M");
    Beside::new().same(&rbd("beside/image")).await;
}

/// os-brick holds the LUN against the kernel's number as it stands, so a string is never equal, and a detach succeeds
/// without having done anything.
#[tokio::test]
async fn a_lun_as_a_string_is_left_attached_by_os_brick_and_detached_by_us() {
    let targets = Targets::new("beside", 1, &["127.0.0.1:3260"]);
    let mut beside = Beside::new();
    let job = iscsi(&targets, "127.0.0.1:3260", &json!("0"));
    let device = beside.come_by_peer(&job);
    beside.go_by_peer(&job, &device).unwrap();
    assert_eq!(disks().len(), 1, "os-brick has learned to compare LUNs: the trap is none any more");
    tidy();

    beside.come("string", &job).await;
    beside.go("string").await;
    assert_eq!((disks(), sessions()), (Vec::new(), Vec::new()));
}

/// os-brick compares portals as text when it detaches.
#[tokio::test]
async fn an_ipv6_portal_in_another_form_is_left_attached_by_os_brick_and_detached_by_us() {
    let targets = Targets::new("beside", 1, &["[::1]:3260"]);
    let mut beside = Beside::new();
    let (short, long) = ("[::1]:3260", "[0:0:0:0:0:0:0:1]:3260");
    let came = iscsi(&targets, short, &json!(0));
    let device = beside.come_by_peer(&came);
    // It may also fail; what counts is that the volume is still there.
    let _told = beside.go_by_peer(&iscsi(&targets, long, &json!(0)), &device);
    assert_eq!(disks().len(), 1, "os-brick has learned to compare portals: the trap is none any more");
    tidy();

    beside.come("ipv6", &came).await;
    beside.go(&format!("iscsi://{long}/{}/0", targets.iqn(0))).await;
    assert_eq!((disks(), sessions()), (Vec::new(), Vec::new()));
}

/// os-brick knows a mapping by the image's name alone.
#[tokio::test]
async fn of_two_pools_with_one_image_name_os_brick_unmaps_the_wrong_one_and_we_the_right_one() {
    sh("ceph_up; ceph_pool beside-a beside-b; rbd_image beside-a/img 32M; rbd_image beside-b/img 40M");
    let mut beside = Beside::new();
    let (first, second) = (rbd("beside-a/img"), rbd("beside-b/img"));
    let pools = || -> Vec<String> {
        names("/sys/bus/rbd/devices").iter().map(|id| read(format!("/sys/bus/rbd/devices/{id}/pool"))).collect()
    };
    beside.come_by_peer(&first);
    let device = beside.come_by_peer(&second);
    beside.go_by_peer(&second, &device).unwrap();
    assert_eq!(pools(), ["beside-b"], "os-brick has learned to tell pools apart: the trap is none any more");
    sh("rbd unmap beside-b/img");

    beside.come("a", &first).await;
    beside.come("b", &second).await;
    beside.go("b").await;
    assert_eq!(pools(), ["beside-a"]);
    beside.go("a").await;
    assert_eq!(pools(), Vec::<String>::new());
}

/// A record of somebody's that open-iscsi cannot read is no obstacle, and stays as it is.
#[tokio::test]
async fn a_corrupt_node_record_stops_neither() {
    let targets = Targets::new("beside", 1, &["127.0.0.1:3260"]);
    let mut beside = Beside::new();
    let job = iscsi(&targets, "127.0.0.1:3260", &json!(0));
    // Of another target, and of the very one.
    for iqn in ["iqn.2026-11.org.example:corrupt", &targets.iqn(0)] {
        let record = format!("/etc/iscsi/nodes/{iqn}/127.0.0.1,3260,1/default");
        sh(&format!("mkdir -p $(dirname {record}); printf 'node.nam' >{record}"));
        beside.come("corrupt", &job).await;
        beside.go("corrupt").await;
        assert_eq!((disks(), sessions()), (Vec::new(), Vec::new()));
        assert_eq!(read(&record), "node.nam");
        // os-brick gets its device as well.
        assert_eq!(beside.come_by_peer(&job)["scsi_wwn"], targets.wwn(0), "{iqn}");
        tidy();
    }
}
