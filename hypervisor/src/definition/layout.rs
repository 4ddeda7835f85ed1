//! Where the rescue disk and the others stand.

use super::{
    Bus, Definition, Layout, NAMESPACE, Rescue, RescueSource, disk,
    disk::{Disk, children},
    edits::{Edits, escaped, escaped_path},
    odd,
};
use driver::{Error, Result};
use roxmltree::Node;

/// A place on a bus.
struct Place {
    target: String,
    /// The element `<address>`, as it stands in the text; `None`: the hypervisor finds one.
    address: Option<String>,
}

/// A disk that is put in.
struct New<'a> {
    kind: &'static str,
    driver: String,
    source: String,
    /// What else stands in it, as it stands in the text.
    rest: Vec<&'a str>,
}

pub(super) fn rescue(definition: &Definition<'_>, rescue: &Rescue) -> Result<String> {
    if let Some(generation) = definition.marker() {
        return Err(odd(format!("it is that of a rescued instance (generation {generation}); unrescue it first")));
    }
    let none = || odd("it has no hard disk to boot from");
    let root = definition.root().ok_or_else(none)?;
    let node = |target: &str| definition.disk_nodes().find(|node| disk::target(*node) == Some(target));
    let root_node = node(&root.target).ok_or_else(none)?;
    let bus = match rescue.bus {
        Some(bus) => bus,
        None => root.bus.parse().map_err(|_| {
            let what = format!("the root disk is on the bus {}, where a rescue disk cannot be; name another", root.bus);
            Error::Unsupported { what }
        })?,
    };

    let mut edits = Edits::of(definition.text);
    mark(definition, rescue, &mut edits)?;
    boot_from_disks(definition, &mut edits)?;

    // What is left out makes room.
    let stays = |disk: &Disk| rescue.data_disks || !disk.is_hard() || disk.target == root.target;
    let mut taken: Vec<String> = definition.disks().into_iter().filter(stays).map(|disk| disk.target).collect();
    let moves = rescue.layout == Layout::Classic && root.bus == bus.as_str();
    let place = match moves {
        true => {
            let others = definition.disks().into_iter().filter(|disk| {
                rescue.data_disks && disk.is_hard() && disk.bus == root.bus && disk.target != root.target
            });
            let mut order: Vec<String> = others.map(|disk| disk.target).collect();
            order.sort_by_key(|target| number(target));
            order.insert(0, root.target.clone());
            let mut places: Vec<Place> = order
                .iter()
                .filter_map(|target| node(target))
                .map(|node| Place {
                    target: disk::target(node).unwrap_or_default().to_owned(),
                    address: address(node).map(|address| definition.text[address.range()].to_owned()),
                })
                .collect();
            places.push(Place { target: free(definition, bus, &mut taken)?, address: None });
            places.sort_by_key(|place| number(&place.target));
            let mut places = places.into_iter();
            let first = places.next().ok_or_else(none)?;
            for (target, place) in order.iter().zip(places) {
                shift(definition, node(target).ok_or_else(none)?, &place, &mut edits)?;
            }
            first
        }
        false => Place { target: free(definition, bus, &mut taken)?, address: None },
    };
    if !rescue.data_disks {
        for node in definition.disk_nodes().filter(|node| {
            disk::target(*node) != Some(root.target.as_str()) && Disk::read(*node).is_some_and(|disk| disk.is_hard())
        }) {
            edits.remove(node);
        }
    }

    let last = definition.disk_nodes().last().unwrap_or(root_node);
    let indent = indent(definition.text, root_node);
    let disk = new_disk(rescue, definition, root_node)?.write(bus, &place, true, indent);
    match moves {
        true => edits.insert(root_node.range().start, format!("{disk}{indent}")),
        false => edits.insert(last.range().end, format!("{indent}{disk}")),
    }
    if let Some(path) = &rescue.seed {
        let place = Place { target: free(definition, bus, &mut taken)?, address: None };
        let seed = New {
            kind: "file",
            driver: "type='raw'".into(),
            source: format!("file='{}'/>", escaped_path(path)?),
            rest: vec!["<readonly/>"],
        };
        edits.insert(last.range().end, format!("{indent}{}", seed.write(bus, &place, false, indent)));
    }
    Ok(edits.apply())
}

