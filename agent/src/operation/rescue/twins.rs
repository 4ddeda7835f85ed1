//! Two disks with the same marks on them, as a rescue image and a root disk that was made from it: the rescue system may mount
//! the one for the other. Nothing is done about it, but it is said.

use super::LOOK;
use driver::{DiskFormat, Result};
use host::Host;
use hypervisor::definition::Definition;
use std::{collections::BTreeSet, path::Path};

/// How much of a disk is looked at: its partition table, and the file systems that begin here.
const HEAD: usize = 2 << 20;

const SECTOR: usize = 512;

/// What the root disk of a definition has in common with a rescue disk. What cannot be read has nothing.
pub(super) async fn warnings(host: &dyn Host, original: &str, rescue: &Path) -> Result<Vec<String>> {
    let Some(root) = Definition::parse(original)?.root() else { return Ok(Vec::new()) };
    let is_raw = root.format.is_none_or(|format| format == DiskFormat::Raw.to_string());
    let Some(path) = root.source.path().filter(|_| is_raw) else { return Ok(Vec::new()) };
    let (one, other) = tokio::join!(marks(host, Path::new(path)), marks(host, rescue));
    let common: Vec<String> = one.intersection(&other).cloned().collect();
    Ok(match common.is_empty() {
        true => Vec::new(),
        false => vec![format!(
            "the rescue disk and {} have the same {}: the rescue system may take one for the other, so name devices, not \
             UUIDs or labels, when you mount",
            root.target,
            common.join(", ")
        )],
    })
}

async fn marks(host: &dyn Host, path: &Path) -> BTreeSet<String> {
    match host.head(path, HEAD, LOOK).await {
        Ok(head) => marks_in(&head),
        Err(_) => BTreeSet::new(),
    }
}

/// The UUIDs of a disk: of its table, and of the file systems that are seen.
fn marks_in(head: &[u8]) -> BTreeSet<String> {
    let mut marks: BTreeSet<String> = file_system(head).into_iter().collect();
    if at(head, 510, 2) != Some(&[0x55, 0xaa]) {
        return marks;
    }
    let mut starts = Vec::new();
    match at(head, SECTOR, 8) {
        Some(b"EFI PART") => {
            marks.extend(at(head, SECTOR + 56, 16).map(|guid| format!("partition table {}", hex(guid))));
            let first = number(head, SECTOR + 72).unwrap_or(2).saturating_mul(SECTOR);
            for entry in 0..128 {
                starts.extend(number(head, first.saturating_add(entry * 128 + 32)).filter(|start| *start > 0));
            }
        }
        _ => {
            let signature = at(head, 440, 4).filter(|signature| *signature != [0; 4]);
            marks.extend(signature.map(|signature| format!("partition table {}", hex(signature))));
            for entry in 0..4 {
                let start = at(head, 446 + entry * 16 + 8, 4).and_then(|bytes| bytes.try_into().ok());
                starts.extend(start.map(u32::from_le_bytes).and_then(|start| usize::try_from(start).ok()));
            }
        }
    }
    let partitions = starts.into_iter().filter(|start| *start > 0);
    marks.extend(partitions.filter_map(|start| file_system(head.get(start.checked_mul(SECTOR)?..)?)));
    marks
}

/// The UUID of a file system that begins here.
fn file_system(head: &[u8]) -> Option<String> {
    let uuid = |offset| at(head, offset, 16).filter(|uuid| **uuid != [0; 16]).map(hex);
    let found = if at(head, 1080, 2) == Some(&[0x53, 0xef]) {
        uuid(1128)
    } else if at(head, 0, 4) == Some(b"XFSB") {
        uuid(32)
    } else if at(head, 0x10040, 8) == Some(b"_BHRfS_M") {
        uuid(0x10020)
    } else {
        None
    };
    found.map(|uuid| format!("file system UUID {uuid}"))
}

fn at(head: &[u8], offset: usize, length: usize) -> Option<&[u8]> {
    head.get(offset..offset.checked_add(length)?)
}

fn number(head: &[u8], offset: usize) -> Option<usize> {
    let bytes = at(head, offset, 8)?.try_into().ok()?;
    usize::try_from(u64::from_le_bytes(bytes)).ok()
}

/// As UUIDs are written, where there is room for one.
fn hex(bytes: &[u8]) -> String {
    match uuid::Uuid::from_slice(bytes) {
        Ok(uuid) => uuid.to_string(),
        Err(_) => bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ext4() -> Vec<u8> {
        let mut fs = vec![0; 4096];
        fs[1080..1082].copy_from_slice(&[0x53, 0xef]);
        fs[1128..1144].copy_from_slice(&[7; 16]);
        fs
    }

    #[test]
    fn a_file_system_is_known_bare_and_in_a_partition() {
        let bare = marks_in(&ext4());
        assert_eq!(bare.iter().collect::<Vec<_>>(), ["file system UUID 07070707-0707-0707-0707-070707070707"]);
        let mut disk = vec![0; 1 << 20];
        disk.extend(ext4());
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[440..444].copy_from_slice(&[1, 2, 3, 4]);
        disk[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
        let in_mbr = marks_in(&disk);
        assert!(in_mbr.is_superset(&bare) && in_mbr.contains("partition table 04030201"), "{in_mbr:?}");
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[568..584].copy_from_slice(&[9; 16]);
        disk[584..592].copy_from_slice(&2_u64.to_le_bytes());
        disk[1024 + 32..1024 + 40].copy_from_slice(&2048_u64.to_le_bytes());
        let in_gpt = marks_in(&disk);
        assert!(in_gpt.is_superset(&bare) && in_gpt.len() == 2, "{in_gpt:?}");
        assert!(marks_in(&[0; 8192]).is_empty());
    }

    proptest! {
        #[test]
        fn no_disk_panics(mut head in proptest::collection::vec(any::<u8>(), 0..5000), gpt in any::<bool>()) {
            if head.len() > 520 {
                head[510..512].copy_from_slice(&[0x55, 0xaa]);
                if gpt {
                    head[512..520].copy_from_slice(b"EFI PART");
                }
            }
            marks_in(&head);
        }
    }
}
