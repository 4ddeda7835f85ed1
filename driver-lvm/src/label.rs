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

const SECTOR: usize = 512;

/// How much of a device must be read.
pub(crate) const LENGTH: usize = 4 * SECTOR;

/// Whether a device that begins with these bytes is a PV.
pub(crate) fn is_pv(head: &[u8]) -> bool {
    head.chunks_exact(SECTOR).take(4).enumerate().any(|(number, sector)| {
        sector.starts_with(b"LABELONE")
            && sector[8..16] == (number as u64).to_le_bytes()
            && &sector[24..32] == b"LVM2 001"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The first 2 KiB of a PV, made by lvm2 2.03.16.
    const REAL: &[u8] = include_bytes!("../testdata/pv.head");

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
        fn no_bytes_panic(head in proptest::collection::vec(any::<u8>(), 0..3000), at in 0..3000_usize) {
            let mut head = head;
            let at = at.min(head.len());
            head.splice(at.., b"LABELONE".iter().copied());
            let _is_pv = is_pv(&head);
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
