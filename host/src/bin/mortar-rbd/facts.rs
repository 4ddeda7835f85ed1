//! What is known of images: of all in a pool, side by side, or of one.

use crate::{cluster::Pool, features, image::Image};
use host::rbd_job::{self, Failure, Trashed};
use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// How many images are read at a time. Each takes a few answers of the cluster, one after the other, and little else.
const AT_A_TIME: usize = 32;

/// Every image of the pool.
pub(crate) fn all(pool: &Pool<'_>) -> Result<Vec<rbd_job::Image>, Failure> {
    let listed = pool.images()?;
    let mirrored = pool.is_mirrored()?;
    let (next, read) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(listed.len())));
    let reader = || -> Result<(), Failure> {
        while let Some((name, id)) = listed.get(next.fetch_add(1, Ordering::Relaxed)) {
            let image = of_listed(pool, name, id, mirrored);
            if image.as_ref().is_err_and(is_the_cluster) {
                // Nor would the others be answered.
                next.store(listed.len(), Ordering::Relaxed);
                image?;
            } else {
                read.lock().expect("no reader panics").push((name.clone(), id.clone(), image));
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..AT_A_TIME.min(listed.len())).map(|_| scope.spawn(reader)).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("no reader panics"))
    })?;

    let read = read.into_inner().expect("no reader panics");
    // What was not found any more was removed meanwhile, unless it is still listed: then it is broken.
    let gone = |image: &Result<_, Failure>| image.as_ref().is_err_and(is_absent);
    let still: BTreeSet<_> =
        if read.iter().any(|(.., image)| gone(image)) { pool.images()?.into_iter().collect() } else { BTreeSet::new() };
    let mut images: Vec<rbd_job::Image> = Vec::with_capacity(read.len());
    for (name, id, image) in read {
        match image {
            Ok(image) => images.push(image),
            Err(failure) if is_absent(&failure) && !still.contains(&(name.clone(), id.clone())) => {}
            Err(failure) => {
                images.push(rbd_job::Image { name, id, problem: Some(failure.to_string()), ..Default::default() });
            }
        }
    }
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

fn of_listed(pool: &Pool<'_>, name: &str, id: &str, mirrored: bool) -> Result<rbd_job::Image, Failure> {
    // One of format 1 has no id to open it by.
    let image = if id.is_empty() { Image::look(pool, name) } else { Image::look_by_id(pool, id) }?;
    of(&image, name.to_owned(), id.to_owned(), mirrored)
}

fn of(image: &Image<'_>, name: String, id: String, mirrored: bool) -> Result<rbd_job::Image, Failure> {
    Ok(rbd_job::Image {
        name,
        id,
        problem: None,
        size: image.size()?,
        features: features::named(image.features()?),
        metadata: image.metadata()?,
        watchers: image.watchers()?,
        mirroring: if mirrored { image.mirroring()? } else { None },
        parent: image.parent()?,
        snapshots: image.snapshots()?,
    })
}

/// One image, by id if there is one, else by name; or what the trash has of it.
pub(crate) fn one(
    pool: &Pool<'_>,
    name: Option<&str>,
    id: Option<&str>,
) -> Result<(Option<rbd_job::Image>, Vec<Trashed>), Failure> {
    let trash: Vec<Trashed> = match id {
        // An image in the trash can still be opened by its id.
        Some(id) => pool.trash()?.into_iter().filter(|entry| entry.id == id).collect(),
        None => Vec::new(),
    };
    if !trash.is_empty() {
        return Ok((None, trash));
    }
    let image = match id {
        Some(id) => Image::look_by_id(pool, id),
        None => Image::look(pool, name.unwrap_or_default()),
    };
    let image = match image {
        Ok(image) => image,
        Err(failure) if is_absent(&failure) => {
            let named = |entry: &Trashed| id.is_none() && name == Some(&entry.name);
            return Ok((None, pool.trash()?.into_iter().filter(named).collect()));
        }
        Err(failure) => return Err(failure),
    };
    let mut facts = of(&image, image.name()?, image.id()?, pool.is_mirrored()?)?;
    for snapshot in &mut facts.snapshots {
        // It looks into every pool, which not every user may.
        snapshot.children = image.children(snapshot.id).ok();
    }
    Ok((Some(facts), Vec::new()))
}

/// The id that a name leads to.
pub(crate) fn id_of(pool: &Pool<'_>, name: &str) -> Result<Option<String>, Failure> {
    match Image::look(pool, name) {
        Ok(image) => image.id().map(Some),
        Err(failure) if is_absent(&failure) => Ok(None),
        Err(failure) => Err(failure),
    }
}

pub(crate) fn is_absent(failure: &Failure) -> bool {
    failure.errno == Some(libc::ENOENT)
}

/// It is not the image that failed: the cluster does not answer, or has shut us out.
fn is_the_cluster(failure: &Failure) -> bool {
    matches!(failure.errno, Some(libc::ETIMEDOUT | libc::ESHUTDOWN | libc::ENOTCONN))
}