/// Writes down which rescue this definition is for.
fn mark(definition: &Definition<'_>, rescue: &Rescue, edits: &mut Edits<'_>) -> Result<()> {
    let domain = definition.domain();
    let marker = format!("<mortar:rescue xmlns:mortar=\"{NAMESPACE}\" generation=\"{}\"/>", rescue.generation);
    let Some(metadata) = children(domain, "metadata").next() else {
        let after = ["uuid", "name"].into_iter().find_map(|name| children(domain, name).next());
        let after = after.ok_or_else(|| odd("it has no <name>"))?;
        let indent = indent(definition.text, after);
        edits.insert(after.range().end, format!("{indent}<metadata>{}{marker}{indent}</metadata>", deeper(indent)));
        return Ok(());
    };
    let range = metadata.range();
    let indent = indent(definition.text, metadata);
    let written = &definition.text[range.clone()];
    match written.strip_suffix("/>") {
        Some(open) => {
            let at = range.start + open.len();
            edits.replace(at..range.end, format!(">{}{marker}{indent}</metadata>", deeper(indent)));
        }
        None => {
            let content = written.rfind("</").map_or(written, |end| &written[..end]).trim_end();
            edits.insert(range.start + content.len(), format!("{}{marker}", deeper(indent)));
        }
    }
    Ok(())
}

/// Lets only a disk with a boot order decide: what is in its way goes, and the others move up by one.
fn boot_from_disks(definition: &Definition<'_>, edits: &mut Edits<'_>) -> Result<()> {
    for os in children(definition.domain(), "os") {
        for name in ["boot", "kernel", "initrd", "cmdline", "shim"] {
            children(os, name).for_each(|node| edits.remove(node));
        }
    }
    let devices = children(definition.domain(), "devices").flat_map(|devices| devices.children());
    for boot in devices.flat_map(|device| children(device, "boot")) {
        if let Some(order) = boot.attribute_node("order") {
            let number: u32 = order.value().parse().map_err(|_| odd(format!("a boot order is {}", order.value())))?;
            edits.set(&order, &number.saturating_add(1).to_string())?;
        }
    }
    Ok(())
}

/// Moves a disk to another place.
fn shift(definition: &Definition<'_>, node: Node<'_, '_>, place: &Place, edits: &mut Edits<'_>) -> Result<()> {
    let target = children(node, "target").next().ok_or_else(|| odd("a disk has no target"))?;
    let name = target.attribute_node("dev").ok_or_else(|| odd("a disk has no target"))?;
    edits.set(&name, &escaped(&place.target)?)?;
    match (address(node), &place.address) {
        (Some(old), Some(new)) => edits.replace(old.range(), new.clone()),
        (Some(old), None) => edits.remove(old),
        (None, Some(new)) => {
            let indent = indent(definition.text, target);
            edits.insert(target.range().end, format!("{indent}{new}"));
        }
        (None, None) => {}
    }
    Ok(())
}

fn address<'a, 'i: 'a>(disk: Node<'a, 'i>) -> Option<Node<'a, 'i>> {
    children(disk, "address").next()
}

fn new_disk<'a>(rescue: &Rescue, definition: &Definition<'a>, root: Node<'_, 'a>) -> Result<New<'a>> {
    let new = |kind, driver: &str, source| New { kind, driver: driver.into(), source, rest: Vec::new() };
    Ok(match &rescue.source {
        // Its data is to be on the device, and not in this host's memory, when it is detached.
        RescueSource::Block { path } => {
            new("block", "type='raw' cache='none'", format!("dev='{}'/>", escaped_path(path)?))
        }
        RescueSource::File { path, format } => {
            new("file", &format!("type='{format}'"), format!("file='{}'/>", escaped_path(path)?))
        }
        RescueSource::Rbd { image } => {
            let part = |node: Node<'_, '_>| &definition.text[node.range()];
            let source = children(root, "source").next();
            let within = |name| source.into_iter().flat_map(move |source| children(source, name));
            let inside: String = ["host", "config", "auth"].into_iter().flat_map(within).map(part).collect();
            let head = format!("protocol='rbd' name='{}'", escaped(image)?);
            let source = match inside.is_empty() {
                true => format!("{head}/>"),
                false => format!("{head}>{inside}</source>"),
            };
            New { rest: children(root, "auth").map(part).collect(), ..new("network", "type='raw'", source) }
        }
    })
}

