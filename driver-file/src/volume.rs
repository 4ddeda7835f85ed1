//! A volume as a file: what makes a regular file one, and whether it is the one that was meant.

use crate::refusal::machine;
use driver::{Error, Identity, Locator, RawFile, Result};
use host::{FileStat, Host};

/// The kernel counts a block device's size in these.
const SECTOR: u64 = 512;

/// A regular file as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) identity: Identity,
    pub(crate) size_bytes: u64,
}

impl Found {
    pub(crate) fn of(stat: &FileStat) -> Self {
        Self { identity: Identity::File { device: stat.device, inode: stat.inode }, size_bytes: stat.size_bytes }
    }

    /// Why it cannot be a block device; `None` if it can.
    pub(crate) fn unfit(&self) -> Option<String> {
        match self.size_bytes {
            0 => Some("it is empty; `truncate -s SIZE` gives it a size".into()),
            size if !size.is_multiple_of(SECTOR) => {
                Some(format!("it has {size} bytes, which is no multiple of 512; `truncate -s %512` rounds it up"))
            }
            _ => None,
        }
    }
}

/// The file that a locator names.
pub(crate) fn file(locator: &Locator) -> Result<&RawFile> {
    match locator {
        Locator::File(file) => Ok(file),
        other => Err(Error::invalid("locator", format!("{other} is no file; write file:/ABSOLUTE/PATH"))),
    }
}

/// What a locator leads to; `None` if nothing is there.
pub(crate) async fn look(host: &dyn Host, locator: &Locator) -> Result<Option<Found>> {
    let path = file(locator)?.path();
    let stat = host.file(path).await.map_err(machine(format!("look at {locator}")))?;
    let Some(stat) = stat else { return Ok(None) };
    if !stat.is_file {
        let kind = if stat.is_directory { "a directory" } else { "a link or a device node" };
        return Err(Error::WrongState { what: format!("{locator} is {kind}; name the regular file itself") });
    }
    Ok(Some(Found::of(&stat)))
}

/// As [`look`], where it has to be there.
pub(crate) async fn present(host: &dyn Host, locator: &Locator) -> Result<Found> {
    look(host, locator).await?.ok_or_else(|| Error::NotFound { what: locator.to_string() })
}

/// As [`present`], where it has to be fit for a device.
pub(crate) async fn attachable(host: &dyn Host, locator: &Locator) -> Result<Found> {
    let found = present(host, locator).await?;
    match found.unfit() {
        None => Ok(found),
        Some(why) => Err(Error::WrongState { what: format!("{locator} cannot be a device: {why}") }),
    }
}

/// That a name still leads to the file that was meant by it.
pub(crate) fn same(locator: &Locator, expected: &Identity, found: &Identity) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: format!("{locator} was replaced: it"),
        expected: expected.to_string(),
        found: found.to_string(),
    })
}
