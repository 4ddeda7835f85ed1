//! Detach: what is ours goes, and nothing else. Whose a mapping is stands on the mapping, and which image it is, too.

use crate::{
    Parts, RbdDriver,
    attach::errno,
    failed, image_of,
    mapping::{self, Mapping, Mark},
    underway::Underway,
};
use driver::{Attached, Detached, Error, Footprint, Image, Residual, ResidualKind, Result};
use host::{Claim, Host, wait_for};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, timeout, timeout_at};

/// Where mappings are taken away; the second where the module was loaded with `single_major=0`.
const REMOVE: [&str; 2] = ["/sys/bus/rbd/remove_single_major", "/sys/bus/rbd/remove"];

/// How long the kernel is let alone with a device that udev has open for a moment.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The mappings of an attachment: ours, and those of others.
pub(crate) struct Theirs {
    pub(crate) ours: Vec<Mapping>,
    pub(crate) others: Vec<Mapping>,
}

/// What stands for an attachment on this host. Without an identity (its attach did not end) only what was mapped for this very
/// locator, and was not here before it. What another attach has mapped and not settled upon is nobody's yet.
pub(crate) fn of(host: &dyn Host, underway: &Underway, image: &Image, at: &Attached) -> Result<Theirs> {
    let Footprint::Rbd { marks } = &at.footprint else {
        return Err(Error::invalid("footprint", "it is none of an RBD image"));
    };
    let is_new = |mark: &Mark| mark.is_for(image) && !marks.contains(&mark.to_string());
    let those = match &at.identity {
        Some(identity) => mapping::of(host, identity)?,
        None => {
            let mut all = mapping::list(host)?;
            all.retain(|mapping| mapping.mark.as_ref().is_some_and(is_new));
            all
        }
    };
    let settled = those.into_iter().filter(|mapping| underway.is_settled(mapping));
    let (ours, others) = settled.partition(|mapping: &Mapping| mapping.mark.is_some());
    Ok(Theirs { ours, others })
}

impl RbdDriver {
    /// See [`driver::Driver::detach`].
    pub(crate) async fn take_away(&self, at: &Attached, deadline: Instant) -> Result<Detached> {
        let image = image_of(&at.spec.locator)?;
        if at.identity.is_none() && self.underway.maps(image) {
            return Err(Error::TimedOut {
                waiting_for: format!("the kernel to give up mapping {image}: its cluster does not answer"),
            });
        }
        let _turn = match &at.identity {
            Some(identity) => Some(self.turns.take(identity, deadline).await?),
            None => None,
        };
        let Theirs { ours, others } = of(self.host(), &self.underway, image, at)?;
        let kept = match ours.is_empty() {
            true => others
                .iter()
                .map(|other| format!("{} was mapped before, as {}", other.node().display(), other.name))
                .collect(),
            false => Vec::new(),
        };
        let mut residuals = Vec::new();
        for mapping in ours {
            residuals.extend(self.remove(&mapping, at, deadline).await?);
        }
        Ok(Detached { residuals, kept })
    }

    /// Takes a mapping away once nobody uses it and its data is safe.
    async fn remove(&self, mapping: &Mapping, at: &Attached, deadline: Instant) -> Result<Option<Residual>> {
        let node = mapping.node();
        let claim = match self.claim(&node).await {
            Err(_) if !self.is_there(mapping)? => return Ok(None),
            claimed => claimed?,
        };
        // What has the number by now may be another's: neither it nor its users are any concern of ours.
        if !self.is_there(mapping)? {
            return Ok(None);
        }
        // Without an identity it was never handed out, so nobody has written to it.
        if at.identity.is_some() {
            match self.flush(&node, deadline).await {
                Err(_) if !self.is_there(mapping)? => return Ok(None),
                flushed => flushed?,
            }
        }
        // The kernel unmaps nothing that is open, and sees to it that nobody opens it then.
        drop(claim);
        match self.parts().unmap(mapping, deadline).await {
            Ok(()) => Ok(None),
            Err(error @ (Error::InUse { .. } | Error::TimedOut { .. })) => Err(error),
            Err(error) => Ok(Some(Residual {
                kind: ResidualKind::Mapping,
                name: format!("{} ({})", node.display(), mapping.name),
                reason: error.chain(),
            })),
        }
    }

