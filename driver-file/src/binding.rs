//! Loop devices: which are bound to a file and whose they are, and how one of ours comes and goes.

use crate::{
    refusal::{self, machine},
    volume,
};
use driver::{Device, DevicePath, Error, Identity, Locator, Residual, ResidualKind, Result, Spec};
use host::{Host, LoopDevice, LoopSetup, block_device, wait_for};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};
use tokio::time::Instant;

/// What the kernel keeps with a loop device of ours.
pub(crate) const LABEL: &str = "mortar";

/// Where sysfs keeps the block devices.
pub(crate) const BLOCK: &str = "/sys/block";

/// Every loop device that is bound to a file and tells which, ours or not.
pub(crate) async fn all(host: &dyn Host) -> Result<Vec<LoopDevice>> {
    host.loop_devices().await.map_err(machine("list the loop devices"))
}

/// One of them.
pub(crate) async fn one(host: &dyn Host, name: &str) -> Result<Option<LoopDevice>> {
    host.loop_device(name).await.map_err(machine(format!("ask {name} for its file")))
}

/// Those that are bound to one file, by whomever. [`Error::TimedOut`] if that cannot be known.
async fn bound_to(host: &dyn Host, locator: &Locator, identity: &Identity) -> Result<Vec<LoopDevice>> {
    let mut all = all(host).await?;
    if !all.iter().any(|device| proved(device) == *identity) {
        is_known_to_be_absent(host, &all, locator)?;
    }
    all.retain(|device| proved(device) == *identity);
    Ok(all)
}

/// That a file which none of `all` is bound to is bound to none that did not answer, either.
pub(crate) fn is_known_to_be_absent(host: &dyn Host, all: &[LoopDevice], locator: &Locator) -> Result<()> {
    match silent(host, all, locator).map_err(machine("list the loop devices"))? {
        None => Ok(()),
        Some(node) => Err(Error::TimedOut {
            waiting_for: format!("{}, which does not tell whether it is bound to {locator}", node.display()),
        }),
    }
}

/// A loop device that does not answer, as the server with its file is gone, and whose file has the name that we look for.
/// It must not be taken for absent; those with other names are not our concern.
fn silent(host: &dyn Host, told: &[LoopDevice], locator: &Locator) -> host::Result<Option<PathBuf>> {
    let Locator::File(file) = locator else { return Ok(None) };
    let told: HashSet<&str> = told.iter().map(|device| device.name.as_str()).collect();
    let names = host.list(Path::new(BLOCK))?.into_iter();
    for name in names.filter(|name| name.starts_with("loop") && !told.contains(name.as_str())) {
        if has_name(host, &name, file.path())? {
            return Ok(Some(Path::new("/dev").join(name)));
        }
    }
    Ok(None)
}

/// Whether a loop device is bound to a file of this name, in whichever directory.
fn has_name(host: &dyn Host, name: &str, file: &Path) -> host::Result<bool> {
    let bound = host.read(&backing_file(name))?;
    Ok(bound.is_some_and(|bound| {
        Path::new(bound.strip_suffix(" (deleted)").unwrap_or(&bound)).file_name() == file.file_name()
    }))
}

/// Those that we bound to one file.
pub(crate) async fn ours(host: &dyn Host, locator: &Locator, identity: &Identity) -> Result<Vec<LoopDevice>> {
    Ok(bound_to(host, locator, identity).await?.into_iter().filter(|device| device.label == LABEL).collect())
}

/// The loop device of ours that an attach may go on with: left by a crash. [`Error::InUse`] if the file is bound by
/// somebody else, or by a device that is on its way out, or by us under another of its names: that is another attachment,
/// which would lose its device with ours.
pub(crate) async fn reusable(host: &dyn Host, locator: &Locator, identity: &Identity) -> Result<Option<LoopDevice>> {
    let in_use = |by: String| Error::InUse { what: locator.to_string(), by: vec![by] };
    let named = host.real_path(volume::file(locator)?.path()).await.map_err(machine(format!("look at {locator}")))?;
    let mut reusable = None;
    for device in bound_to(host, locator, identity).await? {
        let node = node(&device);
        if device.label != LABEL {
            return Err(in_use(format!("bound to {0} by someone else; `losetup -d {0}` frees it", node.display())));
        }
        if device.autoclear {
            let node = node.display();
            return Err(in_use(format!("detached from {node}, which goes when its last user closes it")));
        }
        if named.as_ref() != Some(&device.file) {
            return Err(in_use(format!("attached at {} as file:{}", node.display(), device.file.display())));
        }
        reusable = reusable.or(Some(device));
    }
    Ok(reusable)
}

