//! Serves a block device of this host to one initiator as an iSCSI target of the kernel (LIO), and takes it away again: the
//! other half of attaching a volume of one host on another.
//!
//! Everything is done in configfs, where making a directory makes the thing and removing it removes it; no process is
//! started, and nothing is kept but the host's key ([`secret`]). The names are the mark of what is ours: the backstore
//! `mortar-ID` of an HBA that nobody else counts up to, and the target that ends with `:export-ID`.
//!
//! ```text
//!   core/iblock_3260/mortar-ID  ◀── device, serial        (what is served)
//!         ▲
//!   iscsi/TARGET/tpgt_1/lun/lun_0
//!         ▲
//!   iscsi/TARGET/tpgt_1/acls/INITIATOR/lun_0, auth/       (to whom)
//!   iscsi/TARGET/tpgt_1/np/ADDRESS:PORT                   (where)
//!   iscsi/TARGET/tpgt_1/enable                            (from when on)
//!
//!           serve: downwards                withdraw: portals, then upwards
//!   absent ─────────────────▶ served ──────────────────────────────────────▶ absent
//!      ▲                        │ ▲    └─ somebody came in meanwhile: portals again, refused
//!      └──────── withdraw ──────┘ └── serve: whatever a crash left is made whole
//! ```
//!
//! Both verbs look before each step and may be repeated from any state. Nothing of it survives a reboot: who wants that calls
//! [`Exporter::serve`] again.

mod connection;
mod id;
mod inventory;
mod secret;
mod serve;
mod session;
mod tree;
mod withdraw;

#[cfg(test)]
mod tests;

pub use connection::connection_info;
pub use id::{ExportId, Serial, target_name};
pub use inventory::Seen;
pub use session::Session;

use driver::{Chap, Error, Iqn, Portal, Readiness, Result};
use host::Host;
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Mutex;
use tree::Tree;
use uuid::Uuid;

/// What is served, to whom and where. Holds no secret, and no device: that may have another name after a reboot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The caller's id.
    pub id: ExportId,
    /// The target's own name: see [`target_name`].
    pub target: Iqn,
    /// Who may log in.
    pub initiator: Iqn,
    /// Where the target listens. The addresses need not be there yet.
    pub portals: Vec<Portal>,
    /// The initiator may only read. A device that refuses writes itself can be served in no other way.
    pub read_only: bool,
    /// What the WWN is made from, so that it is the same whenever the volume is exported.
    pub serial: Serial,
    /// New with each export: the secret of an earlier one under the same id opens nothing.
    pub generation: Uuid,
}

/// The settings of the exporter.
#[derive(Debug, Clone)]
pub struct ExportConfig {
    /// Where configfs is.
    pub configfs: PathBuf,
    /// Where the host's key is kept. It is made when it is first needed.
    pub key: PathBuf,
}

/// How far an export is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing of it is there.
    Absent,
    /// Something is missing: nobody can log in, or not everywhere.
    Broken,
    /// Its initiator can log in at every portal.
    Served,
}

/// Serves devices of one host.
pub struct Exporter {
    host: Arc<dyn Host>,
    tree: Tree,
    key: PathBuf,
    /// The HBA is shared by all exports: it comes with the first and goes with the last.
    hba: Mutex<()>,
    /// The key is made once.
    making_key: Mutex<()>,
}

impl Exporter {
    /// An exporter that works on `host`.
    pub fn new(host: Arc<dyn Host>, config: ExportConfig) -> Self {
        let tree = Tree::new(&config.configfs);
        Self { host, tree, key: config.key, hba: Mutex::default(), making_key: Mutex::default() }
    }

    /// What is missing on this host, and what to do about it.
    pub fn readiness(&self) -> Readiness {
        let problem = match self.host.stat(&self.tree.core()) {
            Ok(Some(_)) => None,
            _ => Some("the kernel's target is not loaded; run modprobe target_core_mod".to_owned()),
        };
        Readiness { problem, tools: Vec::new() }
    }

    /// Serves `device`, or makes whole what is there of it.
    pub async fn serve(&self, export: &Export, device: &Path) -> Result<()> {
        if let Some(problem) = self.readiness().problem {
            return Err(Error::Unsupported { what: format!("nothing can be exported from this host: {problem}") });
        }
        serve::serve(self, export, device).await
    }

    /// Takes it away, and sees that it is gone. [`Error::InUse`] names the initiator that is logged in; then it is served on.
    pub async fn withdraw(&self, export: &Export) -> Result<()> {
        withdraw::withdraw(self, export).await
    }

    /// How far it is there.
    pub fn state(&self, export: &Export) -> Result<State> {
        serve::state(self, export)
    }

    /// Who is logged in.
    pub fn sessions(&self, export: &Export) -> Result<Vec<Session>> {
        session::list(self, export)
    }

    /// The name and the password that the initiator proves itself with.
    pub async fn chap(&self, export: &Export) -> Result<Chap> {
        let key = {
            let _one = self.making_key.lock().await;
            secret::host_key(self.host.as_ref(), &self.key).await?
        };
        Ok(Chap { user: self.tree.name(&export.id), password: secret::derive(&key, export) })
    }
}

/// For `map_err`: the machine failed while we were `doing` something. What did not end in time may be tried again.
fn failed(doing: impl Into<String>) -> impl FnOnce(host::Error) -> Error {
    let doing = doing.into();
    move |error| match error {
        host::Error::TimedOut { what, .. } => Error::TimedOut { waiting_for: what },
        other => Error::host(doing)(other),
    }
}
