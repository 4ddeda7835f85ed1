//! A clone beside its image, and the way back.
//!
//! ```text
//!   make:       intent ──▶ snapshot ──▶ clone ──▶ mark         take away:  clone ──▶ snapshot ──▶ intent
//! ```
//!
//! An image has no metadata before it is there, so a crash in the middle of the cloning leaves one that nothing tells to be
//! ours. Therefore the image that is cloned is told first, when nobody has the clone's name yet: what has that name from
//! then on, unmarked, and is no clone of any other image, is what we left. Once the clone is marked, the mark alone counts.
//! The snapshot is ours if the intent is there, and nobody's unless we have to make it.

use crate::{
    budget::Budget,
    change::with_holder,
    cluster::Pool,
    facts::{self, is_absent},
    features,
    image::Image,
    text::ceph_said,
};
use host::rbd_job::{self, Cloning, Failure, Step, Watcher};

/// Every image that can be cloned has it.
const LAYERING: u64 = 1;

/// What has the clone's name.
enum There {
    Nothing,
    /// The clone, by its id.
    Clone(String),
    /// What a crash has left of our making it.
    Half,
    Another,
}

/// Makes the clone, and returns it.
pub(crate) fn make(pool: &Pool<'_>, wanted: &Cloning, budget: Budget) -> Result<rbd_job::Image, Failure> {
    let id = &wanted.image_id;
    if pool.trash()?.iter().any(|entry| entry.id == *id) {
        let absent = ceph_said(Step::Image, "find the image", -libc::ENOENT);
        return Err(Failure { message: format!("the image with the id {id} is in the trash"), ..absent });
    }
    let image = Image::look_by_id(pool, id)?;
    let (parent, snapshots, told) = (image.name()?, image.snapshots()?, is_told(&image, wanted)?);
    let allowed = image.features()? & features::bits(&wanted.features) | LAYERING;
    drop(image);
    match there(pool, wanted, told)? {
        There::Clone(id) => return facts_of(pool, &id),
        There::Another => return Err(taken(format!("make the clone {}", wanted.name))),
        There::Half => pool.remove(&wanted.name)?,
        // A name that leads nowhere would be taken, too.
        There::Nothing if told => pool.remove(&wanted.name)?,
        There::Nothing => {}
    }
    let named = |name: &str| snapshots.iter().any(|snapshot| snapshot.name == name);
    let snapshot = match &wanted.snapshot {
        Some((name, id)) => {
            let found = snapshots.iter().find(|snapshot| snapshot.id == *id);
            let absent = || Failure {
                message: format!("the image has no snapshot {name} with the id {id}"),
                ..ceph_said(Step::Snapshot, "find the snapshot", -libc::ENOENT)
            };
            found.map(|found| found.name.clone()).ok_or_else(absent)?
        }
        None if named(&wanted.name) && !told => return Err(taken(format!("take the snapshot {}", wanted.name))),
        None => wanted.name.clone(),
    };

    if !told {
        budget.allows(Step::Clone, "note the clone with its image")?;
        let noted = Image::change_by_id(pool, id)?.set_metadata(&wanted.intent(), &wanted.intended());
        with_holder(pool, id, noted)?;
    }
    if !named(&snapshot) {
        budget.allows(Step::Clone, "take the snapshot")?;
        let taken = Image::change_by_id(pool, id)?.take_snapshot(&snapshot);
        with_holder(pool, id, taken)?;
    }
    budget.allows(Step::Clone, "clone the snapshot")?;
    pool.clone(&parent, &snapshot, &wanted.name, allowed)?;
    let clone = Image::look(pool, &wanted.name)?;
    let own_id = clone.id()?;
    if clone.parent()?.is_none_or(|parent| parent.image_id != *id) {
        drop(clone);
        pool.remove(&wanted.name)?;
        let why = format!("another image has the name {parent} by now");
        return Err(Failure { message: why, ..ceph_said(Step::Image, "find the image", -libc::ENOENT) });
    }
    drop(clone);
    budget.allows(Step::Clone, "mark the clone")?;
    let clone = Image::change_by_id(pool, &own_id)?;
    clone.set_metadata(Cloning::MARKED, &own_id)?;
    clone.set_metadata(Cloning::MARK, &wanted.owner)?;
    drop(clone);
    facts_of(pool, &own_id)
}

