//! The RBD side of the simulated machine: clusters, krbd's attributes, and what `mortar-rbd` answers.
//!
//! Clusters are elsewhere and survive a reboot; what is mapped is in the kernel and does not.

use super::{
    Machine, World,
    world::{Block, Reach, VIRTUAL},
};
use crate::{
    Command, Error, Output, Result,
    rbd_job::{
        Change, Cloning, Failed, Failure, Features, Image, Job, Parent, Pool, Snapshot, Step, Task, Trashed, Watcher,
    },
};
use secrecy::ExposeSecret;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tokio::sync::oneshot;

const BUS: &str = "/sys/bus/rbd";

/// The key of every user of every cluster.
pub const KEY: &str = "AQAAAAAAAAAAABAAc2ltdWxhdGVkIGtleSEhIQ==";

/// What krbd of Linux 6.1 knows.
const SUPPORTED: u64 = 0x1bf;

/// The bits of the features that a test gives an image.
const BITS: [(&str, u64); 3] = [("layering", 1), ("exclusive-lock", 4), ("journaling", 64)];

/// What the machine knows of it.
#[derive(Debug, Default)]
pub(crate) struct Rbd {
    clusters: BTreeMap<String, Cluster>,
    /// By the kernel's numbers.
    mapped: BTreeMap<u32, Mapped>,
    /// The next map waits for this.
    held: Option<oneshot::Receiver<()>>,
    ids: u64,
}