impl New<'_> {
    fn write(&self, bus: Bus, place: &Place, boots: bool, indent: &str) -> String {
        let inner = deeper(indent);
        let mut text = format!("<disk type='{}' device='disk'>", self.kind);
        let lines = [
            Some(format!("<driver name='qemu' {}/>", self.driver)),
            Some(format!("<source {}", self.source)),
            Some(format!("<target dev='{}' bus='{}'/>", place.target, bus.as_str())),
        ];
        let rest = self.rest.iter().map(|line| Some((*line).to_owned()));
        let boot = boots.then(|| "<boot order='1'/>".to_owned());
        for line in lines.into_iter().chain(rest).chain([boot, place.address.clone()]).flatten() {
            text.push_str(&inner);
            text.push_str(&line);
        }
        text.push_str(indent);
        text.push_str("</disk>");
        text
    }
}

/// The space before an element, from its line's end on.
fn indent<'a>(text: &'a str, node: Node<'_, '_>) -> &'a str {
    let before = &text[..node.range().start];
    &before[before.trim_end_matches([' ', '\t', '\r', '\n']).len()..]
}

fn deeper(indent: &str) -> String {
    match indent.contains('\n') {
        true => format!("{indent}  "),
        false => indent.to_owned(),
    }
}

/// How a bus names its disks.
fn prefix(bus: Bus) -> &'static str {
    match bus {
        Bus::Virtio => "vd",
        Bus::Ide => "hd",
        Bus::Scsi | Bus::Sata | Bus::Usb => "sd",
    }
}

/// The number of a target: vda is 0, vdz 25, vdaa 26.
fn number(target: &str) -> u32 {
    let letters = target.strip_prefix('x').unwrap_or(target).get(2..).unwrap_or_default();
    let digit = |letter: u8| u32::from(letter.saturating_sub(b'a')) + 1;
    let sum = letters.bytes().take(4).fold(0, |sum, letter| sum * 26 + digit(letter));
    sum.saturating_sub(1)
}

/// Where the hypervisor puts a disk by its target, as `controller/bus/unit`, if it goes by that.
fn implied(bus: Bus, index: u32) -> Option<[u32; 3]> {
    match bus {
        Bus::Virtio | Bus::Usb => None,
        Bus::Ide => Some([index / 4, index % 4 / 2, index % 2]),
        Bus::Sata => Some([index / 6, 0, index % 6]),
        // Unit 7 is the controller itself.
        Bus::Scsi => Some([index / 15, 0, index % 15 + u32::from(index % 15 >= 7)]),
    }
}

/// A target on a bus whose name and place are free, behind all others if there is one. It is taken from then on.
fn free(definition: &Definition<'_>, bus: Bus, taken: &mut Vec<String>) -> Result<String> {
    let places: Vec<[u32; 3]> = definition
        .disk_nodes()
        .filter(|node| disk::bus(*node) == bus.as_str())
        .filter_map(address)
        .map(|address| {
            ["controller", "bus", "unit"]
                .map(|name| address.attribute(name).and_then(|text| text.parse().ok()).unwrap_or_default())
        })
        .collect();
    let on_bus = |disk: &Disk| disk.bus == bus.as_str();
    let last = definition.disks().iter().filter(|disk| on_bus(disk)).map(|disk| number(&disk.target)).max();
    let most = if bus == Bus::Ide { 4 } else { 702 };
    let names = (0..most).map(|index| format!("{}{}", prefix(bus), letters(index)));
    let is_free = |name: &String| {
        !taken.contains(name) && implied(bus, number(name)).is_none_or(|place| !places.contains(&place))
    };
    let free: Vec<String> = names.filter(is_free).collect();
    let behind = free.iter().find(|name| last.is_none_or(|last| number(name) > last));
    let name = behind.or(free.first()).cloned().ok_or_else(|| Error::WrongState {
        what: format!("the bus {} has no place left for another disk; choose another bus", bus.as_str()),
    })?;
    taken.push(name.clone());
    Ok(name)
}

/// a, b, … z, aa, ab, …
fn letters(index: u32) -> String {
    let letter = |n: u32| char::from_u32(u32::from(b'a') + n % 26).unwrap_or('a');
    match index.checked_div(26) {
        Some(0) | None => letter(index).to_string(),
        Some(more) => format!("{}{}", letter(more - 1), letter(index)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_counted_and_named() {
        for (index, name) in [(0, "vda"), (25, "vdz"), (26, "vdaa"), (701, "vdzz")] {
            assert_eq!((number(name), format!("vd{}", letters(index))), (index, name.to_owned()));
        }
        assert_eq!(number("xvdb"), 1);
    }
}
