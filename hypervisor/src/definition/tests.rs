//! On definitions as libvirt 9.0 gave them, `virsh dumpxml --inactive --security-info`.

use super::*;
use proptest::prelude::*;
use roxmltree::Document;

const VIRTIO: &str = include_str!("../../testdata/virtio.xml");
const SCSI: &str = include_str!("../../testdata/scsi.xml");
const RBD: &str = include_str!("../../testdata/rbd.xml");
const KERNEL: &str = include_str!("../../testdata/kernel.xml");
const ALL: [&str; 4] = [VIRTIO, SCSI, RBD, KERNEL];

fn plan(layout: Layout) -> Rescue {
    Rescue {
        generation: Uuid::from_u128(7),
        source: RescueSource::Block { path: "/dev/mortar/rescue-1".into() },
        seed: None,
        layout,
        bus: None,
        data_disks: true,
    }
}

fn rescued(text: &str, rescue: &Rescue) -> String {
    Definition::parse(text).unwrap().rescue(rescue).unwrap()
}

/// A line for each disk: target, bus, source, the last two parts of its address, its boot order.
fn table(text: &str) -> Vec<String> {
    let definition = Definition::parse(text).unwrap();
    let lines = definition.disk_nodes().map(|node| {
        let disk = Disk::read(node).unwrap();
        let place = children(node, "address").next().map(|address| {
            let of = |name| address.attribute(name).unwrap_or_default();
            if of("type") == "pci" {
                format!("{}.{}", of("bus"), of("slot"))
            } else {
                format!("{}.{}", of("bus"), of("unit"))
            }
        });
        let boot = disk.boot_order.map(|order| format!(" boots {order}")).unwrap_or_default();
        format!("{} {} {} {}{boot}", disk.target, disk.bus, disk.source, place.as_deref().unwrap_or("-"))
    });
    let mut lines: Vec<String> = lines.collect();
    lines.sort();
    lines
}

/// All that a rescue has nothing to do with: the text without its disks, its marker, and what decides what is booted.
fn rest(text: &str) -> String {
    let document = Document::parse(text).unwrap();
    let root = document.root_element();
    let mut edits = Edits::of(text);
    for node in root.descendants().filter(|node| node.is_element()) {
        let within = node.parent().map(|parent| parent.tag_name().name()).unwrap_or_default();
        match (within, node.tag_name().name()) {
            ("devices", "disk") | ("os", "boot" | "kernel" | "initrd" | "cmdline") | ("metadata", "rescue") => {
                edits.remove(node)
            }
            ("interface" | "hostdev", "boot") => edits.remove(node),
            _ => {}
        }
    }
    edits.apply().replace("\r\n", "\n").replace("\n  <metadata>\n  </metadata>", "")
}

#[test]
fn disks_are_read_as_they_are_written() {
    assert_eq!(
        table(SCSI),
        [
            "sda scsi /srv/data.raw 0.0 boots 3",
            "sdb scsi /srv/it's/db root.qcow2 0.1 boots 1",
            "sdc scsi /srv/cd.iso 0.2"
        ]
    );
    let disks = Definition::parse(VIRTIO).unwrap().disks();
    assert_eq!(disks[0].source, Source::Block("/dev/vg/root".into()));
    assert_eq!((disks[0].serial.as_deref(), disks[0].format.as_deref()), (Some("af767c74"), Some("raw")));
    assert_eq!((disks[2].device, &disks[2].source, disks[2].read_only), (Device::Cdrom, &Source::Empty, true));
    let disks = Definition::parse(RBD).unwrap().disks();
    assert_eq!(disks[1].source, Source::Rbd("volumes/ns/volume-1".into()));
    assert_eq!(disks[2].source, Source::Other { kind: "network".into(), name: "iqn.2026-11.org.example:t/1".into() });
}

#[test]
fn the_root_disk_is_the_one_that_boots_first() {
    let root = |text: &str| Definition::parse(text).unwrap().root().map(|disk| disk.target);
    assert_eq!(ALL.map(root), [Some("vda".into()), Some("sdb".into()), Some("vda".into()), Some("hda".into())]);
    assert_eq!(root("<domain><devices/></domain>"), None);
    let cdrom = "<domain><devices><disk device='cdrom'><target dev='sda'/><boot order='1'/></disk>\
        <disk><target dev='sdb'/></disk></devices></domain>";
    assert_eq!(root(cdrom), Some("sdb".into()));
}

