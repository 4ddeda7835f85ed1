//! How an instance is defined, as libvirt's XML: read, and changed by splicing into the text. What we do not understand
//! stays byte for byte as it is.
//!
//! ```text
//!            classic                                   stable
//!   before   vda root      vdb data     sda cdrom      vda root    vdb data    sda cdrom
//!   rescue   vda RESCUE    vdb root     sda cdrom      vda root    vdb data    sda cdrom
//!            vdc data                                  vdc RESCUE, boots first
//! ```
//!
//! A guest sees the order of the addresses on the bus, not the names: so in the classic layout each disk takes the address
//! of the one whose name it takes, and the last one gets a new address from the hypervisor.

mod disk;
mod edits;
mod layout;

pub use disk::{Device, Disk, Source};

use disk::children;
use driver::{DiskFormat, Error, Result};
use edits::Edits;
use roxmltree::{Document, Node, ParsingOptions};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;

/// The name space of our element in `<metadata>`.
const NAMESPACE: &str = "https://mortar.example/rescue/1";

/// More than any real definition has; what is larger is refused before it takes memory.
const MOST_NODES: u32 = 200_000;

/// The definition of an instance.
#[derive(Debug)]
pub struct Definition<'a> {
    text: &'a str,
    document: Document<'a>,
}

/// What is in a definition that a rescue has to know of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// It boots a kernel of the host's (`<kernel>`), not what is on a disk.
    pub direct_kernel: bool,
    /// It has a firmware of its own (UEFI).
    pub firmware: bool,
    /// The file with that firmware's variables, if it is named.
    pub nvram: Option<String>,
    /// It has a TPM.
    pub tpm: bool,
    /// How many devices of the host it has for itself.
    pub host_devices: usize,
    /// It gives QEMU arguments past the hypervisor (`<qemu:commandline>`).
    pub command_line: bool,
}

/// How the rescue disk stands among the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// It comes first and the root disk second; the others follow.
    Classic,
    /// Every disk keeps its place; it comes last, and boots first.
    Stable,
}

/// A bus that disks are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bus {
    /// virtio-blk: vda.
    Virtio,
    /// A SCSI controller, virtio-scsi or other: sda.
    Scsi,
    /// AHCI: sda.
    Sata,
    /// IDE: hda, four at most.
    Ide,
    /// USB storage: sda.
    Usb,
}

/// What the instance boots from while it is rescued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RescueSource {
    /// A block device of this host.
    Block {
        /// Its node, or a link to it.
        path: PathBuf,
    },
    /// A file.
    File {
        /// Its name.
        path: PathBuf,
        /// What QEMU has to take it for.
        format: DiskFormat,
    },
    /// An RBD image that QEMU opens by itself, on the cluster and as the user of the root disk.
    Rbd {
        /// `pool/image` or `pool/namespace/image`.
        image: String,
    },
}

/// How a definition is to be changed for a rescue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescue {
    /// Goes into the marker: which rescue this is.
    pub generation: Uuid,
    /// What is booted.
    pub source: RescueSource,
    /// The raw file of the seed, a small disk beside it.
    pub seed: Option<PathBuf>,
    /// Where it stands.
    pub layout: Layout,
    /// On which bus; `None`: the root disk's. On another bus than the root disk's no disk has to move, whatever the layout.
    pub bus: Option<Bus>,
    /// The disks besides the root disk stay; else they are left out.
    pub data_disks: bool,
}

impl<'a> Definition<'a> {
    /// Reads a definition. [`Error::WrongState`] if it is none.
    pub fn parse(text: &'a str) -> Result<Self> {
        let options = ParsingOptions { nodes_limit: MOST_NODES, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options)
            .map_err(|error| odd(format!("it is no XML that can be read ({error})")))?;
        match disk::named(&document.root_element(), "domain") {
            true => Ok(Self { text, document }),
            false => Err(odd("it is no <domain>")),
        }
    }

    /// The instance's UUID. [`Error::WrongState`] if it tells none.
    pub fn uuid(&self) -> Result<Uuid> {
        let text = children(self.domain(), "uuid").map(disk::text).next();
        let text = text.ok_or_else(|| odd("it has no <uuid>"))?;
        Uuid::parse_str(text.trim()).map_err(|_| odd(format!("its <uuid> is {text}")))
    }

