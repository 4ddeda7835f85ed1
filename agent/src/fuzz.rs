//! The parsers of this crate for the fuzzer, which is no crate of this workspace: each is given any text.

use crate::config::Config;
use std::path::Path;

/// The config file: what is read can be written, and read back.
pub fn config(text: &str) {
    let Ok(config) = Config::parse(text, Path::new("mortard.toml")) else { return };
    if let Ok(written) = toml::to_string(&config) {
        assert_eq!(Config::parse(&written, Path::new("mortard.toml")).ok(), Some(config));
    }
}
