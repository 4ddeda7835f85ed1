//! `mortar-rbd` on a real Ceph: what it tells of images, and that its changes can be taken up wherever they ended.

use crate::machine::sh;
use host::{
    Output,
    rbd_job::{self, Failure, Features, Image, Pool, Step},
};
use serde_json::{Value, json};
use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A pool of its own for each test.
struct Ceph {
    pool: &'static str,
}

impl Ceph {
    fn new(pool: &'static str) -> Self {
        sh(&format!("ceph_up; ceph_pool {pool}"));
        Self { pool }
    }

    /// Runs Python with `io`, the pool, and `r`, an `rbd.RBD()`: a process of `rbd` for each step would take a second.
    fn python(&self, script: &str) -> String {
        sh(&format!(
            "python3 - <<'PYTHON'\nimport rados, rbd, struct\nfrom concurrent.futures import ThreadPoolExecutor\n\
             cluster = rados.Rados(conffile='/etc/ceph/ceph.conf', name='client.admin')\ncluster.connect()\n\
             io, r = cluster.open_ioctx('{}'), rbd.RBD()\n{script}\n\
             # Left to the end of the interpreter, its threads may outlive what they work on.\n\
             io.close()\ncluster.shutdown()\nPYTHON",
            self.pool
        ))
    }

    fn run(&self, job: Value) -> Output {
        let mut whole = json!({"cluster": "ceph", "conf": "/etc/ceph/ceph.conf", "user": "admin", "pool": self.pool});
        whole.as_object_mut().unwrap().extend(job.as_object().unwrap().clone());
        let mut child = Command::new("/usr/libexec/mortar/mortar-rbd")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(whole.to_string().as_bytes()).unwrap();
        let ended = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let output =
            Output { code: ended.status.code().unwrap(), stdout: text(ended.stdout), stderr: text(ended.stderr) };
        assert_eq!(output.stderr, "", "{whole}");
        output
    }

    fn ask(&self, job: Value) -> Result<Pool, Failure> {
        rbd_job::reply(&self.run(job))
    }

    fn image(&self, name: &str) -> Option<Image> {
        self.ask(json!({"job": "inspect", "image": name})).unwrap().images.pop()
    }
}

#[track_caller]
fn failed<T: std::fmt::Debug>(result: Result<T, Failure>) -> (Step, Option<i32>) {
    let failure = result.unwrap_err();
    (failure.step, failure.errno)
}