#[derive(Debug)]
struct Cluster {
    fsid: String,
    monitor: SocketAddr,
    /// With their numbers.
    pools: BTreeMap<String, i64>,
    /// By pool, namespace and id.
    images: BTreeMap<(String, String, String), Image>,
    trash: Vec<(String, Trashed)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapped {
    cluster: String,
    image: (String, String, String),
    snapshot: Option<u64>,
}

/// The machine was turned on: the module is loaded, nothing is mapped.
pub(crate) fn boot(world: &mut World) {
    world.rbd.mapped.clear();
    for attribute in ["add_single_major", "remove_single_major"] {
        world.files.put(format!("{BUS}/{attribute}"), "");
    }
    world.files.put(format!("{BUS}/supported_features"), format!("{SUPPORTED:#x}\n"));
    world.files.make_directory(format!("{BUS}/devices"));
}

/// What a connection to a monitor meets; `None` if the address is no monitor's.
pub(crate) fn reach(world: &World, address: SocketAddr) -> Option<Reach> {
    world.rbd.clusters.values().any(|cluster| cluster.monitor == address).then_some(Reach::Listens)
}

/// What a write has to wait for, if it is the map that a test holds up.
pub(crate) fn held(world: &mut World, path: &Path) -> Option<oneshot::Receiver<()>> {
    let maps = path.strip_prefix(BUS).is_ok_and(|below| below == Path::new("add_single_major"));
    if maps { world.rbd.held.take() } else { None }
}

/// A write to one of krbd's attributes; `None` if the path is none of them.
pub(crate) fn written(world: &mut World, path: &Path, value: &str) -> Option<Result<()>> {
    let below = path.strip_prefix(BUS).ok()?.to_str()?;
    let done = match below.split('/').collect::<Vec<_>>().as_slice() {
        ["add_single_major"] => map(world, value),
        ["remove_single_major"] => unmap(world, value),
        ["devices", id, "refresh"] => {
            refresh(world, id);
            Ok(())
        }
        _ => return None,
    };
    Some(done.map_err(|errno| Error::io("write", path)(io::Error::from_raw_os_error(errno))))
}

fn map(world: &mut World, request: &str) -> std::result::Result<(), i32> {
    let [monitors, options, pool, name, snapshot] = request.split(' ').collect::<Vec<_>>()[..] else {
        return Err(libc::EINVAL);
    };
    let option = |key: &str| options.split(',').find_map(|option| option.strip_prefix(key));
    let is_it = |cluster: &Cluster| monitors.split(',').any(|address| address == cluster.monitor.to_string());
    let Some((cluster_name, cluster)) = world.rbd.clusters.iter().find(|(_, cluster)| is_it(cluster)) else {
        return Err(libc::ETIMEDOUT);
    };
    if option("name=") != Some("admin") {
        return Err(libc::EACCES);
    }
    let namespace = option("_pool_ns=").unwrap_or_default();
    let pool_id = *cluster.pools.get(pool).ok_or(libc::ENOENT)?;
    let place =
        |(key, image): &(&(String, String, String), &Image)| key.0 == pool && key.1 == namespace && image.name == name;
    let (key, image) = cluster.images.iter().find(place).ok_or(libc::ENOENT)?;
    let bits = |image: &Image| {
        BITS.iter().filter(|(name, _)| image.features.iter().any(|has| has == name)).map(|(_, bit)| bit).sum::<u64>()
    };
    if bits(image) & !SUPPORTED != 0 {
        return Err(libc::ENXIO);
    }
    if options.split(',').any(|option| option == "exclusive")
        && !image.features.iter().any(|has| has == "exclusive-lock")
    {
        return Err(libc::EINVAL);
    }
    let taken = match snapshot {
        "-" => None,
        name => Some(image.snapshots.iter().find(|snapshot| snapshot.name == name).ok_or(libc::ENOENT)?),
    };
    let size = taken.map_or(image.size, |snapshot| snapshot.size);
    let read_only = taken.is_some() || options.split(',').any(|option| option == "ro");
    let mapped =
        Mapped { cluster: cluster_name.clone(), image: key.clone(), snapshot: taken.map(|snapshot| snapshot.id) };
    let number = (0_u32..).find(|number| !world.rbd.mapped.contains_key(number)).expect("fewer than 2^32 mappings");
    let attributes = [
        ("cluster_fsid", cluster.fsid.clone()),
        ("pool", pool.to_owned()),
        ("pool_id", pool_id.to_string()),
        ("pool_ns", namespace.to_owned()),
        ("name", name.to_owned()),
        ("image_id", key.2.clone()),
        ("current_snap", snapshot.to_owned()),
        ("snap_id", mapped.snapshot.unwrap_or(u64::MAX - 1).to_string()),
        ("client_addr", client_address(cluster)),
        ("config_info", request.to_owned()),
        ("refresh", String::new()),
    ];
    for (attribute, value) in attributes {
        world.files.put(format!("{BUS}/devices/{number}/{attribute}"), format!("{value}\n"));
    }
    world.rbd.mapped.insert(number, mapped);
    world.add_block(&Block {
        name: &format!("rbd{number}"),
        below: VIRTUAL,
        size_bytes: size,
        read_only,
        logical_block_size: 512,
        physical_block_size: 512,
    });
    Ok(())
}

fn unmap(world: &mut World, number: &str) -> std::result::Result<(), i32> {
    let id: u32 = number.parse().map_err(|_| libc::EINVAL)?;
    let name = format!("rbd{id}");
    if !world.rbd.mapped.contains_key(&id) {
        return Err(libc::ENOENT);
    }
    if !world.users_of(&name).is_empty() {
        return Err(libc::EBUSY);
    }
    world.rbd.mapped.remove(&id);
    world.files.take_tree(format!("{BUS}/devices/{id}"));
    world.remove_block(&name);
    Ok(())
}

/// The kernel looks at the image's header.
fn refresh(world: &mut World, number: &str) {
    let Some(mapped) = number.parse().ok().and_then(|id: u32| world.rbd.mapped.get(&id)) else { return };
    if mapped.snapshot.is_some() {
        return;
    }
    if let Some(image) = world.rbd.clusters.get(&mapped.cluster).and_then(|cluster| cluster.images.get(&mapped.image)) {
        let size = image.size;
        world.resize_block(&format!("rbd{number}"), size);
    }
}

/// A run of `mortar-rbd`.
pub(crate) fn run(world: &mut World, command: &Command, name: &str) -> Output {
    let job = command.input.as_ref().and_then(|input| serde_json::from_str::<Job>(input.expose_secret()).ok());
    let answered = match job {
        Some(job) => answer(world, &job, name),
        None => Err(Failure::new(Step::Job, "read the job", "it is none")),
    };
    let (code, stdout) = match answered {
        Ok(stdout) => (0, stdout),
        Err(error) => (1, json(&Failed { error })),
    };
    Output { code, stdout, stderr: String::new() }
}

fn answer(world: &mut World, job: &Job, name: &str) -> std::result::Result<String, Failure> {
    let failure = |step, errno: i32, doing: &str| Failure {
        errno: Some(errno),
        step,
        doing: doing.to_owned(),
        message: io::Error::from_raw_os_error(errno).to_string(),
    };
    let watchers = watchers(&world.rbd, &job.cluster);
    let cluster = world.rbd.clusters.get_mut(&job.cluster);
    let cluster = cluster.ok_or_else(|| failure(Step::Connect, libc::ETIMEDOUT, "connect to the cluster"))?;
    let pool_id = *cluster.pools.get(&job.pool).ok_or_else(|| failure(Step::Pool, libc::ENOENT, "open the pool"))?;
    let pool = |cluster: &Cluster, wanted: &dyn Fn(&Image) -> bool, trash: Vec<Trashed>| {
        let here = cluster.images.iter().filter(|(key, _)| key.0 == job.pool && key.1 == job.namespace);
        let with_watchers = |(key, image): (&(String, String, String), &Image)| Image {
            watchers: [&image.watchers[..], watchers.get(key).map_or(&[], Vec::as_slice)].concat(),
            ..image.clone()
        };
        let mut images: Vec<Image> = here.map(with_watchers).filter(wanted).collect();
        images.sort_by(|one, other| one.name.cmp(&other.name));
        Pool { fsid: cluster.fsid.clone(), pool_id, images, trash }
    };
    let trash = |cluster: &Cluster| -> Vec<Trashed> {
        cluster.trash.iter().filter(|(of, _)| *of == job.pool).map(|(_, entry)| entry.clone()).collect()
    };
    match &job.task {
        Task::Clone(wanted) => {
            let id = clone(world, job, wanted, name)?;
            let cluster = &world.rbd.clusters[&job.cluster];
            Ok(json(&pool(cluster, &|found| found.id == id, Vec::new())))
        }
        Task::Unclone(wanted) => {
            let watched = |id: &str| watchers.iter().any(|((.., image), by)| image == id && !by.is_empty());
            unclone(world, job, wanted, &watched, name)?;
            Ok(json(&pool(&world.rbd.clusters[&job.cluster], &|_| false, Vec::new())))
        }
        Task::List => Ok(json(&pool(cluster, &|_| true, trash(cluster)))),
        Task::Inspect { image, id } => {
            let is_it = |found: &Image| match id {
                Some(id) => found.id == *id,
                None => Some(&found.name) == image.as_ref(),
            };
            let mut reply = pool(cluster, &is_it, Vec::new());
            if reply.images.is_empty() {
                reply.trash = trash(cluster);
                reply.trash.retain(|entry| Some(&entry.name) == image.as_ref() || Some(&entry.id) == id.as_ref());
            }
            Ok(json(&reply))
        }
        Task::Features { image } => match pool(cluster, &|found| found.name == *image, Vec::new()).images.pop() {
            Some(image) => Ok(json(&Features { features: image.features })),
            None => Err(failure(Step::Image, libc::ENOENT, "open the image")),
        },
        Task::Manage(change) | Task::Unmanage(change) => {
            let absent = || failure(Step::Image, libc::ENOENT, "find the image");
            let key = (job.pool.clone(), job.namespace.clone(), change.id.clone());
            let taken = |to: &String| {
                cluster
                    .images
                    .iter()
                    .any(|(other, image)| other.0 == key.0 && other.1 == key.1 && other.2 != key.2 && image.name == *to)
            };
            if change.rename_to.as_ref().is_some_and(taken) {
                return Err(failure(Step::Rename, libc::EEXIST, "rename the image"));
            }
            let image = cluster.images.get_mut(&key).ok_or_else(absent)?;
            if image.name != change.image && Some(&image.name) != change.rename_to.as_ref() {
                return Err(absent());
            }
            if let Some(wanted) = &change.snapshot {
                let gone = || failure(Step::Snapshot, libc::ENOENT, "find the snapshot");
                if image
                    .snapshots
                    .iter()
                    .any(|other| other.id != wanted.id && Some(&other.name) == wanted.rename_to.as_ref())
                {
                    return Err(failure(Step::Rename, libc::EEXIST, "rename the snapshot"));
                }
                let found = image.snapshots.iter().find(|snapshot| snapshot.id == wanted.id).ok_or_else(gone)?;
                if found.name != wanted.name && Some(&found.name) != wanted.rename_to.as_ref() {
                    return Err(gone());
                }
            }
            let steps: [fn(&mut Image, &Change); 2] = match &job.task {
                Task::Manage(_) => [write_metadata, rename],
                _ => [rename, write_metadata],
            };
            steps[0](image, change);
            // The machine may be lost between the two, and the tool with it.
            if world.process.did_within(&format!("{name}, half of it")) {
                let cluster = world.rbd.clusters.get_mut(&job.cluster).ok_or_else(absent)?;
                steps[1](cluster.images.get_mut(&key).ok_or_else(absent)?, change);
            }
            let cluster = world.rbd.clusters.get(&job.cluster).ok_or_else(absent)?;
            Ok(json(&pool(cluster, &|found| found.id == change.id, Vec::new())))
        }
    }
}

fn failed(step: Step, errno: i32, doing: &str) -> Failure {
    let message = io::Error::from_raw_os_error(errno).to_string();
    Failure { errno: Some(errno), step, doing: doing.to_owned(), message }
}

/// The process was killed, and `mortar-rbd` with it.
fn killed() -> Failure {
    Failure::new(Step::Job, "go on", "killed")
}

/// What has a clone's name: nothing, the clone or a half of it by its id, or something else.
enum There {
    Nothing,
    Clone(String),
    Half(String),
    Another,
}

impl Rbd {
    fn image(&mut self, job: &Job, id: &str) -> Option<&mut Image> {
        let key = (job.pool.clone(), job.namespace.clone(), id.to_owned());
        self.clusters.get_mut(&job.cluster)?.images.get_mut(&key)
    }

