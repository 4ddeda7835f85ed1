//! The values that are read on this side, because they are written for people: durations, sizes, and what a detach
//! names.

use jiff::SignedDuration;
use std::time::Duration;

pub(crate) use mortar_client::Endpoint;

const SCHEMES: [&str; 4] = ["iscsi:", "lvm:", "file:", "rbd:"];
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// What a detach names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Id(String),
    Locator(String),
    Device(String),
}

/// A locator starts with the scheme of a backend, a device path with a slash; the rest are ids, which hold neither
/// slash nor colon.
pub(crate) fn target(text: &str) -> Result<Target, String> {
    if text.is_empty() {
        Err("an attachment id, a locator or a device path is needed".to_owned())
    } else if text.starts_with('/') {
        Ok(Target::Device(text.to_owned()))
    } else if SCHEMES.iter().any(|scheme| text.starts_with(scheme)) {
        Ok(Target::Locator(text.to_owned()))
    } else {
        Ok(Target::Id(text.to_owned()))
    }
}

/// The agent of another machine.
pub(crate) fn endpoint(text: &str) -> Result<Endpoint, String> {
    text.parse().map_err(|error: mortar_client::Error| error.message().to_owned())
}

/// `30s`, `1500ms`, `2m`, `1m30s`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bare = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let parsed: Result<SignedDuration, _> = if bare { format!("{text}s").parse() } else { text.parse() };
    let signed = parsed.map_err(|_| "not a duration, write 30s, 1500ms or 2m".to_owned())?;
    match Duration::try_from(signed) {
        Ok(duration) if duration > LONGEST => Err("it is longer than 24h".to_owned()),
        Ok(duration) if duration >= Duration::from_millis(1) => Ok(duration),
        _ => Err("it must be at least 1ms".to_owned()),
    }
}

/// As [`duration`], and 0.
pub(crate) fn grace(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(600);
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        _ => duration(text).and_then(|grace| match grace <= LONGEST {
            true => Ok(grace),
            false => Err("it is longer than 10m".to_owned()),
        }),
    }
}

/// `1073741824`, `1GiB`, `1 GiB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return Err("not a size, write bytes, or a number with KiB, MiB, GiB or TiB".to_owned()),
    };
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) if number.is_empty() => return Err("not a size, it must start with a number".to_owned()),
        Err(_) => return Err("it is more than a volume can hold".to_owned()),
    };
    match number.checked_mul(1 << shift) {
        Some(0) => Err("it must be more than 0".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("it is more than a volume can hold".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        assert_eq!(endpoint("https://h1").map(|endpoint| endpoint.to_string()), Ok("https://h1:7443".to_owned()));
        assert_eq!(endpoint("h1:7443"), Err("not an endpoint, write https://HOST:PORT".to_owned()));
    }

    #[test]
    fn targets_are_told_apart_by_how_they_start() {
        let locators =
            ["iscsi://10.0.0.5/iqn.2026-11.org.example:t1/0", "lvm:vg/lv", "file:/srv/a.raw", "rbd:pool/image"];
        for text in locators {
            assert_eq!(target(text), Ok(Target::Locator(text.to_owned())));
        }
        for text in ["/dev/sdb", "/dev/mortar/a", "/"] {
            assert_eq!(target(text), Ok(Target::Device(text.to_owned())));
        }
        for text in ["web1", "--foo", "../x", "a b", "lvm", "nbd:x"] {
            assert_eq!(target(text), Ok(Target::Id(text.to_owned())));
        }
        assert!(target("").is_err());
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("30s", 30_000), ("1500ms", 1500), ("2m", 120_000), ("45", 45_000), ("0.5", 500), ("1m30s", 90_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", ".", "0", "0s", "-5s", "5s ago", "1us", "25h", "soon", "1e3", "99999999999999999999", "1mo"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_grace_may_be_none() {
        assert_eq!((grace("0"), grace("10m")), (Ok(Duration::ZERO), Ok(Duration::from_secs(600))));
        assert!(grace("11m").is_err() && grace("soon").is_err());
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("512", 512), ("1B", 1), ("4KiB", 4096), ("1 MiB", 1 << 20), ("3GiB", 3 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert_eq!(size("18446744073709551615"), Ok(u64::MAX));
        for text in ["", "0", "0GiB", "-1", "1.5GiB", "1G", "GiB", "18446744073709551616", "18446744073709551615KiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
