//! multipathd's answers, and the settings of both daemons.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| driver_iscsi::fuzz::multipath(text));