/// That a loop device which is there already refuses writes, or takes them, as asked.
pub(crate) fn check_mode(host: &dyn Host, spec: &Spec, bound: &LoopDevice) -> Result<()> {
    match device(host, bound)? {
        Some(device) if device.read_only != spec.read_only => {
            let mode = |read_only| if read_only { "read-only" } else { "for writing" };
            Err(Error::WrongState {
                what: format!(
                    "{} is attached {} at {}, not {} as asked; detach it first",
                    spec.locator,
                    mode(device.read_only),
                    device.path.display(),
                    mode(spec.read_only),
                ),
            })
        }
        _ => Ok(()),
    }
}

/// The device as the kernel lists it; `None` if it has no size, as one that is not bound.
pub(crate) fn device(host: &dyn Host, bound: &LoopDevice) -> Result<Option<Device>> {
    look(host, bound).map_err(machine(format!("read the state of {}", bound.name)))
}

fn look(host: &dyn Host, bound: &LoopDevice) -> host::Result<Option<Device>> {
    let block = block_device(host, &bound.name)?.filter(|block| block.size_bytes > 0);
    Ok(block.map(|block| Device {
        path: block.node(),
        identity: proved(bound),
        size_bytes: block.size_bytes,
        logical_block_size: block.logical_block_size,
        physical_block_size: block.physical_block_size,
        read_only: block.read_only,
        paths: vec![DevicePath { device: block.node(), portal: None, state: "active".into(), problem: None }],
    }))
}

/// The device, as soon as the kernel shows its size.
pub(crate) async fn wait_for_device(host: &dyn Host, bound: &LoopDevice, deadline: Instant) -> Result<Device> {
    let seen = wait_for(host, deadline, || look(host, bound)).await;
    let seen = seen.map_err(machine(format!("wait for {}", bound.name)))?;
    seen.ok_or_else(|| Error::TimedOut { waiting_for: format!("the size of {}", node(bound).display()) })
}

/// Binds a loop device and proves it. What does not prove, or is not what the caller expects, is taken away again.
pub(crate) async fn bind(host: &dyn Host, spec: &Spec, identity: &Identity, deadline: Instant) -> Result<Device> {
    let file = volume::file(&spec.locator)?.path().to_path_buf();
    let setup = LoopSetup { file, read_only: spec.read_only, label: LABEL.into() };
    let doing = format!("bind a loop device to {}", spec.locator);
    let node = host.loop_attach(&setup).await.map_err(refusal::of(&spec.locator, doing))?;
    let proved = prove(host, &node, spec, identity, deadline).await;
    if proved.is_err()
        && let Err(left) = host.loop_detach(&node).await
    {
        tracing::warn!("{} is left: {}", node.display(), machine("unbind it")(left).chain());
    }
    proved
}

async fn prove(host: &dyn Host, node: &Path, spec: &Spec, identity: &Identity, deadline: Instant) -> Result<Device> {
    let name = node.file_name().unwrap_or_default().to_string_lossy();
    let Some(bound) = one(host, &name).await? else {
        let file = volume::file(&spec.locator)?.path();
        return Err(match has_name(host, &name, file).map_err(machine(format!("look what {name} is bound to")))? {
            true => Error::TimedOut { waiting_for: format!("{}, which does not tell its file", node.display()) },
            false => Error::WrongState {
                what: format!("{} was unbound by someone else while it was attached; attach again", node.display()),
            },
        });
    };
    volume::same(&spec.locator, identity, &proved(&bound))?;
    let device = wait_for_device(host, &bound, deadline).await?;
    spec.check(&device)?;
    Ok(device)
}

/// Who uses a loop device, in words.
pub(crate) async fn users(host: &dyn Host, bound: &LoopDevice) -> Result<Vec<String>> {
    let node = node(bound);
    let users = host.users(&node).await.map_err(machine(format!("look for users of {}", node.display())))?;
    Ok(users.iter().map(ToString::to_string).collect())
}

