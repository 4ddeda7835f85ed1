//! The parsers of this crate for the fuzzer, which is no crate of this workspace: each is given any text.

use crate::{active, filters, label, lvm, report};

/// What `lvm` prints.
pub fn lvm(text: &str) {
    let _report = report::parse(text);
    let _filled = report::filled(text);
    let _kept_out = filters::is_kept_out(text);
    let _restricted = lvm::can_restrict(text);
}

/// The names of a mapped device in sysfs: of an LV, of one of its layers, or of something else.
pub fn names(text: &str) {
    let _uuids = active::uuids(text);
    let _names = active::names(text);
}

/// What a disk begins with.
pub fn label(head: &[u8]) {
    let _label = label::Label::of(head);
}