#[test]
fn facts_and_names_are_read() {
    let definition = Definition::parse(KERNEL).unwrap();
    assert_eq!(definition.name(), "a&b <c> 'd' \"e\"");
    assert_eq!(definition.uuid().unwrap().to_string(), "11068a84-2566-433c-91c7-ca78a405780f");
    assert_eq!(definition.facts(), Facts { direct_kernel: true, command_line: true, ..Facts::default() });
    let secure = VIRTIO
        .replace(
            "    <boot dev='hd'/>",
            "    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader>\n    \
             <nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/var/lib/libvirt/qemu/nvram/web-1_VARS.fd</nvram>\n    \
             <boot dev='hd'/>",
        )
        .replace(
            "    <memballoon",
            "    <tpm model='tpm-crb'>\n      <backend type='emulator' version='2.0'/>\n    </tpm>\n    \
             <hostdev mode='subsystem' type='pci' managed='yes'>\n    </hostdev>\n    <memballoon",
        );
    let facts = Facts {
        firmware: true,
        nvram: Some("/var/lib/libvirt/qemu/nvram/web-1_VARS.fd".into()),
        tpm: true,
        host_devices: 1,
        ..Facts::default()
    };
    assert_eq!(Definition::parse(&secure).unwrap().facts(), facts);
    let kept = rescued(&secure, &plan(Layout::Classic));
    assert_eq!(Definition::parse(&kept).unwrap().facts(), facts);
    assert_eq!(Definition::parse(VIRTIO).unwrap().facts(), Facts::default());
}

#[test]
fn classic_comes_first_and_pushes_the_others_back() {
    let kept = rescued(VIRTIO, &plan(Layout::Classic));
    assert_eq!(
        table(&kept),
        [
            "sda sata - 0.0",
            "vda virtio /dev/mortar/rescue-1 0x03.0x00 boots 1",
            "vdb virtio /dev/vg/root 0x04.0x00",
            "vdc virtio /dev/mortar/data -",
        ]
    );
    assert!(!kept.contains("<boot dev"), "{kept}");
    assert!(kept.contains("<serial>af767c74</serial>") && kept.contains("<total_iops_sec>500</total_iops_sec>"));
    let disk = "    <disk type='block' device='disk'>\n      <driver name='qemu' type='raw' cache='none'/>\n      \
        <source dev='/dev/mortar/rescue-1'/>\n      <target dev='vda' bus='virtio'/>\n      <boot order='1'/>\n      \
        <address type='pci' domain='0x0000' bus='0x03' slot='0x00' function='0x0'/>\n    </disk>\n    <disk";
    assert!(kept.contains(disk), "{kept}");

    // The root disk is the second one here, and a number is before it in the boot order of others.
    let kept = rescued(SCSI, &plan(Layout::Classic));
    assert_eq!(
        table(&kept),
        [
            "sda scsi /dev/mortar/rescue-1 0.0 boots 1",
            "sdb scsi /srv/it's/db root.qcow2 0.1 boots 2",
            "sdc scsi /srv/cd.iso 0.2",
            "sdd scsi /srv/data.raw - boots 4",
        ]
    );
    assert!(kept.contains("<boot order='3'/>"), "the interface's");
    assert!(kept.contains("<source file='/srv/it&apos;s/db root.qcow2'/>"), "{kept}");
}

#[test]
fn stable_comes_last_and_moves_nothing() {
    let kept = rescued(VIRTIO, &plan(Layout::Stable));
    assert_eq!(
        table(&kept),
        [
            "sda sata - 0.0",
            "vda virtio /dev/vg/root 0x03.0x00",
            "vdb virtio /dev/mortar/data 0x04.0x00",
            "vdc virtio /dev/mortar/rescue-1 - boots 1",
        ]
    );
    assert!(!kept.contains("<boot dev"), "{kept}");
}

