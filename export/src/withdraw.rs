//! Taking away: nobody new first, then upwards from the access list to the backstore, and seen to be gone.
//!
//! Whoever logs in between the first look and the closing of the portals is seen by the second look; then the portals are
//! opened again. A login that the kernel is still busy with at that moment is thrown out when the target is disabled, before it
//! has read a block.

use crate::{Export, Exporter, failed};
use driver::{Error, Result};
use std::path::{Path, PathBuf};

pub(crate) async fn withdraw(exporter: &Exporter, export: &Export) -> Result<()> {
    let (host, tree) = (exporter.host.as_ref(), &exporter.tree);
    refuse_users(exporter, export)?;
    let list = |path: &Path| -> Result<Vec<PathBuf>> {
        let names = host.list(path).map_err(failed("look at a target"))?;
        Ok(names.into_iter().map(|name| path.join(name)).collect())
    };
    let remove = async |path: &Path| host.remove(path).await.map_err(failed(format!("take export {} away", export.id)));

    let portals = list(&tree.portals(export))?;
    for portal in &portals {
        remove(portal).await?;
    }
    if let Err(in_use) = refuse_users(exporter, export) {
        for portal in &portals {
            host.make_directory(portal).await.map_err(failed(format!("serve export {} again", export.id)))?;
        }
        return Err(in_use);
    }
    let enable = tree.group(export).join("enable");
    if host.read(&enable).map_err(failed("look at a target"))?.is_some_and(|text| text != "0") {
        host.write(&enable, "0").await.map_err(failed(format!("disable export {}", export.id)))?;
    }
    // The target is ours as a whole, with whatever somebody has put into it.
    for acl in list(&tree.acls(export))? {
        let mapped = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lun_"));
        for lun in list(&acl)?.iter().filter(|path| mapped(path)) {
            remove_with_links(exporter, lun).await?;
        }
        remove(&acl).await?;
    }
    for lun in list(&tree.group(export).join("lun"))? {
        remove_with_links(exporter, &lun).await?;
    }
    for directory in [tree.group(export), tree.target(export), tree.store(export)] {
        remove(&directory).await?;
    }
    {
        let _one = exporter.hba.lock().await;
        // It goes with the last of ours.
        let others = host.list(&tree.hba()).map_err(failed("look at the backstores"))?;
        if !others.iter().any(|name| !name.starts_with("hba_")) {
            remove(&tree.hba()).await?;
        }
    }
    for path in [tree.target(export), tree.store(export)] {
        if host.stat(&path).map_err(failed("look at a target"))?.is_some() {
            return Err(Error::WrongState {
                what: format!("{} is still there: the kernel holds on to it; unexport again", path.display()),
            });
        }
    }
    Ok(())
}

/// A LUN or a mapped LUN, and what makes it one.
async fn remove_with_links(exporter: &Exporter, lun: &Path) -> Result<()> {
    let host = exporter.host.as_ref();
    for name in host.list(lun).map_err(failed("look at a LUN"))? {
        let path = lun.join(name);
        let is_link =
            host.stat(&path).map_err(failed("look at a LUN"))?.is_some_and(|stat| !stat.is_file && !stat.is_directory);
        if is_link {
            host.remove(&path).await.map_err(failed(format!("unlink {}", path.display())))?;
        }
    }
    host.remove(lun).await.map_err(failed(format!("remove {}", lun.display())))
}

/// Those who are logged in, and targets of others that somebody has put our backstore into.
fn refuse_users(exporter: &Exporter, export: &Export) -> Result<()> {
    let (host, tree) = (exporter.host.as_ref(), &exporter.tree);
    let mut by: Vec<String> = exporter.sessions(export)?.iter().map(ToString::to_string).collect();
    let (store, own) = (tree.store(export), tree.target(export));
    let look = |path: &Path| host.list(path).map_err(failed("look for others who serve a backstore"));
    for target in look(&tree.fabric())? {
        let target = tree.fabric().join(target);
        if target == own {
            continue;
        }
        for group in look(&target)?.iter().filter(|name| name.starts_with("tpgt_")) {
            let luns = target.join(group).join("lun");
            for lun in look(&luns)? {
                for name in look(&luns.join(&lun))? {
                    let link = luns.join(&lun).join(&name);
                    if host.resolve(&link).map_err(failed("look at a LUN"))?.as_deref() == Some(&*store) {
                        by.push(format!("served as {}", link.display()));
                    }
                }
            }
        }
    }
    match by.is_empty() {
        true => Ok(()),
        false => Err(Error::InUse { what: format!("export {}", export.id), by }),
    }
}