    fn there(&self, job: &Job, wanted: &Cloning, told: bool) -> There {
        let mut images = self.clusters[&job.cluster].images.iter();
        let named = images.find(|((pool, namespace, _), image)| {
            *pool == job.pool && *namespace == job.namespace && image.name == wanted.name
        });
        let Some((_, image)) = named else { return There::Nothing };
        let says = |key: &str, value: &String| image.metadata.get(key) == Some(value);
        let is_of_the_image = image.parent.as_ref().is_none_or(|parent| parent.image_id == wanted.image_id);
        if says(Cloning::MARK, &wanted.owner) && says(Cloning::MARKED, &image.id) {
            There::Clone(image.id.clone())
        } else if told && is_of_the_image && image.snapshots.is_empty() {
            There::Half(image.id.clone())
        } else {
            There::Another
        }
    }

    fn remove(&mut self, job: &Job, id: &str) {
        let key = (job.pool.clone(), job.namespace.clone(), id.to_owned());
        if let Some(cluster) = self.clusters.get_mut(&job.cluster) {
            cluster.images.remove(&key);
        }
    }
}

fn clone(world: &mut World, job: &Job, wanted: &Cloning, name: &str) -> std::result::Result<String, Failure> {
    let absent = || failed(Step::Image, libc::ENOENT, "find the image");
    let image = world.rbd.image(job, &wanted.image_id).ok_or_else(absent)?.clone();
    let told = image.metadata.get(&wanted.intent()) == Some(&wanted.intended());
    match world.rbd.there(job, wanted, told) {
        There::Clone(id) => return Ok(id),
        There::Another => return Err(failed(Step::Clone, libc::EEXIST, "make the clone")),
        There::Half(id) => world.rbd.remove(job, &id),
        There::Nothing => {}
    }
    let mut snapshot = match &wanted.snapshot {
        Some((_, id)) => {
            let found = image.snapshots.iter().find(|snapshot| snapshot.id == *id);
            Some(found.ok_or_else(|| failed(Step::Snapshot, libc::ENOENT, "find the snapshot"))?.clone())
        }
        None => image.snapshots.iter().find(|snapshot| snapshot.name == wanted.name).cloned(),
    };
    if wanted.snapshot.is_none() && snapshot.is_some() && !told {
        return Err(failed(Step::Clone, libc::EEXIST, "take the snapshot"));
    }
    let step = |world: &mut World, what: &str| match world.process.did_within(&format!("{name}, {what}")) {
        true => Ok(()),
        false => Err(killed()),
    };
    if !told {
        let image = world.rbd.image(job, &wanted.image_id).ok_or_else(absent)?;
        image.metadata.insert(wanted.intent(), wanted.intended());
        step(world, "the intent")?;
    }
    if snapshot.is_none() {
        world.rbd.ids += 1;
        let id = world.rbd.ids;
        let image = world.rbd.image(job, &wanted.image_id).ok_or_else(absent)?;
        let taken = Snapshot { id, name: wanted.name.clone(), size: image.size, protected: false, children: None };
        image.snapshots.push(taken.clone());
        snapshot = Some(taken);
        step(world, "the snapshot")?;
    }
    let snapshot = snapshot.ok_or_else(absent)?;
    world.rbd.ids += 1;
    let id = format!("10{:04x}", world.rbd.ids);
    let parent = world.rbd.image(job, &wanted.image_id).ok_or_else(absent)?.clone();
    let half = Image { name: wanted.name.clone(), id: id.clone(), size: snapshot.size, ..Image::default() };
    let key = (job.pool.clone(), job.namespace.clone(), id.clone());
    let cluster = world.rbd.clusters.get_mut(&job.cluster).ok_or_else(absent)?;
    cluster.images.insert(key, half);
    step(world, "a half of the clone")?;
    let clone = world.rbd.image(job, &id).ok_or_else(absent)?;
    clone.features = parent.features.iter().filter(|name| wanted.features.contains(name)).cloned().collect();
    clone.metadata = parent.metadata;
    clone.parent = Some(Parent {
        pool: job.pool.clone(),
        namespace: job.namespace.clone(),
        image: parent.name,
        image_id: parent.id,
        snapshot: snapshot.name,
        snapshot_id: snapshot.id,
    });
    step(world, "the clone")?;
    let clone = world.rbd.image(job, &id).ok_or_else(absent)?;
    clone.metadata.insert(Cloning::MARKED.into(), id.clone());
    clone.metadata.insert(Cloning::MARK.into(), wanted.owner.clone());
    Ok(id)
}

fn unclone(
    world: &mut World,
    job: &Job,
    wanted: &Cloning,
    watched: &dyn Fn(&str) -> bool,
    name: &str,
) -> std::result::Result<(), Failure> {
    let image = world.rbd.image(job, &wanted.image_id).cloned();
    let told = image.as_ref().is_some_and(|image| image.metadata.get(&wanted.intent()) == Some(&wanted.intended()));
    match world.rbd.there(job, wanted, told) {
        There::Another => return Err(failed(Step::Clone, libc::EEXIST, "remove the clone")),
        There::Clone(id) | There::Half(id) => {
            if watched(&id) || world.rbd.image(job, &id).is_some_and(|image| !image.watchers.is_empty()) {
                return Err(failed(Step::Clone, libc::EBUSY, "remove the clone"));
            }
            world.rbd.remove(job, &id);
            if !world.process.did_within(&format!("{name}, the clone")) {
                return Err(killed());
            }
        }
        There::Nothing => {}
    }
    let Some(image) = world.rbd.image(job, &wanted.image_id).filter(|_| told) else { return Ok(()) };
    if wanted.snapshot.is_none() {
        image.snapshots.retain(|snapshot| snapshot.name != wanted.name || snapshot.protected);
        if !world.process.did_within(&format!("{name}, the snapshot")) {
            return Err(killed());
        }
    }
    if let Some(image) = world.rbd.image(job, &wanted.image_id) {
        image.metadata.remove(&wanted.intent());
    }
    Ok(())
}

fn write_metadata(image: &mut Image, change: &Change) {
    image.metadata.extend(change.metadata.clone());
    image.metadata.retain(|key, _| !change.forget.contains(key));
}

fn rename(image: &mut Image, change: &Change) {
    if let Some(to) = &change.rename_to {
        image.name.clone_from(to);
    }
    if let Some(wanted) = &change.snapshot
        && let Some(snapshot) = image.snapshots.iter_mut().find(|snapshot| snapshot.id == wanted.id)
        && let Some(to) = &wanted.rename_to
    {
        snapshot.name.clone_from(to);
    }
}

/// The kernel's one client of a cluster (it has as many as there are different options, which ours never are).
fn client_address(cluster: &Cluster) -> String {
    format!("10.0.0.9:0/{}", cluster.monitor.ip().to_canonical().to_string().replace('.', ""))
}

/// Who has a cluster's images mapped for writing.
fn watchers(rbd: &Rbd, cluster: &str) -> BTreeMap<(String, String, String), Vec<Watcher>> {
    let mut watchers = BTreeMap::<_, Vec<Watcher>>::new();
    let for_writing = |mapped: &&Mapped| mapped.cluster == cluster && mapped.snapshot.is_none();
    for mapped in rbd.mapped.values().filter(for_writing) {
        let watcher = Watcher { address: client_address(&rbd.clusters[cluster]), client: "client.4100".into() };
        watchers.entry(mapped.image.clone()).or_default().push(watcher);
    }
    watchers
}

fn json<T: serde::Serialize>(reply: &T) -> String {
    serde_json::to_string(reply).expect("strings, numbers and lists are JSON")
}

/// The lines of the snapshot: what the clusters hold.
pub(crate) fn snapshot(world: &World) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, cluster) in &world.rbd.clusters {
        for ((pool, namespace, id), image) in &cluster.images {
            let snapshots: Vec<String> = image.snapshots.iter().map(|it| format!("{}={}", it.id, it.name)).collect();
            lines.push(format!(
                "{name}:{pool}/{namespace}/{} {id} {} bytes {:?} {snapshots:?}",
                image.name, image.size, image.metadata
            ));
        }
    }
    lines
}