#[test]
fn data_disks_that_are_refused_are_left_out() {
    for (layout, wanted) in [
        (Layout::Classic, ["sdc scsi /srv/cd.iso 0.2", "sdb scsi /dev/mortar/rescue-1 0.1 boots 1"]),
        (Layout::Stable, ["sdc scsi /srv/cd.iso 0.2", "sdb scsi /srv/it's/db root.qcow2 0.1 boots 2"]),
    ] {
        let kept = rescued(SCSI, &Rescue { data_disks: false, ..plan(layout) });
        let table = table(&kept);
        assert_eq!(table.len(), 3, "{table:?}");
        assert!(wanted.iter().all(|line| table.iter().any(|found| found == line)), "{table:?}");
        assert!(!kept.contains("/srv/data.raw"), "{kept}");
    }
}

#[test]
fn another_bus_has_its_own_names_and_places() {
    let on = |text: &str, bus| {
        let kept = rescued(text, &Rescue { bus: Some(bus), ..plan(Layout::Classic) });
        table(&kept).into_iter().find(|line| line.contains("rescue-1")).unwrap()
    };
    assert_eq!(on(VIRTIO, Bus::Usb), "sdb usb /dev/mortar/rescue-1 - boots 1");
    assert_eq!(on(VIRTIO, Bus::Sata), "sdb sata /dev/mortar/rescue-1 - boots 1");
    assert_eq!(on(VIRTIO, Bus::Ide), "hda ide /dev/mortar/rescue-1 - boots 1");
    assert_eq!(on(KERNEL, Bus::Virtio), "vda virtio /dev/mortar/rescue-1 - boots 1");
    // The place that sdb would get by its name is taken by a disk of another name.
    let odd = VIRTIO.replace("target='0' unit='0'", "target='0' unit='1'");
    assert_eq!(on(&odd, Bus::Sata), "sdc sata /dev/mortar/rescue-1 - boots 1");
    let odd = VIRTIO.replace("bus='virtio'", "bus='sd'");
    let refused = Definition::parse(&odd).unwrap().rescue(&plan(Layout::Classic)).unwrap_err();
    assert!(refused.to_string().contains("the root disk is on the bus sd"), "{refused}");
}

#[test]
fn a_bus_that_is_full_is_said() {
    let fourth = rescued(KERNEL, &plan(Layout::Classic));
    assert_eq!(
        table(&fourth),
        [
            "fda fdc /srv/f.img 0.0",
            "hda ide /dev/mortar/rescue-1 0.0 boots 1",
            "hdb ide /srv/a.raw 0.1",
            "hdc ide - 1.0",
            "hdd ide /srv/b.raw -",
        ]
    );
    assert!(!fourth.contains("<kernel>") && !fourth.contains("<initrd>") && !fourth.contains("<cmdline>"));
    let seed = Rescue { seed: Some("/var/lib/seed".into()), ..plan(Layout::Classic) };
    let error = Definition::parse(KERNEL).unwrap().rescue(&seed).unwrap_err();
    assert!(error.to_string().contains("the bus ide has no place left"), "{error}");
}

#[test]
fn an_rbd_disk_goes_to_the_cluster_of_the_root_disk() {
    let source = RescueSource::Rbd { image: "vms/rescue-5f1e".into() };
    let kept = rescued(RBD, &Rescue { source: source.clone(), ..plan(Layout::Classic) });
    assert_eq!(table(&kept)[0], "vda virtio vms/rescue-5f1e 0x02.0x00 boots 1");
    let document = Document::parse(&kept).unwrap();
    let disk = document.descendants().find(|node| node.has_tag_name("disk")).unwrap();
    let count = |name| disk.descendants().filter(|node| node.has_tag_name(name)).count();
    assert_eq!((count("host"), count("auth"), count("secret")), (2, 1, 1));

    // Where the credentials stand within the source.
    let inner = RBD.replacen("<boot dev='hd'/>", "", 1).replacen("vdb", "vdz", 1);
    let inner =
        inner.replacen("<target dev='vdz' bus='virtio'/>", "<target dev='vdz' bus='virtio'/><boot order='1'/>", 1);
    let kept = rescued(&inner, &Rescue { source, ..plan(Layout::Stable) });
    assert!(kept.contains("<source protocol='rbd' name='vms/rescue-5f1e'><host name='10.0.0.1'/><auth "), "{kept}");
}

