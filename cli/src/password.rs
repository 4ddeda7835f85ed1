//! Reading a password so that it shows up nowhere else: not in argv, not in the environment, not in an error, not in a
//! core dump of this process.

use crate::error::{Error, Failure};
use secrecy::{SecretString, zeroize::Zeroizing};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// CHAP secrets are at most 255 bytes; more than this is the wrong file.
const LONGEST: usize = 4096;

/// Reads a password from a file, or from stdin for `-`.
pub(crate) fn read(path: &Path) -> Result<SecretString, Error> {
    nix::sys::prctl::set_dumpable(false)
        .map_err(|errno| Failure::internal(format!("cannot keep the password out of core dumps: {errno}")))?;
    let stdin = path == Path::new("-");
    let name = if stdin { "stdin".to_owned() } else { path.display().to_string() };
    let read = if stdin { from(io::stdin().lock()) } else { open(path).and_then(from) };
    let bytes = read.map_err(|error| Failure::invalid(format!("cannot read the password from {name}: {error}")))?;
    clean(&bytes, &name)
}

#[expect(clippy::disallowed_methods, reason = "the caller's own file, read with the caller's rights")]
fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

fn from(source: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Room for all of it from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * LONGEST));
    source.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn clean(bytes: &[u8], name: &str) -> Result<SecretString, Error> {
    if bytes.len() > LONGEST {
        return Err(Failure::invalid(format!("{name} holds more than {LONGEST} bytes: that is no password")).into());
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| Failure::invalid(format!("the password in {name} is not UTF-8 text")))?;
    let password = text.strip_suffix('\n').unwrap_or(text);
    if password.is_empty() {
        return Err(Failure::invalid(format!("{name} holds no password: it is empty")).into());
    }
    Ok(SecretString::from(password))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn one_newline_is_cut_and_no_more() {
        for (text, password) in [("secret", "secret"), ("secret\n", "secret"), ("secret\n\n", "secret\n"), (" ", " ")] {
            let read = clean(text.as_bytes(), "stdin").unwrap();
            assert_eq!(read.expose_secret(), password);
        }
    }

    #[test]
    fn what_is_no_password_is_refused_without_showing_it() {
        for bytes in [&b""[..], b"\n", b"hunter\xff", &[b'h'; LONGEST + 1]] {
            let Err(Error::Failed(failure)) = clean(bytes, "stdin") else { panic!("{bytes:?} was taken") };
            assert_eq!(failure.exit_code(), 2);
            assert!(!failure.message().contains("hunter") && !failure.message().contains("hhh"));
        }
    }
}