/// What a test does to clusters.
impl Machine {
    /// A cluster with its conf and its keyring in `/etc/ceph`, and one monitor.
    pub fn add_cluster(&self, name: &str, monitor: &str) {
        self.with(|world| {
            world.rbd.ids += 1;
            let fsid = format!("00000000-0000-4000-8000-{:012x}", world.rbd.ids);
            world.files.put(format!("/etc/ceph/{name}.conf"), format!("[global]\nmon host = v1:{monitor}\n"));
            let keyring = format!("[client.admin]\n\tkey = {KEY}\n");
            world.files.put(format!("/etc/ceph/{name}.client.admin.keyring"), keyring);
            let monitor = monitor.parse().expect("a test knows an address");
            let cluster = Cluster { fsid, monitor, pools: BTreeMap::new(), images: BTreeMap::new(), trash: Vec::new() };
            world.rbd.clusters.insert(name.into(), cluster);
        });
    }

    /// An image, with its pool: `add_image("ceph", "p", "", "a", 1 << 30)`. Returns its id.
    pub fn add_image(&self, cluster: &str, pool: &str, namespace: &str, name: &str, size: u64) -> String {
        self.with(|world| {
            world.rbd.ids += 1;
            let id = format!("10{:04x}", world.rbd.ids);
            let image = Image {
                name: name.into(),
                id: id.clone(),
                size,
                features: vec!["layering".into(), "exclusive-lock".into()],
                ..Image::default()
            };
            let cluster = world.rbd.clusters.get_mut(cluster).expect("a test makes the cluster first");
            let number = i64::try_from(cluster.pools.len()).expect("few pools") + 1;
            cluster.pools.entry(pool.into()).or_insert(number);
            cluster.images.insert((pool.into(), namespace.into(), id.clone()), image);
            id
        })
    }

