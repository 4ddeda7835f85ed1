//! Loop devices: which are bound to a file and whose they are, and how one of ours comes and goes.

use crate::{refusal, volume};
use driver::{Device, DevicePath, Error, Identity, Locator, Residual, ResidualKind, Result, Spec};
use host::{Host, LoopDevice, LoopSetup, block_device, wait_for};
use std::path::{Path, PathBuf};
use tokio::time::Instant;

/// What the kernel keeps with a loop device of ours.
const LABEL: &str = "mortar";

/// Every loop device that is bound to a file, ours or not.
pub(crate) fn all(host: &dyn Host) -> Result<Vec<LoopDevice>> {
    host.loop_devices().map_err(Error::host("list the loop devices"))
}

/// Those that we bound to one file.
pub(crate) fn ours(host: &dyn Host, identity: &Identity) -> Result<Vec<LoopDevice>> {
    Ok(all(host)?.into_iter().filter(|device| proved(device) == *identity && device.label == LABEL).collect())
}

/// The loop device of ours that an attach may go on with: left by a crash. [`Error::InUse`] if the file is bound by
/// somebody else, or by us under another of its names: that is another attachment, which would lose its device with ours.
pub(crate) fn reusable(host: &dyn Host, locator: &Locator, identity: &Identity) -> Result<Option<LoopDevice>> {
    let in_use = |by: String| Error::InUse { what: locator.to_string(), by: vec![by] };
    let named = host.resolve(volume::file(locator)?.path()).map_err(Error::host(format!("look at {locator}")))?;
    let mut reusable = None;
    for device in all(host)?.into_iter().filter(|device| proved(device) == *identity) {
        let node = node(&device);
        if device.label != LABEL {
            return Err(in_use(format!("bound to {0} by someone else; `losetup -d {0}` frees it", node.display())));
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
    look(host, bound).map_err(Error::host(format!("read the state of {}", bound.name)))
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
        paths: vec![DevicePath { device: block.node(), portal: None, state: "active".into() }],
    }))
}

/// The device, as soon as the kernel shows its size.
pub(crate) async fn wait_for_device(host: &dyn Host, bound: &LoopDevice, deadline: Instant) -> Result<Device> {
    let seen = wait_for(host, deadline, || look(host, bound)).await;
    let seen = seen.map_err(Error::host(format!("wait for {}", bound.name)))?;
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
        tracing::warn!("{} is left: {}", node.display(), Error::host("unbind it")(left).chain());
    }
    proved
}

async fn prove(host: &dyn Host, node: &Path, spec: &Spec, identity: &Identity, deadline: Instant) -> Result<Device> {
    let bound = all(host)?.into_iter().find(|device| self::node(device) == node);
    let bound = bound.ok_or_else(|| Error::WrongState {
        what: format!("{} was unbound by someone else while it was attached; attach again", node.display()),
    })?;
    volume::same(&spec.locator, identity, &proved(&bound))?;
    let device = wait_for_device(host, &bound, deadline).await?;
    spec.check(&device)?;
    Ok(device)
}

/// Who uses a loop device, in words.
pub(crate) async fn users(host: &dyn Host, bound: &LoopDevice) -> Result<Vec<String>> {
    let node = node(bound);
    let users = host.users(&node).await.map_err(Error::host(format!("look for users of {}", node.display())))?;
    Ok(users.iter().map(ToString::to_string).collect())
}

/// Flushes a loop device, unbinds it, and sees that it is gone; what is left of it otherwise.
pub(crate) async fn unbind(host: &dyn Host, bound: &LoopDevice, deadline: Instant) -> Result<Option<Residual>> {
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
        Err(error) => return Err(Error::host(format!("claim {what}"))(error)),
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if let Err(error) = host.flush(&node, left).await {
        return Err(Error::Flush { what, source: Box::new(error) });
    }
    host.loop_detach(&node).await.map_err(Error::host(format!("unbind {what}")))?;
    drop(claim);

    let gone = || {
        let devices = host.loop_devices()?;
        let same = |it: &LoopDevice| it.name == bound.name && proved(it) == proved(bound) && it.label == LABEL;
        Ok((!devices.iter().any(same)).then_some(()))
    };
    let seen = wait_for(host, deadline, gone).await.map_err(Error::host(format!("wait until {what} is gone")))?;
    if seen.is_some() {
        return Ok(None);
    }
    let by = users(host, bound).await?.join(", ");
    let reason = match by.is_empty() {
        true => format!("still bound to {}", bound.file.display()),
        false => format!("still bound to {}, and {by}; it goes when its last user does", bound.file.display()),
    };
    Ok(Some(Residual { kind: ResidualKind::Loop, name: what, reason }))
}

/// Lets a loop device see that its file grew. One that shrank would cut off what its users see.
pub(crate) async fn grow(host: &dyn Host, bound: &LoopDevice, locator: &Locator) -> Result<Device> {
    let gone = || Error::NotFound { what: format!("the device of {locator}") };
    let before = device(host, bound)?.ok_or_else(gone)?;
    let stat = host.stat(&bound.file).map_err(Error::host(format!("look at {locator}")))?;
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
    if now.size_bytes > before.size_bytes {
        host.loop_resize(&before.path).await.map_err(Error::host(format!("resize {}", before.path.display())))?;
    }
    device(host, bound)?.ok_or_else(gone)
}

/// The file below a loop device, as the kernel tells it.
pub(crate) fn proved(device: &LoopDevice) -> Identity {
    Identity::File { device: device.file_device, inode: device.file_inode }
}

pub(crate) fn node(device: &LoopDevice) -> PathBuf {
    Path::new("/dev").join(&device.name)
}