#[test]
fn a_seed_stands_behind_everything_and_refuses_writes() {
    let kept = rescued(VIRTIO, &Rescue { seed: Some("/var/lib/mortar-rescue/s.img".into()), ..plan(Layout::Classic) });
    assert_eq!(table(&kept)[4], "vdd virtio /var/lib/mortar-rescue/s.img -");
    let seed = Definition::parse(&kept).unwrap().disks().into_iter().find(|disk| disk.target == "vdd").unwrap();
    assert!(seed.read_only && seed.boot_order.is_none());
}

#[test]
fn the_marker_goes_into_whatever_metadata_there_is() {
    let generation = Some(Uuid::from_u128(7).to_string());
    for text in [
        VIRTIO.to_owned(),
        SCSI.to_owned(),
        VIRTIO.replace("<title>", "<metadata/>\n  <title>"),
        VIRTIO.replace("<title>", "<metadata />\n  <title>"),
        VIRTIO.replace("<title>", "<metadata></metadata>\n  <title>"),
        VIRTIO.replace(
            "<title>",
            "<metadata><!-- </metadata> --><x:y xmlns:x='z'><![CDATA[</metadata>]]></x:y></metadata >\n  <title>",
        ),
        VIRTIO.replace("\n", "").replace("  ", ""),
    ] {
        let before = Definition::parse(&text).unwrap();
        assert_eq!(before.marker(), None);
        let kept = before.rescue(&plan(Layout::Stable)).unwrap();
        let after = Definition::parse(&kept).unwrap();
        assert_eq!(after.marker(), generation, "{kept}");
        let again = after.rescue(&plan(Layout::Stable)).unwrap_err();
        assert!(again.to_string().contains("unrescue it first"), "{again}");
    }
    let foreign = VIRTIO.replace("<title>", "<metadata><rescue generation='1'/></metadata>\n  <title>");
    assert_eq!(Definition::parse(&foreign).unwrap().marker(), None);
}

#[test]
fn what_is_not_edited_stays_byte_for_byte() {
    for text in ALL {
        for layout in [Layout::Classic, Layout::Stable] {
            for odd in [
                text.to_owned(),
                text.replace('\'', "\""),
                text.replace('\n', "\r\n"),
                text.replace("<devices>", "<devices><!-- <disk type='file'><target dev='vdy'/></disk> -->"),
                text.replace("<name>", "<name ><![CDATA[x<y>]]>"),
                text.replace(" bus=", "\n bus = "),
                text.replace("</disk>", "<!-- a > b ' --></disk >"),
            ] {
                let kept = rescued(&odd, &plan(layout));
                assert_eq!(rest(&kept), rest(&odd));
                assert_eq!(
                    Definition::parse(&kept).unwrap().disks().len(),
                    Definition::parse(&odd).unwrap().disks().len() + 1
                );
            }
        }
    }
}

#[test]
fn sources_are_exchanged_and_nothing_else() {
    let moved = |sources: &[(&str, &str)]| {
        let sources: Vec<(String, PathBuf)> =
            sources.iter().map(|(target, path)| ((*target).to_owned(), PathBuf::from(path))).collect();
        Definition::parse(VIRTIO).unwrap().with_sources(&sources)
    };
    assert_eq!(moved(&[]).unwrap(), VIRTIO);
    assert_eq!(
        moved(&[("vdb", "/dev/a'b"), ("vda", "/dev/dm-7")]).unwrap(),
        VIRTIO.replace("/dev/vg/root", "/dev/dm-7").replace("/dev/mortar/data", "/dev/a&apos;b")
    );
    for target in ["vdz", "sda"] {
        let error = moved(&[(target, "/dev/dm-7")]).unwrap_err();
        assert!(error.to_string().contains(&format!("no disk {target} with a path")), "{error}");
    }
}

