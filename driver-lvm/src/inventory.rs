//! The LVs that are active on this host. An activation bears no mark: it is ours only where the footprint of an attachment
//! says that it was not there before. So none is ever known to be an orphan of ours.

use crate::active;
use driver::{Attached, Footprint, Identity, Object, ObjectKind, Result};
use host::Host;

pub(crate) fn list(host: &dyn Host, known: &[Attached]) -> Result<Vec<Object>> {
    let object = |lv: active::Active| {
        let (name, what) = (lv.node().display().to_string(), format!("lvm:{}/{}", lv.at.vg, lv.at.lv));
        let is = Identity::Lvm { vg_uuid: lv.vg_uuid, lv_uuid: lv.lv_uuid };
        let holding = |(number, at): (usize, &Attached)| match &at.footprint {
            Footprint::Lvm { identity, was_active, .. } if *identity == is => Some((number, *was_active)),
            _ => None,
        };
        let holding: Vec<(usize, bool)> = known.iter().enumerate().filter_map(holding).collect();
        let holders = holding.iter().map(|(number, _)| *number).collect();
        let object = match holding.iter().all(|(_, was_active)| *was_active) {
            true if holding.is_empty() => {
                let why = "no attachment or export has activated it";
                Object::of_others(ObjectKind::Activation, name, what, why)
            }
            true => Object::of_others(ObjectKind::Activation, name, what, "it was active before"),
            false => Object::of_ours(ObjectKind::Activation, name, what),
        };
        Object { holders, ..object }
    };
    Ok(active::list(host)?.into_iter().map(object).collect())
}
