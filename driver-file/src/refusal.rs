//! What the machine says to a change of a file, turned into what the caller should do about it.

use driver::{Error, Locator};
use std::io::ErrorKind;

/// For `map_err`: the machine failed, or was too slow, while we were `doing` something.
pub(crate) fn machine(doing: impl Into<String>) -> impl FnOnce(host::Error) -> Error {
    let doing = doing.into();
    move |error| match error {
        host::Error::TimedOut { what, .. } => Error::TimedOut { waiting_for: format!("{what} (to {doing})") },
        error => Error::host(doing)(error),
    }
}

/// As [`machine`], where it is a file that we were `doing` something to.
pub(crate) fn of(locator: &Locator, doing: impl Into<String>) -> impl FnOnce(host::Error) -> Error {
    let (file, doing) = (locator.to_string(), doing.into());
    move |error| {
        let kind = match &error {
            host::Error::Io { source, path, .. } if locates(&file, path) => source.kind(),
            _ => ErrorKind::Other,
        };
        match kind {
            ErrorKind::ReadOnlyFilesystem => Error::WrongState {
                what: format!("{file} is on a read-only file system; attach it read-only, or remount that for writing"),
            },
            ErrorKind::PermissionDenied => Error::WrongState {
                what: format!("{file} may not be changed; if `lsattr` shows it immutable, `chattr -i` ends that"),
            },
            ErrorKind::ExecutableFileBusy => {
                Error::InUse { what: file, by: vec!["used as swap, or run as a program".into()] }
            }
            ErrorKind::Unsupported => Error::Unsupported {
                what: format!(
                    "the file system of {file} has no extended attributes, in which is kept what a managed volume or a \
                     rescue disk is; move the file to one that has them"
                ),
            },
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                Error::Full { what: format!("the file system of {file}"), why: machine(doing)(error).chain() }
            }
            ErrorKind::NotFound => Error::NotFound { what: file },
            _ => machine(doing)(error),
        }
    }
}

/// Whether it is the file that the machine speaks of, and not a device.
fn locates(file: &str, path: &std::path::Path) -> bool {
    file.strip_prefix("file:").is_some_and(|file| std::path::Path::new(file) == path)
}
