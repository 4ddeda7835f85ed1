//! The Unix socket, and that there is one agent behind it. What whoever connects may do is for [`crate::callers`] to say.

use crate::config::AgentConfig;
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, set_permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio::net::UnixListener;

/// Anybody may connect. What he may do depends on the rules of the config, which name any number of users and groups, while
/// a file has one group; and whom none of them names hears how to come by a role, and is in the log.
const MODE: u32 = 0o666;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody holds the lock.
    #[error("another mortard runs here: it holds {}", path.display())]
    Taken {
        /// The lock file.
        path: PathBuf,
    },
    /// The kernel said no.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { doing, path, source }
}

/// The locks that make us the only agent with this socket, this journal and these stable paths (of which a host has one
/// set); held until dropped, or until we die.
pub(crate) struct OnlyOne {
    _socket: Flock<File>,
    _state: Flock<File>,
    _devices: Flock<File>,
}

/// Makes the directories and takes the locks.
pub(crate) fn be_the_only_one(config: &AgentConfig) -> Result<OnlyOne, SocketError> {
    let runtime = config.socket.parent().unwrap_or(Path::new("/"));
    for (directory, mode) in [(runtime, 0o755), (&config.state_directory, 0o700)] {
        DirBuilder::new().recursive(true).mode(mode).create(directory).map_err(failed("make", directory))?;
    }
    Ok(OnlyOne {
        _socket: lock(&beside(&config.socket))?,
        _state: lock(&config.state_directory.join("journal.lock"))?,
        _devices: lock(&beside(&config.device_directory))?,
    })
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(".lock");
    PathBuf::from(name)
}

fn lock(path: &Path) -> Result<Flock<File>, SocketError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed("open", path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::Error::EWOULDBLOCK => SocketError::Taken { path: path.to_owned() },
        other => failed("lock", path)(other.into()),
    })
}

/// Listens. The lock is ours, so a socket that is there is left over from an agent that died.
pub(crate) fn bind(config: &AgentConfig) -> Result<UnixListener, SocketError> {
    let path = &config.socket;
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(failed("listen on", path)(io::Error::other("something else has this name")));
        }
        #[expect(clippy::disallowed_methods, reason = "our own socket, before there is a host")]
        Ok(_) => std::fs::remove_file(path).map_err(failed("replace", path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at", path)(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on", path))?;
    set_permissions(path, Permissions::from_mode(MODE)).map_err(failed("set the mode of", path))?;
    Ok(listener)
}
