//! What is in a directory: volumes that are managed, files that could be, and why others could not.

use crate::{binding, provenance, refusal::machine, volume};
use driver::{Candidate, Derivation, Error, Locator, RawFile, Refusal, Result, Templates, Volume, VolumeKind};
use host::{Host, LoopDevice};
use std::path::Path;
use volume::Found;

/// Looks at files; the loop devices are asked for once, however many files there are.
pub(crate) struct Listing<'a> {
    host: &'a dyn Host,
    templates: &'a Templates,
    bound: Vec<LoopDevice>,
}

impl<'a> Listing<'a> {
    pub(crate) async fn new(host: &'a dyn Host, templates: &'a Templates) -> Result<Self> {
        Ok(Self { host, templates, bound: binding::all(host).await? })
    }

    /// Every regular file of a directory.
    pub(crate) async fn candidates(&self, directory: &Path) -> Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for (file, found) in files(self.host, directory).await? {
            match self.candidate(&file, found).await {
                Ok(candidate) => candidates.push(candidate),
                Err(error) => unless_gone(self.host, file, error).await?,
            }
        }
        Ok(candidates)
    }

    /// One file.
    pub(crate) async fn candidate(&self, file: &RawFile, found: Found) -> Result<Candidate> {
        let (managed, refusal) = match managed(self.host, file, &found).await {
            Ok(Some(volume)) => {
                let why = format!("managed as {}", volume.id);
                (Some(volume), Some(Refusal::Managed(why)))
            }
            Ok(None) => match provenance::rescue(self.host, file).await? {
                Some(rescue) => (None, Some(Refusal::Kind(Derivation::explained(&rescue.owner)))),
                None => (None, self.refusal(file, &found).await?),
            },
            Err(Error::WrongState { what }) => (None, Some(Refusal::Kind(what))),
            Err(error) => return Err(error),
        };
        let Found { identity, size_bytes } = found;
        let (locator, kind) = (Locator::File(file.clone()), VolumeKind::Volume);
        Ok(Candidate { locator, identity, kind, size_bytes, refusal, managed })
    }

    /// Why a file that is not managed by us cannot be.
    async fn refusal(&self, file: &RawFile, found: &Found) -> Result<Option<Refusal>> {
        let name = file.path().file_name().and_then(|name| name.to_str());
        if let Some(id) = name.and_then(|name| self.templates.id_in(name)) {
            return Ok(Some(Refusal::Managed(format!("named like a managed volume, as {id}"))));
        }
        if let Some(why) = found.unfit() {
            return Ok(Some(Refusal::Kind(why)));
        }
        let mut by = Vec::new();
        for bound in self.bound.iter().filter(|bound| binding::proved(bound) == found.identity) {
            by.push(format!("bound to {}", binding::node(bound).display()));
            by.extend(binding::users(self.host, bound).await?);
        }
        Ok((!by.is_empty()).then_some(Refusal::InUse(by)))
    }
}

/// The managed volumes of a directory.
pub(crate) async fn volumes(host: &dyn Host, directory: &Path) -> Result<Vec<Volume>> {
    let mut volumes = Vec::new();
    for (file, found) in files(host, directory).await? {
        match managed(host, &file, &found).await {
            Ok(volume) => volumes.extend(volume),
            Err(Error::WrongState { what }) => tracing::warn!("{} is passed over: {what}", file.path().display()),
            Err(error) => unless_gone(host, file, error).await?,
        }
    }
    Ok(volumes)
}

/// An error counts only while the file is there: it may go while we look at others.
async fn unless_gone(host: &dyn Host, file: RawFile, error: Error) -> Result<()> {
    match volume::look(host, &Locator::File(file)).await {
        Ok(None) => Ok(()),
        _ => Err(error),
    }
}

/// The volume that a file tells to be; `None` if it is not managed.
async fn managed(host: &dyn Host, file: &RawFile, found: &Found) -> Result<Option<Volume>> {
    Ok(provenance::read(host, file).await?.map(|provenance| Volume {
        origin: provenance.way_back(file),
        id: provenance.id,
        name: provenance.name,
        locator: Locator::File(file.clone()),
        size_bytes: found.size_bytes,
        identity: found.identity.clone(),
        kind: VolumeKind::Volume,
    }))
}

/// The regular files of a directory, sorted by name. Hidden ones are somebody's own business, half-written ones among
/// them; one whose name cannot stand in a locator could not be named to us.
async fn files(host: &dyn Host, directory: &Path) -> Result<Vec<(RawFile, Found)>> {
    let doing = || format!("list {}", directory.display());
    let place = host.real_path(directory).await.map_err(machine(doing()))?;
    let place = place.ok_or_else(|| Error::NotFound { what: format!("the directory {}", directory.display()) })?;
    if !host.file(&place).await.map_err(machine(doing()))?.is_some_and(|stat| stat.is_directory) {
        return Err(Error::invalid("scope", format!("{} is not a directory", directory.display())));
    }
    let mut files = Vec::new();
    for (name, stat) in host.files(directory).await.map_err(machine(doing()))? {
        let path = directory.join(&name);
        if let Some(Ok(file)) = path.to_str().map(RawFile::new)
            && stat.is_file
            && !name.starts_with('.')
        {
            files.push((file, Found::of(&stat)));
        }
    }
    Ok(files)
}