#[test]
fn images_are_told_with_all_that_is_known_of_them() {
    let ceph = Ceph::new("told");
    ceph.python(
        "
for name in 'ab':
    r.create(io, name, 64 << 20)
with rbd.Image(io, 'a') as image:
    for key in range(300):
        image.metadata_set(f'mortar.{key:03}', str(key))
    image.metadata_set('conf_rbd_cache', 'false')
    image.metadata_set('zone', 'x')
    image.create_snap('one')
    image.create_snap('two')
    image.protect_snap('one')
r.clone(io, 'a', 'one', io, 'clone', features=rbd.RBD_FEATURE_LAYERING)
r.create(io, 'thrown', 1 << 20)
r.trash_move(io, 'thrown')
r.create(io, 'broken', 1 << 20)
io.remove_object('rbd_header.' + rbd.Image(io, 'broken', read_only=True).id())
r.namespace_create(io, 'ns')
io.set_namespace('ns')
r.create(io, 'a', 1 << 20)",
    );
    let device = sh("rbd map told/b");
    let listed = ceph.ask(json!({"job": "list"})).unwrap();
    sh(&format!("rbd unmap {device}"));

    assert_eq!(listed.fsid, sh("sed -n 's/^fsid = //p' /etc/ceph/ceph.conf"));
    let [a, b, broken, clone] = listed.images.as_slice() else { panic!("{listed:?}") };
    assert_eq!([&a.name, &b.name, &broken.name, &clone.name], ["a", "b", "broken", "clone"]);
    assert_eq!(a.size, 64 << 20);
    assert_eq!(a.features, ["layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"]);
    assert_eq!((a.metadata.len(), a.metadata["mortar.299"].as_str()), (300, "299"));
    let snapshots: Vec<_> = a.snapshots.iter().map(|s| (s.name.as_str(), s.protected, s.children)).collect();
    assert_eq!(snapshots, [("one", true, None), ("two", false, None)]);
    assert!(a.watchers.is_empty() && a.parent.is_none() && a.mirroring.is_none());
    let [watcher] = b.watchers.as_slice() else { panic!("{b:?}") };
    assert!(watcher.address.starts_with("127.0.0.1:0/") && watcher.client.starts_with("client."), "{watcher:?}");
    assert!(broken.problem.as_ref().unwrap().contains("No such file or directory"), "{broken:?}");
    let parent = clone.parent.as_ref().unwrap();
    assert_eq!((&parent.image, &parent.image_id, &*parent.snapshot), (&a.name, &a.id, "one"));
    assert_eq!(parent.snapshot_id, a.snapshots[0].id);
    // Ceph copies what the parent had: whose it is, the metadata itself must tell.
    assert_eq!(clone.metadata.len(), 300);
    let [thrown] = listed.trash.as_slice() else { panic!("{listed:?}") };
    assert_eq!(thrown.name, "thrown");

    // One by one.
    let a = ceph.image("a").unwrap();
    assert_eq!(a.snapshots.iter().map(|s| s.children).collect::<Vec<_>>(), [Some(1), Some(0)]);
    let by_id = ceph.ask(json!({"job": "inspect", "id": a.id})).unwrap();
    assert_eq!(by_id.images, [a]);
    let by_id = ceph.ask(json!({"job": "inspect", "id": thrown.id})).unwrap();
    assert_eq!((by_id.images, by_id.trash), (vec![], listed.trash.clone()));
    let by_name = ceph.ask(json!({"job": "inspect", "image": "thrown"})).unwrap();
    assert_eq!((by_name.images, by_name.trash), (vec![], listed.trash));
    assert_eq!(ceph.image("nothing"), None);
    let features: Features = rbd_job::reply(&ceph.run(json!({"job": "features", "image": "clone"}))).unwrap();
    assert_eq!(features.features, ["layering"]);
    let other = ceph.ask(json!({"job": "list", "namespace": "ns"})).unwrap();
    assert_eq!(
        other.images.iter().map(|image| (image.name.as_str(), image.size)).collect::<Vec<_>>(),
        [("a", 1 << 20)]
    );
}

#[test]
fn what_goes_wrong_has_a_step_and_a_number_and_no_secret() {
    let ceph = Ceph::new("wrong");
    let key = sh("sed -n 's/.*key = //p' /etc/ceph/ceph.client.admin.keyring");
    let list = |more: Value| {
        let mut job = json!({"job": "list"});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let output = ceph.run(job);
        assert!(!output.stdout.contains(&key));
        rbd_job::reply::<Pool>(&output)
    };
    // The key and the monitors of the call need no file.
    let monitors = json!(["127.0.0.1:3300", "127.0.0.1:6789"]);
    assert!(list(json!({"conf": null, "cluster": "none", "monitors": monitors, "key": key})).is_ok());

    assert_eq!(failed(list(json!({"pool": "nothing"}))), (Step::Pool, Some(2)));
    assert_eq!(failed(list(json!({"conf": "/etc/ceph/nothing.conf"}))), (Step::Connect, Some(2)));
    assert_eq!(failed(list(json!({"conf": null}))), (Step::Job, None));
    assert_eq!(failed(list(json!({"user": "nobody"}))), (Step::Connect, Some(2)));
    assert_eq!(failed(list(json!({"user": "nobody", "key": key}))), (Step::Connect, Some(13)));
    assert_eq!(failed(list(json!({"key": sh("ceph_key")}))), (Step::Connect, Some(13)));
    assert_eq!(failed(list(json!({"key": "nonsense"}))), (Step::Connect, Some(22)));
    let silent = json!({"monitors": ["127.0.0.1:7000"], "timeout_ms": 2000});
    assert_eq!(failed(list(silent)), (Step::Connect, Some(110)));

    sh("ceph_osd_stop");
    let hung = list(json!({"timeout_ms": 2000}));
    sh("ceph_osd_start");
    assert_eq!(failed(hung), (Step::List, Some(110)));
}

