//! Asking a SCSI device who it is: INQUIRY through SG_IO (`include/uapi/scsi/sg.h`, SPC-4 section 6.6).

use super::open_device;
use crate::{Error, Result};
use nix::fcntl::OFlag;
use std::{io, os::fd::AsRawFd, path::Path, time::Duration};

/// The interface that the `S` in its first field stands for.
#[repr(C)]
struct SgIoHdr {
    interface_id: i32,
    dxfer_direction: i32,
    cmd_len: u8,
    mx_sb_len: u8,
    iovec_count: u16,
    dxfer_len: u32,
    dxferp: *mut u8,
    cmdp: *const u8,
    sbp: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    usr_ptr: *mut u8,
    status: u8,
    masked_status: u8,
    msg_status: u8,
    sb_len_wr: u8,
    host_status: u16,
    driver_status: u16,
    resid: i32,
    duration: u32,
    info: u32,
}

const SG_IO: u64 = 0x2285;
const SG_DXFER_FROM_DEV: i32 = -3;
const INQUIRY: u8 = 0x12;
/// What one page may hold; a page 0x83 with every designator that targets send fits well.
const PAGE_SIZE: usize = 1024;

nix::ioctl_readwrite_bad!(sg_io, SG_IO, SgIoHdr);

/// The vital product data page as the device answers now.
pub(super) fn inquiry(device: &Path, page: u8, timeout: Duration) -> Result<Vec<u8>> {
    let failed = |kind, why: String| Error::io("ask the identity of", device)(io::Error::new(kind, why));
    let fd = open_device(device, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    let mut data = vec![0_u8; PAGE_SIZE];
    let mut sense = [0_u8; 32];
    let [high, low] = u16::try_from(PAGE_SIZE).unwrap_or(u16::MAX).to_be_bytes();
    let command = [INQUIRY, 1, page, high, low, 0];
    let mut header = SgIoHdr {
        interface_id: i32::from(b'S'),
        dxfer_direction: SG_DXFER_FROM_DEV,
        cmd_len: 6,
        mx_sb_len: 32,
        iovec_count: 0,
        dxfer_len: u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX),
        dxferp: data.as_mut_ptr(),
        cmdp: command.as_ptr(),
        sbp: sense.as_mut_ptr(),
        timeout: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
        flags: 0,
        pack_id: 0,
        usr_ptr: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        msg_status: 0,
        sb_len_wr: 0,
        host_status: 0,
        driver_status: 0,
        resid: 0,
        duration: 0,
        info: 0,
    };
    // SAFETY: the header has the layout of `sg_io_hdr`; its pointers are to buffers of the lengths it gives, and they
    // and the descriptor live until the call returns.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { sg_io(fd.as_raw_fd(), &raw mut header) }
        .map_err(|errno| Error::io("ask the identity of", device)(errno.into()))?;
    let sense = &sense[..usize::from(header.sb_len_wr).min(sense.len())];
    let kind = if has_none(header.status, sense) { io::ErrorKind::Unsupported } else { io::ErrorKind::Other };
    verdict(header.status, header.host_status, header.driver_status, sense).map_err(|why| failed(kind, why))?;
    let got = PAGE_SIZE - usize::try_from(header.resid).unwrap_or(0).min(PAGE_SIZE);
    data.truncate(got);
    if data.get(1) != Some(&page) {
        return Err(failed(io::ErrorKind::Unsupported, format!("it has no page {page:#04x}")));
    }
    Ok(data)
}

/// How a command ended. What the device says comes before what the kernel says of it: with every CHECK CONDITION the
/// kernel sets DRIVER_SENSE, which is no failure of its own.
fn verdict(status: u8, host_status: u16, driver_status: u16, sense: &[u8]) -> std::result::Result<(), String> {
    const DRIVER_SENSE: u16 = 0x08;
    /// The upper half says what the kernel would do about it.
    const DRIVER_STATUS: u16 = 0x0f;
    let driver = driver_status & DRIVER_STATUS;
    if status != 0 {
        let (key, code) = sense_of(sense);
        return Err(format!("SCSI status {status:#x}, sense key {key:#x}, code {code:#06x}"));
    }
    if host_status != 0 || driver & !DRIVER_SENSE != 0 {
        return Err(format!("no answer (host status {host_status:#x}, driver status {driver_status:#x})"));
    }
    Ok(())
}

/// Whether the device itself says that it has no such page: ILLEGAL REQUEST, unless it is the whole unit that is not there
/// (LOGICAL UNIT NOT SUPPORTED). Everything else may be otherwise the next time.
fn has_none(status: u8, sense: &[u8]) -> bool {
    const ILLEGAL_REQUEST: u8 = 5;
    const NO_UNIT: u16 = 0x2500;
    let (key, code) = sense_of(sense);
    status != 0 && key == ILLEGAL_REQUEST && code != NO_UNIT
}

/// Sense key, and additional code with its qualifier, in fixed or descriptor format (SPC-4 section 4.5).
fn sense_of(sense: &[u8]) -> (u8, u16) {
    let at = |index: usize| sense.get(index).copied().unwrap_or(0);
    if at(0) & 0x7f >= 0x72 {
        (at(1) & 15, u16::from_be_bytes([at(2), at(3)]))
    } else {
        (at(2) & 15, u16::from_be_bytes([at(12), at(13)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured from LIO (Linux 6.1), of a LUN that is not mapped any more: LOGICAL UNIT NOT SUPPORTED.
    const UNMAPPED: [u8; 18] = [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x25, 0, 0, 0, 0, 0];

    #[test]
    fn what_the_device_says_comes_before_what_the_kernel_says() {
        assert_eq!(verdict(2, 0, 0x08, &UNMAPPED).unwrap_err(), "SCSI status 0x2, sense key 0x5, code 0x2500");
        assert_eq!(verdict(2, 0, 0, &UNMAPPED), verdict(2, 0, 0x08, &UNMAPPED));
        let described = [0x72, 5, 0x25, 0, 0, 0, 0, 0];
        assert_eq!(verdict(2, 0, 0x28, &described), verdict(2, 0, 0x08, &UNMAPPED));
        // BUSY has no sense.
        assert_eq!(verdict(8, 0, 0, &[]).unwrap_err(), "SCSI status 0x8, sense key 0x0, code 0x0000");
    }

    #[test]
    fn only_the_device_itself_says_that_it_has_no_such_page() {
        // INVALID FIELD IN CDB
        let mut sense = UNMAPPED;
        sense[12] = 0x24;
        assert!(has_none(2, &sense));
        assert!(!has_none(0, &sense), "that is of an older command");
        assert!(!has_none(2, &UNMAPPED));
        // UNIT ATTENTION, POWER ON OR RESET: after a target was away
        assert!(!has_none(2, &[0x70, 0, 6, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x29, 0, 0, 0, 0, 0]));
        assert!(!has_none(8, &[]));
    }

    #[test]
    fn without_an_answer_it_is_the_kernel_that_speaks() {
        // DID_TRANSPORT_DISRUPTED, DRIVER_TIMEOUT
        assert_eq!(verdict(0, 0x0e, 0, &[]).unwrap_err(), "no answer (host status 0xe, driver status 0x0)");
        assert_eq!(verdict(0, 0, 0x06, &[]).unwrap_err(), "no answer (host status 0x0, driver status 0x6)");
        // A recovered error: the answer is there.
        assert_eq!(verdict(0, 0, 0x08, &[]), Ok(()));
        assert_eq!(verdict(0, 0, 0, &[]), Ok(()));
    }
}