/// Takes the clone away, then what was made for it.
pub(crate) fn take_away(pool: &Pool<'_>, wanted: &Cloning, budget: Budget) -> Result<(), Failure> {
    let id = &wanted.image_id;
    let image = match Image::look_by_id(pool, id) {
        Err(failure) if is_absent(&failure) => None,
        image => Some(image?),
    };
    let told = image.as_ref().map_or(Ok(false), |image| is_told(image, wanted))?;
    let removing = || format!("remove the clone {}", wanted.name);
    match there(pool, wanted, told)? {
        There::Another => return Err(taken(removing())),
        There::Nothing if !told => {}
        There::Nothing => pool.remove(&wanted.name)?,
        There::Clone(_) | There::Half => {
            budget.allows(Step::Clone, "remove the clone")?;
            not_in_use(pool, wanted)?;
            pool.remove(&wanted.name)?;
        }
    }
    let Some(image) = image.filter(|_| told) else { return Ok(()) };
    let ours = image.snapshots()?.into_iter().find(|snapshot| snapshot.name == wanted.name);
    // One that somebody protects is his from then on.
    let ours = ours.filter(|snapshot| wanted.snapshot.is_none() && !snapshot.protected);
    drop(image);
    if ours.is_some() {
        budget.allows(Step::Clone, "remove the snapshot")?;
        let removed = Image::change_by_id(pool, id)?.remove_snapshot(&wanted.name);
        with_holder(pool, id, removed)?;
    }
    budget.allows(Step::Clone, "forget the clone")?;
    let forgotten = Image::change_by_id(pool, id)?.remove_metadata(&wanted.intent());
    with_holder(pool, id, forgotten)
}

fn is_told(image: &Image<'_>, wanted: &Cloning) -> Result<bool, Failure> {
    Ok(image.metadata()?.get(&wanted.intent()) == Some(&wanted.intended()))
}

fn there(pool: &Pool<'_>, wanted: &Cloning, told: bool) -> Result<There, Failure> {
    let image = match Image::look(pool, &wanted.name) {
        Err(failure) if is_absent(&failure) => return Ok(There::Nothing),
        image => image?,
    };
    let (id, metadata) = (image.id()?, image.metadata()?);
    if metadata.get(Cloning::MARK) == Some(&wanted.owner) && metadata.get(Cloning::MARKED) == Some(&id) {
        return Ok(There::Clone(id));
    }
    let is_of_the_image = image.parent()?.is_none_or(|parent| parent.image_id == wanted.image_id);
    Ok(if told && is_of_the_image && image.snapshots()?.is_empty() { There::Half } else { There::Another })
}

fn not_in_use(pool: &Pool<'_>, wanted: &Cloning) -> Result<(), Failure> {
    let image = Image::look(pool, &wanted.name)?;
    let mut by: Vec<String> = image
        .watchers()?
        .iter()
        .map(|Watcher { address, client }| format!("watched from {address} ({client})"))
        .collect();
    by.extend(image.snapshots()?.iter().map(|snapshot| format!("its snapshot {}", snapshot.name)));
    match by.is_empty() {
        true => Ok(()),
        false => Err(Failure {
            message: by.join(", "),
            ..ceph_said(Step::Clone, format!("remove the clone {}", wanted.name), -libc::EBUSY)
        }),
    }
}

fn facts_of(pool: &Pool<'_>, id: &str) -> Result<rbd_job::Image, Failure> {
    let gone = || Failure::new(Step::Clone, "look at the clone", "somebody else removed it");
    facts::one(pool, None, Some(id))?.0.ok_or_else(gone)
}

fn taken(doing: String) -> Failure {
    let why = "something else has that name, without our mark";
    Failure { message: why.into(), ..ceph_said(Step::Clone, doing, -libc::EEXIST) }
}
