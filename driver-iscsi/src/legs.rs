//! A unit under a map, as one: its legs, the map over them, who uses it, what it proves, how it grows.

use crate::{
    Initiator,
    attach::Proved,
    machine,
    multipath::{self, Map, Said},
    place::Place,
    proof,
    session::{Session, Unit},
};
use driver::{Attached, Device, DevicePath, Error, Footprint, Identity, Result, Spec, Wwn};
use host::{BlockDevice, User, wait_for};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

/// How long a way that has just joined may take until its unit has a block device.
const JOINING: Duration = Duration::from_secs(5);

/// The unit by one way, as it stands now.
#[derive(Debug, Clone)]
pub(crate) struct Leg {
    pub(crate) place: Place,
    pub(crate) session: Session,
    pub(crate) unit: Unit,
    /// With a node: only then somebody can have used it.
    pub(crate) disk: Option<BlockDevice>,
}

impl Leg {
    /// Commands would pass.
    pub(crate) fn is_up(&self, initiator: &Initiator) -> Result<bool> {
        let state = self.unit.state(initiator.host()).map_err(machine("read the unit's state"))?;
        Ok(self.session.is_up() && state == "running")
    }
}

/// Those of a map's paths that are none of these legs.
pub(crate) fn strangers(mut slaves: Vec<String>, legs: &[Leg]) -> Vec<String> {
    slaves.retain(|slave| !legs.iter().filter_map(|leg| leg.disk.as_ref()).any(|disk| disk.name == *slave));
    slaves
}

impl Initiator {
    /// What stands at a place, of ours or from before the attachment.
    pub(crate) fn leg(&self, place: &Place, footprint: &Footprint) -> Result<Option<Leg>> {
        let Some((session, unit)) = self.locate(place, footprint)? else { return Ok(None) };
        let disk = unit.disk(self.host()).map_err(machine("read the unit's device"))?;
        Ok(Some(Leg { place: place.clone(), session, unit, disk }))
    }

    pub(crate) fn legs(&self, places: &[Place], footprint: &Footprint) -> Result<Vec<Leg>> {
        let legs: Result<Vec<_>> = places.iter().map(|place| self.leg(place, footprint)).collect();
        Ok(legs?.into_iter().flatten().collect())
    }

    /// The maps over some legs: one, unless somebody has been at work by hand.
    pub(crate) fn maps(&self, legs: &[Leg]) -> Result<Vec<Map>> {
        let mut maps: Vec<Map> = Vec::new();
        for disk in legs.iter().filter_map(|leg| leg.disk.as_ref()) {
            let map = Map::over(self.host(), &disk.name).map_err(machine("look for a multipath map"))?;
            maps.extend(map.filter(|map| !maps.contains(map)));
        }
        Ok(maps)
    }

    /// The attachment's map with its legs; `None` if it has no map, or the map of another volume only.
    pub(crate) fn map_of(&self, places: &[Place], at: &Attached) -> Result<Option<(Map, Vec<Leg>)>> {
        let legs = self.legs(places, &at.footprint)?;
        let right = |map: &Map| match &at.identity {
            Some(Identity::Scsi { wwn }) => map.wwid == wwn.to_string(),
            _ => true,
        };
        Ok(self.maps(&legs)?.into_iter().find(right).map(|map| (map, legs)))
    }

    /// The map as a device, every way named.
    pub(crate) fn map_device(&self, places: &[Place], map: &Map, legs: &[Leg]) -> Result<Option<Device>> {
        let Some(block) = map.block(self.host()).map_err(machine("read the map's device"))? else { return Ok(None) };
        let Ok(wwn) = map.wwid.parse::<Wwn>() else { return Ok(None) };
        let mut paths = Vec::new();
        for place in places {
            let leg = legs.iter().find(|leg| leg.place == *place);
            let path = match leg.and_then(|leg| Some((leg, leg.disk.as_ref()?))) {
                Some((leg, disk)) => DevicePath {
                    device: disk.node(),
                    portal: Some(place.portal),
                    state: leg.unit.state(self.host()).map_err(machine("read the unit's state"))?,
                    problem: None,
                },
                None => DevicePath {
                    device: PathBuf::new(),
                    portal: Some(place.portal),
                    state: "absent".into(),
                    problem: None,
                },
            };
            paths.push(path);
        }
        Ok(Some(Device {
            path: block.node(),
            identity: Identity::Scsi { wwn },
            size_bytes: block.size_bytes,
            logical_block_size: block.logical_block_size,
            physical_block_size: block.physical_block_size,
            read_only: block.read_only,
            paths,
        }))
    }

    /// Whether multipathd has a unit that came by one way alone, or is about to take it. Then the disk itself is of no use to
    /// anybody.
    pub(crate) async fn goes_into_a_map(&self, unit: &Proved) -> Result<bool> {
        let (host, disk) = (self.host(), &unit.disk.name);
        if Map::over(host, disk).map_err(machine("look for a multipath map"))?.is_some() {
            return Ok(true);
        }
        multipath::takes(host, &unit.wwn.to_string()).await
    }

