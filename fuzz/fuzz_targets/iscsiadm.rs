//! What iscsiadm prints, and how it ends.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| driver_iscsi::fuzz::iscsiadm(i32::from(input.0), input.1));