    /// Changes an image by its id, as some other client does.
    pub fn change_image(&self, cluster: &str, id: &str, change: impl FnOnce(&mut Image)) {
        self.with(|world| {
            let cluster = world.rbd.clusters.get_mut(cluster).expect("a test makes the cluster first");
            let image = cluster.images.iter_mut().find(|(key, _)| key.2 == id);
            change(image.expect("a test makes the image first").1);
        });
    }

    /// Lets an image grow. (The kernel hears of it when it looks.)
    pub fn grow_image(&self, cluster: &str, pool: &str, name: &str, size: u64) {
        let id = self.image_id(cluster, pool, name);
        self.change_image(cluster, &id, |image| image.size = size);
    }

    /// The id of an image, by its name.
    pub fn image_id(&self, cluster: &str, pool: &str, name: &str) -> String {
        self.with(|world| {
            let mut images = world.rbd.clusters[cluster].images.iter();
            let found = images.find(|(key, image)| key.0 == pool && image.name == name);
            found.expect("a test makes the image first").1.id.clone()
        })
    }

    /// Renames an image (`rbd rename`).
    pub fn rename_image(&self, cluster: &str, pool: &str, from: &str, to: &str) {
        let id = self.image_id(cluster, pool, from);
        self.change_image(cluster, &id, |image| image.name = to.into());
    }