    /// Makes a map refuse writes if that was asked for. It goes on to do so when paths come and go.
    pub(crate) async fn protect_map(
        &self,
        places: &[Place],
        spec: &Spec,
        footprint: &Footprint,
        map: &Map,
    ) -> Result<()> {
        let block = map.block(self.host()).map_err(machine("read the map's device"))?;
        if !spec.read_only || block.is_none_or(|block| block.read_only) {
            return Ok(());
        }
        let node = map.node();
        // First its paths, then ours: one that comes in between is no stranger.
        let slaves = map.slaves(self.host()).map_err(machine("list the map's paths"))?;
        let legs = self.legs(places, footprint)?;
        if matches!(footprint, Footprint::Iscsi { map_was_here: true, .. }) || !strangers(slaves, &legs).is_empty() {
            return Err(Error::WrongState {
                what: format!(
                    "{} has paths from elsewhere and is writable; detach it there to have it read-only",
                    node.display()
                ),
            });
        }
        self.host().set_read_only(&node, true).await.map_err(machine(format!("make {} read-only", node.display())))
    }

    /// As the kernel lists it.
    pub(crate) fn find_map(&self, places: &[Place], at: &Attached) -> Result<Option<Device>> {
        match self.map_of(places, at)? {
            Some((map, legs)) => self.map_device(places, &map, &legs),
            None => Ok(None),
        }
    }

    /// After every leg that answers has proved to be the volume.
    pub(crate) async fn prove_map(&self, places: &[Place], at: &Attached) -> Result<Option<Device>> {
        let Some((map, legs)) = self.map_of(places, at)? else { return Ok(None) };
        let mut silent = Vec::new();
        let mut proved = false;
        for leg in &legs {
            let Some(disk) = &leg.disk else { continue };
            if !leg.is_up(self)? {
                silent.push(format!("{} is {}", disk.node().display(), self.trouble(leg)?));
                continue;
            }
            match proof::ask(self.host(), &disk.node()).await {
                Ok(answer) if answer.wwn.to_string() == map.wwid => proved = true,
                Ok(answer) => {
                    return Err(Error::Mismatch {
                        what: format!("{} ({}), a path of {}", disk.node().display(), leg.place, map.node().display()),
                        expected: format!("wwn:{}", map.wwid),
                        found: format!("wwn:{}", answer.wwn),
                    });
                }
                Err(error) => silent.push(error.chain()),
            }
        }
        if !proved {
            let what = map.node().display().to_string();
            return Err(Error::Unreachable { what, why: format!("none of its paths does: {}", silent.join("; ")) });
        }
        self.prove_strangers(&map, &legs).await?;
        self.map_device(places, &map, &legs)
    }

    /// Asks the paths of a map that are none of these. One that does not answer carries nothing either.
    pub(crate) async fn prove_strangers(&self, map: &Map, legs: &[Leg]) -> Result<()> {
        let host = self.host();
        let slaves = map.slaves(host).map_err(machine("list the map's paths"))?;
        for slave in &strangers(slaves, legs) {
            if !multipath::is_running(host, slave).map_err(machine("read a path's state"))? {
                continue;
            }
            let node = Path::new("/dev").join(slave);
            match proof::ask(host, &node).await {
                Ok(answer) if answer.wwn.to_string() == map.wwid => {}
                Ok(answer) => {
                    return Err(Error::Mismatch {
                        what: format!(
                            "{}, a path of {} that mortar did not bring,",
                            node.display(),
                            map.node().display()
                        ),
                        expected: format!("wwn:{}", map.wwid),
                        found: format!("wwn:{}", answer.wwn),
                    });
                }
                Err(error) => tracing::debug!(path = slave, error = error.chain(), "a path does not answer"),
            }
        }
        Ok(())
    }

    /// Why commands would not pass: the state of the session, or of the unit.
    pub(crate) fn trouble(&self, leg: &Leg) -> Result<String> {
        if !leg.session.is_up() {
            return Ok(format!("on a session that is {}", leg.session.state()));
        }
        leg.unit.state(self.host()).map_err(machine("read the unit's state"))
    }

