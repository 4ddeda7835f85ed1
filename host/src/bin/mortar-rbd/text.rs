//! C's strings and error numbers.
#![expect(unsafe_code, reason = "a C string is a pointer")]

use host::rbd_job::{Failure, Step};
use nix::errno::Errno;
use std::ffi::{CStr, CString, c_char, c_int};

pub(crate) fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::new(Step::Job, "read the job", "a name holds a NUL"))
}

/// A string that a library filled in; empty where it set none.
pub(crate) fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: it is not null, so it leads to a string that ends with NUL and is not changed while we copy it.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

/// A failure from what a function of Ceph returned.
pub(crate) fn ceph_said(step: Step, doing: impl Into<String>, code: c_int) -> Failure {
    let errno = code.saturating_neg();
    Failure { errno: Some(errno), ..Failure::new(step, doing, Errno::from_raw(errno).desc()) }
}
