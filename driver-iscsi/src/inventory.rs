//! What of iSCSI stands on this host, whoever's: sessions, their units, the maps over these, node records.
//!
//! A session says itself whose it is, so a unit is its session's and a map is ours if all of its paths are. What is ours and
//! belongs to nobody is told with the way in which a detach takes it away: the legs of one map together, so that the map
//! is flushed and goes as a whole.

use crate::{
    Initiator,
    legs::Leg,
    machine,
    multipath::Map,
    place::Place,
    proof,
    record::INTERFACE,
    session::{self, Named},
};
use driver::{Attached, Footprint, Identity, Iqn, Locator, LogicalUnit, Lun, Object, ObjectKind, Portal, Result, Way};
use std::{path::Path, sync::Arc};
use tokio::task::JoinSet;

/// A unit with whatever is over it and whoever holds it.
struct Standing {
    leg: Leg,
    map: Option<Map>,
    holders: Vec<usize>,
}

impl Standing {
    fn is_orphan(&self) -> bool {
        self.leg.session.ours && self.holders.is_empty()
    }

    fn name(&self) -> String {
        match &self.leg.disk {
            Some(disk) => disk.node().display().to_string(),
            None => self.leg.place.to_string(),
        }
    }
}

impl Initiator {
    pub(crate) async fn inventory(self: &Arc<Self>, known: &[Attached], ask: bool) -> Result<Vec<Object>> {
        let sessions = session::all(self.host()).map_err(machine("list the sessions"))?;
        let maps = Map::all(self.host()).map_err(machine("list the multipath maps"))?;
        let standing = self.standing_on(&sessions, known)?;
        let answers = if ask { self.ask_all(&standing).await } else { Vec::new() };
        let mut objects = Vec::new();
        for named in &sessions {
            objects.push(self.session_object(named, &standing, known)?);
        }
        for (number, unit) in standing.iter().enumerate() {
            let mut object = self.unit_object(unit, &standing)?;
            let answer = answers.iter().find(|(of, _)| *of == number);
            object.stale = answer.and_then(|(_, answer)| self.has_become(unit, answer, known));
            objects.push(object);
        }
        for map in maps {
            objects.push(self.map_object(&map, &standing)?);
        }
        self.record_objects(known, &mut objects)?;
        Ok(objects)
    }

    /// Every unit of every session whose names can be read.
    fn standing_on(&self, sessions: &[Named], known: &[Attached]) -> Result<Vec<Standing>> {
        let mut standing = Vec::new();
        for named in sessions {
            let (Ok(iqn), Some(portal)) = (named.iqn.parse::<Iqn>(), named.portal) else { continue };
            for lun in named.session.luns(self.host()).map_err(machine("list the units"))? {
                let place = Place { portal, iqn: iqn.clone(), lun };
                let unit = named.session.unit(lun);
                let disk = unit.disk(self.host()).map_err(machine("read the unit's device"))?;
                let map = match &disk {
                    Some(disk) => Map::over(self.host(), &disk.name).map_err(machine("look for a multipath map"))?,
                    None => None,
                };
                let holders = holders(known, |way| is_at(way, &iqn, portal) && way.lun == lun);
                standing.push(Standing {
                    leg: Leg { place, session: named.session.clone(), unit, disk },
                    map,
                    holders,
                });
            }
        }
        Ok(standing)
    }

    fn session_object(&self, named: &Named, standing: &[Standing], known: &[Attached]) -> Result<Object> {
        let Named { session, iqn, interface, portal } = named;
        let at = portal.map_or_else(|| "no portal".to_owned(), |portal| portal.to_string());
        let (name, what) =
            (format!("session{}", session.id), format!("target {iqn} at {at}, {}", session.state().to_lowercase()));
        if !session.ours {
            let why = format!("its interface is {interface}");
            return Ok(Object::of_others(ObjectKind::Session, name, what, why));
        }
        let (Ok(iqn), Some(portal)) = (iqn.parse::<Iqn>(), *portal) else {
            return Ok(Object::of_ours(ObjectKind::Session, name, what));
        };
        let holders = holders(known, |way| is_at(way, &iqn, portal));
        let remains = match standing.iter().find(|unit| unit.leg.session.id == session.id) {
            _ if !holders.is_empty() => None,
            Some(unit) => Some(self.remains(unit, standing)?),
            None => Some(empty(portal, iqn)?),
        };
        Ok(Object { holders, remains, ..Object::of_ours(ObjectKind::Session, name, what) })
    }

    fn unit_object(&self, unit: &Standing, standing: &[Standing]) -> Result<Object> {
        let (name, what) = (unit.name(), unit.leg.place.to_string());
        let holders = unit.holders.clone();
        if !unit.leg.session.ours {
            let why = format!("it is on session{}, which is not ours", unit.leg.session.id);
            return Ok(Object { holders, ..Object::of_others(ObjectKind::Device, name, what, why) });
        }
        let remains = if unit.is_orphan() { Some(self.remains(unit, standing)?) } else { None };
        Ok(Object { holders, remains, ..Object::of_ours(ObjectKind::Device, name, what) })
    }