    /// Takes a snapshot of an image. Returns its id.
    pub fn add_image_snapshot(&self, cluster: &str, id: &str, name: &str) -> u64 {
        let number = self.with(|world| {
            world.rbd.ids += 1;
            world.rbd.ids
        });
        let snapshot = |size| Snapshot { id: number, name: name.into(), size, protected: false, children: None };
        self.change_image(cluster, id, |image| image.snapshots.push(snapshot(image.size)));
        number
    }

    /// Puts an image into the trash.
    pub fn trash_image(&self, cluster: &str, id: &str) {
        self.with(|world| {
            let cluster = world.rbd.clusters.get_mut(cluster).expect("a test makes the cluster first");
            let key = cluster.images.keys().find(|key| key.2 == id).cloned().expect("a test makes the image first");
            if let Some(image) = cluster.images.remove(&key) {
                cluster.trash.push((key.0, Trashed { id: image.id, name: image.name }));
            }
        });
    }

    /// Maps as an operator does: `map_image("127.0.0.1:6789 name=admin,secret=x p a -")`. Returns its node.
    pub fn map_image(&self, request: &str) -> PathBuf {
        self.with(|world| {
            let before: Vec<u32> = world.rbd.mapped.keys().copied().collect();
            map(world, request).expect("a test maps what is there");
            let new = world.rbd.mapped.keys().find(|number| !before.contains(number)).expect("it was mapped");
            PathBuf::from(format!("/dev/rbd{new}"))
        })
    }

    /// Unmaps as an operator does.
    pub fn unmap_image(&self, number: u32) {
        self.with(|world| unmap(world, &number.to_string()).expect("a test unmaps what is mapped and free"));
    }

    /// The next map hangs in the kernel until what is returned is told (or dropped).
    pub fn hold_next_map(&self) -> oneshot::Sender<()> {
        let (go, held) = oneshot::channel();
        self.with(|world| world.rbd.held = Some(held));
        go
    }

    /// What is mapped, by what was asked for.
    pub fn mapped_images(&self) -> Vec<String> {
        self.with(|world| {
            let ids: Vec<u32> = world.rbd.mapped.keys().copied().collect();
            ids.iter().filter_map(|id| world.files.text(format!("{BUS}/devices/{id}/config_info"))).collect()
        })
    }
}
