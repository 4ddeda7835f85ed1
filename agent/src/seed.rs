//! What a rescue system is told when it boots: a small disk as cloud-init's data source NoCloud reads it, a FAT file system
//! with the label CIDATA. Pure.
//!
//! | file | what stands in it |
//! |---|---|
//! | `meta-data` | a new instance id, so that cloud-init takes it for a first boot |
//! | `user-data` | the caller's own, as it is; or else ours |
//! | `vendor-data` | ours, where the caller has his own |
//!
//! Ours is JSON, which is YAML as well: so nothing that is put into it can break out of its place.

use driver::{Error, Result};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use sha_crypt::{PasswordHasher, ShaCrypt};
use std::io::{Cursor, Write};
use uuid::Uuid;

/// In bytes; more than the longest user data needs.
const SIZE: usize = 1 << 20;

/// What is to reach the rescue system.
#[derive(Debug, Default)]
pub(crate) struct Seed {
    /// Of root and of the image's default user.
    pub(crate) password: Option<SecretString>,
    /// Public keys of both, each one line.
    pub(crate) ssh_keys: Vec<String>,
    /// The caller's own.
    pub(crate) user_data: Option<SecretString>,
}

impl Seed {
    pub(crate) const LONGEST_PASSWORD: usize = 255;
    pub(crate) const LONGEST_USER_DATA: usize = 65_536;
    const MOST_KEYS: usize = 64;
    const LONGEST_KEY: usize = 16_384;

    /// Refuses what cannot be handed on.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(password) = &self.password {
            let password = password.expose_secret();
            if password.len() > Self::LONGEST_PASSWORD || password.chars().any(char::is_control) {
                return Err(Error::invalid("password", "write at most 255 bytes without control characters"));
            }
        }
        if self.ssh_keys.len() > Self::MOST_KEYS {
            return Err(Error::invalid("ssh_keys", format!("give at most {}", Self::MOST_KEYS)));
        }
        for key in &self.ssh_keys {
            // Each sort begins so: four bytes of length, of which the first three are 0.
            let is_public = key.split_whitespace().any(|word| word.starts_with("AAAA"));
            if !is_public || key.len() > Self::LONGEST_KEY || key.chars().any(char::is_control) {
                let why = "give public keys, each one line as authorized_keys has them (ssh-ed25519 AAAA…)";
                return Err(Error::invalid("ssh_keys", why));
            }
        }
        match &self.user_data {
            Some(data) if data.expose_secret().len() > Self::LONGEST_USER_DATA => {
                Err(Error::invalid("user_data", "it is longer than 65,536 bytes"))
            }
            _ => Ok(()),
        }
    }

    /// The whole disk, for the rescue `generation` of an instance of this name.
    pub(crate) fn disk(&self, name: &str, generation: Uuid) -> Result<Vec<u8>> {
        let ours = format!("#cloud-config\n{}\n", self.config()?);
        let meta_data = json!({ "instance-id": format!("rescue-{generation}"), "local-hostname": host_name(name) });
        let mut files = vec![("meta-data", format!("{meta_data}\n"))];
        match &self.user_data {
            Some(user_data) => {
                files.extend([("user-data", user_data.expose_secret().to_owned()), ("vendor-data", ours)]);
            }
            None => files.push(("user-data", ours)),
        }
        write(&files).map_err(Error::host("make the seed"))
    }

    fn config(&self) -> Result<Value> {
        let mut root = json!({ "name": "root", "lock_passwd": self.password.is_none() });
        let mut config = json!({ "disable_root": false });
        if !self.ssh_keys.is_empty() {
            root["ssh_authorized_keys"] = json!(self.ssh_keys);
            config["ssh_authorized_keys"] = json!(self.ssh_keys);
        }
        if let Some(password) = &self.password {
            let hash = hash(password)?;
            config["ssh_pwauth"] = json!(true);
            // Of the default user.
            config["password"] = json!(hash);
            config["chpasswd"] = json!({ "expire": false, "list": [format!("root:{hash}")] });
        }
        config["users"] = json!(["default", root]);
        Ok(config)
    }
}

/// A password that was made up: 16 characters that are not taken for one another, about 93 bits.
pub(crate) fn make_up_password() -> Result<SecretString> {
    const ALPHABET: &[u8; 56] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let mut password = String::with_capacity(16);
    while password.len() < 16 {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| random(error))?;
        // Each as often as any other: what is past the last multiple is thrown away.
        let even = bytes.iter().filter(|byte| usize::from(**byte) < 256 / ALPHABET.len() * ALPHABET.len());
        password.extend(even.map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])));
        password.truncate(16);
    }
    Ok(password.into())
}