#[test]
fn an_image_is_managed_and_let_go_from_wherever_it_stands() {
    let ceph = Ceph::new("changed");
    ceph.python("for name in ('a', 'taken'): r.create(io, name, 1 << 20)");
    let id = ceph.image("a").unwrap().id;
    let manage = |to: &str| {
        let metadata = json!({"mortar.id": "7", "mortar.from": "a"});
        ceph.ask(json!({"job": "manage", "image": "a", "id": id, "metadata": metadata, "rename_to": to}))
    };
    let unmanage = || {
        let keys = json!(["mortar.id", "mortar.from", "mortar.never"]);
        ceph.ask(json!({"job": "unmanage", "image": "volume-7", "id": id, "forget": keys, "rename_to": "a"}))
    };

    assert_eq!(failed(manage("taken")), (Step::Rename, Some(17)));
    assert!(ceph.image("a").unwrap().metadata.is_empty(), "what is refused changes nothing");
    for _ in 0..2 {
        let managed = manage("volume-7").unwrap().images.remove(0);
        assert_eq!((managed.name.as_str(), managed.id.as_str(), managed.metadata.len()), ("volume-7", id.as_str(), 2));
        // Not even by ourselves.
        assert!(managed.watchers.is_empty(), "{managed:?}");
    }
    for _ in 0..2 {
        let free = unmanage().unwrap().images.remove(0);
        assert_eq!((free.name.as_str(), free.metadata.is_empty()), ("a", true));
    }

    // A rename that a crash ended: both names lead to the image, and the directory knows one.
    let stray = |name: &str| {
        ceph.python(&format!("io.write_full('rbd_id.{name}', struct.pack('<I', {0}) + b'{id}')", id.len()));
    };
    let names = || ceph.python("print(*sorted(o.key for o in io.list_objects() if o.key.startswith('rbd_id.')))");
    stray("volume-7");
    assert_eq!(manage("volume-7").unwrap().images[0].name, "volume-7");
    assert_eq!(names(), "rbd_id.taken rbd_id.volume-7");
    stray("a");
    assert_eq!(manage("volume-7").unwrap().images[0].name, "volume-7");
    assert_eq!(names(), "rbd_id.taken rbd_id.volume-7");

    // Another image has the name by now, or it is in the trash.
    let other = json!({"job": "manage", "image": "taken", "id": id, "metadata": {"mortar.id": "8"}});
    assert_eq!(failed(ceph.ask(other)), (Step::Image, Some(2)));
    ceph.python("r.trash_move(io, 'volume-7')");
    assert_eq!(failed(manage("volume-7")), (Step::Image, Some(2)));
}

#[test]
fn a_snapshot_is_renamed_by_its_id() {
    let ceph = Ceph::new("snapshots");
    ceph.python(
        "
r.create(io, 'a', 1 << 20)
with rbd.Image(io, 'a') as image:
    image.create_snap('one')
    image.create_snap('two')",
    );
    let a = ceph.image("a").unwrap();
    let change = |job: &str, from: &str, to: &str| {
        let snapshot = json!({"id": a.snapshots[0].id, "name": from, "rename_to": to});
        ceph.ask(json!({"job": job, "image": "a", "id": a.id, "snapshot": snapshot}))
    };
    let named = |pool: Pool| pool.images[0].snapshots.iter().map(|s| s.name.clone()).collect::<Vec<_>>();
    assert_eq!(failed(change("manage", "one", "two")), (Step::Rename, Some(17)));
    assert_eq!(failed(change("manage", "other", "snap-9")), (Step::Snapshot, Some(2)));
    for _ in 0..2 {
        assert_eq!(named(change("manage", "one", "snap-9").unwrap()), ["snap-9", "two"]);
    }
    assert_eq!(named(change("unmanage", "snap-9", "one").unwrap()), ["one", "two"]);
}

