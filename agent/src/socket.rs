//! The Unix socket, and that there is one agent behind it. Where systemd listens already (`mortard.socket`), it is systemd's,
//! with the mode of that unit; else it is made here, and goes with us. What whoever connects may do is for
//! [`crate::callers`] to say.

use crate::config::AgentConfig;
use nix::fcntl::{Flock, FlockArg};
use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions, set_permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::{Stream, StreamExt, wrappers::UnixListenerStream};

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

/// What we listen on.
pub(crate) struct Socket {
    listeners: Vec<UnixListener>,
    /// Made by us, to be removed by us.
    _own: Option<Own>,
}

/// A socket's name in the file system, for as long as this lives.
struct Own(PathBuf);

impl Drop for Own {
    fn drop(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "our own socket; the lock is ours until we end")]
        let _gone_already = std::fs::remove_file(&self.0);
    }
}

/// Those who connect.
type Incoming = Pin<Box<dyn Stream<Item = io::Result<UnixStream>> + Send>>;

impl Socket {
    pub(crate) fn incoming(&mut self) -> Incoming {
        let streams = std::mem::take(&mut self.listeners).into_iter().map(UnixListenerStream::new);
        let all = streams.map(|stream| Box::pin(stream) as Incoming).reduce(|one, other| Box::pin(one.merge(other)));
        all.unwrap_or_else(|| Box::pin(tokio_stream::pending()))
    }
}

/// Listens where systemd does; and on a socket of our own, unless that is one of them.
pub(crate) fn listen(config: &AgentConfig) -> Result<Socket, SocketError> {
    let path = &config.socket;
    let from_systemd = || failed("take from systemd, instead of", path);
    let (mut listeners, mut ours_is_there) = (Vec::new(), false);
    for listener in host::inherited_listeners().map_err(from_systemd())? {
        let address = listener.local_addr().map_err(from_systemd())?;
        ours_is_there |= address.as_pathname() == Some(path);
        listener.set_nonblocking(true).map_err(from_systemd())?;
        listeners.push(UnixListener::from_std(listener).map_err(from_systemd())?);
    }
    if ours_is_there {
        return Ok(Socket { listeners, _own: None });
    }
    listeners.push(bind(path)?);
    let own = Own(path.clone());
    Ok(Socket { listeners, _own: Some(own) })
}

/// The lock is ours, so a socket that is there is left over from an agent that died.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, SocketError> {
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