/// Flushes a loop device (if asked to), unbinds it, and sees that it is gone; what is left of it otherwise.
pub(crate) async fn unbind(
    host: &dyn Host,
    bound: &LoopDevice,
    flush: bool,
    deadline: Instant,
) -> Result<Option<Residual>> {
    let node = node(bound);
    let what = node.display().to_string();
    // Held to the end, so that nobody mounts it in between. The kernel unbinds it when the last one lets go of it.
    let claim = match host.claim(&node).await {
        Ok(claim) => claim,
        Err(host::Error::Busy { .. }) => {
            let mut by = users(host, bound).await?;
            if by.is_empty() {
                by.push("mounted or held".into());
            }
            return Err(Error::InUse { what, by });
        }
        Err(error) => return Err(machine(format!("claim {what}"))(error)),
    };
    // Nobody binds it to another file from here on; somebody may have done so since we looked.
    let now = host.loop_device(&bound.name).await.map_err(machine(format!("look again what {what} is bound to")))?;
    if now.is_none_or(|now| proved(&now) != proved(bound) || now.label != bound.label) {
        return Ok(None);
    }
    let by = users(host, bound).await?;
    if !by.is_empty() {
        return Err(Error::InUse { what, by });
    }
    let left = deadline.saturating_duration_since(Instant::now());
    if flush && let Err(error) = host.flush(&node, left).await {
        return Err(match error {
            // It may still be going on.
            host::Error::TimedOut { .. } => machine(format!("flush {what}"))(error),
            error => Error::Flush { what, source: Box::new(error) },
        });
    }
    host.loop_detach(&node).await.map_err(machine(format!("unbind {what}")))?;
    drop(claim);

    // sysfs says that it may be gone: it has no file, or the file has another name. Then the device says whether it is.
    let changed = || {
        let shown = host.read(&backing_file(&bound.name))?;
        Ok((shown.as_deref().map(Path::new) != Some(&bound.file)).then_some(()))
    };
    wait_for(host, deadline, changed).await.map_err(machine(format!("wait until {what} is gone")))?;
    if is_gone(host, bound).await? {
        return Ok(None);
    }
    let by = users(host, bound).await?.join(", ");
    let reason = match by.is_empty() {
        true => format!("still bound to {}", bound.file.display()),
        false => format!("still bound to {}, and {by}; it goes when its last user does", bound.file.display()),
    };
    Ok(Some(Residual { kind: ResidualKind::Loop, name: what, reason }))
}

/// Whether a device that was unbound is bound to its file no more: free, or somebody else's by now, as the kernel gives its number
/// to the next. One that is bound and does not answer is not known to be gone.
async fn is_gone(host: &dyn Host, bound: &LoopDevice) -> Result<bool> {
    let shown = || {
        let doing = || format!("look whether {} is gone", node(bound).display());
        host.read(&backing_file(&bound.name)).map_err(machine(doing()))
    };
    loop {
        let before = shown()?;
        if before.is_none() {
            return Ok(true);
        }
        match one(host, &bound.name).await? {
            Some(now) => return Ok(proved(&now) != proved(bound) || now.label != LABEL),
            None if shown()? == before => return Ok(false),
            // It has changed hands meanwhile.
            None => {}
        }
    }
}

/// Lets a loop device see that its file grew. One that shrank would cut off what its users see.
pub(crate) async fn grow(host: &dyn Host, bound: &LoopDevice, locator: &Locator) -> Result<Device> {
    let gone = || Error::NotFound { what: format!("the device of {locator}") };
    let before = device(host, bound)?.ok_or_else(gone)?;
    let stat = host.file(&bound.file).await.map_err(machine(format!("look at {locator}")))?;
    let stat = stat.filter(|stat| Identity::File { device: stat.device, inode: stat.inode } == before.identity);
    let stat =
        stat.ok_or_else(|| Error::NotFound { what: format!("the file {} of {locator}", bound.file.display()) })?;
    let now = volume::Found { identity: before.identity, size_bytes: stat.size_bytes };
    if let Some(why) = now.unfit() {
        return Err(Error::WrongState { what: format!("{locator} cannot be extended: {why}") });
    }
    if now.size_bytes < before.size_bytes {
        return Err(Error::WrongState {
            what: format!(
                "{locator} shrank from {0} to {1} bytes; `truncate -s {0}` gives the size back",
                before.size_bytes, now.size_bytes
            ),
        });
    }
    if !now.size_bytes.is_multiple_of(u64::from(before.logical_block_size)) {
        return Err(Error::WrongState {
            what: format!(
                "{locator} has {} bytes, which is no multiple of {block}, the block size of its device; `truncate -s \
                 %{block}` rounds it up",
                now.size_bytes,
                block = before.logical_block_size
            ),
        });
    }
    if now.size_bytes > before.size_bytes {
        host.loop_resize(&before.path).await.map_err(machine(format!("resize {}", before.path.display())))?;
    }
    device(host, bound)?.ok_or_else(gone)
}

/// The file below a loop device, as the kernel tells it.
pub(crate) fn proved(device: &LoopDevice) -> Identity {
    Identity::File { device: device.file_device, inode: device.file_inode }
}

/// The path of the file below a loop device: the kernel's own memory, which never hangs.
pub(crate) fn backing_file(name: &str) -> PathBuf {
    Path::new(BLOCK).join(name).join("loop/backing_file")
}

pub(crate) fn node(device: &LoopDevice) -> PathBuf {
    Path::new("/dev").join(&device.name)
}
