//! What of LIO stands on this host, whoever's, as configfs shows it.
//!
//! Ours is the HBA of our number, in it what is called `mortar-ID`, and a target that ends with `:export-ID` beside such a
//! backstore: it is made after the backstore and removed before it. A target with a LUN that leads elsewhere is not ours, whatever
//! its name.

use crate::{Export, ExportId, Exporter, Serial, failed};
use driver::{Finding, Iqn, Object, ObjectKind, Result};
use host::{Module, module};
use std::path::Path;
use uuid::Uuid;

/// Something of LIO, and how far it is an export of ours that nobody knows: enough to withdraw it.
pub type Seen = (Object, Option<Export>);

impl Exporter {
    /// Every HBA, backstore and iSCSI target of this host's kernel. For each it tells to which of the `known` it belongs.
    pub fn inventory(&self, known: &[ExportId]) -> Result<Vec<Seen>> {
        let list = |path: &Path| self.host.list(path).map_err(failed("look at the targets of this host"));
        let mut seen = Vec::new();
        let fabric = self.tree.fabric();
        for name in list(&fabric)?.into_iter().filter(|name| is_iscsi_name(name)) {
            seen.push(self.target(&name, known)?);
        }
        let core = self.tree.core();
        for name in list(&core)?.into_iter().filter(|name| is_hba(name)) {
            let stores: Vec<String> =
                list(&core.join(&name))?.into_iter().filter(|name| !name.starts_with("hba_")).collect();
            let is_ours = core.join(&name) == self.tree.hba();
            for store in &stores {
                seen.push(self.backstore(&name, store, known)?);
            }
            seen.push(if is_ours { self.our_hba(&name, &stores, known)? } else { (others_hba(&name, &stores), None) });
        }
        Ok(seen)
    }

    fn target(&self, name: &str, known: &[ExportId]) -> Result<Seen> {
        let groups = self.host.list(&self.tree.fabric().join(name)).map_err(failed("look at a target"))?;
        let what = format!("{} portal groups", groups.iter().filter(|group| group.starts_with("tpgt_")).count());
        let others = |why: &str| Ok((Object::of_others(ObjectKind::Target, name, &what, why), None));
        let (Some(id), Ok(target)) = (id_of_target(name), name.parse::<Iqn>()) else {
            return others("its name is none of ours");
        };
        let export = remains(id, Some(target))?;
        let stat = |path: &Path| self.host.stat(path).map_err(failed("look at a backstore"));
        if stat(&self.tree.store(&export))?.is_none() {
            return others("there is no backstore of ours for it");
        }
        if self.leads_elsewhere(&export)? {
            return others("it has LUNs that are not ours");
        }
        let holders = holders(known, &export.id);
        let object = Object { holders, ..Object::of_ours(ObjectKind::Target, name, what) };
        Ok((object, Some(export)))
    }