/// As crypt(3) has it, by SHA-512.
fn hash(password: &SecretString) -> Result<String> {
    let mut salt = [0; 12];
    getrandom::fill(&mut salt).map_err(|error| random(error))?;
    let hashed = ShaCrypt::SHA512.hash_password_with_salt(password.expose_secret().as_bytes(), &salt);
    hashed
        .map(|hash| hash.to_string())
        .map_err(|error| Error::Host { doing: "hash the password".into(), source: error.to_string().into() })
}

fn random(error: getrandom::Error) -> Error {
    Error::Host { doing: "ask for random bytes".into(), source: error.to_string().into() }
}

/// A host name out of an instance's: letters, digits and dashes.
fn host_name(name: &str) -> String {
    let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(48).collect();
    match name.trim_matches('-') {
        "" => "rescue".to_owned(),
        name => format!("{}-rescue", name.to_ascii_lowercase()),
    }
}

fn write(files: &[(&str, String)]) -> std::io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; SIZE]);
    fatfs::format_volume(&mut disk, FormatVolumeOptions::new().volume_label(*b"CIDATA     "))?;
    {
        let system = FileSystem::new(&mut disk, FsOptions::new())?;
        for (name, text) in files {
            let mut file = system.root_dir().create_file(name)?;
            file.write_all(text.as_bytes())?;
            file.flush()?;
        }
        system.unmount()?;
    }
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ0 \"}]\\n: {a} é";

    fn read(disk: Vec<u8>, name: &str) -> Option<String> {
        let system = FileSystem::new(Cursor::new(disk), FsOptions::new()).unwrap();
        assert_eq!(system.volume_label(), "CIDATA");
        let mut text = String::new();
        system.root_dir().open_file(name).ok()?.read_to_string(&mut text).unwrap();
        Some(text)
    }

    fn config(disk: Vec<u8>, name: &str) -> Value {
        let text = read(disk, name).unwrap();
        serde_json::from_str(text.strip_prefix("#cloud-config\n").unwrap()).unwrap()
    }

    #[test]
    fn a_password_is_there_as_a_hash_only() {
        let seed = Seed { password: Some("hush hush".into()), ..Seed::default() };
        let disk = seed.disk("web 1</name>", Uuid::nil()).unwrap();
        assert!(!disk.windows(9).any(|bytes| bytes == b"hush hush"));
        let config = config(disk.clone(), "user-data");
        let hash = config["password"].as_str().unwrap();
        assert!(hash.starts_with("$6$"), "{hash}");
        use sha_crypt::PasswordVerifier;
        let parsed = sha_crypt::PasswordHash::new(hash).unwrap();
        assert!(ShaCrypt::SHA512.verify_password(b"hush hush", &parsed).is_ok());
        assert_eq!(config["chpasswd"]["list"][0], format!("root:{hash}"));
        let meta: Value = serde_json::from_str(&read(disk, "meta-data").unwrap()).unwrap();
        assert_eq!(meta["local-hostname"], "web-1--name-rescue");
    }

    #[test]
    fn the_callers_data_stays_as_it_is_and_keys_break_out_of_nothing() {
        let data = "#!/bin/sh\necho '{]\\'\n\u{7}\n";
        let seed = Seed { ssh_keys: vec![KEY.into()], user_data: Some(data.into()), ..Seed::default() };
        seed.check().unwrap();
        let disk = seed.disk("a", Uuid::nil()).unwrap();
        assert_eq!(read(disk.clone(), "user-data").unwrap(), data);
        let config = config(disk, "vendor-data");
        assert_eq!(
            (&config["ssh_authorized_keys"][0], &config["users"][1]["lock_passwd"]),
            (&json!(KEY), &json!(true))
        );
        assert_eq!(config["password"], Value::Null);
        let largest = Seed { user_data: Some("x".repeat(65_536).into()), ..Seed::default() };
        assert!(largest.check().is_ok() && largest.disk("a", Uuid::nil()).is_ok());
    }

    #[test]
    fn what_cannot_be_handed_on_is_refused() {
        let refused = |seed: Seed| seed.check().unwrap_err().to_string();
        for key in ["", "-----BEGIN OPENSSH PRIVATE KEY-----", "ssh-rsa AAAA\nssh-rsa AAAB", "ssh-rsa AAAA\u{85}"] {
            let said = refused(Seed { ssh_keys: vec![key.into()], ..Seed::default() });
            assert!(said.starts_with("ssh_keys: "), "{key}: {said}");
        }
        let said = refused(Seed { password: Some("hush\n".into()), ..Seed::default() });
        assert!(said.starts_with("password: ") && !said.contains("hush"), "{said}");
        assert!(refused(Seed { user_data: Some("x".repeat(65_537).into()), ..Seed::default() }).contains("65,536"));
    }

    #[test]
    fn made_up_passwords_differ() {
        let (one, other) = (make_up_password().unwrap(), make_up_password().unwrap());
        assert_eq!(one.expose_secret().len(), 16);
        assert_ne!(one.expose_secret(), other.expose_secret());
    }
}
