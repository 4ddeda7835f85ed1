//! A volume that begins as a copy of another: a file beside its image. It is made under a hidden name that is nobody else's,
//! marked there, and then renamed; so what has the name of a rescue disk is whole, and bears its mark.
//!
//! ```text
//!   share the blocks (FICLONE) ──▶ mark ──▶ rename
//!     └ the file system cannot: an overlay (qemu-img) ─┐
//!         └ there is no qemu-img: copy every byte ─────┴▶ mark ──▶ rename
//! ```
//!
//! An overlay needs its image for as long as it is used; the two others are on their own.

use crate::{
    binding,
    header::{self, Disk},
    provenance::{self, Rescue},
    refusal::{self, machine},
    volume::{self, Found},
};
use driver::{Derivation, Derived, DiskFormat, Error, Identity, Locator, Means, RawFile, Result};
use host::{Command, FileStat, Host, Output, Tool};
use std::{io::ErrorKind, path::Path, time::Duration};
use tokio::time::Instant;

/// How long the first bytes of a file are waited for.
const PATIENCE: Duration = Duration::from_secs(20);

const BEFORE: &str = "rescue-";
const AFTER: &str = ".img";

/// See [`driver::Driver::plan_derivation`].
pub(crate) async fn plan(host: &dyn Host, image: &Locator, owner: &str) -> Result<Derivation> {
    let file = volume::file(image)?;
    let to = Locator::File(RawFile::new(&file.sibling(&name_of(owner)?).path().to_string_lossy())?);
    let found = volume::present(host, image).await?;
    look_at(host, image, &found).await?;
    if let Some(Rescue { owner, .. }) = provenance::rescue(host, file).await? {
        let what = format!("{image} cannot be an image: {}", Derivation::explained(&owner));
        return Err(Error::WrongState { what });
    }
    if volume::look(host, &to).await?.is_some() {
        return Err(match provenance::rescue(host, volume::file(&to)?).await? {
            Some(there) if there.owner == owner => {
                Error::WrongState { what: format!("{to} is there already: {}", Derivation::explained(owner)) }
            }
            _ => taken(&to),
        });
    }
    Ok(Derivation { owner: owner.into(), image: image.clone(), identity: found.identity, to })
}

/// See [`driver::Driver::derive`].
pub(crate) async fn derive(host: &dyn Host, derivation: &Derivation, deadline: Instant) -> Result<Derived> {
    let plan = Plan::new(derivation)?;
    if let Some(there) = plan.there(host).await? {
        return derived(host, &derivation.to, &there).await;
    }
    let found = volume::present(host, &derivation.image).await?;
    volume::same(&derivation.image, &derivation.identity, &found.identity)?;
    let disk = look_at(host, &derivation.image, &found).await?;
    host.remove(plan.half.path()).await.map_err(machine(format!("remove {}", plan.half.path().display())))?;
    let made = async {
        let (means, format) = plan.fill(host, disk, deadline).await?;
        let rescue = Rescue { owner: derivation.owner.clone(), means, format };
        provenance::write_rescue(host, &plan.half, &rescue).await?;
        match host.rename(plan.half.path(), plan.to.path()).await {
            Ok(()) => Ok(rescue),
            Err(host::Error::Exists { .. }) => Err(taken(&derivation.to)),
            Err(error) => Err(machine(format!("rename {}", plan.half.path().display()))(error)),
        }
    };
    let made = made.await;
    if made.is_err()
        && let Err(left) = host.remove(plan.half.path()).await
    {
        tracing::warn!("{} is left: {}", plan.half.path().display(), machine("remove it")(left).chain());
    }
    derived(host, &derivation.to, &made?).await
}