#[test]
fn an_image_that_another_client_keeps_for_itself_is_not_changed() {
    let ceph = Ceph::new("kept");
    ceph.python("r.create(io, 'a', 1 << 20, features=rbd.RBD_FEATURE_LAYERING | rbd.RBD_FEATURE_EXCLUSIVE_LOCK)");
    let id = ceph.image("a").unwrap().id;
    let metadata = json!({"mortar.id": "7"});
    let manage = || ceph.ask(json!({"job": "manage", "image": "a", "id": id, "metadata": metadata, "rename_to": "b"}));
    let device = sh("rbd map --options exclusive kept/a");
    let begun = Instant::now();
    let refused = manage();
    eprintln!("refused after {} ms", begun.elapsed().as_millis());
    sh(&format!("rbd unmap {device}"));
    assert_eq!(failed(refused), (Step::Metadata, Some(30)));
    // One that only has it mapped gives its lock away, and takes it again when it writes.
    let device =
        sh("device=$(rbd map kept/a); dd if=/dev/zero of=$device bs=4k count=1 oflag=direct status=none; echo $device");
    let managed = manage();
    sh(&format!("dd if=/dev/zero of={device} bs=4k count=1 oflag=direct status=none; rbd unmap {device}"));
    assert_eq!(managed.unwrap().images[0].name, "b");
    // Its name could be changed all the same, and its metadata not: then it would stand half-way.
    let unmanage =
        || ceph.ask(json!({"job": "unmanage", "image": "b", "id": id, "forget": ["mortar.id"], "rename_to": "a"}));
    let device = sh("rbd map --options exclusive kept/b");
    let refused = unmanage();
    let name = ceph.image("b").map(|image| image.metadata.len());
    sh(&format!("rbd unmap {device}"));
    assert!(refused.as_ref().unwrap_err().message.contains("held exclusively by 127.0.0.1"), "{refused:?}");
    assert_eq!((failed(refused), name), ((Step::Metadata, Some(30)), Some(1)));
    assert_eq!(unmanage().unwrap().images[0].name, "a");
    // What is late does nothing.
    let late = json!({"job": "manage", "image": "a", "id": id, "metadata": metadata, "rename_to": "b", "budget_ms": 0});
    assert_eq!(failed(ceph.ask(late)), (Step::Metadata, Some(110)));
    assert!(ceph.image("a").unwrap().metadata.is_empty());
}

#[test]
fn many_images_take_one_process_and_little_time() {
    let ceph = Ceph::new("many");
    ceph.python(
        "with ThreadPoolExecutor(16) as many: list(many.map(lambda n: r.create(io, f'i{n:03}', 1 << 20), range(100)))",
    );
    let begun = Instant::now();
    let listed = ceph.ask(json!({"job": "list"})).unwrap();
    let all = begun.elapsed();
    assert_eq!((listed.images.len(), listed.images[42].name.as_str()), (100, "i042"));

    let begun = Instant::now();
    sh("for n in 0 1 2 3 4; do rbd status many/i00$n >/dev/null; done");
    let one = begun.elapsed() / 5;
    eprintln!("100 images: {} ms; `rbd status` of one: {} ms", all.as_millis(), one.as_millis());
    assert!(all < one * 25, "{all:?}: with a process for each of them it were {:?}", one * 100);
    assert!(all < Duration::from_secs(60));
}

