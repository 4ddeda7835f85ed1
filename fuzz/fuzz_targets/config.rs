//! The agent's config file.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| agent::fuzz::config(text));
