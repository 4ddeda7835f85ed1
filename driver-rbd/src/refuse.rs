//! Why an image is not for us. Each answer is a sentence for the person who asked.

use crate::{mapping::Mapping, provenance::Keys};
use driver::{Derivation, Identity, Pool, Refusal, Templates};
use host::rbd_job::{Cloning, Image, Snapshot, Trashed, Watcher};

/// Why an image, or a snapshot of it, cannot be managed.
pub(crate) fn manage(
    image: &Image,
    snapshot: Option<&Snapshot>,
    identity: &Identity,
    mapped: &[(String, Mapping)],
    templates: &Templates,
) -> Option<Refusal> {
    if let Some(id) = Keys::of(snapshot.map(|snapshot| snapshot.id)).volume_in(image) {
        return Some(Refusal::Managed(format!("managed as {id}")));
    }
    let name = snapshot.map_or(&image.name, |snapshot| &snapshot.name);
    if let Some(id) = templates.id_in(name) {
        return Some(Refusal::Managed(format!("named as the managed volume {id}")));
    }
    if let Some(owner) = rescued(image) {
        return Some(Refusal::Kind(Derivation::explained(owner)));
    }
    if let Some(snapshot) = snapshot.filter(|snapshot| owners(image).any(|(_, name)| name == snapshot.name)) {
        return Some(Refusal::Kind(format!(
            "it is what the rescue disk {} began as, and goes with that",
            snapshot.name
        )));
    }
    if let Some(why) = kind(image) {
        return Some(Refusal::Kind(why));
    }
    // Nobody can write to a snapshot, so nobody is disturbed.
    let by: Vec<String> = match snapshot {
        Some(_) => Vec::new(),
        None => image.watchers.iter().map(|watcher| who(watcher, identity, mapped)).collect(),
    };
    (!by.is_empty()).then_some(Refusal::InUse(by))
}

/// For whom an image was cloned. Ceph copies metadata to clones, so it has to say that it means this very image.
pub(crate) fn rescued(image: &Image) -> Option<&String> {
    let means_this = image.metadata.get(Cloning::MARKED) == Some(&image.id);
    image.metadata.get(Cloning::MARK).filter(|_| means_this)
}

/// For whom clones of an image are being made, were made or are being taken away: the owners, and the clones' names.
/// What a clone has of these from its image means the image.
pub(crate) fn owners(image: &Image) -> impl Iterator<Item = (&str, &str)> {
    image.metadata.iter().filter_map(|(key, value)| {
        let (owner, (id, name)) = key.strip_prefix(Cloning::INTENT).zip(value.split_once('@'))?;
        (id == image.id).then_some((owner, name))
    })
}

/// Why no clone of an image can be made.
pub(crate) fn derive(image: &Image) -> Option<String> {
    let name = &image.name;
    if let Some(owner) = rescued(image) {
        return Some(format!("{name} cannot be an image: {}", Derivation::explained(owner)));
    }
    if let Some(why) = kind(image) {
        return Some(format!("{name} cannot be an image: {why}"));
    }
    let has_layering = image.features.iter().any(|feature| feature == "layering");
    (!has_layering).then(|| {
        format!("{name} has no feature layering, without which it has no clones; `rbd cp` makes a copy that has it")
    })
}

fn kind(image: &Image) -> Option<String> {
    if let Some(problem) = &image.problem {
        Some(format!("it cannot be read: {problem}"))
    } else if image.id.is_empty() {
        Some("it is of format 1, which has no id; `rbd migration` makes it a newer one".into())
    } else if image.mirroring.as_ref().is_some_and(|mirroring| !mirroring.primary) {
        Some("it is the copy of a mirror, and not the primary; manage it where it is primary".into())
    } else {
        None
    }
}

/// A watcher, by its address; and by its device if it is this host, whose mappings have one address together.
fn who(watcher: &Watcher, identity: &Identity, mapped: &[(String, Mapping)]) -> String {
    let here: Vec<String> = mapped
        .iter()
        .filter(|(client, mapping)| *client == watcher.address && mapping.identity == *identity)
        .map(|(_, mapping)| mapping.node().display().to_string())
        .collect();
    match here.is_empty() {
        true => format!("watched from {} ({})", watcher.address, watcher.client),
        false => format!("watched from {} ({}), as {} of this host", watcher.address, watcher.client, here.join(", ")),
    }
}

/// Why an image in the trash is not for us.
pub(crate) fn in_trash(pool: &Pool, entry: &Trashed) -> String {
    let namespace = pool.namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!(
        "the image {0} is in the trash; `rbd trash restore {1}/{namespace}{2}` takes it out",
        entry.name, pool.pool, entry.id
    )
}
