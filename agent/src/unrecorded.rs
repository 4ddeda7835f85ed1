//! What can be told of attachments without the journal: their stable paths, and the devices that these lead to. Nothing of
//! it is proved, and which volume it is stands in the journal only.

use crate::agent::Agent;
use driver::{AttachmentId, Error, Result};
use host::{BlockDevice, block_device};
use std::path::PathBuf;

/// A stable path, and its device if there is one.
pub(crate) struct Unrecorded {
    pub(crate) id: AttachmentId,
    pub(crate) stable_path: PathBuf,
    pub(crate) device: Option<BlockDevice>,
}

/// Every stable path, ordered by id.
pub(crate) fn list(agent: &Agent) -> Result<Vec<Unrecorded>> {
    let host = agent.host.as_ref();
    let directory = &agent.config.agent.device_directory;
    let mut found = Vec::new();
    for name in host.list(directory).map_err(Error::host("list the stable paths"))? {
        let Ok(id) = name.parse::<AttachmentId>() else { continue };
        let stable_path = agent.stable_path(&id);
        let node = host.resolve(&stable_path).map_err(Error::host("read a stable path"))?;
        let device = match node.as_ref().and_then(|node| node.strip_prefix("/dev").ok()).and_then(|name| name.to_str())
        {
            Some(name) => block_device(host, &name.replace('/', "!")).map_err(Error::host("read a block device"))?,
            None => None,
        };
        found.push(Unrecorded { id, stable_path, device });
    }
    Ok(found)
}
