//! What libvirt does to a definition that it is given, and what it refuses.

use crate::definition::{Definition, Disk};
use driver::{Error, Result};
use roxmltree::{Document, Node};
use std::collections::BTreeSet;

/// An error as libvirt gives it.
pub(super) fn refused(said: impl std::fmt::Display) -> Error {
    Error::WrongState { what: format!("libvirt refused: {said}") }
}

/// A definition as it is kept: every disk has an address.
pub(super) fn kept(text: &str) -> Result<String> {
    let document = Document::parse(text).map_err(|error| refused(format!("XML error: {error}")))?;
    let below = |path: [&'static str; 2]| {
        let [first, second] = path;
        let parents = document.root_element().children().filter(move |node| node.has_tag_name(first));
        parents.flat_map(|parent| parent.children()).filter(move |node| second.is_empty() || node.has_tag_name(second))
    };
    let attribute = |node: Node<'_, '_>, child_name: &str, name: &str| {
        child(node, child_name).and_then(|child| child.attribute(name).map(str::to_owned))
    };

    let mut names = BTreeSet::new();
    let mut twice = below(["devices", "disk"]).filter_map(|disk| attribute(disk, "target", "dev"));
    if let Some(name) = twice.find(|name| !names.insert(name.clone())) {
        return Err(refused(format!("XML error: target '{name}' duplicated for disk sources")));
    }
    let orders: Vec<String> = below(["devices", ""]).filter_map(|device| attribute(device, "boot", "order")).collect();
    if !orders.is_empty() && below(["os", "boot"]).next().is_some() {
        let said = "per-device boot elements cannot be used together with os/boot elements";
        return Err(refused(format!("unsupported configuration: {said}")));
    }
    let mut seen = BTreeSet::new();
    if let Some(order) = orders.iter().find(|order| !seen.insert(*order)) {
        return Err(refused(format!("unsupported configuration: boot order {order} used for more than one device")));
    }

    let written = |node: Node<'_, '_>| text[node.range()].to_owned();
    let mut places: BTreeSet<String> = BTreeSet::new();
    for address in below(["devices", "disk"]).filter_map(|disk| child(disk, "address")).map(written) {
        if !places.insert(address.clone()) {
            return Err(refused(format!("XML error: the address {address} is in use already")));
        }
    }
    let mut additions = Vec::new();
    for disk in below(["devices", "disk"]).filter(|disk| child(*disk, "address").is_none()) {
        let Some(target) = child(disk, "target") else { continue };
        let mut free = (1..).map(|n| match target.attribute("bus") {
            Some("virtio") => {
                format!("<address type='pci' domain='0x0000' bus='0x00' slot='{n:#04x}' function='0x0'/>")
            }
            _ => format!("<address type='drive' controller='0' bus='0' target='0' unit='{}'/>", n - 1),
        });
        if let Some(address) = free.find(|address| !places.contains(address)) {
            additions.push((target.range().end, format!("\n      {address}")));
            places.insert(address);
        }
    }
    let mut kept = text.to_owned();
    // From the last to the first, so that what is put in moves nothing.
    for (at, address) in additions.into_iter().rev() {
        kept.insert_str(at, &address);
    }
    Ok(kept)
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

/// What it boots: a kernel of the host's, or the source of a disk.
pub(super) fn boots_from(definition: &Definition<'_>) -> String {
    if definition.facts().direct_kernel {
        return "the kernel of the host".into();
    }
    let ordered = definition.disks().into_iter().filter(|disk| disk.boot_order.is_some());
    let disk: Option<Disk> = ordered.min_by_key(|disk| disk.boot_order).or_else(|| definition.root());
    disk.map_or_else(|| "nothing".to_owned(), |disk| disk.source.to_string())
}
