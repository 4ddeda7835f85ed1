//! Serving: each step is looked for before it is made, so that whatever a crash left is made whole.

use crate::{Export, Exporter, State, failed};
use driver::{Error, Result};
use host::Host;
use secrecy::ExposeSecret;
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// What the target's portal group must say, whatever the kernel's defaults are.
const GROUP: [(&str, &str); 5] = [
    // Nobody comes in without a password …
    ("attrib/authentication", "1"),
    // … nor without being named, or learns of the target.
    ("attrib/generate_node_acls", "0"),
    ("attrib/cache_dynamic_acls", "0"),
    ("attrib/demo_mode_write_protect", "1"),
    ("attrib/demo_mode_discovery", "0"),
];

pub(crate) async fn serve(exporter: &Exporter, export: &Export, device: &Path) -> Result<()> {
    let (host, tree) = (exporter.host.as_ref(), &exporter.tree);
    let steps = Steps { host, export };
    let chap = exporter.chap(export).await?;

    steps.backstore(exporter, device).await?;

    let group = tree.group(export);
    for directory in [tree.fabric(), tree.target(export), group.clone()] {
        steps.directory(&directory).await?;
    }
    for (attribute, value) in GROUP {
        steps.attribute(&group.join(attribute), value).await?;
    }
    steps.directory(&tree.lun(export)).await?;
    steps.link(&tree.lun_link(export), &tree.store(export)).await?;

    let acl = tree.acl(export, &export.initiator);
    steps.directory(&acl).await?;
    steps.attribute(&acl.join("auth/userid"), &chap.user).await?;
    steps.attribute(&acl.join("auth/password"), chap.password.expose_secret()).await?;
    steps.directory(&acl.join("lun_0")).await?;
    steps.link(&tree.mapped_link(export), &tree.lun(export)).await?;
    steps.attribute(&acl.join("lun_0/write_protect"), if export.read_only { "1" } else { "0" }).await?;

    for portal in &export.portals {
        steps.directory(&tree.portal(export, portal)).await.map_err(|error| Error::WrongState {
            what: format!("export {} cannot listen at {portal}: {}", export.id, error.chain()),
        })?;
    }
    steps.attribute(&group.join("enable"), "1").await
}

pub(crate) fn state(exporter: &Exporter, export: &Export) -> Result<State> {
    let (host, tree) = (exporter.host.as_ref(), &exporter.tree);
    let look = || -> host::Result<State> {
        if host.stat(&tree.store(export))?.is_none() && host.stat(&tree.target(export))?.is_none() {
            return Ok(State::Absent);
        }
        let enabled = |path: PathBuf| Ok(host.read(&path.join("enable"))?.as_deref() == Some("1"));
        let leads = |link: PathBuf, to: PathBuf| Ok(host.resolve(&link)? == Some(to));
        let mut whole = enabled(tree.store(export))?
            && leads(tree.lun_link(export), tree.store(export))?
            && leads(tree.mapped_link(export), tree.lun(export))?
            && enabled(tree.group(export))?;
        for portal in &export.portals {
            whole &= host.stat(&tree.portal(export, portal))?.is_some();
        }
        Ok(if whole { State::Served } else { State::Broken })
    };
    look().map_err(failed(format!("look at export {}", export.id)))
}

/// The kinds of steps there are.
struct Steps<'a> {
    host: &'a dyn Host,
    export: &'a Export,
}

impl Steps<'_> {
    async fn directory(&self, path: &Path) -> Result<()> {
        if self.host.stat(path).map_err(failed("look at a target"))?.is_some() {
            return Ok(());
        }
        self.host.make_directory(path).await.map_err(failed(self.doing()))
    }

    /// Writes what is not so already. An attribute that an older kernel does not have is what it would be without.
    async fn attribute(&self, path: &Path, value: &str) -> Result<()> {
        match self.host.read(path).map_err(failed("look at a target"))? {
            Some(now) if now == value => Ok(()),
            None if GROUP.iter().any(|(name, value)| path.ends_with(name) && *value == "0") => Ok(()),
            _ => self.host.write(path, value).await.map_err(failed(self.doing())),
        }
    }

    async fn link(&self, name: &Path, target: &Path) -> Result<()> {
        if self.host.resolve(name).map_err(failed("look at a target"))?.as_deref() == Some(target) {
            return Ok(());
        }
        self.host.symlink(name, target).await.map_err(failed(self.doing()))
    }

    fn doing(&self) -> String {
        format!("serve export {}", self.export.id)
    }

    /// The device becomes the target's: from here on nobody else can mount or hold it.
    async fn backstore(&self, exporter: &Exporter, device: &Path) -> Result<()> {
        let (tree, host) = (&exporter.tree, self.host);
        let store = tree.store(self.export);
        {
            let _one = exporter.hba.lock().await;
            self.directory(&tree.hba()).await?;
            self.directory(&store).await?;
        }
        let node = device.display().to_string();
        let read = |name: &str| host.read(&store.join(name)).map_err(failed("look at a backstore"));
        if read("enable")?.as_deref() == Some("1") {
            let served = read("udev_path")?.unwrap_or_default();
            if served != node {
                return Err(Error::Mismatch {
                    what: format!("the device that export {} serves", self.export.id),
                    expected: node,
                    found: served,
                });
            }
        } else {
            // The one tells the kernel, the other is what it tells others.
            let control = format!("udev_path={node},readonly={}", u8::from(self.export.read_only));
            host.write(&store.join("control"), &control).await.map_err(failed(self.doing()))?;
            self.attribute(&store.join("udev_path"), &node).await?;
            if let Err(error) = host.write(&store.join("enable"), "1").await {
                return Err(self.not_enabled(error, device).await);
            }
        }
        let serial = store.join("wwn/vpd_unit_serial");
        let (now, wanted) = (read("wwn/vpd_unit_serial")?.unwrap_or_default(), self.export.serial.as_str());
        if now.rsplit(' ').next() != Some(wanted) {
            host.write(&serial, wanted).await.map_err(failed(self.doing()))?;
        }
        // Only now: Linux 6.1 crashes when it is written before the backstore is enabled. What the device says of its write
        // cache the kernel hands on by itself.
        match discards(host, device)? {
            true => self.attribute(&store.join("attrib/emulate_tpu"), "1").await,
            false => Ok(()),
        }
    }

    /// Why the kernel did not take the device.
    async fn not_enabled(&self, error: host::Error, device: &Path) -> Error {
        let kind = match &error {
            host::Error::Io { source, .. } => source.kind(),
            _ => ErrorKind::Other,
        };
        match kind {
            ErrorKind::ResourceBusy => {
                let users = self.host.users(device).await.unwrap_or_default();
                let by = users.iter().map(ToString::to_string).collect();
                Error::InUse { what: device.display().to_string(), by }
            }
            ErrorKind::NotFound => Error::NotFound { what: device.display().to_string() },
            _ => failed(self.doing())(error),
        }
    }
}

/// Whether a device takes discards, so that what the initiator trims is freed in a thin pool.
fn discards(host: &dyn Host, device: &Path) -> Result<bool> {
    let name = device.file_name().unwrap_or_default();
    let limit = Path::new("/sys/block").join(name).join("queue/discard_max_bytes");
    let text = host.read(&limit).map_err(failed("ask whether a device discards"))?;
    Ok(text.is_some_and(|text| text != "0"))
}
