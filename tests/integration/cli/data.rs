//! Legs for tests, and what is on them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::rig::{Rig, can_serve};

/// Whether volumes can be served here; prints the skip if not.
pub(crate) fn fuse() -> bool {
    can_serve("tests of a running volume")
}

/// A file that is one hole.
pub(crate) fn leg(rig: &Rig, name: &str, len: u64) -> PathBuf {
    let path = rig.path(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

/// A file full of data that depends on its name.
pub(crate) fn leg_with_data(rig: &Rig, name: &str, len: u64) -> PathBuf {
    let path = rig.path(name);
    let seed = name.bytes().fold(1u64, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let byte = |at: u64| (at.wrapping_mul(seed | 1) >> 3) as u8 | 1;
    fs::write(&path, (0..len).map(byte).collect::<Vec<u8>>()).unwrap();
    path
}

/// Damages a file as its disk would: the bytes change, its modification time does not.
pub(crate) fn patch(rig: &Rig, name: &str, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(rig.path(name)).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.set_modified(modified).unwrap();
}

/// The 4096 bytes at `offset`.
pub(crate) fn page(rig: &Rig, name: &str, offset: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    File::open(rig.path(name)).unwrap().read_exact_at(&mut page, offset).unwrap();
    page
}

/// Changes a metadata page and makes its checksum right again.
pub(crate) fn reseal(rig: &Rig, name: &str, offset: u64, change: impl FnOnce(&mut [u8])) {
    let mut bytes = page(rig, name, offset);
    change(&mut bytes);
    bytes[12..16].fill(0);
    let crc = crc32fast::hash(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    patch(rig, name, offset, &bytes);
}

/// Where the footer of a leg that is a file lies.
pub(crate) fn footer(rig: &Rig, name: &str) -> u64 {
    fs::metadata(rig.path(name)).unwrap().len() - 4096
}