/// See [`driver::Driver::discard`].
pub(crate) async fn discard(host: &dyn Host, derivation: &Derivation) -> Result<()> {
    let plan = Plan::new(derivation)?;
    plan.there(host).await?;
    for file in [plan.to, &plan.half] {
        if let Some(found) = volume::look(host, &Locator::File(file.clone())).await? {
            let by = users(host, file, &found.identity).await?;
            if !by.is_empty() {
                return Err(Error::InUse { what: derivation.to.to_string(), by });
            }
        }
    }
    for file in [plan.to, &plan.half] {
        let doing = format!("remove {}", file.path().display());
        host.remove(file.path()).await.map_err(refusal::of(&Locator::File(file.clone()), doing))?;
        if volume::look(host, &Locator::File(file.clone())).await?.is_some() {
            let what = format!("{} is there again: somebody else made it; try again", file.path().display());
            return Err(Error::WrongState { what });
        }
    }
    Ok(())
}

/// See [`driver::Driver::derivations`]; in one directory. A half-made one is told by its name.
pub(crate) async fn list(host: &dyn Host, directory: &Path) -> Result<Vec<Derivation>> {
    let mut found: Vec<Derivation> = Vec::new();
    for (name, FileStat { device, inode, .. }) in
        host.files(directory).await.map_err(machine(format!("list {}", directory.display())))?
    {
        let whole = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new"));
        let file = directory.join(whole.unwrap_or(&name));
        let Some(Ok(to)) = file.to_str().map(RawFile::new) else { continue };
        let owner = match whole {
            Some(name) => name.strip_prefix(BEFORE).and_then(|rest| rest.strip_suffix(AFTER)).map(str::to_owned),
            None if name.starts_with('.') => None,
            None => match volume::look(host, &Locator::File(to.clone())).await {
                Ok(Some(_)) => provenance::rescue(host, &to).await?.map(|rescue| rescue.owner),
                _ => None,
            },
        };
        let is_named = |owner: &String| name_of(owner).is_ok_and(|name| to.path().file_name() == Some(name.as_ref()));
        let Some(owner) = owner.filter(is_named) else { continue };
        if found.iter().all(|known| known.owner != owner) {
            let to = Locator::File(to);
            // Which file it was made of nothing tells, and a discard does not ask.
            found.push(Derivation { owner, image: to.clone(), identity: Identity::File { device, inode }, to });
        }
    }
    Ok(found)
}

/// A derivation in one directory.
struct Plan<'a> {
    owner: &'a str,
    identity: &'a Identity,
    image: &'a RawFile,
    to: &'a RawFile,
    /// What it is called while it is made.
    half: RawFile,
}

impl<'a> Plan<'a> {
    fn new(derivation: &'a Derivation) -> Result<Self> {
        let (image, to) = (volume::file(&derivation.image)?, volume::file(&derivation.to)?);
        let (owner, name) = (&derivation.owner, name_of(&derivation.owner)?);
        if to.path() != image.sibling(&name).path() {
            return Err(Error::invalid(
                "locator",
                format!("{} is no place for a copy of {}", derivation.to, derivation.image),
            ));
        }
        Ok(Self { owner, identity: &derivation.identity, image, to, half: to.sibling(&format!(".{name}.new")) })
    }

    /// What the derived volume's mark says, if it is there; an error if what has its name does not bear the mark.
    async fn there(&self, host: &dyn Host) -> Result<Option<Rescue>> {
        let at = Locator::File(self.to.clone());
        if volume::look(host, &at).await?.is_none() {
            return Ok(None);
        }
        match provenance::rescue(host, self.to).await? {
            Some(rescue) if rescue.owner == self.owner => Ok(Some(rescue)),
            _ => Err(taken(&at)),
        }
    }

    /// Makes it, by the least of means that works here.
    async fn fill(&self, host: &dyn Host, disk: Disk, deadline: Instant) -> Result<(Means, DiskFormat)> {
        let (image, half) = (self.image.path(), self.half.path());
        let failed = |error| refusal::of(&Locator::File(self.half.clone()), format!("make {}", half.display()))(error);
        let copied = match host.reflink(image, half).await {
            Ok(copied) => Some((copied, Means::Reflink)),
            Err(host::Error::Io { source, .. }) if source.kind() == ErrorKind::Unsupported => None,
            Err(error) => return Err(failed(error)),
        };
        let (copied, means) = match copied {
            Some(done) => done,
            None if host.tool(Tool::QemuImg).is_some() => {
                self.overlay(host, disk, deadline).await?;
                return Ok((Means::Overlay, DiskFormat::Qcow2));
            }
            None => (host.copy(image, half, deadline).await.map_err(failed)?, Means::Copy),
        };
        let copied = Identity::File { device: copied.device, inode: copied.inode };
        volume::same(&Locator::File(self.image.clone()), self.identity, &copied)?;
        Ok((means, disk.format))
    }

