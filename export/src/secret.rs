//! The CHAP secret of an export. It has to be there again after a reboot, and on every repetition of the call, and no secret
//! is ever in the journal; so it is not kept at all, but derived:
//!
//! ```text
//!   HMAC-SHA-256(the host's key, what the export is) → 128 bits → 32 hexadecimal digits
//! ```
//!
//! The key is 256 random bits in one file that only root can read. Whoever has one export's secret learns nothing of another's,
//! and an export that was taken away and made anew has another (its generation is part of what is hashed).
//! RFC 7143 section 9.2.1 asks for 96 bits; LIO and open-iscsi take 255 characters.

use crate::{Export, failed, id::hexadecimal};
use driver::{Error, Result};
use hmac::{Hmac, KeyInit, Mac};
use host::Host;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use sha2::Sha256;
use std::path::Path;

const KEY_BYTES: usize = 32;
const SECRET_BYTES: usize = 16;

/// The host's key as it is in its file, in hexadecimal digits; made when there is none.
pub(crate) async fn host_key(host: &dyn Host, file: &Path) -> Result<SecretString> {
    if let Some(text) = host.read(file).map_err(failed("read the key of the exports"))? {
        let key = SecretString::from(text);
        let digits = key.expose_secret();
        if digits.len() == 2 * KEY_BYTES && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(key);
        }
        return Err(Error::WrongState {
            what: format!(
                "{} is damaged: put it back from a backup, or unexport everything and remove it",
                file.display()
            ),
        });
    }
    let mut random = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(random.as_mut()).map_err(|error| Error::Host {
        doing: "make the key of the exports".into(),
        source: error.to_string().into(),
    })?;
    let text = Zeroizing::new(hexadecimal(random.as_ref()));
    host.replace(file, text.as_bytes(), 0o600).await.map_err(failed("write the key of the exports"))?;
    Ok(SecretString::from(text.as_str()))
}

/// An export's password.
pub(crate) fn derive(key: &SecretString, export: &Export) -> SecretString {
    // Any length of key will do.
    let Ok(mut hash) = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes()) else { unreachable!() };
    let generation = export.generation.to_string();
    let parts = ["mortar export 1", export.id.as_str(), export.target.as_str(), export.initiator.as_str(), &generation];
    for part in parts {
        hash.update(part.as_bytes());
        // None of the parts can hold it.
        hash.update(&[0]);
    }
    let bytes = Zeroizing::new(<[u8; 32]>::from(hash.finalize().into_bytes()));
    SecretString::from(hexadecimal(&bytes[..SECRET_BYTES]))
}
