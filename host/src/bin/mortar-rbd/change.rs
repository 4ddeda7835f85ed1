//! Changing an image's metadata and its name, or a snapshot's, in an order that can be taken up again.
//!
//! ```text
//!   manage:    metadata ──▶ name          unmanage:  (metadata as it is) ──▶ name ──▶ metadata
//! ```
//!
//! So an image that has a managed name always has its metadata too. Everything that could refuse the change is looked at
//! before the first step, and each step is left out where it is done already.
//!
//! Renaming an image is three steps in librbd: the object `rbd_id.NEW` is made, the pool's directory is changed at once
//! from the old name to the new one, `rbd_id.OLD` is removed. A crash between them leaves a stray name, which librbd
//! takes for a second image: it would refuse the new name for ever, or keep the old one taken. The directory is what
//! counts, and a stray name of this very image is removed.

use crate::{
    budget::Budget,
    cluster::Pool,
    facts::{self, id_of},
    image::Image,
    text::ceph_said,
};
use host::rbd_job::{self, Change, Failure, METADATA_PREFIX, SnapshotChange, Step};

/// Which comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    Metadata,
    Name,
}

/// Makes the change, and returns the image as it is then.
pub(crate) fn change(
    pool: &Pool<'_>,
    change: &Change,
    first: First,
    budget: Budget,
) -> Result<rbd_job::Image, Failure> {
    if change.metadata.keys().chain(&change.forget).any(|key| !key.starts_with(METADATA_PREFIX)) {
        return Err(Failure::new(
            Step::Job,
            "read the job",
            format!("a key of metadata is not under {METADATA_PREFIX}"),
        ));
    }
    if change.rename_to.is_some() && change.snapshot.is_some() {
        return Err(Failure::new(Step::Job, "read the job", "an image and a snapshot are to be renamed at once"));
    }
    let steps = look(pool, change, budget)?;
    match first {
        First::Metadata => write_metadata(pool, change, &steps, budget)?,
        First::Name => try_metadata(pool, change, &steps, budget)?,
    }
    if let Some((from, to)) = &steps.rename_image {
        budget.allows(Step::Rename, "rename the image")?;
        pool.rename(from, to)?;
    }
    if let Some((from, to)) = &steps.rename_snapshot {
        budget.allows(Step::Rename, "rename the snapshot")?;
        let renamed = Image::change_by_id(pool, &change.id)?.rename_snapshot(from, to);
        with_holder(pool, &change.id, renamed)?;
    }
    if first == First::Name {
        write_metadata(pool, change, &steps, budget)?;
    }
    match facts::one(pool, None, Some(&change.id))? {
        (Some(image), _) if image.name == *change.rename_to.as_ref().unwrap_or(&change.image) => Ok(image),
        _ => Err(Failure::new(Step::Rename, format!("rename the image {}", change.image), "somebody else renames it")),
    }
}

/// What is yet to be done.
struct Steps {
    set: Vec<(String, String)>,
    forget: Vec<String>,
    /// A key that is to be forgotten, with what it says now.
    known: Option<(String, String)>,
    rename_image: Option<(String, String)>,
    rename_snapshot: Option<(String, String)>,
}

