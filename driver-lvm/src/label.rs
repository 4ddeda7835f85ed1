//! Finding PVs without lvm: what it would find by reading every disk of the host, we find by reading the first sectors
//! of those that may be looked at.
//!
//! The label stands in one of the first four sectors of 512 bytes (lvm2 `lib/label/label.h`, `struct label_header`):
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | `LABELONE` |
//! | 8 | 8 | the sector it is in, little endian |
//! | 16 | 4 | checksum |
//! | 20 | 4 | where its content begins |
//! | 24 | 8 | `LVM2 001` |
//!
//! In it stands where the PV keeps the metadata of its VG. That area begins with a header which every change of the VG writes
//! anew: it says where in the area the text is, and its checksum (lvm2 `lib/format_text/layout.h`, `struct mda_header` and
//! `struct raw_locn`).
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 4 | 16 | ` LVM2 x[5A%r0N*>` |
//! | 40 | 8 | where in the area the text begins; 0 if there is none |
//! | 48 | 8 | its size |
//! | 56 | 4 | its checksum |
//! | 60 | 4 | flags; 1: the area is not used |

const SECTOR: usize = 512;

/// Where `pvcreate` puts the metadata: one page from the beginning.
const USUAL_AREA: usize = 4096;

/// How much of a device must be read.
pub(crate) const LENGTH: usize = USUAL_AREA + SECTOR;

/// What a PV begins with. As long as it is the same, nobody has changed the VG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Label {
    sector: Vec<u8>,
    area: Option<Vec<u8>>,
}

impl Label {
    /// The label in what a device begins with; `None` if it is no PV.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        let is_label = |(number, sector): &(usize, &[u8])| {
            sector.starts_with(b"LABELONE")
                && sector[8..16] == (*number as u64).to_le_bytes()
                && &sector[24..32] == b"LVM2 001"
        };
        let (_, sector) = head.chunks_exact(SECTOR).take(4).enumerate().find(is_label)?;
        let area = areas(sector).into_iter().find_map(|at| used(head.get(at..at.checked_add(SECTOR)?)?));
        Some(Self { sector: sector.to_vec(), area })
    }

    /// Whether a change of the VG changes it. A PV may keep no metadata, or keep it out of our sight.
    pub(crate) fn tells_changes(&self) -> bool {
        self.area.is_some()
    }
}

/// Where the areas for metadata begin. Behind the PV's UUID and size come two lists of places, each an offset and a size and
/// ended by a 0 for both: first that of the data (lvm2 `lib/format_text/layout.h`, `struct pv_header`).
fn areas(label: &[u8]) -> Vec<usize> {
    const PLACE: usize = 16;
    let content = label[20..24].try_into().map(u32::from_le_bytes).unwrap_or_default() as usize;
    let lists = content.checked_add(32 + 8).and_then(|at| label.get(at..)).unwrap_or_default();
    let places = lists.chunks_exact(PLACE).map(|place| number(&place[..8]));
    places.skip_while(|at| *at != 0).skip(1).take_while(|at| *at != 0).filter_map(|at| at.try_into().ok()).collect()
}

/// The header of an area that holds metadata.
fn used(header: &[u8]) -> Option<Vec<u8>> {
    let ignored = header[60] & 1 != 0;
    (&header[4..20] == b" LVM2 x[5A%r0N*>" && number(&header[40..48]) != 0 && !ignored).then(|| header.to_vec())
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_le_bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The first 4.5 KiB of a PV in a VG, made by lvm2 2.03.16.
    const REAL: &[u8] = include_bytes!("../testdata/pv.head");

    fn is_pv(head: &[u8]) -> bool {
        Label::of(head).is_some()
    }

    #[test]
    fn every_change_of_the_vg_changes_it() {
        let label = Label::of(REAL).unwrap();
        assert!(label.tells_changes());
        for at in [40, 48, 56] {
            let mut changed = REAL.to_vec();
            changed[USUAL_AREA + at] ^= 0x10;
            let changed = Label::of(&changed).unwrap();
            assert!(changed.tells_changes() && changed != label, "{at}");
        }
    }

    #[test]
    fn a_pv_may_keep_no_metadata_that_we_see() {
        let tells = |change: fn(&mut Vec<u8>)| {
            let mut head = REAL.to_vec();
            change(&mut head);
            Label::of(&head).unwrap().tells_changes()
        };
        assert!(tells(|_| {}));
        assert!(!tells(|head| head[USUAL_AREA + 60] = 1), "the area is not used");
        assert!(!tells(|head| head[USUAL_AREA + 40..USUAL_AREA + 48].fill(0)), "it is in no VG");
        assert!(!tells(|head| head[USUAL_AREA + 4] = b'x'), "there is something else");
        assert!(!tells(|head| head.truncate(USUAL_AREA)), "it is farther than we look");
        assert!(!tells(|head| head[SECTOR + 32 + 72..SECTOR + 32 + 80].fill(0)), "it has no area");
        assert!(!tells(|head| head[SECTOR + 20..SECTOR + 24].fill(0xff)), "the label has no content");
    }

    #[test]
    fn knows_a_pv() {
        assert!(is_pv(REAL));
        assert!(!is_pv(&[0; LENGTH]));
        assert!(!is_pv(b"LABELONE"));
        assert!(!is_pv(&[]));
    }

    #[test]
    fn a_label_that_was_copied_elsewhere_does_not_count() {
        let mut moved = REAL.to_vec();
        moved.copy_within(SECTOR..2 * SECTOR, 0);
        moved[SECTOR..].fill(0);
        assert!(!is_pv(&moved));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(head in proptest::collection::vec(any::<u8>(), 0..6000), at in 0..3000_usize) {
            let mut head = head;
            let at = at.min(head.len());
            head.splice(at.., b"LABELONE".iter().copied());
            let _label = Label::of(&head);
        }

        #[test]
        fn a_label_counts_in_the_sector_that_it_names(sector in 0..4_usize, named in 0..5_u64) {
            let mut head = vec![0; LENGTH];
            let label = sector * SECTOR;
            head[label..label + SECTOR].copy_from_slice(&REAL[SECTOR..2 * SECTOR]);
            head[label + 8..label + 16].copy_from_slice(&named.to_le_bytes());
            prop_assert_eq!(is_pv(&head), named == sector as u64);
        }
    }
}
