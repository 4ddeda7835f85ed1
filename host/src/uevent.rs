//! Waiting for the kernel: its uevents wake us, sysfs tells the truth.
//!
//! An event is only a reason to look. Events can be lost (the socket's buffer, a container without them), so a waiter
//! looks again four times a second without any.

use crate::{Host, Result, step};
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::broadcast, time::Instant};

/// How often a waiter looks although nothing woke it.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// One event of the kernel (`Documentation/core-api/kobject`, `lib/kobject_uevent.c`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `change`, …
    pub action: String,
    /// The path below `/sys`.
    pub devpath: String,
    /// `block`, `scsi`, `iscsi_session`, …; empty if the kernel did not say.
    pub subsystem: String,
}

impl Uevent {
    /// From the kernel's message: `ACTION@DEVPATH`, then `KEY=VALUE` strings, each ended by a NUL.
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut parts = message.split(|byte| *byte == 0).filter_map(|part| std::str::from_utf8(part).ok());
        let (action, devpath) = parts.next()?.split_once('@')?;
        let keys: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
        let subsystem = keys.get("SUBSYSTEM").copied().unwrap_or_default();
        Some(Self { action: action.into(), devpath: devpath.into(), subsystem: subsystem.into() })
    }
}

/// A subscription to the kernel's events.
#[derive(Debug)]
pub struct Uevents(broadcast::Receiver<Uevent>);

impl Uevents {
    pub(crate) fn new(receiver: broadcast::Receiver<Uevent>) -> Self {
        Self(receiver)
    }

    /// Ends with the next event, or when so many came that some were lost. Never ends where there are no events.
    pub async fn next(&mut self) {
        if let Err(broadcast::error::RecvError::Closed) = self.0.recv().await {
            std::future::pending().await
        }
    }
}

/// Probes until it finds, woken by the kernel's events. `None` if the deadline came first.
pub async fn wait_for<T>(
    host: &dyn Host,
    deadline: Instant,
    mut probe: impl FnMut() -> Result<Option<T>> + Send,
) -> Result<Option<T>> {
    let mut events = host.uevents();
    loop {
        step::proceed()?;
        if let Some(found) = probe()? {
            return Ok(Some(found));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        let look_again = deadline.min(Instant::now() + LOOK_AGAIN);
        tokio::select! {
            _woken_or_not = tokio::time::timeout_at(look_again, events.next()) => {}
            () = step::cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_what_the_kernel_sends() {
        let message =
            b"add@/devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sdb\0ACTION=add\0SUBSYSTEM=block\0";
        let event = Uevent::parse(message).unwrap();
        assert_eq!((event.action.as_str(), event.subsystem.as_str()), ("add", "block"));
        assert!(event.devpath.ends_with("/block/sdb"));
        assert_eq!(Uevent::parse(b"libudev\0\xfe\xed"), None);
        assert_eq!(Uevent::parse(b""), None);
    }

    proptest! {
        #[test]
        fn no_message_panics(message in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _parsed = Uevent::parse(&message);
        }

        #[test]
        fn what_is_sent_is_read_back(
            action in "[a-z]{1,8}", devpath in "/[!-?A-~]{0,40}", subsystem in "[a-z_]{0,10}", noise in "[A-Z]{1,5}=[ -~]{0,9}",
        ) {
            let message = format!("{action}@{devpath}\0{noise}\0SUBSYSTEM={subsystem}\0");
            prop_assert_eq!(Uevent::parse(message.as_bytes()), Some(Uevent { action, devpath, subsystem }));
        }
    }
}
