//! What the last reports of lvm said, for as long as it is true: a report is a process, and most of what is asked of a VG it
//! has said before.
//!
//! Every change of a VG changes what its PVs begin with ([`crate::label`]). That is read before a report, and kept with it:
//!
//! ```text
//!   labels ──▶ report ──▶ kept, if it is of all of the VG and a label tells of changes
//!   labels now ── the same? ── yes: what was kept
//!                     └─────── no: a report
//! ```
//!
//! Which LVs are active or open is no part of that; the kernel is asked for it.

use crate::{label::Label, report::Vg};
use driver::VgName;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The labels of some PVs, at one time.
pub(crate) type PvLabels = BTreeMap<PathBuf, Label>;

#[derive(Default)]
pub(crate) struct Known(Mutex<All>);

#[derive(Default)]
struct All {
    vgs: BTreeMap<VgName, One>,
    /// PVs that were in no VG.
    spare: PvLabels,
}

struct One {
    pvs: Vec<PathBuf>,
    /// Where changes can be told.
    kept: Option<Kept>,
}

struct Kept {
    labels: PvLabels,
    vg: Vg,
}

impl One {
    /// A VG of a report, and what PVs began with before it.
    fn new(vg: &Vg, labels: &PvLabels) -> Self {
        let its_own = |pv: &PathBuf| Some((pv.clone(), labels.get(pv)?.clone()));
        let labels: PvLabels = vg.pvs.iter().filter_map(its_own).collect();
        let is_whole = vg.missing_pvs == 0 && labels.len() == vg.pvs.len();
        let tells = is_whole && labels.values().any(Label::tells_changes);
        Self { pvs: vg.pvs.clone(), kept: tells.then(|| Kept { labels, vg: vg.clone() }) }
    }
}

impl Known {
    fn all(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The PVs that a VG was last seen on.
    pub(crate) fn pvs(&self, vg: &VgName) -> Option<Vec<PathBuf>> {
        self.all().vgs.get(vg).map(|one| one.pvs.clone())
    }

    pub(crate) fn forget(&self, vg: &VgName) {
        self.all().vgs.remove(vg);
    }

    /// A report of one VG, and what PVs began with before it.
    pub(crate) fn keep(&self, name: &VgName, vg: &Vg, labels: &PvLabels) {
        self.all().vgs.insert(name.clone(), One::new(vg, labels));
    }

    /// A report of all VGs, and what all PVs began with before it.
    pub(crate) fn keep_all(&self, vgs: &[Vg], labels: PvLabels) {
        let named = |vg: &Vg| Some((vg.name.parse().ok()?, One::new(vg, &labels)));
        let known = vgs.iter().filter_map(named).collect();
        let mut spare = labels;
        spare.retain(|pv, _| !vgs.iter().any(|vg| vg.pvs.contains(pv)));
        *self.all() = All { vgs: known, spare };
    }

    /// A VG as a report has it, if its PVs begin now as they did before that.
    pub(crate) fn unchanged(&self, vg: &VgName, now: &PvLabels) -> Option<Vg> {
        let all = self.all();
        let kept = all.vgs.get(vg)?.kept.as_ref()?;
        (kept.labels == *now).then(|| kept.vg.clone())
    }

    /// All VGs, if these are all PVs, and begin now as they did. One of two VGs that have the same name is not known, and its PVs
    /// are more than those that are.
    pub(crate) fn all_unchanged(&self, now: &PvLabels) -> Option<Vec<Vg>> {
        let all = self.all();
        let kept: Vec<&Kept> = all.vgs.values().map(|one| one.kept.as_ref()).collect::<Option<_>>()?;
        let then: BTreeMap<_, _> = all.spare.iter().chain(kept.iter().flat_map(|kept| &kept.labels)).collect();
        (then == now.iter().collect()).then(|| kept.iter().map(|kept| kept.vg.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report;

    const REAL: &[u8] = include_bytes!("../testdata/pv.head");
    const REPORT: &str = include_str!("../testdata/all.json");

    fn labels(pvs: &[PathBuf], head: &[u8]) -> PvLabels {
        pvs.iter().map(|pv| (pv.clone(), Label::of(head).unwrap())).collect()
    }

    fn name(vg: &str) -> VgName {
        vg.parse().unwrap()
    }

    #[test]
    fn a_vg_is_kept_if_its_changes_can_be_told() {
        let vg = report::parse(REPORT).unwrap().into_iter().find(|vg| vg.pvs.len() == 2).unwrap();
        let (tells, silent) = (labels(&vg.pvs, REAL), labels(&vg.pvs, &REAL[..4096]));
        let kept = |vg: &Vg, labels: &PvLabels| {
            let known = Known::default();
            known.keep(&name("vga"), vg, labels);
            assert_eq!(known.pvs(&name("vga")).unwrap(), vg.pvs);
            known.unchanged(&name("vga"), labels).is_some()
        };
        let one_tells: PvLabels = tells.clone().into_iter().take(1).chain(silent.clone().into_iter().skip(1)).collect();
        assert!(kept(&vg, &tells) && kept(&vg, &one_tells));
        assert!(!kept(&vg, &silent), "no PV tells");
        assert!(!kept(&vg, &labels(&vg.pvs[..1], REAL)), "not all were read");
        assert!(!kept(&Vg { missing_pvs: 1, ..vg }, &tells), "not all are there");
    }

    #[test]
    fn all_are_unchanged_if_no_pv_came_or_went_or_changed() {
        let vgs = report::parse(REPORT).unwrap();
        let mut then = labels(&vgs.iter().flat_map(|vg| vg.pvs.clone()).collect::<Vec<_>>(), REAL);
        let spare = PathBuf::from("/dev/spare");
        then.extend(labels(std::slice::from_ref(&spare), &REAL[..4096]));
        let known = Known::default();
        known.keep_all(&vgs, then.clone());
        let mut all = known.all_unchanged(&then).unwrap();
        all.sort_by_key(|vg| vgs.iter().position(|known| known.name == vg.name));
        assert_eq!(all, vgs);

        let unlike = |change: &dyn Fn(&mut PvLabels)| {
            let mut now = then.clone();
            change(&mut now);
            known.all_unchanged(&now).is_none()
        };
        assert!(unlike(&|now| drop(now.remove(&spare))));
        assert!(unlike(&|now| now.extend(labels(&["/dev/new".into()], REAL))));
        assert!(unlike(&|now| now.extend(labels(&vgs[0].pvs[..1], &REAL[..4096]))));
        let mut twins = vgs.clone();
        twins[1].name = vgs[0].name.clone();
        known.keep_all(&twins, then.clone());
        assert!(known.all_unchanged(&then).is_none(), "of two with one name it is not known which is meant");
    }
}
