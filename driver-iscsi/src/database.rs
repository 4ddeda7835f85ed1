//! Our part of open-iscsi's data base, a tree of files below `/etc/iscsi`: one interface, and a node record while a login runs.
//!
//! *The interface.* Every session has an interface's name, and the kernel shows it (`/sys/class/iscsi_session/*/ifacename`).
//! Ours is `mortar`. So who owns a session is written on the session itself, and needs no record that could be lost.
//! `iscsiadm` wants a file for an interface that is named to it. Ours says no transport, on purpose: with one, an operator's
//! discovery would bind all that it finds to our interface instead of to `default`. It is there as long as anything of ours
//! is.
//!
//! *The directories of a record.* Each `iscsiadm` walks the whole tree, and fails (exit code 6) if a directory that it has
//! just listed is gone. So what a record leaves empty is removed only while no run of ours is under way: by the last one to
//! leave. An agent that died before it came to that finds them by its sessions.

use crate::{
    IscsiConfig,
    place::Place,
    record::{self, INTERFACE},
    session, view,
};
use driver::{Error, Result};
use host::Host;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use tokio::sync::{Mutex as AsyncMutex, RwLock, RwLockReadGuard};

const TEXT: &str = "# Written by mortar, and removed with its last session. It marks the sessions that are mortar's.
# It names no transport, so that `iscsiadm -m discovery` goes on using the interface `default`.
iface.iscsi_ifacename = mortar
";

#[derive(Debug)]
pub(crate) struct Database {
    nodes: PathBuf,
    interface: PathBuf,
    view: PathBuf,
    /// Shared by all who need it as it is, held alone by whoever removes what others could be walking through.
    visitors: RwLock<()>,
    /// One visitor writes the interface; the others wait for it.
    interface_written: AsyncMutex<()>,
    /// Directories of ours that hold nothing any more.
    emptied: Mutex<BTreeSet<PathBuf>>,
}

impl Database {
    pub(crate) fn new(config: &IscsiConfig) -> Self {
        Self {
            nodes: config.nodes.clone(),
            interface: config.interfaces.join(INTERFACE),
            view: config.view.clone(),
            visitors: RwLock::new(()),
            interface_written: AsyncMutex::new(()),
            emptied: Mutex::default(),
        }
    }

    /// For a run of `iscsiadm`: the interface is there, and as long as the guard lives no directory of ours goes. To be
    /// followed by [`Database::tidy`].
    pub(crate) async fn visit(&self, host: &dyn Host) -> Result<RwLockReadGuard<'_, ()>> {
        let guard = self.visitors.read().await;
        let _one = self.interface_written.lock().await;
        let doing = || format!("write open-iscsi's interface {}", self.interface.display());
        if host.stat(&self.interface).map_err(Error::host(doing()))?.is_none() {
            host.replace_unsynced(&self.interface, TEXT.as_bytes(), 0o600).await.map_err(Error::host(doing()))?;
        }
        Ok(guard)
    }

    /// The file of our record for a portal.
    pub(crate) fn record(&self, place: &Place) -> PathBuf {
        record::path(&self.nodes, place)
    }

    /// Removes our record, if it is there, and what a crash may have left of one that was being written.
    pub(crate) async fn clear(&self, host: &dyn Host, place: &Place) -> host::Result<()> {
        let _guard = self.visitors.read().await;
        let record = self.record(place);
        remove_whole(host, &record).await?;
        self.note(host, record.parent())
    }

    /// Notes what a dead agent may have left empty of the records of sessions that it has brought up.
    pub(crate) fn recall(&self, host: &dyn Host) -> host::Result<()> {
        for named in session::all(host)?.iter().filter(|named| named.session.ours) {
            let directory = named.portal.as_ref().map(|portal| record::directory(&self.nodes, &named.iqn, portal));
            self.note(host, directory.as_deref())?;
        }
        Ok(())
    }

    /// Notes that a record's directory, and those that it is in, may be empty.
    fn note(&self, host: &dyn Host, directory: Option<&Path>) -> host::Result<()> {
        for directory in directory.into_iter().flat_map(Path::ancestors).take_while(|above| *above != self.nodes) {
            if host.stat(directory)?.is_some_and(|there| there.is_directory) {
                self.emptied.lock().unwrap_or_else(PoisonError::into_inner).insert(directory.into());
            }
        }
        Ok(())
    }

    /// Removes the directories that our records left empty, and the interface with our last session. Does nothing if somebody
    /// visits: he comes here afterwards himself.
    pub(crate) async fn tidy(&self, host: &dyn Host) {
        let Ok(_alone) = self.visitors.try_write() else { return };
        if let Err(error) = self.tidy_alone(host).await {
            tracing::warn!(%error, "cannot tidy up open-iscsi's data base");
        }
    }

    async fn tidy_alone(&self, host: &dyn Host) -> host::Result<()> {
        let emptied = std::mem::take(&mut *self.emptied.lock().unwrap_or_else(PoisonError::into_inner));
        // Those within others first. One that holds an operator's records is not empty, and stays.
        for directory in emptied.iter().rev() {
            host.remove(directory).await?;
        }
        if !session::any_ours(host)? {
            remove_whole(host, &self.interface).await?;
        }
        view::tidy(host, &self.view).await
    }
}

/// Removes a file, and the one that [`Host::replace`] makes beside it and that a crash may leave: a record's holds the
/// password as well, and to `iscsiadm` it is one more record.
async fn remove_whole(host: &dyn Host, file: &Path) -> host::Result<()> {
    for file in [file.with_file_name(format!(".{INTERFACE}.new")), file.to_owned()] {
        if host.stat(&file)?.is_some() {
            host.remove(&file).await?;
        }
    }
    Ok(())
}
