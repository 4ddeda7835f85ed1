//! The parsers of this crate for the fuzzer, which is no crate of this workspace: each is given any text.

use crate::{
    checkup,
    iscsiadm::{self, Verb},
    multipath,
    place::Place,
    session,
};
use host::{Host, Output};

/// What `iscsiadm` prints, and how it ends.
pub fn iscsiadm(code: i32, text: &str) {
    let output = Output { code, stdout: text.into(), stderr: text.into() };
    let locator = "iscsi://10.0.0.5/iqn.2026-11.org.example:t1/1".parse().and_then(|locator| Place::all(&locator));
    for place in locator.unwrap_or_default() {
        for verb in [Verb::Login, Verb::Logout] {
            assert!(iscsiadm::classify(verb, &place, &output).is_ok() || code != 0);
        }
    }
    let _version = iscsiadm::version(&output);
    let _started = iscsiadm::has_just_started(&output);
}

/// What multipathd answers, what it remembers, and the settings of both daemons.
pub fn multipath(text: &str) {
    let _said = multipath::said(text);
    let _version = multipath::version_in(text);
    let _takes = multipath::takes_every_disk(text);
    let _lists = multipath::lists(text, "3600140500000000000000000000000a1");
    checkup::settings(text);
}

/// Sessions and maps as sysfs shows them.
pub fn sysfs(host: &dyn Host) {
    let _any = session::any_ours(host);
    for named in session::all(host).unwrap_or_default() {
        let _luns = named.session.luns(host);
        let _again = named.session.again(host);
    }
    for map in multipath::Map::all(host).unwrap_or_default() {
        let _partitions = map.partitions(host);
        let _block = map.block(host);
    }
}
