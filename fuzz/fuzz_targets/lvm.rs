//! What lvm prints: reports, settings, its version.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| driver_lvm::fuzz::lvm(text));
