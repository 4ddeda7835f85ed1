//! What a file of an image is: raw, or QEMU's qcow2, by its first bytes and nothing else.
//!
//! Whoever has written to a raw image may have made it look like anything. So a qcow2 that needs another file is no image
//! for us: its header could name any file of this host, and QEMU would open that. One that needs no other file shows
//! nothing but its own bytes, whoever wrote them.

use driver::DiskFormat;

/// How much of a file has to be looked at.
pub(crate) const LENGTH: usize = 112;

/// A disk in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) format: DiskFormat,
    /// As a guest sees it.
    pub(crate) size_bytes: u64,
}

/// The formats that QEMU knows and we do not, by what their files begin with (or have at the place).
const OTHERS: [(usize, &[u8], &str); 7] = [
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"conectix", "VHD"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
];

/// `qcow2.txt` of QEMU's `docs/interop`: bits of the incompatible features.
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

/// What a file is that begins with `head`; or why it is none that we take.
pub(crate) fn read(head: &[u8], file_bytes: u64) -> Result<Disk, String> {
    if let Some((.., other)) =
        OTHERS.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
    {
        return Err(format!("it is {other}, which is neither raw nor qcow2; `qemu-img convert -O qcow2` makes one"));
    }
    if !head.starts_with(b"QFI\xfb") {
        return Ok(Disk { format: DiskFormat::Raw, size_bytes: file_bytes });
    }
    let long = |at: usize| head.get(at..at + 8).and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)));
    let short = |at: usize| head.get(at..at + 4).and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
    let (Some(version), Some(backing), Some(size_bytes), Some(encryption)) = (short(4), long(8), long(24), short(32))
    else {
        return Err("its qcow2 header is cut off".into());
    };
    let features = match version {
        2 => 0,
        3 => long(72).ok_or("its qcow2 header is cut off")?,
        other => {
            return Err(format!("it is qcow of version {other}; `qemu-img convert -O qcow2` makes one of version 3"));
        }
    };
    let why = if backing != 0 {
        "it is a qcow2 over another file; `qemu-img convert -O qcow2` makes one that stands alone"
    } else if features & EXTERNAL_DATA != 0 {
        "it is a qcow2 whose data is in another file; `qemu-img convert -O qcow2` makes one that stands alone"
    } else if features & CORRUPT != 0 {
        "it is a qcow2 that is marked as corrupt; `qemu-img check -r all` may mend it"
    } else if encryption != 0 {
        "it is an encrypted qcow2, and nobody would know its key"
    } else {
        return Ok(Disk { format: DiskFormat::Qcow2, size_bytes });
    };
    Err(why.into())
}

/// The size of a qcow2 disk, whatever it is over.
pub(crate) fn size(head: &[u8]) -> Option<u64> {
    head.get(24..32).and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The header of a qcow2 of 1 GiB.
    pub(crate) fn qcow2(version: u32, backing: u64, features: u64, encryption: u32) -> Vec<u8> {
        let mut head = b"QFI\xfb".to_vec();
        head.extend(version.to_be_bytes());
        head.extend(backing.to_be_bytes());
        head.extend([0, 0, 0, 9, 0, 0, 0, 16]);
        head.extend((1_u64 << 30).to_be_bytes());
        head.extend(encryption.to_be_bytes());
        head.resize(72, 0);
        head.extend(features.to_be_bytes());
        head.resize(LENGTH, 0);
        head
    }

    #[test]
    fn raw_and_qcow2_that_stands_alone_are_taken() {
        let raw = Disk { format: DiskFormat::Raw, size_bytes: 4096 };
        for head in [&[0; LENGTH][..], b"QF", b"", b"LUKS\xba\xbe"] {
            assert_eq!(read(head, 4096), Ok(raw));
        }
        let qcow = Disk { format: DiskFormat::Qcow2, size_bytes: 1 << 30 };
        assert_eq!(read(&qcow2(3, 0, 1, 0), 4096), Ok(qcow));
        assert_eq!(read(&qcow2(2, 0, u64::MAX, 0), 4096), Ok(qcow));
    }

    #[test]
    fn what_needs_another_file_or_a_key_is_not() {
        for (head, part) in [
            (qcow2(3, 104, 0, 0), "over another file"),
            (qcow2(2, 104, 0, 0), "over another file"),
            (qcow2(3, 0, 4, 0), "data is in another file"),
            (qcow2(3, 0, 2, 0), "corrupt"),
            (qcow2(3, 0, 0, 2), "encrypted"),
            (qcow2(1, 0, 0, 0), "version 1"),
            (qcow2(3, 0, 0, 0)[..60].to_vec(), "cut off"),
            (b"QFI\xfb".to_vec(), "cut off"),
            (b"KDMV".to_vec(), "VMDK"),
            ([&[0; 64][..], b"\x7f\x10\xda\xbe"].concat(), "VDI"),
        ] {
            let why = read(&head, 4096).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
        assert_eq!((size(&qcow2(3, 104, 0, 0)), size(b"QFI")), (Some(1 << 30), None));
    }

    proptest! {
        #[test]
        fn no_header_panics(cut in 0..=LENGTH, at in 0..LENGTH, byte in any::<u8>(), free in proptest::collection::vec(any::<u8>(), 0..LENGTH)) {
            let mut head = qcow2(3, 0, 0, 0);
            head[at] = byte;
            let _ = (read(&head[..cut], 4096), read(&free, 4096), size(&head[..cut]));
        }
    }
}
