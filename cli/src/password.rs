//! Reading passwords, keys and what holds them, so that they show up nowhere else: not in argv, not in the environment, not
//! in an error, not in a core dump of this process.

use crate::error::{Error, Failure};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// CHAP secrets are at most 255 bytes; more than this is the wrong file.
const LONGEST: usize = 4096;

/// As much as the agent reads.
const LONGEST_DOCUMENT: usize = 64 << 10;

/// Reads a password from a file, or from stdin for `-`.
pub(crate) fn read(path: &Path) -> Result<SecretString, Error> {
    let (bytes, name) = bytes(path, "the password", LONGEST)?;
    clean(&bytes, &name, "password", LONGEST)
}

/// Reads a cephx key, bare or in a keyring: the agent knows whose is wanted.
pub(crate) fn key(path: &Path) -> Result<SecretString, Error> {
    let (bytes, name) = bytes(path, "the key", LONGEST_DOCUMENT)?;
    clean(&bytes, &name, "key", LONGEST_DOCUMENT)
}

/// Reads a `connection_info`, which may hold either. That it is JSON is seen here, where the file has a name; the rest
/// is the agent's to say.
pub(crate) fn connection_info(path: &Path) -> Result<SecretString, Error> {
    let (bytes, name) = bytes(path, "the connection_info", LONGEST_DOCUMENT)?;
    let text = clean(&bytes, &name, "connection_info", LONGEST_DOCUMENT)?;
    match serde_json::from_str::<serde::de::IgnoredAny>(text.expose_secret()) {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::invalid(format!("{name} holds no JSON: {error}")).into()),
    }
}

/// Reads public SSH keys, one a line, as authorized_keys has them.
pub(crate) fn ssh_keys(path: &Path) -> Result<Vec<String>, Error> {
    let (bytes, name) = bytes(path, "the SSH keys", LONGEST_DOCUMENT)?;
    let text = clean(&bytes, &name, "SSH key", LONGEST_DOCUMENT)?;
    let lines = text.expose_secret().lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// Reads user data for cloud-init, as it stands.
pub(crate) fn user_data(path: &Path) -> Result<SecretString, Error> {
    let (bytes, name) = bytes(path, "the user data", LONGEST_DOCUMENT)?;
    match String::from_utf8(bytes.to_vec()) {
        _ if bytes.len() > LONGEST_DOCUMENT => {
            Err(Failure::invalid(format!("{name} holds more than {LONGEST_DOCUMENT} bytes of user data")).into())
        }
        Ok(text) if text.is_empty() => Err(Failure::invalid(format!("{name} holds no user data: it is empty")).into()),
        Ok(text) => Ok(text.into()),
        Err(_) => Err(Failure::invalid(format!("the user data in {name} is not UTF-8 text")).into()),
    }
}

fn bytes(path: &Path, what: &str, longest: usize) -> Result<(Zeroizing<Vec<u8>>, String), Error> {
    nix::sys::prctl::set_dumpable(false)
        .map_err(|errno| Failure::internal(format!("cannot keep {what} out of core dumps: {errno}")))?;
    let stdin = path == Path::new("-");
    let name = if stdin { "stdin".to_owned() } else { path.display().to_string() };
    let read = if stdin { from(io::stdin().lock(), longest) } else { open(path).and_then(|file| from(file, longest)) };
    match read {
        Ok(bytes) => Ok((bytes, name)),
        Err(error) => Err(Failure::invalid(format!("cannot read {what} from {name}: {error}")).into()),
    }
}

#[expect(clippy::disallowed_methods, reason = "the caller's own file, read with the caller's rights")]
fn open(path: &Path) -> io::Result<File> {
    File::open(path)
}

fn from(source: impl Read, longest: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // Room for all of it from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * longest));
    source.take(longest as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn clean(bytes: &[u8], name: &str, what: &str, longest: usize) -> Result<SecretString, Error> {
    if bytes.len() > longest {
        return Err(Failure::invalid(format!("{name} holds more than {longest} bytes: that is no {what}")).into());
    }
    let text =
        std::str::from_utf8(bytes).map_err(|_| Failure::invalid(format!("the {what} in {name} is not UTF-8 text")))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    if text.is_empty() {
        return Err(Failure::invalid(format!("{name} holds no {what}: it is empty")).into());
    }
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_is_cut_and_no_more() {
        for (text, password) in [("secret", "secret"), ("secret\n", "secret"), ("secret\n\n", "secret\n"), (" ", " ")] {
            let read = clean(text.as_bytes(), "stdin", "password", LONGEST).unwrap();
            assert_eq!(read.expose_secret(), password);
        }
    }

    #[test]
    fn what_is_no_password_is_refused_without_showing_it() {
        for bytes in [&b""[..], b"\n", b"hunter\xff", &[b'h'; LONGEST + 1]] {
            let refused = clean(bytes, "stdin", "password", LONGEST);
            let Err(Error::Failed(failure)) = refused else { panic!("{bytes:?} was taken") };
            assert_eq!(failure.exit_code(), 2);
            assert!(!failure.message().contains("hunter") && !failure.message().contains("hhh"));
        }
    }
}
