//! The parsers of this crate for the fuzzer, which is no crate of this workspace: each is given any text.

use crate::{cluster, mapping::Mark, provenance::Told};
use driver::Locator;
use host::{
    Output,
    rbd_job::{self, Pool},
};

/// What `mortar-rbd` replies, and what is read in it.
pub fn reply(code: i32, text: &str) {
    let output = Output { code, stdout: text.into(), ..Output::default() };
    let Ok(reply) = rbd_job::reply::<Pool>(&output) else { return };
    let Ok(Locator::Rbd(asked)) = "rbd:pool/image".parse() else { return };
    let told = Told { pool: &asked.pool, reply: &reply };
    for image in &reply.images {
        let _volume = told.volume(image, None);
        for snapshot in &image.snapshots {
            let _volume = told.volume(image, Some(snapshot));
        }
    }
}

/// A cluster's configuration and keyring, and the mark of a mapping.
pub fn configuration(text: &str) {
    let _monitors = cluster::Monitors::parse(text);
    let _sections = cluster::parsed(text);
    let _key = cluster::key_of(&text.to_owned().into(), "client.admin");
    if let Some(mark) = Mark::parse(text) {
        assert_eq!(mark.to_string(), text);
    }
}