fn look(pool: &Pool<'_>, change: &Change, budget: Budget) -> Result<Steps, Failure> {
    let Change { image: expected, id, .. } = change;
    let absent = |why: String| Failure {
        message: why,
        ..ceph_said(Step::Image, format!("find the image {expected}"), -libc::ENOENT)
    };
    if pool.trash()?.iter().any(|entry| entry.id == *id) {
        return Err(absent(format!("the image with the id {id} is in the trash")));
    }
    let image = Image::look_by_id(pool, id)?;
    let name = image.name()?;
    if name != *expected && Some(&name) != change.rename_to.as_ref() {
        return Err(absent(format!("the image with the id {id} has the name {name} now")));
    }

    let mut rename_image = None;
    match &change.rename_to {
        Some(to) if *to != name => {
            match id_of(pool, to)? {
                None => {}
                Some(other) if other == *id => {
                    budget.allows(Step::Rename, "remove a stray name")?;
                    pool.remove_stray_name(to)?;
                }
                Some(_) => {
                    return Err(ceph_said(Step::Rename, format!("rename the image {name} to {to}"), -libc::EEXIST));
                }
            }
            rename_image = Some((name, to.clone()));
        }
        Some(_) if *expected != name && id_of(pool, expected)?.as_ref() == Some(id) => {
            budget.allows(Step::Rename, "remove a stray name")?;
            pool.remove_stray_name(expected)?;
        }
        _ => {}
    }
    let rename_snapshot =
        change.snapshot.as_ref().map(|wanted| look_at_snapshot(&image, wanted)).transpose()?.flatten();

    let there = image.metadata()?;
    let set = change.metadata.iter().filter(|(key, value)| there.get(*key) != Some(value));
    let forget = change.forget.iter().filter(|key| there.contains_key(*key) && !change.metadata.contains_key(*key));
    Ok(Steps {
        set: set.map(|(key, value)| (key.clone(), value.clone())).collect(),
        known: forget.clone().find_map(|key| Some((key.clone(), there.get(key)?.clone()))),
        forget: forget.cloned().collect(),
        rename_image,
        rename_snapshot,
    })
}

fn look_at_snapshot(image: &Image<'_>, wanted: &SnapshotChange) -> Result<Option<(String, String)>, Failure> {
    let SnapshotChange { id, name: expected, rename_to } = wanted;
    let absent = |why: String| Failure {
        message: why,
        ..ceph_said(Step::Snapshot, format!("find the snapshot {expected}"), -libc::ENOENT)
    };
    let snapshots = image.snapshots()?;
    let Some(snapshot) = snapshots.iter().find(|snapshot| snapshot.id == *id) else {
        return Err(absent(format!("the image has no snapshot with the id {id}")));
    };
    let name = &snapshot.name;
    match rename_to {
        Some(to) if to == name => Ok(None),
        _ if name != expected => Err(absent(format!("the snapshot with the id {id} has the name {name} now"))),
        Some(to) if snapshots.iter().any(|other| other.name == *to) => {
            Err(ceph_said(Step::Rename, format!("rename the snapshot {name} to {to}"), -libc::EEXIST))
        }
        Some(to) => Ok(Some((name.clone(), to.clone()))),
        None => Ok(None),
    }
}

fn write_metadata(pool: &Pool<'_>, change: &Change, steps: &Steps, budget: Budget) -> Result<(), Failure> {
    if steps.set.is_empty() && steps.forget.is_empty() {
        return Ok(());
    }
    let in_time = || budget.allows(Step::Metadata, "change the metadata");
    in_time()?;
    let image = Image::change_by_id(pool, &change.id)?;
    let set = steps.set.iter().try_for_each(|(key, value)| in_time().and_then(|()| image.set_metadata(key, value)));
    let forgotten =
        set.and_then(|()| steps.forget.iter().try_for_each(|key| in_time().and_then(|()| image.remove_metadata(key))));
    drop(image);
    with_holder(pool, &change.id, forgotten)
}

/// Who holds an image exclusively lets its name be changed, and not its metadata. So before the name goes, the metadata is
/// written once as it is.
fn try_metadata(pool: &Pool<'_>, change: &Change, steps: &Steps, budget: Budget) -> Result<(), Failure> {
    let Some((key, value)) = &steps.known else { return Ok(()) };
    budget.allows(Step::Metadata, "write the metadata")?;
    let tried = Image::change_by_id(pool, &change.id)?.set_metadata(key, value);
    with_holder(pool, &change.id, tried)
}

/// Says who keeps an image for itself, if that is why it cannot be changed. It must not be open for writing: we would be among
/// those who watch it.
pub(crate) fn with_holder<T>(pool: &Pool<'_>, id: &str, done: Result<T, Failure>) -> Result<T, Failure> {
    done.map_err(|failure| {
        if failure.errno != Some(libc::EROFS) {
            return failure;
        }
        let watchers = Image::look_by_id(pool, id).and_then(|image| image.watchers()).unwrap_or_default();
        let by: Vec<String> = watchers.iter().map(|it| format!("{} ({})", it.address, it.client)).collect();
        let by = if by.is_empty() { "another client".to_owned() } else { by.join(", ") };
        Failure { message: format!("held exclusively by {by}; detach it first"), ..failure }
    })
}
