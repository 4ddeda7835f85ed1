//! The kernel's key service (`add_key(2)`, `keyctl(2)`): nix has no calls for it.

use crate::{Error, KernelKey, Result};
use secrecy::ExposeSecret;
use std::{ffi::CString, io, path::Path};

/// A key in the keyring of this thread, which only this thread's calls are searched in (`thread-keyring(7)`). It is revoked when
/// this goes.
pub(super) struct Lent {
    serial: libc::c_long,
}

/// Lends the kernel a key. The guard must go on the same thread.
pub(super) fn lend(key: &KernelKey) -> Result<Lent> {
    /// `KEY_SPEC_THREAD_KEYRING` (`include/uapi/linux/keyctl.h`)
    const THREAD_KEYRING: libc::c_long = -1;
    let doing = || Error::io("lend the kernel a key for", Path::new(&key.description));
    let text = |text: &str| CString::new(text).map_err(|error| doing()(io::Error::other(error)));
    let (kind, description, payload) = (text(key.kind)?, text(&key.description)?, key.payload.expose_secret());
    // SAFETY: both strings end with a NUL, the payload is as long as said, and the kernel keeps none of the pointers.
    #[expect(unsafe_code, reason = "add_key(2)")]
    let serial = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            kind.as_ptr(),
            description.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            THREAD_KEYRING,
        )
    };
    if serial < 0 { Err(doing()(io::Error::last_os_error())) } else { Ok(Lent { serial }) }
}

impl Drop for Lent {
    fn drop(&mut self) {
        /// `include/uapi/linux/keyctl.h`
        const KEYCTL_REVOKE: libc::c_long = 3;
        // SAFETY: it takes a number, and no pointer.
        #[expect(unsafe_code, reason = "keyctl(2)")]
        let revoked = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_REVOKE, self.serial) };
        if revoked < 0 {
            tracing::warn!(error = %io::Error::last_os_error(), "cannot revoke a key that the kernel was lent");
        }
    }
}
