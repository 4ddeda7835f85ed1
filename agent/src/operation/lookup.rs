//! Where managed volumes are, in all places that the journal knows of. They are asked side by side, and one that cannot be
//! looked at (a cluster that is gone, say) hides no other.
//!
//! ```text
//!   by id:  its managed name on this host ──▶ its managed name in the pools ──▶ every volume
//! ```

use crate::agent::Agent;
use driver::{Backend, Driver, Error, Locator, Result, Scope, Volume, VolumeId};
use std::{collections::HashSet, fmt, future::Future, sync::Arc};
use tokio::task::JoinSet;

/// Where a driver is asked for volumes.
#[derive(Clone)]
struct Place {
    driver: Arc<dyn Driver>,
    /// `None`: where the driver looks by itself.
    scope: Option<Scope>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Some(scope) => scope.fmt(f),
            None => self.driver.backend().fmt(f),
        }
    }
}

/// A place that could not be looked at, and why.
pub(crate) struct Unseen {
    place: Place,
    error: Error,
}

impl Unseen {
    /// The place, where it is one and not all that a driver knows of.
    pub(crate) fn scope(&self) -> Option<&Scope> {
        self.place.scope.as_ref()
    }
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be looked at: {}", self.place, self.error.chain())
    }
}

/// The managed volumes that were seen, and what was not.
#[derive(Default)]
pub(crate) struct Listing {
    pub(crate) volumes: Vec<Volume>,
    pub(crate) unseen: Vec<Unseen>,
}

impl Agent {
    /// The managed volumes of one place, or of all.
    pub(crate) async fn volumes(&self, scope: Option<&Scope>) -> Result<Listing> {
        let mut listing = match scope {
            Some(scope) => {
                let volumes = self.drivers.ready(scope.backend()).await?.volumes(Some(scope)).await?;
                Listing { volumes, unseen: Vec::new() }
            }
            None => self.listing().await?,
        };
        listing.volumes.sort_by_key(|volume| volume.id);
        Ok(listing)
    }

    /// One managed volume. A copy made by other tools carries the id, too: the one with the managed name counts.
    pub(crate) async fn volume(&self, id: VolumeId) -> Result<Option<Volume>> {
        let templates = self.config.templates().map_err(Error::host("read the name templates"))?;
        let is_named = |volume: &Volume| {
            volume.origin.beside(&templates.name(volume.kind, id)).is_ok_and(|named| named == volume.locator)
        };
        if let Some(volume) = self.named(id).await?.filter(is_named) {
            return Ok(Some(volume));
        }
        let Listing { volumes: mut found, mut unseen } = self.listing().await?;
        found.retain(|volume| volume.id == id);
        if found.is_empty() && !unseen.is_empty() {
            return Err(unseen.swap_remove(0).error);
        }
        if found.iter().any(is_named) {
            found.retain(is_named);
        }
        if let [one, other, ..] = found.as_slice() {
            return Err(Error::WrongState {
                what: format!("{} and {} both say that they are volume {id}; rename one", one.locator, other.locator),
            });
        }
        Ok(found.pop())
    }

    /// Refuses an id under which a volume of the same backend is managed elsewhere than in `scope`, as far as can be seen.
    pub(super) async fn check_id_is_free(&self, id: VolumeId, scope: &Scope) -> Result<()> {
        let mut places = self.places(scope.backend()).await?;
        // A pool says by itself whether the name is taken, when the image is given it.
        places.retain(|place| scope.backend() != Backend::Rbd || place.scope.as_ref() != Some(scope));
        match named_in(places, id).await {
            Some(volume) => Err(Error::AlreadyExists { what: format!("volume {id} is {}", volume.locator) }),
            None => Ok(()),
        }
    }