#[test]
fn what_is_no_definition_is_refused() {
    for text in [
        "",
        "<domain",
        "<network/>",
        "<domain xmlns='urn:x'/>",
        "<!DOCTYPE domain [<!ENTITY a 'b'>]><domain>&a;</domain>",
        "<domain>\0</domain>",
    ] {
        assert!(matches!(Definition::parse(text), Err(Error::WrongState { .. })), "{text}");
    }
    let deep = "<a>".repeat(100_000);
    assert!(Definition::parse(&format!("<domain>{deep}")).is_err());
    let bare = Definition::parse("<domain><devices><disk><target dev='vda'/></disk></devices></domain>").unwrap();
    assert!(bare.uuid().is_err() && bare.rescue(&plan(Layout::Stable)).is_err());
}

/// What people might try to break out with.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        "/[ -~]{0,40}",
        "/[<>&'\"/a-z\\]\\[!-]{1,30}",
        Just("/a'/><source file='/etc/shadow".to_owned()),
        Just("/a]]></disk><disk type='file'>".to_owned()),
        Just("/a&#39;&apos;&lt;-->".to_owned()),
        "/\\PC{0,20}",
    ]
}

proptest! {
    #[test]
    fn no_name_breaks_out(name in hostile(), which in 0..3_u8, index in 0..4_usize, classic: bool) {
        let path = PathBuf::from(&name);
        let source = match which {
            0 => RescueSource::Block { path },
            1 => RescueSource::File { path, format: DiskFormat::Qcow2 },
            _ => RescueSource::Rbd { image: name.clone() },
        };
        let layout = if classic { Layout::Classic } else { Layout::Stable };
        let text = ALL[index];
        let definition = Definition::parse(text).unwrap();
        let kept = definition.rescue(&Rescue { source, ..plan(layout) }).unwrap();
        let after = Definition::parse(&kept).unwrap();
        let first = after.disks().into_iter().find(|disk| disk.boot_order == Some(1)).unwrap();
        let expected = match which {
            0 => Source::Block(name),
            1 => Source::File(name),
            _ => Source::Rbd(name),
        };
        prop_assert_eq!(first.source, expected);
        prop_assert_eq!(after.disks().len(), definition.disks().len() + 1);
        prop_assert_eq!(rest(&kept), rest(text));
    }

    #[test]
    fn no_source_breaks_out(name in hostile()) {
        let text = SCSI;
        let moved = Definition::parse(text).unwrap().with_sources(&[("sdb".into(), PathBuf::from(&name))]).unwrap();
        let disks = Definition::parse(&moved).unwrap().disks();
        prop_assert_eq!(&disks[1].source, &Source::File(name));
        prop_assert_eq!(rest(&moved), rest(text));
    }

    #[test]
    fn control_characters_are_refused(name in "/[a-z]{0,3}[\\x00-\\x1f\\x7f][a-z]{0,3}") {
        let rescue = Rescue { source: RescueSource::Block { path: name.into() }, ..plan(Layout::Classic) };
        let refused = Definition::parse(VIRTIO).unwrap().rescue(&rescue);
        let refused = matches!(refused, Err(Error::Invalid { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn no_text_makes_us_panic(text in "\\PC{0,80}", index in 0..4_usize, at: prop::sample::Index, cut: prop::sample::Index) {
        let whole = ALL[index];
        let boundary = |index: &prop::sample::Index| {
            let at = index.index(whole.len());
            (0..=at).rev().find(|at| whole.is_char_boundary(*at)).unwrap_or(0)
        };
        let (at, cut) = (boundary(&at), boundary(&cut));
        let (from, to) = (at.min(cut), at.max(cut));
        for damaged in [text.clone(), format!("{}{text}{}", &whole[..from], &whole[to..]), format!("{}{text}{}", &whole[..at], &whole[at..])] {
            if let Ok(definition) = Definition::parse(&damaged) {
                let _any = (definition.disks(), definition.root(), definition.facts(), definition.uuid(), definition.marker());
                for layout in [Layout::Classic, Layout::Stable] {
                    if let Ok(kept) = definition.rescue(&Rescue { seed: Some("/s".into()), ..plan(layout) }) {
                        prop_assert!(Definition::parse(&kept).is_ok());
                    }
                }
            }
        }
    }
}