    /// Who uses the unit: its map, the map's partitions, or a leg past the map.
    ///
    /// `above` are all maps that hold a leg: to be held by one of them is no use. Only of `maps` it is asked who uses them.
    pub(crate) async fn users_of(&self, maps: &[Map], above: &[Map], legs: &[Leg]) -> Result<Vec<String>> {
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut devices = Vec::new();
        for map in above {
            let partitions = map.partitions(self.host()).map_err(machine("look for partitions"))?;
            if maps.contains(map) {
                devices.push(map.name.clone());
                devices.extend(partitions.iter().cloned());
            }
            known.insert(map.name.clone());
            known.extend(partitions);
        }
        devices.extend(legs.iter().filter_map(|leg| leg.disk.as_ref()).map(|disk| disk.name.clone()));
        let mut users = Vec::new();
        for device in devices {
            let node = PathBuf::from("/dev").join(&device);
            if self.host().stat(&node).map_err(machine(format!("look at {}", node.display())))?.is_none() {
                continue;
            }
            let doing = format!("look who uses {}", node.display());
            for user in self.host().users(&node).await.map_err(machine(doing))? {
                if !matches!(&user, User::Holder { name, .. } if known.contains(name)) {
                    users.push(user.to_string());
                }
            }
        }
        users.sort();
        users.dedup();
        Ok(users)
    }

    /// [`Error::InUse`] if anybody uses the unit.
    pub(crate) async fn see_that_it_is_free(&self, maps: &[Map], above: &[Map], legs: &[Leg]) -> Result<()> {
        let by = self.users_of(maps, above, legs).await?;
        if by.is_empty() {
            return Ok(());
        }
        let map = maps.first().map(Map::node);
        let node = map.or_else(|| legs.iter().find_map(|leg| leg.disk.as_ref()).map(BlockDevice::node));
        Err(Error::InUse { what: node.unwrap_or_default().display().to_string(), by })
    }

    /// After the backend grew: every leg learns the new size, all have to agree, and only then the map grows. If a way does
    /// not answer, the map stays as it is, though other legs may know the new size by then: a map never grows by itself,
    /// and the call may be repeated.
    pub(crate) async fn extend_map(&self, places: &[Place], at: &Attached, deadline: Instant) -> Result<Device> {
        let absent = || Error::NotFound { what: format!("a device of {}", at.spec.locator) };
        let (map, legs) = self.map_of(places, at)?.ok_or_else(absent)?;
        let unanswered = |place: &Place, why: String| Error::Unreachable {
            what: format!("{place}, so nothing was resized: it"),
            why,
        };
        for place in places {
            match legs.iter().find(|leg| leg.place == *place) {
                None => return Err(unanswered(place, "it has no device on this host".into())),
                Some(leg) if !leg.is_up(self)? => {
                    return Err(unanswered(place, format!("it is {}", self.trouble(leg)?)));
                }
                Some(_) => {}
            }
        }
        let mut sizes = Vec::new();
        for leg in &legs {
            self.rescan(&leg.place, &leg.unit, deadline)
                .await
                .map_err(|error| unanswered(&leg.place, error.chain()))?;
            // A rescan says nothing when the unit did not answer it.
            let size = self.asked_size(leg, &map, deadline).await?;
            sizes.push((leg, size));
        }
        let Some(&(first, size)) = sizes.first() else { return Err(absent()) };
        if let Some((other, found)) = sizes.iter().find(|(_, found)| *found != size) {
            return Err(Error::Mismatch {
                what: format!("the size in bytes of {}, so nothing was resized: it", other.place),
                expected: format!("{size}, as of {}", first.place),
                found: found.to_string(),
            });
        }
        let size_now = || Ok(map.block(self.host())?.map(|block| block.size_bytes));
        let reading = "read the map's size";
        if size_now().map_err(machine(reading))? != Some(size) {
            let said = multipath::resize_map(self.host(), &map).await?;
            let resized = || Ok(size_now()?.filter(|now| *now == size));
            let patience = if said == Said::Ok { deadline } else { Instant::now() };
            if wait_for(self.host(), patience, resized).await.map_err(machine(reading))?.is_none() {
                let waiting_for =
                    format!("multipathd to resize {} to {size} bytes; it said {said:?}", map.node().display());
                return Err(Error::TimedOut { waiting_for });
            }
        }
        self.prove_map(places, at).await?.ok_or_else(absent)
    }

    /// A leg's size after its rescan, if the leg still answers and is the volume.
    async fn asked_size(&self, leg: &Leg, map: &Map, deadline: Instant) -> Result<u64> {
        let disk = wait_for(self.host(), deadline.min(Instant::now() + JOINING), || leg.unit.disk(self.host()));
        let disk = disk.await.map_err(machine("read the unit's device"))?.ok_or_else(|| Error::Unreachable {
            what: format!("{}, so nothing was resized: it", leg.place),
            why: "it has no block device".into(),
        })?;
        let answer = proof::ask(self.host(), &disk.node()).await?;
        if answer.wwn.to_string() != map.wwid {
            return Err(Error::Mismatch {
                what: format!("{} ({}), so nothing was resized: it", disk.node().display(), leg.place),
                expected: format!("wwn:{}", map.wwid),
                found: format!("wwn:{}", answer.wwn),
            });
        }
        Ok(disk.size_bytes)
    }
}