    fn map_object(&self, map: &Map, standing: &[Standing]) -> Result<Object> {
        let slaves = map.slaves(self.host()).map_err(machine("list the map's paths"))?;
        let is_leg = |unit: &&Standing| unit.map.as_ref() == Some(map);
        let legs: Vec<&Standing> = standing.iter().filter(is_leg).collect();
        let ours: Vec<&&Standing> = legs.iter().filter(|unit| unit.leg.session.ours).collect();
        let (name, what) = (map.node().display().to_string(), format!("map of {}", map.wwid));
        let mut holders: Vec<usize> = legs.iter().flat_map(|unit| unit.holders.iter().copied()).collect();
        holders.sort_unstable();
        holders.dedup();
        if ours.is_empty() || ours.len() < slaves.len() {
            let why = if ours.is_empty() { "none of its paths is ours" } else { "not all of its paths are ours" };
            return Ok(Object { holders, ..Object::of_others(ObjectKind::MultipathMap, name, what, why) });
        }
        let remains = match ours.first() {
            Some(unit) if holders.is_empty() => Some(self.remains(unit, standing)?),
            _ => None,
        };
        Ok(Object { holders, remains, ..Object::of_ours(ObjectKind::MultipathMap, name, what) })
    }

    /// An orphan as an attachment, with its companions below the same map. Its identity is the one that it came with: what is
    /// cached of it is written to no other volume.
    fn remains(&self, unit: &Standing, standing: &[Standing]) -> Result<Attached> {
        let together = |other: &&Standing| {
            other.is_orphan() && (other.leg.unit == unit.leg.unit || (unit.map.is_some() && other.map == unit.map))
        };
        let ways = standing.iter().filter(together).map(|unit| unit.leg.place.way());
        let cached = unit.leg.unit.cached_name(self.host()).map_err(machine("read the unit's name"))?;
        let identity = cached.and_then(|name| name.parse().ok()).map(|wwn| Identity::Scsi { wwn });
        Ok(Attached::remains(Locator::Iscsi(LogicalUnit::new(ways)?), nothing_before(), identity))
    }

    /// Asks our units side by side, each with its own patience. One that does not answer is left out.
    async fn ask_all(self: &Arc<Self>, standing: &[Standing]) -> Vec<(usize, proof::Answer)> {
        let mut asked = JoinSet::new();
        for (number, unit) in standing.iter().enumerate().filter(|(_, unit)| unit.leg.session.ours) {
            if let (Some(disk), true) = (&unit.leg.disk, unit.leg.session.is_up()) {
                let (initiator, node) = (Arc::clone(self), disk.node());
                asked.spawn(async move { (number, proof::ask(initiator.host(), &node).await.ok()) });
            }
        }
        asked.join_all().await.into_iter().filter_map(|(number, answer)| Some((number, answer?))).collect()
    }

    /// Why a unit is not the volume that it was, if it is not.
    fn has_become(&self, unit: &Standing, answer: &proof::Answer, known: &[Attached]) -> Option<String> {
        let attached = unit.holders.iter().find_map(|holder| known.get(*holder)?.identity.clone());
        if let Some(Identity::Scsi { wwn }) = attached
            && wwn != answer.wwn
        {
            return Some(format!("it answers as {} now, and was attached as {wwn}", answer.wwn));
        }
        let cached = unit.leg.unit.cached_name(self.host()).ok().flatten()?;
        answer.disowns(&cached).then(|| format!("it answers as {} now, and came as {cached}", answer.wwn))
    }

    /// The node records: a directory for each target, one in it for each portal, and there a file for each interface.
    fn record_objects(&self, known: &[Attached], objects: &mut Vec<Object>) -> Result<()> {
        let list = |directory: &Path| self.host().list(directory).map_err(machine("list the node records"));
        let nodes = &self.config.nodes;
        for iqn in list(nodes)? {
            for portal in list(&nodes.join(&iqn))? {
                let directory = nodes.join(&iqn).join(&portal);
                for interface in list(&directory)? {
                    let name = directory.join(&interface).display().to_string();
                    let what = format!("target {iqn} at {portal}");
                    let is_ours = interface == INTERFACE || interface == format!(".{INTERFACE}.new");
                    if !is_ours {
                        let why = format!("it is for the interface {interface}");
                        objects.push(Object::of_others(ObjectKind::NodeRecord, name, what, why));
                        continue;
                    }
                    let mut object = Object::of_ours(ObjectKind::NodeRecord, name, what);
                    if let (Ok(iqn), Some(portal)) = (iqn.parse::<Iqn>(), portal_of(&portal)) {
                        object.holders = holders(known, |way| is_at(way, &iqn, portal));
                        object.remains = if object.holders.is_empty() { Some(empty(portal, iqn)?) } else { None };
                    }
                    objects.push(object);
                }
            }
        }
        Ok(())
    }
}

fn nothing_before() -> Footprint {
    Footprint::Iscsi { were_here: Vec::new(), map_was_here: false }
}

/// What is without any unit: a detach of one that is not there ends the session and removes the record.
fn empty(portal: Portal, iqn: Iqn) -> Result<Attached> {
    let unit = LogicalUnit::new([Way { portal, iqn, lun: Lun::try_from(0)? }])?;
    Ok(Attached::remains(Locator::Iscsi(unit), nothing_before(), None))
}

/// `10.0.0.5,3260,0`
fn portal_of(directory: &str) -> Option<Portal> {
    let mut parts = directory.split(',');
    Some(Portal { address: parts.next()?.parse().ok()?, port: parts.next()?.parse().ok()? })
}

fn is_at(way: &Way, iqn: &Iqn, portal: Portal) -> bool {
    way.portal == portal && way.iqn.as_str().eq_ignore_ascii_case(iqn.as_str())
}

fn holders(known: &[Attached], has: impl Fn(&Way) -> bool) -> Vec<usize> {
    let holds = |at: &Attached| matches!(&at.spec.locator, Locator::Iscsi(unit) if unit.ways.iter().any(&has));
    known.iter().enumerate().filter(|(_, at)| holds(at)).map(|(number, _)| number).collect()
}
