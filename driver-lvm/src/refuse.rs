//! Why an LV is not for us. Each answer is a sentence for the person who asked.

use crate::{
    report::{Lv, Vg},
    tags,
};
use driver::{Derivation, Refusal, Templates};

/// Why nothing can be done with any LV of this VG.
pub(crate) fn group(vg: &Vg) -> Option<String> {
    let name = &vg.name;
    if let Some(owner) = &vg.owner {
        return Some(format!("the VG {name} belongs to the host with the system ID {owner} (lvmsystemid(7))"));
    }
    if vg.exported {
        return Some(format!("the VG {name} is exported; bring it in with vgimport first"));
    }
    if !matches!(vg.lock_type.as_str(), "" | "none") {
        return Some(format!("the VG {name} is shared by several hosts through lvmlockd, which is not supported"));
    }
    None
}

/// Why LVM would not change any LV of this VG.
pub(crate) fn changes(vg: &Vg) -> Option<String> {
    group(vg).or_else(|| {
        let why = || format!("{} PVs of the VG {} are missing, and LVM would not change it", vg.missing_pvs, vg.name);
        (vg.missing_pvs > 0).then(why)
    })
}

/// Why this sort of LV holds no data that anybody else should see.
pub(crate) fn kind(vg: &Vg, lv: &Lv) -> Option<String> {
    let name = format!("{}/{}", vg.name, lv.name);
    if lv.hidden {
        Some(format!("{name} is a part of another LV"))
    } else if lv.is_laid_out_as("pool") {
        let sort = lv.layouts.iter().find(|layout| *layout != "pool").map_or("", String::as_str);
        Some(format!("{name} is a {sort} pool: it holds volumes and is none"))
    } else if lv.is("private") {
        Some(format!("{name} is internal to LVM"))
    } else {
        None
    }
}

/// Why an LV of a VG that is fine cannot be attached.
pub(crate) fn attach(vg: &Vg, lv: &Lv, read_only: bool) -> Option<String> {
    let name = format!("{}/{}", vg.name, lv.name);
    kind(vg, lv).or_else(|| {
        if lv.partial {
            Some(format!("{name} is on a PV that is missing"))
        } else if !read_only && !lv.writable {
            Some(format!("{name} is read-only; attach it read-only, or make it writable with lvchange -prw"))
        } else {
            None
        }
    })
}

/// Why an LV cannot be managed, as far as LVM itself knows.
pub(crate) fn manage(vg: &Vg, lv: &Lv, templates: &Templates) -> Option<Refusal> {
    if let Some(id) = tags::id(lv) {
        return Some(Refusal::Managed(format!("managed as {id}")));
    }
    if let Some(id) = templates.id_in(&lv.name) {
        return Some(Refusal::Managed(format!("named as the managed volume {id}")));
    }
    if let Some(owner) = tags::rescued(lv) {
        return Some(Refusal::Kind(Derivation::explained(owner)));
    }
    group(vg).or_else(|| kind(vg, lv)).or_else(|| changes(vg)).map(Refusal::Kind)
}

/// Why no snapshot of an LV can be taken for a rescue.
pub(crate) fn derive(vg: &Vg, lv: &Lv) -> Option<String> {
    let name = format!("{}/{}", vg.name, lv.name);
    changes(vg).or_else(|| kind(vg, lv)).or_else(|| match (tags::rescued(lv), &lv.origin) {
        (Some(owner), _) => Some(format!("{name} cannot be an image: {}", Derivation::explained(owner))),
        (None, Some(origin)) if lv.is("thicksnapshot") => Some(format!(
            "{name} is a thick snapshot, of which LVM takes no snapshots; name {}/{origin} itself, or a thin LV",
            vg.name
        )),
        (None, _) => lv.partial.then(|| format!("{name} is on a PV that is missing")),
    })
}
