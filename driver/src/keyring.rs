//! A cephx key as people and Cinder hand it over: by itself, or in the text of a Ceph keyring.
//!
//! ```text
//! [client.cinder]
//!     key = AQBvaBVgAAAAABAAnm5LmZdPAyXSEJBPVcXfRg==
//!     caps mon = "profile rbd"
//! ```

use crate::{CephUser, Error, Result};
use secrecy::{ExposeSecret, SecretString};

/// The key of `user`. A text without sections holds the key of whoever is asked for.
///
/// [`Error::Invalid`] if it holds none; the text itself is never shown.
pub fn key(text: &SecretString, user: &CephUser) -> Result<SecretString> {
    let text = text.expose_secret();
    let bare = text.trim();
    if is_key(bare) {
        return Ok(SecretString::from(bare));
    }
    let (mut sections, mut counts) = (false, true);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            sections = true;
            counts = name.trim().strip_prefix("client.") == Some(user.as_str());
        } else if let Some((name, value)) = line.split_once('=')
            && counts
            && name.trim() == "key"
        {
            let value = value.trim();
            return if is_key(value) {
                Ok(SecretString::from(value))
            } else {
                Err(Error::invalid("key", format!("the key of client.{user} is not base64")))
            };
        }
    }
    Err(Error::invalid(
        "key",
        if sections {
            format!("the keyring holds no key of client.{user}")
        } else {
            "it is neither a key (base64) nor a keyring with `key = …` in it".into()
        },
    ))
}

/// Base64 (RFC 4648 section 4) of a length that a key may have; those of today have 40 characters.
fn is_key(text: &str) -> bool {
    let digits = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    (16..=256).contains(&text.len())
        && text.len().is_multiple_of(4)
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &str = "AQBvaBVgAAAAABAAnm5LmZdPAyXSEJBPVcXfRg==";
    const OTHER: &str = "AQBvaBVgAAAAABAAothertPAyXSEJBPVcXfRzg==";

    fn of(text: &str, user: &str) -> std::result::Result<String, String> {
        match key(&text.into(), &user.parse().unwrap()) {
            Ok(key) => Ok(key.expose_secret().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn bare_or_in_a_keyring() {
        for text in [
            KEY.to_owned(),
            format!("{KEY}\n"),
            format!("key = {KEY}"),
            format!("[client.cinder]\n\tkey={KEY}\n\tcaps mon = \"profile rbd\"\n"),
            format!("# mine\n[client.admin]\nkey = {OTHER}\n[client.cinder]\nkey = {KEY}\n"),
        ] {
            assert_eq!(of(&text, "cinder"), Ok(KEY.to_owned()));
        }
    }

    #[test]
    fn what_holds_no_key_is_not_shown() {
        for (text, says) in [
            ("", "neither a key"),
            ("hush", "neither a key"),
            ("key = hush!", "not base64"),
            (&format!("[client.hush]\nkey = {KEY}"), "no key of client.cinder"),
        ] {
            let error = of(text, "cinder").unwrap_err();
            assert!(error.contains(says) && !error.contains("hush"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_or_is_shown(text in "(\\PC|[\\[\\]=\n]){0,120}") {
            let marked = format!("{text}\nhush-hush");
            if let Err(error) = of(&marked, "cinder") {
                prop_assert!(!error.contains("hush"), "{}", error);
            }
        }

        #[test]
        fn a_key_is_found_among_others(
            key in "[A-Za-z0-9+/]{20,40}", before in "[a-z]{1,8}", caps in "[ -Z^-~]{0,20}",
        ) {
            prop_assume!(key.len() % 4 == 0 && before != "cinder");
            let text = format!("[client.{before}]\nkey = {OTHER}\n[client.cinder]\n\tcaps mon = \"{caps}\"\n\tkey = {key}\n");
            prop_assert_eq!(of(&text, "cinder"), Ok(key));
        }
    }
}
