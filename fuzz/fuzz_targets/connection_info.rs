//! Cinder's and os-brick's connection_info.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(asked) = driver::connection_info::read(&text.to_owned().into()) {
        let again = asked.locator.to_string().parse();
        assert_eq!(again.ok(), Some(asked.locator));
    }
});
