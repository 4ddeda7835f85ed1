//! What mortar-rbd replies, a cluster's configuration and keyring.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| {
    driver_rbd::fuzz::reply(i32::from(input.0 % 3), input.1);
    driver_rbd::fuzz::configuration(input.1);
});