    /// The instance's name; empty if it tells none.
    pub fn name(&self) -> String {
        children(self.domain(), "name").map(disk::text).next().unwrap_or_default()
    }

    /// Its disks, in the order in which they stand.
    pub fn disks(&self) -> Vec<Disk> {
        self.disk_nodes().filter_map(Disk::read).collect()
    }

    /// The disk that boots first: the one with the lowest boot order, else the first one. Neither a CD-ROM nor a floppy
    /// is ever meant. `None` if there is none.
    pub fn root(&self) -> Option<Disk> {
        let hard = self.disks().into_iter().filter(Disk::is_hard);
        // Of equals, the first.
        hard.min_by_key(|disk| disk.boot_order.unwrap_or(u32::MAX))
    }

    /// The generation of the rescue that it was changed for; `None` if for none.
    pub fn marker(&self) -> Option<String> {
        let metadata = children(self.domain(), "metadata").flat_map(|metadata| metadata.children());
        let mut markers = metadata.filter(|node| node.has_tag_name((NAMESPACE, "rescue")));
        markers.next().map(|node| node.attribute("generation").unwrap_or_default().to_owned())
    }

    /// What else a rescue has to know.
    pub fn facts(&self) -> Facts {
        let os = || children(self.domain(), "os");
        let nvram = os().flat_map(|os| children(os, "nvram")).map(disk::text).next();
        Facts {
            direct_kernel: os().any(|os| children(os, "kernel").next().is_some()),
            firmware: nvram.is_some()
                || os().any(|os| os.attribute("firmware") == Some("efi") || children(os, "loader").next().is_some()),
            nvram: nvram.filter(|path| !path.is_empty()),
            tpm: self.devices("tpm").next().is_some(),
            host_devices: self.devices("hostdev").count(),
            command_line: self.domain().children().any(|node| {
                let name = node.tag_name();
                name.name() == "commandline" && name.namespace().is_some_and(|space| space.contains("/qemu/"))
            }),
        }
    }

    /// The definition to rescue it by. [`Error::WrongState`] if it is rescued already, or has no root disk, or no place is
    /// left on the bus; [`Error::Invalid`] if a path or a name cannot be written down in XML.
    pub fn rescue(&self, rescue: &Rescue) -> Result<String> {
        layout::rescue(self, rescue)
    }

    /// The same definition with other sources for some disks, each named by its target. Only the paths of devices and files
    /// change. [`Error::WrongState`] if there is no such disk, or it has no path.
    pub fn with_sources(&self, sources: &[(String, PathBuf)]) -> Result<String> {
        let mut edits = Edits::of(self.text);
        for (target, path) in sources {
            let missing = || odd(format!("it has no disk {target} with a path"));
            let node = self.disk_nodes().find(|node| disk::target(*node) == Some(target)).ok_or_else(missing)?;
            let attribute = disk::path_attribute(node).ok_or_else(missing)?;
            edits.set(&attribute, &edits::escaped_path(path)?)?;
        }
        Ok(edits.apply())
    }

    fn domain(&self) -> Node<'_, 'a> {
        self.document.root_element()
    }

    fn devices(&self, name: &'static str) -> impl Iterator<Item = Node<'_, 'a>> {
        children(self.domain(), "devices").flat_map(move |devices| children(devices, name))
    }

    fn disk_nodes(&self) -> impl Iterator<Item = Node<'_, 'a>> {
        self.devices("disk")
    }
}

impl Bus {
    /// As libvirt calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
            Self::Sata => "sata",
            Self::Ide => "ide",
            Self::Usb => "usb",
        }
    }
}

impl std::str::FromStr for Bus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Virtio, Self::Scsi, Self::Sata, Self::Ide, Self::Usb];
        let found = all.into_iter().find(|bus| bus.as_str() == text);
        found.ok_or_else(|| Error::invalid("bus", format!("{text} is none of virtio, scsi, sata, ide, usb")))
    }
}

/// Something about a definition that we cannot work with.
fn odd(why: impl std::fmt::Display) -> Error {
    Error::WrongState { what: format!("the definition cannot be used: {why}") }
}

#[cfg(test)]
mod tests;