    /// The image is not opened for it (`-u`): nothing in it can lead anywhere.
    async fn overlay(&self, host: &dyn Host, disk: Disk, deadline: Instant) -> Result<()> {
        let (image, half) = (self.image.path().to_string_lossy(), self.half.path());
        // So that nobody else may read it, as it is the other way round with what qemu-img makes.
        host.replace(half, b"", 0o600).await.map_err(machine(format!("make {}", half.display())))?;
        let (format, size) = (disk.format.to_string(), disk.size_bytes.to_string());
        let shown = half.to_string_lossy();
        let args = ["create", "-q", "-f", "qcow2", "-F", &format, "-b", &image, "-u", &shown, &size];
        let left = deadline.saturating_duration_since(Instant::now());
        let output = host.run(Command::write(Tool::QemuImg, args).within(left)).await;
        classify(format!("make {shown} over {image}"), &output.map_err(machine("run qemu-img"))?)
    }
}

/// What qemu-img's words mean.
fn classify(doing: String, output: &Output) -> Result<()> {
    match output.code {
        0 => Ok(()),
        _ if output.said().contains("No space left on device") => Err(Error::Full { what: doing, why: output.said() }),
        code => Err(Error::Tool { doing, tool: "qemu-img", code: code.to_string(), said: output.said() }),
    }
}

/// What a file is, as an image.
async fn look_at(host: &dyn Host, image: &Locator, found: &Found) -> Result<Disk> {
    let refused = |why: String| Error::WrongState { what: format!("{image} cannot be an image: {why}") };
    let head = head(host, image).await?;
    let disk = header::read(&head, found.size_bytes).map_err(refused)?;
    match found.unfit().filter(|_| disk.format == DiskFormat::Raw) {
        Some(why) => Err(refused(why)),
        None => Ok(disk),
    }
}

async fn head(host: &dyn Host, file: &Locator) -> Result<Vec<u8>> {
    let head = host.head(volume::file(file)?.path(), header::LENGTH, PATIENCE).await;
    head.map_err(refusal::of(file, format!("read {file}")))
}

/// Its format is what it was made as: what a guest has written to it by now decides nothing.
async fn derived(host: &dyn Host, to: &Locator, rescue: &Rescue) -> Result<Derived> {
    let found = volume::present(host, to).await?;
    let size_bytes = match rescue.format {
        DiskFormat::Raw => found.size_bytes,
        DiskFormat::Qcow2 => {
            let size = header::size(&head(host, to).await?);
            size.ok_or_else(|| Error::WrongState { what: format!("{to} is no qcow2 any more; make it again") })?
        }
    };
    Ok(Derived { means: rescue.means, format: rescue.format, size_bytes })
}

/// Who has a file open, or bound.
async fn users(host: &dyn Host, file: &RawFile, identity: &Identity) -> Result<Vec<String>> {
    let mut by = Vec::new();
    for bound in binding::all(host).await?.iter().filter(|bound| binding::proved(bound) == *identity) {
        by.push(format!("bound to {}", binding::node(bound).display()));
        by.extend(binding::users(host, bound).await?);
    }
    let openers = host.openers(file.path()).await;
    let openers = openers.map_err(machine(format!("look who has {} open", file.path().display())))?;
    by.extend(openers.iter().map(ToString::to_string));
    Ok(by)
}

fn name_of(owner: &str) -> Result<String> {
    Ok(Derivation::name(owner)? + AFTER)
}

fn taken(to: &Locator) -> Error {
    Error::WrongState {
        what: format!("{to} does not bear the mark of a rescue disk, so it stays; give it another name"),
    }
}
