//! Loop devices through their ioctls (loop(4), `include/uapi/linux/loop.h`): no process, and the kernel itself says which
//! file a device is bound to.

use super::open_device;
use crate::{Error, Host, LoopDevice, LoopSetup, Result};
use nix::fcntl::OFlag;
use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

const CONTROL: &str = "/dev/loop-control";
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_DIRECT_IO: u32 = 16;
const LO_NAME_SIZE: usize = 64;
/// The next free device can be taken by somebody else before we bind it; more often than this is not chance.
const TRIES: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    lo_device: u64,
    lo_inode: u64,
    lo_rdevice: u64,
    lo_offset: u64,
    lo_sizelimit: u64,
    lo_number: u32,
    lo_encrypt_type: u32,
    lo_encrypt_key_size: u32,
    lo_flags: u32,
    lo_file_name: [u8; LO_NAME_SIZE],
    lo_crypt_name: [u8; LO_NAME_SIZE],
    lo_encrypt_key: [u8; 32],
    lo_init: [u64; 2],
}

impl LoopInfo64 {
    const NONE: Self = Self {
        lo_device: 0,
        lo_inode: 0,
        lo_rdevice: 0,
        lo_offset: 0,
        lo_sizelimit: 0,
        lo_number: 0,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags: 0,
        lo_file_name: [0; LO_NAME_SIZE],
        lo_crypt_name: [0; LO_NAME_SIZE],
        lo_encrypt_key: [0; 32],
        lo_init: [0; 2],
    };
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

nix::ioctl_none_bad!(loop_clr_fd, 0x4C01);
nix::ioctl_read_bad!(loop_get_status64, 0x4C05, LoopInfo64);
nix::ioctl_none_bad!(loop_set_capacity, 0x4C07);
nix::ioctl_write_ptr_bad!(loop_configure, 0x4C0A, LoopConfig);
nix::ioctl_none_bad!(loop_ctl_get_free, 0x4C82);

pub(super) fn list(host: &dyn Host) -> Result<Vec<LoopDevice>> {
    let mut found = Vec::new();
    for name in host.list(Path::new("/sys/block"))?.into_iter().filter(|name| name.starts_with("loop")) {
        let Some(file) = host.read(&Path::new("/sys/block").join(&name).join("loop/backing_file"))? else { continue };
        let node = Path::new("/dev").join(&name);
        if let Some(info) = status(&node)? {
            let label = info.lo_file_name.split(|byte| *byte == 0).next().unwrap_or_default();
            found.push(LoopDevice {
                name,
                file_device: info.lo_device,
                file_inode: info.lo_inode,
                file: PathBuf::from(file),
                label: String::from_utf8_lossy(label).into_owned(),
                direct_io: info.lo_flags & LO_FLAGS_DIRECT_IO != 0,
            });
        }
    }
    Ok(found)
}

/// What the kernel knows of a loop device; `None` if it is bound to nothing.
fn status(node: &Path) -> Result<Option<LoopInfo64>> {
    let fd = match open_device(node, OFlag::O_RDONLY) {
        Ok(fd) => fd,
        Err(Error::Io { source, .. }) if super::is_absent(&source) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut info = LoopInfo64::NONE;
    // SAFETY: the structure has the layout of `loop_info64`; it and the descriptor live for the whole call.
    #[expect(unsafe_code, reason = "ioctl")]
    match unsafe { loop_get_status64(fd.as_raw_fd(), &raw mut info) } {
        // The kernel keeps st_dev in its old 32-bit form (`huge_encode_dev`), which stat(2) uses as well.
        Ok(_) => Ok(Some(info)),
        Err(nix::Error::ENXIO) => Ok(None),
        Err(errno) => Err(Error::io("ask", node)(errno.into())),
    }
}

pub(super) fn attach(setup: &LoopSetup) -> Result<PathBuf> {
    let access = if setup.read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
    let file = open_device(&setup.file, access | OFlag::O_NOFOLLOW)?;
    let control = open_device(Path::new(CONTROL), OFlag::O_RDWR)?;
    let mut config = LoopConfig {
        fd: u32::try_from(file.as_raw_fd()).unwrap_or_default(),
        block_size: block_size(&setup.file).map_err(Error::io("look at", &setup.file))?,
        info: LoopInfo64::NONE,
        reserved: [0; 8],
    };
    config.info.lo_flags = LO_FLAGS_DIRECT_IO | if setup.read_only { LO_FLAGS_READ_ONLY } else { 0 };
    for (to, from) in config.info.lo_file_name.iter_mut().take(LO_NAME_SIZE - 1).zip(setup.label.bytes()) {
        *to = from;
    }
    for _ in 0..TRIES {
        let node = free(&control)?;
        let mode = if setup.read_only { OFlag::O_RDONLY } else { OFlag::O_RDWR };
        let device = match open_device(&node, mode) {
            Ok(device) => device,
            Err(Error::Busy { .. }) => continue,
            Err(error) => return Err(error),
        };
        // SAFETY: the structure has the layout of `loop_config`; it and the descriptors live for the whole call.
        #[expect(unsafe_code, reason = "ioctl")]
        match unsafe { loop_configure(device.as_raw_fd(), &raw const config) } {
            Ok(_) => return Ok(node),
            Err(nix::Error::EBUSY) => {}
            Err(errno) => return Err(Error::io("bind a loop device to", &setup.file)(errno.into())),
        }
    }
    Err(Error::io("find a free loop device for", &setup.file)(io::ErrorKind::ResourceBusy.into()))
}

fn free(control: &OwnedFd) -> Result<PathBuf> {
    // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open for the whole call.
    #[expect(unsafe_code, reason = "ioctl")]
    let number = unsafe { loop_ctl_get_free(control.as_raw_fd()) }
        .map_err(|errno| Error::io("find a free loop device with", CONTROL)(errno.into()))?;
    Ok(PathBuf::from(format!("/dev/loop{number}")))
}

/// The block size that direct I/O to the file needs: that of the disk under its file system; 512 where that is unknown.
fn block_size(file: &Path) -> io::Result<u32> {
    let device = fs::metadata(file)?.dev();
    let of = |directory: PathBuf| fs::read_to_string(directory.join("queue/logical_block_size")).ok();
    let here =
        PathBuf::from(format!("/sys/dev/block/{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device)));
    // A partition has no queue of its own; its disk is the directory above.
    let text = of(here.clone()).or_else(|| of(fs::canonicalize(here).ok()?.parent()?.to_owned()));
    Ok(text.and_then(|text| text.trim().parse().ok()).unwrap_or(512))
}

pub(super) fn detach(device: &Path) -> Result<()> {
    let fd = open_loop(device)?;
    // SAFETY: LOOP_CLR_FD takes no argument; the descriptor is open for the whole call.
    #[expect(unsafe_code, reason = "ioctl")]
    match unsafe { loop_clr_fd(fd.as_raw_fd()) } {
        Ok(_) | Err(nix::Error::ENXIO) => Ok(()),
        Err(errno) => Err(Error::io("unbind", device)(errno.into())),
    }
}

pub(super) fn resize(device: &Path) -> Result<()> {
    let fd = open_loop(device)?;
    // SAFETY: LOOP_SET_CAPACITY takes no argument; the descriptor is open for the whole call.
    #[expect(unsafe_code, reason = "ioctl")]
    unsafe { loop_set_capacity(fd.as_raw_fd()) }.map_err(|errno| Error::io("resize", device)(errno.into()))?;
    Ok(())
}

fn open_loop(device: &Path) -> Result<OwnedFd> {
    let fd = open_device(device, OFlag::O_RDONLY)?;
    let is_block = fs::metadata(device).map_err(Error::io("look at", device))?.file_type().is_block_device();
    if is_block { Ok(fd) } else { Err(Error::io("use", device)(io::Error::other("it is no block device"))) }
}
