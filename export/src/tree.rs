//! Where in configfs an export's things are.

use crate::{Export, ExportId};
use driver::{Iqn, Portal};
use std::path::{Path, PathBuf};

/// The number of the HBA that our backstores hang from: it is only a place to put them. Others begin to count at 0.
const HBA: &str = "iblock_3260";

/// LIO's part of configfs.
#[derive(Debug)]
pub(crate) struct Tree(PathBuf);

impl Tree {
    pub(crate) fn new(configfs: &Path) -> Self {
        Self(configfs.join("target"))
    }

    pub(crate) fn core(&self) -> PathBuf {
        self.0.join("core")
    }

    pub(crate) fn hba(&self) -> PathBuf {
        self.core().join(HBA)
    }

    /// The name that marks an export's things as ours.
    pub(crate) fn name(&self, id: &ExportId) -> String {
        format!("mortar-{id}")
    }

    pub(crate) fn store(&self, export: &Export) -> PathBuf {
        self.hba().join(self.name(&export.id))
    }

    pub(crate) fn fabric(&self) -> PathBuf {
        self.0.join("iscsi")
    }

    pub(crate) fn target(&self, export: &Export) -> PathBuf {
        self.fabric().join(export.target.as_str())
    }

    pub(crate) fn group(&self, export: &Export) -> PathBuf {
        self.target(export).join("tpgt_1")
    }

    pub(crate) fn lun(&self, export: &Export) -> PathBuf {
        self.group(export).join("lun/lun_0")
    }

    /// The link that makes the backstore a LUN.
    pub(crate) fn lun_link(&self, export: &Export) -> PathBuf {
        self.lun(export).join(self.name(&export.id))
    }

    pub(crate) fn acls(&self, export: &Export) -> PathBuf {
        self.group(export).join("acls")
    }

    pub(crate) fn acl(&self, export: &Export, initiator: &Iqn) -> PathBuf {
        self.acls(export).join(initiator.as_str())
    }

    /// The link that shows the LUN to the initiator.
    pub(crate) fn mapped_link(&self, export: &Export) -> PathBuf {
        self.acl(export, &export.initiator).join("lun_0/lun_0")
    }

    pub(crate) fn portals(&self, export: &Export) -> PathBuf {
        self.group(export).join("np")
    }

    /// `ADDRESS:PORT`, an IPv6 address in brackets, as a portal is written anyway.
    pub(crate) fn portal(&self, export: &Export, portal: &Portal) -> PathBuf {
        self.portals(export).join(portal.to_string())
    }
}