    fn is_there(&self, mapping: &Mapping) -> Result<bool> {
        mapping
            .is_there(self.host())
            .map_err(failed(format!("look whether {} is still ours", mapping.node().display())))
    }

    /// Looks for users, then keeps new ones out as long as the claim lives.
    async fn claim(&self, node: &Path) -> Result<Option<Claim>> {
        let what = || node.display().to_string();
        let by = users(self.host(), node).await?;
        if !by.is_empty() {
            return Err(Error::InUse { what: what(), by });
        }
        match self.host().claim(node).await {
            Ok(claim) => Ok(Some(claim)),
            Err(host::Error::Busy { .. }) => {
                Err(Error::InUse { what: what(), by: vec!["somebody who has just taken it".into()] })
            }
            Err(error) => {
                tracing::debug!(%error, device = %node.display(), "cannot be claimed");
                Ok(None)
            }
        }
    }

    async fn flush(&self, node: &Path, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let what = node.display().to_string();
        if left.is_zero() {
            return Err(Error::TimedOut { waiting_for: format!("the flush of {what}: it was not begun in time") });
        }
        self.host().flush(node, left).await.map_err(|error| match error {
            source @ host::Error::Io { .. } => Error::Flush { what, source: Box::new(source) },
            // Too slow is not lost: what is cached still is.
            other => failed(format!("flush {what}"))(other),
        })
    }
}

impl Parts {
    /// Unmaps, and sees that the mapping and its node are gone.
    ///
    /// Without its OSDs a cluster cannot be told that we leave: the device is gone then, and the kernel goes on telling.
    pub(crate) async fn unmap(&self, mapping: &Mapping, deadline: Instant) -> Result<()> {
        let (host, node) = (self.host.as_ref(), mapping.node());
        let mut events = host.uevents();
        let mut refused = None;
        loop {
            // Its number may have gone to somebody else's since it was read; whoever has it keeps it.
            let still = mapping.is_there(host);
            if !still.map_err(failed(format!("look whether {} is still ours", node.display())))? {
                return Ok(());
            }
            let done = timeout_at(deadline, host.write(&self.remove(), &mapping.id.to_string())).await;
            if let Ok(Err(error)) = done {
                match errno(&error) {
                    Some(libc::EBUSY) => {
                        let mut by = users(host, &node).await?;
                        if by.is_empty() && Instant::now() >= deadline {
                            by.push("somebody that this host does not show".into());
                        }
                        if !by.is_empty() {
                            return Err(Error::InUse { what: node.display().to_string(), by });
                        }
                        let _woken_or_not = timeout(LOOK_AGAIN, events.next()).await;
                        continue;
                    }
                    // It is going already.
                    Some(libc::ENOENT | libc::EINPROGRESS) => {}
                    _ => refused = Some(error),
                }
            }
            break;
        }
        let gone = || {
            let now = mapping::read(host)?.into_iter().find(|other| other.id == mapping.id);
            Ok(match now {
                // Its number has gone to another already.
                Some(other) => !other.is_still(mapping),
                None => host.stat(&node)?.is_none(),
            }
            .then_some(()))
        };
        let until = if refused.is_some() { Instant::now() } else { deadline };
        match (wait_for(host, until, gone).await, refused) {
            (Ok(Some(())), _) => Ok(()),
            (_, Some(error)) => Err(failed(format!("unmap {}", node.display()))(error)),
            (Err(error), None) => Err(failed(format!("look whether {} is gone", node.display()))(error)),
            (Ok(None), None) => Err(Error::TimedOut { waiting_for: format!("the kernel to unmap {}", node.display()) }),
        }
    }

    fn remove(&self) -> PathBuf {
        let there = |path: &&&str| matches!(self.host.stat(path.as_ref()), Ok(Some(_)));
        PathBuf::from(REMOVE.iter().find(there).unwrap_or(&REMOVE[0]))
    }
}

/// Who uses a device, in words.
pub(crate) async fn users(host: &dyn Host, node: &Path) -> Result<Vec<String>> {
    let users = host.users(node).await.map_err(failed(format!("look who uses {}", node.display())))?;
    Ok(users.iter().map(ToString::to_string).collect())
}
