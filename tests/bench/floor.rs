//! The floor of iSCSI: what the kernel and one call of iscsiadm cost, by somebody who looks at nothing and proves nothing.

use crate::machine::{entries, read, run, spin};
use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

const NODES: &str = "/etc/iscsi/nodes";

/// The node record is there before the clock starts.
pub(crate) struct Floor {
    iqn: String,
    portal: String,
}

/// Many of them: all are begun at once, and each is told from the first request of all to the last answer.
pub(crate) struct Crowd(Vec<Floor>);

impl Floor {
    pub(crate) fn new(iqn: &str, portal: &str) -> Self {
        let node = ["-m", "node", "-T", iqn, "-p", portal, "-o"];
        run("/usr/sbin/iscsiadm", &[&node[..], &["new"]].concat());
        run("/usr/sbin/iscsiadm", &[&node[..], &["update", "-n", "node.session.scan", "-v", "manual"]].concat());
        Self { iqn: iqn.into(), portal: portal.into() }
    }

    /// One more of the same kind, for another target: its record is written as iscsiadm has written this one.
    fn beside(&self, iqn: &str) -> Self {
        let mut record = entries(format!("{NODES}/{}", self.iqn)).pop().unwrap();
        if record.is_dir() {
            record = entries(&record).pop().unwrap();
        }
        let copy = PathBuf::from(record.to_str().unwrap().replace(&self.iqn, iqn));
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::write(copy, read(record).replace(&self.iqn, iqn) + "\n").unwrap();
        Self { iqn: iqn.into(), portal: self.portal.clone() }
    }

    /// Log in, scan for LUN 0, and look until its node is there.
    pub(crate) fn attach(&self) -> PathBuf {
        let unit = self.login();
        spin(|| node(&unit))
    }

    /// As far as a process does it. Where the disk will be.
    fn login(&self) -> String {
        run("/usr/sbin/iscsiadm", &["-m", "node", "-T", &self.iqn, "-p", &self.portal, "--login"]);
        let host = self.host().unwrap();
        fs::write(format!("/sys/class/scsi_host/{host}/scan"), "0 0 0").unwrap();
        format!("/sys/class/scsi_device/{}:0:0:0/device/block", &host["host".len()..])
    }

    /// Delete the disk, log out, and look until both are gone.
    pub(crate) fn detach(&self, disk: &Path) {
        self.logout(disk);
        spin(|| self.is_gone(disk).then_some(()));
    }

    fn logout(&self, disk: &Path) {
        fs::write(block(disk).join("device/delete"), "1").unwrap();
        run("/usr/sbin/iscsiadm", &["-m", "node", "-T", &self.iqn, "-p", &self.portal, "--logout"]);
    }

    fn is_gone(&self, disk: &Path) -> bool {
        !block(disk).exists() && !disk.exists() && self.host().is_none()
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
        let _ = fs::remove_dir_all(format!("{NODES}/{}", self.iqn));
    }
}

impl Crowd {
    pub(crate) fn new(iqns: &[String], portal: &str) -> Self {
        let first = Floor::new(&iqns[0], portal);
        let others: Vec<Floor> = iqns[1..].iter().map(|iqn| first.beside(iqn)).collect();
        Self(std::iter::once(first).chain(others).collect())
    }

    /// A thread each, and one that looks.
    pub(crate) fn attach(&self) -> Vec<PathBuf> {
        let units: Vec<String> = thread::scope(|scope| {
            let logins: Vec<_> = self.0.iter().map(|floor| scope.spawn(|| floor.login())).collect();
            logins.into_iter().map(|login| login.join().unwrap()).collect()
        });
        spin(|| units.iter().map(|unit| node(unit)).collect())
    }

    pub(crate) fn detach(&self, disks: &[PathBuf]) {
        thread::scope(|scope| {
            for (floor, disk) in self.0.iter().zip(disks) {
                scope.spawn(|| floor.logout(disk));
            }
        });
        spin(|| self.0.iter().zip(disks).all(|(floor, disk)| floor.is_gone(disk)).then_some(()));
    }
}

/// The node of the disk that stands there, if it does.
fn node(unit: &str) -> Option<PathBuf> {
    let node = Path::new("/dev").join(entries(unit).pop()?.file_name().unwrap());
    node.exists().then_some(node)
}

fn block(disk: &Path) -> PathBuf {
    Path::new("/sys/block").join(disk.file_name().unwrap())
}