    /// The volume of an id by its managed name. What is on this host is looked at first: that costs less.
    async fn named(&self, id: VolumeId) -> Result<Option<Volume>> {
        let (near, far) =
            self.all_places().await?.into_iter().partition(|place| place.driver.backend() != Backend::Rbd);
        match named_in(near, id).await {
            Some(volume) => Ok(Some(volume)),
            None => Ok(named_in(far, id).await),
        }
    }

    /// Every managed volume that can be seen now.
    async fn listing(&self) -> Result<Listing> {
        let places = self.all_places().await?;
        let mut asked = side_by_side(&places, |place| async move { place.driver.volumes(place.scope.as_ref()).await });
        let mut answers = Vec::new();
        while let Some((number, answer)) = next(&mut asked).await {
            answers.push((number, answer));
        }
        answers.sort_by_key(|(number, _)| *number);
        let (mut listing, mut seen) = (Listing::default(), HashSet::new());
        for (number, answer) in answers {
            match answer {
                Ok(volumes) => {
                    listing.volumes.extend(volumes.into_iter().filter(|volume| seen.insert(told_apart_by(volume))));
                }
                // The directory or the pool is gone, and the volumes with it.
                Err(Error::NotFound { .. }) if places[number].scope.is_some() => {}
                Err(error) => {
                    let unseen = Unseen { place: places[number].clone(), error };
                    tracing::warn!("{unseen}");
                    listing.unseen.push(unseen);
                }
            }
        }
        Ok(listing)
    }

    /// Where volumes are looked for, of all backends that can list them here.
    async fn all_places(&self) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        for backend in self.drivers.wanted().iter().copied().filter(|backend| *backend != Backend::Iscsi) {
            if self.drivers.readiness(backend).await.problem.is_none() {
                places.extend(self.places(backend).await?);
            }
        }
        Ok(places)
    }

    /// Where volumes of a backend are looked for: where its driver looks by itself, and where some were managed, which only
    /// the journal knows.
    async fn places(&self, backend: Backend) -> Result<Vec<Place>> {
        let driver = self.drivers.get(backend)?;
        let mut places = vec![Place { driver: Arc::clone(&driver), scope: None }];
        if matches!(backend, Backend::File | Backend::Rbd) && self.journal.lost().is_none() {
            for place in self.journal.places().await? {
                let scope: Scope = place.parse()?;
                if scope.backend() == backend {
                    places.push(Place { driver: Arc::clone(&driver), scope: Some(scope) });
                }
            }
        }
        Ok(places)
    }
}

/// What a list tells its volumes apart by. A pool may be known under several users and monitors, and shows the same images
/// under each.
fn told_apart_by(volume: &Volume) -> String {
    match &volume.locator {
        Locator::Rbd(_) => volume.identity.to_string(),
        other => other.to_string(),
    }
}

/// The first that has the volume under its managed name; the others are not waited for.
async fn named_in(places: Vec<Place>, id: VolumeId) -> Option<Volume> {
    let mut asked = side_by_side(&places, |place| async move { place.driver.named(place.scope.as_ref(), id).await });
    while let Some((number, answer)) = next(&mut asked).await {
        match answer {
            Ok(Some(volume)) => return Some(volume),
            Ok(None) | Err(Error::NotFound { .. }) => {}
            Err(error) => tracing::warn!("cannot look for {id} at {}: {}", places[number], error.chain()),
        }
    }
    None
}

/// Asks all places at once. Whoever drops it waits for no more answers.
fn side_by_side<T, F>(places: &[Place], question: impl Fn(Place) -> F) -> JoinSet<(usize, Result<T>)>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut asked = JoinSet::new();
    for (number, place) in places.iter().enumerate() {
        let answer = question(place.clone());
        asked.spawn(async move { (number, answer.await) });
    }
    asked
}

/// The next answer, with its place's number.
async fn next<T: 'static>(asked: &mut JoinSet<(usize, Result<T>)>) -> Option<(usize, Result<T>)> {
    match asked.join_next().await? {
        Ok(answer) => Some(answer),
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
