//! What a device says that it is, asked anew each time.
//!
//! The kernel asks a device once and keeps the answer (`wwid`). When the target maps another volume to the same LUN, the
//! kernel does not notice: the old device stands, with the old name and the old size, and reads and writes the new volume. So
//! nothing that the kernel remembers is a proof.

use crate::machine;
use driver::{Error, Result, Wwn};
use host::Host;
use std::{io, path::Path, time::Duration};

/// How long a device has to answer an INQUIRY, which needs no medium.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a device answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) wwn: Wwn,
    /// Its page 0x83, empty if it has none.
    page: Vec<u8>,
}

impl Answer {
    /// Whether the device goes by the name that the kernel remembers of it. Which of several names the kernel picked does
    /// not matter. A name that cannot be looked for counts as right: then there is only the device's own word.
    pub(crate) fn goes_by(&self, cached: &str) -> bool {
        let designator = cached.strip_prefix("naa.").or_else(|| cached.strip_prefix("eui.")).and_then(bytes);
        designator.is_none_or(|name| self.page.windows(name.len()).any(|window| window == name))
    }

    /// Whether the device has given its names, and the one that the kernel remembers is not among them: then it is another
    /// volume for certain. One that gave only a serial number may have failed to give its names this once.
    pub(crate) fn disowns(&self, cached: &str) -> bool {
        !self.page.is_empty() && !self.goes_by(cached)
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        hex.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits.filter(|digits| !digits.is_empty() && digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Asks a device for its name: VPD page 0x83, or else 0x80 (SPC-4 sections 7.8.6 and 7.8.15).
pub(crate) async fn ask(host: &dyn Host, node: &Path) -> Result<Answer> {
    let silent = |error: host::Error| {
        let why = chain(&error);
        match machine(format!("ask {} for its name", node.display()))(error) {
            // Nobody has asked the device.
            lack @ Error::Exhausted { .. } => lack,
            _ => Error::Unreachable { what: node.display().to_string(), why },
        }
    };
    let page = match host.inquiry(node, 0x83, PATIENCE).await {
        Ok(page) => page,
        Err(host::Error::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported => Vec::new(),
        // Its serial number would be another name than the one it gave before, and it another volume by that.
        Err(error) => return Err(silent(error)),
    };
    stands(node, &page)?;
    if let Some(wwn) = Wwn::from_page_83(&page) {
        return Ok(Answer { wwn, page });
    }
    let serial = host.inquiry(node, 0x80, PATIENCE).await.map_err(silent)?;
    stands(node, &serial)?;
    match Wwn::from_page_80(&serial) {
        Some(wwn) => Ok(Answer { wwn, page }),
        None => Err(Error::WrongState {
            what: format!(
                "{} has neither a WWN nor a serial number, so nothing can prove which volume it is; let the target \
                 give its LUNs names",
                node.display()
            ),
        }),
    }
}

/// Whether there is a unit at all: some targets answer for one that is not mapped (LIO does, for LUN 0), with a peripheral
/// qualifier that says so (SPC-4 section 6.6.2). What such an answer names is the target.
fn stands(node: &Path, page: &[u8]) -> Result<()> {
    match page.first().map_or(0, |first| first >> 5) {
        0 => Ok(()),
        qualifier => Err(Error::Unreachable {
            what: node.display().to_string(),
            why: format!("the target maps nothing there now (peripheral qualifier {qualifier})"),
        }),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured from LIO (Linux 6.1), as far as the T10 designator.
    const LIO: [u8; 69] =
        *b"\x00\x83\x00\xa1\x01\x03\x00\x10\x60\x01\x40\x50\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xa1\
        \x02\x01\x00\x29LIO-ORG FILEIO:00000000000000000000000a1\x00";

    #[test]
    fn what_answers_for_a_unit_that_is_not_mapped_is_none() {
        // Captured from LIO (Linux 6.1): LUN 0, no longer mapped.
        let page = b"?\x83\x00]\x02\x01\x00\tLIO-ORG \x00Q\x94\x00\x04\x00\x00\x00\x01";
        assert!(Wwn::from_page_83(page).is_some());
        assert!(stands(Path::new("/dev/sda"), page).is_err());
        assert!(stands(Path::new("/dev/sda"), &LIO).is_ok());
        assert!(stands(Path::new("/dev/sda"), &[]).is_ok());
    }

    #[test]
    fn a_name_that_the_kernel_remembers_is_held_against_the_device() {
        let answer = Answer { wwn: Wwn::from_page_83(&LIO).unwrap(), page: LIO.to_vec() };
        assert_eq!(answer.wwn.to_string(), "3600140500000000000000000000000a1");
        assert!(answer.goes_by("naa.600140500000000000000000000000a1"));
        assert!(!answer.goes_by("naa.600140500000000000000000000000b2"));
        assert!(answer.goes_by("t10.ATA     whatever"));
        assert!(answer.goes_by("naa."));
        assert!(answer.disowns("naa.600140500000000000000000000000b2"));
        assert!(!answer.disowns("naa.600140500000000000000000000000a1"));
        let nameless = Answer { page: Vec::new(), ..answer };
        assert!(!nameless.goes_by("naa.600140500000000000000000000000b2"));
        assert!(!nameless.disowns("naa.600140500000000000000000000000b2"));
    }
}
