//! Locators and the names in them: what parses is read back as it is shown.

#![no_main]

use driver::{AttachmentId, Locator, Portal, Scope, Wwn};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(locator) = text.parse::<Locator>() {
        assert_eq!(locator.to_string().parse::<Locator>().ok(), Some(locator.clone()));
        let _scope = locator.scope();
        let _key = locator.key();
    }
    if let Ok(scope) = text.parse::<Scope>() {
        assert_eq!(scope.to_string().parse::<Scope>().ok(), Some(scope));
    }
    if let Ok(portal) = text.parse::<Portal>() {
        assert_eq!(portal.to_string().parse::<Portal>().ok(), Some(portal));
    }
    if let Ok(wwn) = text.parse::<Wwn>() {
        assert_eq!(wwn.to_string().parse::<Wwn>().ok(), Some(wwn));
    }
    let _id = text.parse::<AttachmentId>();
});
