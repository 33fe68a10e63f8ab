//! What is on a file or device already, told by magic bytes.
//!
//! A table of name, place and bytes and one loop over it: enough to say what would be overwritten,
//! not to interpret it. Only reads. Places counted from the end are rounded as their formats do.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Something found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signature {
    /// What it is.
    pub name: &'static str,
    /// Where its magic is, in bytes from the start.
    pub offset: u64,
}

/// The name of the signature of a leg of a mirrord volume.
pub const MIRRORD: &str = "a leg of a mirrord volume";

#[derive(Clone, Copy)]
enum Place {
    /// From the start.
    At(u64),
    /// In the block that is `back` before the end, once the end is rounded down to `border`, then
    /// `plus` from there.
    Tail { border: u64, back: u64, plus: u64 },
}
use Place::{At, Tail};

impl Place {
    fn offset(self, len: u64) -> Option<u64> {
        match self {
            At(offset) => Some(offset),
            Tail { border, back, plus } => (len / border * border).checked_sub(back)?.checked_add(plus),
        }
    }
}

const fn tail(border: u64, back: u64, plus: u64) -> Place {
    Tail { border, back, plus }
}

const EXT: &str = "an ext2/3/4 file system";
const FAT: &str = "a FAT file system";
const SWAP: &str = "swap space";
const LVM: &str = "an LVM2 physical volume";
const MD: &str = "a member of an md array";
const LUKS: &str = "a LUKS volume";
const GPT: &str = "a GPT partition table";
const ZFS: &str = "a member of a ZFS pool";
const DRBD: &str = "DRBD metadata";
const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
const BCACHEFS: &[u8] = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";

/// A device keeps the footer in its last whole 4 KiB block, a file in its last 4096 bytes.
const FOOTER: &[u8] = b"mirrordF";

const TABLE: &[(&str, Place, &[u8])] = &[
    (MIRRORD, tail(1, 4096, 0), FOOTER),
    (MIRRORD, tail(4096, 4096, 0), FOOTER),
    (EXT, At(1080), b"\x53\xef"),
    ("an XFS file system", At(0), b"XFSB"),
    ("a btrfs file system", At(65600), b"_BHRfS_M"),
    ("an F2FS file system", At(1024), b"\x10\x20\xf5\xf2"),
    ("a bcachefs file system", At(4120), BCACHEFS),
    ("a JFS file system", At(32768), b"JFS1"),
    ("a ReiserFS file system", At(65588), b"ReIsEr"),
    ("a GFS2 file system", At(65536), b"\x01\x16\x19\x70"),
    ("an APFS container", At(32), b"NXSB"),
    ("an EROFS file system", At(1024), b"\xe2\xe1\xf5\xe0"),
    ("a squashfs file system", At(0), b"hsqs"),
    ("an ISO 9660 file system", At(32769), b"CD001"),
    ("a UDF file system", At(32769), b"BEA01"),
    (FAT, At(54), b"FAT12   "),
    (FAT, At(54), b"FAT16   "),
    (FAT, At(82), b"FAT32   "),
    ("an exFAT file system", At(3), b"EXFAT   "),
    ("an NTFS file system", At(3), b"NTFS    "),
    ("a BitLocker volume", At(3), b"-FVE-FS-"),
    (SWAP, At(4086), b"SWAPSPACE2"),
    (SWAP, At(4086), b"SWAP-SPACE"),
    (SWAP, At(16374), b"SWAPSPACE2"),
    (SWAP, At(65526), b"SWAPSPACE2"),
    (LVM, At(0), b"LABELONE"),
    (LVM, At(512), b"LABELONE"),
    (LVM, At(1024), b"LABELONE"),
    (LVM, At(1536), b"LABELONE"),
    (MD, At(0), b"\xfc\x4e\x2b\xa9"),
    (MD, At(4096), b"\xfc\x4e\x2b\xa9"),
    (MD, tail(4096, 8192, 0), b"\xfc\x4e\x2b\xa9"),
    (MD, tail(65536, 65536, 0), b"\xfc\x4e\x2b\xa9"),
    (MD, tail(65536, 65536, 0), b"\xa9\x2b\x4e\xfc"),
    ("a member of a firmware RAID", tail(512, 1024, 0), b"Intel Raid ISM Cfg Sig."),
    ("a member of a firmware RAID", tail(512, 512, 0), b"\xde\x11\xde\x11"),
    (LUKS, At(0), b"LUKS\xba\xbe"),
    (LUKS, At(16384), b"SKUL\xba\xbe"),
    (GPT, At(512), b"EFI PART"),
    (GPT, At(4096), b"EFI PART"),
    (GPT, tail(512, 512, 0), b"EFI PART"),
    (GPT, tail(4096, 4096, 0), b"EFI PART"),
    ("an MBR partition table or boot sector", At(510), b"\x55\xaa"),
    // The first pair of the label's list, in XDR: its name.
    (ZFS, At(16408), b"version\0"),
    (ZFS, At(278_552), b"version\0"),
    (ZFS, tail(262_144, 524_288, 16408), b"version\0"),
    (ZFS, tail(262_144, 262_144, 16408), b"version\0"),
    (DRBD, tail(4096, 4096, 60), b"\x83\x74\x02\x6b"),
    (DRBD, tail(4096, 4096, 60), b"\x83\x74\x02\x6d"),
    ("a bcache device", At(4120), BCACHE),
    ("a VDO volume", At(0), b"dmvdo001"),
    ("a Stratis pool member", At(516), b"!Stra0tis\x86\xff\x02^Arh"),
    ("a Ceph BlueStore device", At(0), b"bluestore block device"),
    ("a dm-mirror log", At(0), b"rRiM"),
    ("a qcow2 image", At(0), b"QFI\xfb"),
    ("a VMDK image", At(0), b"KDMV"),
    ("a VHDX image", At(0), b"vhdxfile"),
    ("a VDI image", At(64), b"\x7f\x10\xda\xbe"),
];

/// Everything in the table that `file`, `len` bytes long, has; each name once, in the table's order.
///
/// # Errors
/// When it cannot be read. A file too short for a place does not have it.
pub fn found(file: &File, len: u64) -> io::Result<Vec<Signature>> {
    let mut found: Vec<Signature> = Vec::new();
    let mut there = [0; 32];
    for (name, place, bytes) in TABLE {
        let there = &mut there[..bytes.len()];
        let Some(offset) =
            place.offset(len).filter(|offset| offset.saturating_add(bytes.len() as u64) <= len)
        else {
            continue;
        };
        if found.iter().any(|earlier| earlier.name == *name) {
            continue;
        }
        match file.read_exact_at(there, offset) {
            Ok(()) if there == *bytes => found.push(Signature { name, offset }),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_where_it_is() {
        // Neither length is a multiple of 64 KiB, the second not even of 4 KiB.
        for len in [(3 << 20) + 8192, (3 << 20) + 12800] {
            for (name, place, bytes) in TABLE {
                let file = tempfile::tempfile().unwrap();
                file.set_len(len).unwrap();
                assert_eq!(found(&file, len).unwrap(), []);
                let offset = place.offset(len).unwrap();
                file.write_all_at(bytes, offset).unwrap();
                assert_eq!(found(&file, len).unwrap(), [Signature { name, offset }]);
            }
        }
    }

    #[test]
    fn short_files_have_nothing() {
        let file = tempfile::tempfile().unwrap();
        for len in [0, 1, 511, 4096] {
            file.set_len(len).unwrap();
            assert_eq!(found(&file, len).unwrap(), []);
        }
    }
}
