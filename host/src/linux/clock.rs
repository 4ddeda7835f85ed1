//! What the kernel says of its clock.

use crate::{Clock, Error, Result};
use std::time::{SystemTime, UNIX_EPOCH};

#[expect(unsafe_code, reason = "nix has no adjtimex")]
pub(super) fn clock() -> Result<Clock> {
    // SAFETY: all-zero is a value of this plain C struct; `modes` 0 asks and sets nothing.
    let mut answer: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live struct of the type that the call fills.
    let state = unsafe { libc::adjtimex(&raw mut answer) };
    if state == -1 {
        return Err(Error::io("ask", "adjtimex(2)")(std::io::Error::last_os_error()));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(Clock { unix_seconds: now, synchronised: state != libc::TIME_ERROR && answer.status & libc::STA_UNSYNC == 0 })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_clock_of_whoever_builds_this_is_past_2020() {
        assert!(super::clock().unwrap().unix_seconds > 1_577_836_800);
    }
}
