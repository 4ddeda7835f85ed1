//! The disks of a definition, as they are written there.

use roxmltree::{Attribute, Node};
use std::fmt;

/// A disk of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its name in the definition: `vda`. A guest need not call it so.
    pub target: String,
    /// The bus that it is on: `virtio`, `scsi`, …
    pub bus: String,
    /// What a guest takes it for.
    pub device: Device,
    /// Where its data is.
    pub source: Source,
    /// What QEMU takes the data for: `raw`, `qcow2`.
    pub format: Option<String>,
    /// The serial number that a guest sees.
    pub serial: Option<String>,
    /// When it is tried at boot, among all devices that have a number.
    pub boot_order: Option<u32>,
    /// It refuses writes.
    pub read_only: bool,
    /// What is written to it is lost at its stop.
    pub transient: bool,
}

/// What a guest takes a disk for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A hard disk.
    Disk,
    /// A hard disk whose SCSI commands reach the host's device.
    Lun,
    /// A CD-ROM.
    Cdrom,
    /// A floppy.
    Floppy,
}

/// Where a disk's data is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: an empty drive.
    Empty,
    /// In a file.
    File(String),
    /// On a block device.
    Block(String),
    /// In an RBD image that QEMU opens by itself: `pool/image`.
    Rbd(String),
    /// Anything else.
    Other {
        /// libvirt's word: `network`, `volume`, `nvme`.
        kind: String,
        /// Its name, as far as it has one.
        name: String,
    },
}

impl Disk {
    /// `None` of a disk without a target, which libvirt knows none of.
    pub(super) fn read(node: Node<'_, '_>) -> Option<Self> {
        let target = target(node)?.to_owned();
        let has = |name| children(node, name).next().is_some();
        let of = |name, attribute| children(node, name).find_map(|child: Node<'_, '_>| child.attribute(attribute));
        Some(Self {
            bus: bus(node).to_owned(),
            target,
            device: match node.attribute("device") {
                Some("lun") => Device::Lun,
                Some("cdrom") => Device::Cdrom,
                Some("floppy") => Device::Floppy,
                _ => Device::Disk,
            },
            source: source(node),
            format: of("driver", "type").map(str::to_owned),
            serial: children(node, "serial").map(text).next(),
            boot_order: of("boot", "order").and_then(|order| order.parse().ok()),
            read_only: has("readonly"),
            transient: has("transient"),
        })
    }

    /// A guest may take it for a hard disk, and boot from it.
    pub fn is_hard(&self) -> bool {
        matches!(self.device, Device::Disk | Device::Lun)
    }
}

impl Source {
    /// The path on this host that it has.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::File(path) | Self::Block(path) => Some(path),
            _ => None,
        }
    }
}

/// As `virsh domblklist` prints it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "-",
            Self::File(name) | Self::Block(name) | Self::Rbd(name) | Self::Other { name, .. } => name,
        })
    }
}

/// Whether an element is libvirt's own of this name, and not one of somebody else's name space.
pub(super) fn named(node: &Node<'_, '_>, name: &str) -> bool {
    node.is_element() && node.tag_name().namespace().is_none() && node.tag_name().name() == name
}

/// libvirt's own elements of a name that stand right below a node.
pub(super) fn children<'a, 'i: 'a>(node: Node<'a, 'i>, name: &str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| named(child, name))
}

/// An element's own text, whatever comments stand in it.
pub(super) fn text(node: Node<'_, '_>) -> String {
    node.children().filter(Node::is_text).filter_map(|text| text.text()).collect()
}

/// The name that a disk goes by.
pub(super) fn target<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    children(disk, "target").find_map(|target| target.attribute("dev"))
}

/// The bus that a disk is on. libvirt guesses it by the name where it is not told.
pub(super) fn bus<'a>(disk: Node<'a, '_>) -> &'a str {
    let told = children(disk, "target").find_map(|target| target.attribute("bus"));
    told.unwrap_or_else(|| match target(disk).unwrap_or_default() {
        name if name.starts_with("hd") => "ide",
        name if name.starts_with("sd") => "scsi",
        name if name.starts_with("vd") => "virtio",
        name if name.starts_with("xvd") => "xen",
        name if name.starts_with("fd") => "fdc",
        _ => "",
    })
}

/// The attribute with the path of a disk's source.
pub(super) fn path_attribute<'a, 'i: 'a>(disk: Node<'a, 'i>) -> Option<Attribute<'a, 'i>> {
    let name = match disk.attribute("type") {
        Some("block") => "dev",
        Some("file") => "file",
        _ => return None,
    };
    children(disk, "source").next()?.attribute_node(name)
}

fn source(disk: Node<'_, '_>) -> Source {
    let Some(source) = children(disk, "source").next() else { return Source::Empty };
    let kind = disk.attribute("type").unwrap_or("file");
    let of = |name| source.attribute(name).map(str::to_owned);
    match kind {
        "file" => of("file").map_or(Source::Empty, Source::File),
        "block" => of("dev").map_or(Source::Empty, Source::Block),
        "network" if source.attribute("protocol") == Some("rbd") => Source::Rbd(of("name").unwrap_or_default()),
        _ => {
            let name = ["dir", "name", "volume", "path"].into_iter().find_map(of);
            Source::Other { kind: kind.to_owned(), name: name.unwrap_or_default() }
        }
    }
}
