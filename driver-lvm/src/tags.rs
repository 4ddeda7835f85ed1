//! What is written onto the storage of a managed LV: who it is, where it came from, and its name for people. LVM tags
//! (lvm(8)), read back even if the journal is lost.

use crate::report::{Lv, Vg};
use driver::{Adoption, Derivation, Identity, Locator, LogicalVolume, Result, Volume, VolumeId, VolumeKind};

const ID: &str = "mortar.id=";
const ORIGIN: &str = "mortar.origin=";
const NAME: &str = "mortar.name=";

/// The tags of an LV that comes under management.
pub(crate) fn of(adoption: &Adoption, origin: &LogicalVolume) -> Vec<String> {
    vec![format!("{ID}{}", adoption.id), format!("{ORIGIN}{}", origin.lv), format!("{NAME}{}", adoption.name)]
}

/// Those of an LV's tags that are ours.
pub(crate) fn ours(lv: &Lv) -> Vec<String> {
    lv.tags.iter().filter(|tag| [ID, ORIGIN, NAME].iter().any(|ours| tag.starts_with(ours))).cloned().collect()
}

/// The id that an LV is managed under, as text.
pub(crate) fn id(lv: &Lv) -> Option<&str> {
    value(lv, ID)
}

/// The mark of a derived volume.
pub(crate) fn rescue(owner: &str) -> String {
    format!("{}={owner}", Derivation::MARK)
}

/// For whom an LV was derived.
pub(crate) fn rescued(lv: &Lv) -> Option<&str> {
    value(lv, Derivation::MARK)?.strip_prefix('=')
}

/// The managed volume that an LV is; `None` if it is not managed.
pub(crate) fn volume(vg: &Vg, lv: &Lv) -> Result<Option<Volume>> {
    let Some(id) = id(lv) else { return Ok(None) };
    let Ok(id) = id.parse::<VolumeId>() else {
        tracing::warn!(vg = vg.name, lv = lv.name, id, "a tag mortar.id that is no id of ours");
        return Ok(None);
    };
    let at = at(vg, lv)?;
    // A tag that somebody took away costs the name, not the volume.
    let origin = value(lv, ORIGIN).and_then(|name| name.parse().ok()).unwrap_or_else(|| at.lv.clone());
    let name = value(lv, NAME).and_then(|name| name.parse().ok());
    Ok(Some(Volume {
        id,
        name: name.map_or_else(|| id.to_string().parse(), Ok)?,
        origin: Locator::Lvm(LogicalVolume { vg: at.vg.clone(), lv: origin }),
        locator: Locator::Lvm(at),
        size_bytes: lv.size_bytes,
        identity: identity(vg, lv),
        kind: kind(lv),
    }))
}

/// An LV by its names.
pub(crate) fn at(vg: &Vg, lv: &Lv) -> Result<LogicalVolume> {
    Ok(LogicalVolume { vg: vg.name.parse()?, lv: lv.name.parse()? })
}

/// A snapshot of another LV, thick or thin, or a volume of its own.
pub(crate) fn kind(lv: &Lv) -> VolumeKind {
    if lv.is("snapshot") { VolumeKind::Snapshot } else { VolumeKind::Volume }
}

/// An LV by its UUIDs.
pub(crate) fn identity(vg: &Vg, lv: &Lv) -> Identity {
    Identity::Lvm { vg_uuid: vg.uuid.clone(), lv_uuid: lv.uuid.clone() }
}

fn value<'a>(lv: &'a Lv, key: &str) -> Option<&'a str> {
    lv.tags.iter().find_map(|tag| tag.strip_prefix(key))
}