#[test]
fn a_clone_is_made_and_taken_away_from_wherever_it_stands() {
    let ceph = Ceph::new("cloned");
    ceph.python(
        "
r.create(io, 'a', 8 << 20, features=61)
with rbd.Image(io, 'a') as image:
    image.write(b'the image', 0)
    image.create_snap('s')
    image.metadata_set('mortar.id', '7')",
    );
    let content =
        |name: &str| ceph.python(&format!("print(rbd.Image(io, '{name}', read_only=True).read(0, 9).decode())"));
    let names = || ceph.python("print(*sorted(r.list(io)))");
    let before = ceph.image("a").unwrap();
    let cloning = |job: &str, more: Value| {
        let features = json!(["layering", "exclusive-lock", "fast-diff", "object-map", "journaling"]);
        let mut job = json!({"job": job, "name": "c", "owner": "me", "image_id": before.id, "features": features});
        job.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ceph.ask(job)
    };
    for snapshot in [json!({}), json!({"snapshot": ["s", before.snapshots[0].id]})] {
        for _ in 0..2 {
            let clone = cloning("clone", snapshot.clone()).unwrap().images.remove(0);
            assert_eq!((clone.name.as_str(), clone.size, clone.watchers.len()), ("c", 8 << 20, 0));
            let fit = ["layering", "exclusive-lock", "object-map", "fast-diff", "operations"];
            assert_eq!(clone.features, fit);
            assert_eq!(
                (clone.metadata["mortar.rescue"].as_str(), &clone.metadata["mortar.rescue.image"]),
                ("me", &clone.id)
            );
            let parent = clone.parent.unwrap();
            let expected = if snapshot == json!({}) { "c" } else { "s" };
            assert_eq!((parent.image_id.as_str(), parent.snapshot.as_str()), (before.id.as_str(), expected));
        }
        // The kernel maps it, and the image is not written.
        let device = sh("rbd map cloned/c");
        assert_eq!(failed(cloning("unclone", snapshot.clone())), (Step::Clone, Some(16)));
        sh(&format!("printf 'the clone' | dd of={device} conv=notrunc,fsync status=none; rbd unmap {device}"));
        assert_eq!((content("c"), content("a")), ("the clone".into(), "the image".into()));
        for _ in 0..2 {
            assert!(cloning("unclone", snapshot.clone()).unwrap().images.is_empty());
        }
        assert_eq!((names(), ceph.image("a").unwrap()), ("a".into(), before.clone()));
    }

    // What a crash left, step by step: the intent; the snapshot; a name; a header; a clone without its mark.
    let told = format!("rbd.Image(io, 'a').metadata_set('mortar.rescue.of.me', '{}@c')", before.id);
    let snapshot = format!("{told}\nrbd.Image(io, 'a').create_snap('c')");
    let name = format!("{snapshot}\nio.write_full('rbd_id.c', struct.pack('<I', 4) + b'1234')");
    let header = format!("{snapshot}\nr.create(io, 'c', 8 << 20, features=1)");
    let clone = format!(
        "{snapshot}\ncluster.conf_set('rbd_default_clone_format', '2')\nr.clone(io, 'a', 'c', io, 'c', features=1)"
    );
    for left in [&told, &snapshot, &name, &header, &clone] {
        for forward in [true, false] {
            ceph.python(left);
            if forward {
                let clone = cloning("clone", json!({})).unwrap().images.remove(0);
                assert_eq!(clone.metadata["mortar.rescue"], "me", "{left}");
                assert_eq!(content("c"), "the image", "{left}");
            }
            cloning("unclone", json!({})).unwrap();
            assert_eq!((names(), ceph.image("a").unwrap()), ("a".into(), before.clone()), "{left}");
            assert_eq!(ceph.python("print(*(o.key for o in io.list_objects() if o.key == 'rbd_id.c'))"), "", "{left}");
        }
    }

    // What is not ours stays: an image, a snapshot, a clone of another.
    ceph.python("r.create(io, 'c', 1 << 20)");
    for job in ["clone", "unclone"] {
        assert_eq!(failed(cloning(job, json!({}))), (Step::Clone, Some(17)));
    }
    ceph.python(&told);
    ceph.python("r.remove(io, 'c')\nr.create(io, 'b', 1 << 20)\nrbd.Image(io, 'b').create_snap('s')");
    ceph.python("cluster.conf_set('rbd_default_clone_format', '2')\nr.clone(io, 'b', 's', io, 'c', features=1)");
    assert_eq!(failed(cloning("unclone", json!({}))), (Step::Clone, Some(17)));
    ceph.python("r.remove(io, 'c')\nrbd.Image(io, 'a').metadata_remove('mortar.rescue.of.me')\nrbd.Image(io, 'a').create_snap('c')");
    assert_eq!(failed(cloning("clone", json!({}))), (Step::Clone, Some(17)));
    cloning("unclone", json!({})).unwrap();
    assert_eq!(ceph.image("a").unwrap().snapshots.len(), 2);
    // A snapshot of ours that somebody has cloned lives on for him.
    ceph.python("rbd.Image(io, 'a').remove_snap('c')");
    cloning("clone", json!({})).unwrap();
    ceph.python("cluster.conf_set('rbd_default_clone_format', '2')\nr.clone(io, 'a', 'c', io, 'theirs', features=1)");
    cloning("unclone", json!({})).unwrap();
    assert_eq!((names(), content("theirs")), ("a b theirs".into(), "the image".into()));
}