    /// Whether a target has a LUN that is another backstore than that of its name.
    fn leads_elsewhere(&self, export: &Export) -> Result<bool> {
        let list = |path: &Path| self.host.list(path).map_err(failed("look at the LUNs of a target"));
        let luns = self.tree.group(export).join("lun");
        for lun in list(&luns)? {
            for name in list(&luns.join(&lun))? {
                let leads = self.host.resolve(&luns.join(&lun).join(&name)).map_err(failed("look at a LUN"))?;
                if leads.is_some_and(|leads| leads.starts_with(self.tree.core()) && leads != self.tree.store(export)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn backstore(&self, hba: &str, name: &str, known: &[ExportId]) -> Result<Seen> {
        let path = self.tree.core().join(hba).join(name);
        let device = self.host.read(&path.join("udev_path")).map_err(failed("look at a backstore"))?;
        let (shown, what) = (format!("{hba}/{name}"), device.unwrap_or_default());
        if path.parent() != Some(&self.tree.hba()) {
            return Ok((Object::of_others(ObjectKind::Backstore, shown, what, "its HBA is not ours"), None));
        }
        let Some(id) = id_of_store(name) else {
            return Ok((Object::of_others(ObjectKind::Backstore, shown, what, "its name is none of ours"), None));
        };
        let object = Object { holders: holders(known, &id), ..Object::of_ours(ObjectKind::Backstore, shown, what) };
        let target = self.target_of(&id)?;
        Ok((object, Some(remains(id, target)?)))
    }

    /// It is shared by all exports: it comes before the first backstore, and goes after the last.
    fn our_hba(&self, name: &str, stores: &[String], known: &[ExportId]) -> Result<Seen> {
        let what = format!("{} backstores", stores.len());
        let id = stores.iter().find_map(|store| id_of_store(store));
        if id.is_none() && !stores.is_empty() {
            let why = "what hangs from it is not ours";
            return Ok((Object::of_others(ObjectKind::Hba, name, what, why), None));
        }
        let object = Object { holders: (0..known.len()).collect(), ..Object::of_ours(ObjectKind::Hba, name, what) };
        let export = match id {
            Some(id) => {
                let target = self.target_of(&id)?;
                remains(id, target)?
            }
            None => remains("none".parse()?, None)?,
        };
        Ok((object, Some(export)))
    }

    /// The target of ours beside a backstore, if it is there.
    fn target_of(&self, id: &ExportId) -> Result<Option<Iqn>> {
        let targets = self.host.list(&self.tree.fabric()).map_err(failed("look at the targets of this host"))?;
        for name in targets.iter().filter(|name| id_of_target(name).as_ref() == Some(id)) {
            if let Ok(target) = name.parse::<Iqn>()
                && !self.leads_elsewhere(&remains(id.clone(), Some(target.clone()))?)?
            {
                return Ok(Some(target));
            }
        }
        Ok(None)
    }

    /// What on this host would make an export fail.
    pub fn findings(&self) -> Result<Vec<Finding>> {
        let absent = module(self.host.as_ref(), "target_core_mod").map_err(failed("look for a kernel module"))?;
        Ok(Vec::from_iter((absent == Module::Absent).then(|| {
            Finding::warning(
                "kernel module target_core_mod",
                "it is neither loaded, built in nor on the disk: nothing can be exported",
                "install the package with the modules of the running kernel, or reboot into the newest one",
            )
        })))
    }
}

fn others_hba(name: &str, stores: &[String]) -> Object {
    let what = format!("{} backstores", stores.len());
    Object::of_others(ObjectKind::Hba, name, what, "its number is not ours")
}

/// As much of an export as a withdrawal goes by.
fn remains(id: ExportId, target: Option<Iqn>) -> Result<Export> {
    // One that is not there; it is not made either.
    let nowhere = || format!("iqn.2026-11.org.mortar:nowhere:export-{id}").parse();
    let target = target.map_or_else(nowhere, Ok)?;
    Ok(Export {
        initiator: target.clone(),
        target,
        id,
        portals: Vec::new(),
        read_only: false,
        serial: Serial::none(),
        generation: Uuid::nil(),
    })
}

fn holders(known: &[ExportId], id: &ExportId) -> Vec<usize> {
    known.iter().enumerate().filter(|(_, known)| *known == id).map(|(number, _)| number).collect()
}

fn id_of_target(name: &str) -> Option<ExportId> {
    name.rsplit_once(":export-")?.1.parse().ok()
}

fn id_of_store(name: &str) -> Option<ExportId> {
    name.strip_prefix("mortar-")?.parse().ok()
}

/// Beside the targets, the fabric's directory holds settings.
fn is_iscsi_name(name: &str) -> bool {
    ["iqn.", "eui.", "naa."].iter().any(|prefix| name.starts_with(prefix))
}

/// `iblock_3260`; beside them is `alua`.
fn is_hba(name: &str) -> bool {
    name.rsplit_once('_').is_some_and(|(_, number)| number.parse::<u32>().is_ok())
}
