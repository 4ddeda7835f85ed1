//! Asking the device mapper how often a device is open (DM_DEV_STATUS, `include/uapi/linux/dm-ioctl.h`): sysfs does not tell.

use crate::{Error, Result};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use std::{collections::BTreeSet, os::fd::AsRawFd, path::Path};

const CONTROL: &str = "/dev/mapper/control";

/// The major version that this structure belongs to.
const VERSION: u32 = 4;

#[repr(C)]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

const SIZE: u32 = 312;
const _: () = assert!(size_of::<DmIoctl>() == SIZE as usize);

nix::ioctl_readwrite!(dm_dev_status, 0xfd, 7, DmIoctl);

/// See [`crate::Host::open_mapped`].
pub(super) fn open_mapped(uuids: &[String]) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    if uuids.is_empty() {
        return Ok(found);
    }
    let control = match open(CONTROL, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(control) => control,
        // Without a device mapper there are no mapped devices.
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(found),
        Err(errno) => return Err(Error::io("open", Path::new(CONTROL))(errno.into())),
    };
    for uuid in uuids {
        let mut status = DmIoctl {
            version: [VERSION, 0, 0],
            data_size: SIZE,
            data_start: SIZE,
            target_count: 0,
            open_count: 0,
            flags: 0,
            event_nr: 0,
            padding: 0,
            dev: 0,
            name: [0; 128],
            uuid: [0; 129],
            data: [0; 7],
        };
        // One that is longer, or would not end, is no device's.
        let Some(room) = status.uuid.get_mut(..uuid.len()).filter(|room| room.len() < 129) else { continue };
        room.copy_from_slice(uuid.as_bytes());
        // SAFETY: the structure is as large as it says it is, and lives until the call returns.
        #[expect(unsafe_code, reason = "ioctl")]
        match unsafe { dm_dev_status(control.as_raw_fd(), &raw mut status) } {
            Ok(_) if status.open_count > 0 => drop(found.insert(uuid.clone())),
            Ok(_) | Err(Errno::ENXIO) => {}
            Err(errno) => return Err(Error::io("ask for a mapped device", Path::new(CONTROL))(errno.into())),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_not_open() {
        assert_eq!(open_mapped(&[]).unwrap(), BTreeSet::new());
        // Only root may ask.
        if nix::unistd::geteuid().is_root() && open(CONTROL, OFlag::O_RDWR, Mode::empty()).is_ok() {
            let none = ["LVM-none".to_owned(), "x".repeat(128), "x".repeat(129)];
            assert_eq!(open_mapped(&none).unwrap(), BTreeSet::new());
        }
    }
}
