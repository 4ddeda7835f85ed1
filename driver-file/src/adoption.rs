//! Manage and unmanage: a rename within the directory. Both begin by looking which of the two names the file has, and so
//! go on from wherever a crash left them:
//!
//! | | first | then |
//! |---|---|---|
//! | manage | attributes | rename |
//! | unmanage | rename | attributes |
//!
//! So a file with a managed name always tells where it came from.

use crate::{
    provenance::{self, Provenance},
    refusal::{self, machine},
    volume::{self, Found},
};
use driver::{Adoption, Error, Identity, Locator, RawFile, Release, Result, Volume, VolumeKind};
use host::Host;

pub(crate) async fn manage(host: &dyn Host, adoption: &Adoption) -> Result<Volume> {
    let Adoption { id, name, from, to, identity } = adoption;
    let provenance = Provenance { id: *id, name: name.clone(), origin: volume::file(from)?.clone() };
    let (found, renamed) = match whereabouts(host, from, to, identity).await? {
        Whereabouts::Here(found) => (found, false),
        Whereabouts::There(found) => (found, true),
    };
    let file = volume::file(if renamed { to } else { from })?;
    let written = provenance::read(host, file).await?;
    if let Some(other) = written.as_ref().filter(|written| written.id != *id) {
        return Err(Error::AlreadyExists { what: format!("{from} is managed already, as {}", other.id) });
    }
    if !renamed {
        check_is_free(host, to).await?;
    }
    if written.as_ref() != Some(&provenance) {
        provenance::write(host, file, &provenance).await?;
    }
    if !renamed {
        rename(host, from, to).await?;
    }
    Ok(Volume {
        id: *id,
        name: name.clone(),
        locator: to.clone(),
        origin: from.clone(),
        size_bytes: found.size_bytes,
        identity: found.identity,
        kind: VolumeKind::Volume,
    })
}

pub(crate) async fn unmanage(host: &dyn Host, release: &Release) -> Result<()> {
    let Release { id, from, to, identity } = release;
    let renamed = matches!(whereabouts(host, from, to, identity).await?, Whereabouts::There(_));
    let file = volume::file(if renamed { to } else { from })?;
    if let Some(other) = provenance::read(host, file).await?.filter(|written| written.id != *id) {
        return Err(Error::Mismatch {
            what: format!("the id of {}", Locator::File(file.clone())),
            expected: id.to_string(),
            found: other.id.to_string(),
        });
    }
    if !renamed {
        rename(host, from, to).await?;
    }
    provenance::remove(host, volume::file(to)?).await
}

/// Under which of its two names a file is.
enum Whereabouts {
    /// Under the one it had.
    Here(Found),
    /// Under the one it is to have.
    There(Found),
}

async fn whereabouts(host: &dyn Host, from: &Locator, to: &Locator, identity: &Identity) -> Result<Whereabouts> {
    let (here, there): (&RawFile, &RawFile) = (volume::file(from)?, volume::file(to)?);
    if here.path().parent() != there.path().parent() {
        return Err(Error::invalid("locator", format!("{to} is not in the directory of {from}")));
    }
    match (volume::look(host, from).await?, volume::look(host, to).await?) {
        (_, Some(found)) if found.identity == *identity && from == to => Ok(Whereabouts::There(found)),
        // Two names of one file: only the first is ours to change.
        (Some(found), _) if found.identity == *identity => Ok(Whereabouts::Here(found)),
        (_, Some(found)) if found.identity == *identity => Ok(Whereabouts::There(found)),
        (None, None) => Err(Error::NotFound { what: format!("{from} or {to}") }),
        (Some(other), _) | (None, Some(other)) => Err(Error::Mismatch {
            what: format!("the file that was {from}"),
            expected: identity.to_string(),
            found: other.identity.to_string(),
        }),
    }
}

async fn check_is_free(host: &dyn Host, name: &Locator) -> Result<()> {
    match host.file(volume::file(name)?.path()).await.map_err(machine(format!("look at {name}")))? {
        None => Ok(()),
        Some(_) => Err(taken(name)),
    }
}

async fn rename(host: &dyn Host, from: &Locator, to: &Locator) -> Result<()> {
    match host.rename(volume::file(from)?.path(), volume::file(to)?.path()).await {
        Ok(()) => Ok(()),
        Err(host::Error::Exists { .. }) => Err(taken(to)),
        Err(error) => Err(refusal::of(from, format!("rename {from} to {to}"))(error)),
    }
}

fn taken(name: &Locator) -> Error {
    Error::AlreadyExists { what: format!("{name} is another file; rename or remove that first") }
}
