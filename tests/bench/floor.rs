//! The floor of iSCSI: what the kernel and one call of iscsiadm cost, by somebody who looks at nothing and proves nothing.

use crate::machine::{entries, read, run, spin};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The node record is there before the clock starts.
pub(crate) struct Floor {
    iqn: String,
    portal: String,
}

impl Floor {
    pub(crate) fn new(iqn: &str, portal: &str) -> Self {
        let node = ["-m", "node", "-T", iqn, "-p", portal, "-o"];
        run("/usr/sbin/iscsiadm", &[&node[..], &["new"]].concat());
        run("/usr/sbin/iscsiadm", &[&node[..], &["update", "-n", "node.session.scan", "-v", "manual"]].concat());
        Self { iqn: iqn.into(), portal: portal.into() }
    }

    /// Log in, scan for LUN 0, and look until its node is there.
    pub(crate) fn attach(&self) -> PathBuf {
        run("/usr/sbin/iscsiadm", &["-m", "node", "-T", &self.iqn, "-p", &self.portal, "--login"]);
        let host = self.host().unwrap();
        fs::write(format!("/sys/class/scsi_host/{host}/scan"), "0 0 0").unwrap();
        let unit = format!("/sys/class/scsi_device/{}:0:0:0/device/block", &host["host".len()..]);
        spin(|| {
            let name = entries(&unit).pop()?;
            let node = Path::new("/dev").join(name.file_name().unwrap());
            node.exists().then_some(node)
        })
    }

    /// Delete the disk, log out, and look until both are gone.
    pub(crate) fn detach(&self, disk: &Path) {
        let block = Path::new("/sys/block").join(disk.file_name().unwrap());
        fs::write(block.join("device/delete"), "1").unwrap();
        run("/usr/sbin/iscsiadm", &["-m", "node", "-T", &self.iqn, "-p", &self.portal, "--logout"]);
        spin(|| (!block.exists() && !disk.exists() && self.host().is_none()).then_some(()));
    }

    /// `host7`
    fn host(&self) -> Option<String> {
        let session = entries("/sys/class/iscsi_session")
            .into_iter()
            .find(|session| read(session.join("targetname")) == self.iqn)?;
        let place = fs::canonicalize(session).ok()?;
        place.iter().find_map(|part| part.to_str().filter(|part| part.starts_with("host")).map(str::to_owned))
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let node = ["-m", "node", "-T", &self.iqn, "-p", &self.portal, "-o", "delete"];
        let _ = std::process::Command::new("/usr/sbin/iscsiadm").args(node).status();
    }
}
