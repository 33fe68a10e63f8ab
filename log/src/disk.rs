//! The disk log: byte for byte the format of the kernel's dm-log "disk" (drivers/md/dm-log.c), so
//! that the kernel's dm-mirror and mirrord can take over each other's log.
//!
//! Sector 0 holds the magic, the version and the number of regions; the bits start at byte 1024,
//! region r in bit r % 8 of byte r / 8, set = clean. The log is always written whole, in a length
//! rounded up to the logical block; bytes that are neither header nor bits are kept as they were
//! read. There is no checksum: what the kernel trusts is trusted.
//!
//! Stricter than the kernel where that costs only a resync: a log that cannot be read is dirty even
//! for `nosync`; `sync` and `nosync` count for the first resume only; and an unknown version, which
//! is dirty in both, is replaced by version 2 instead of being written back, so that the next resume
//! can trust what was written in between. A caller that would rather not replace it looks at the
//! note before it writes.

use std::mem::{offset_of, size_of};

use bitvec::prelude::{BitVec, Lsb0};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::log::{DirtyLog, LogKind, ResumeNote, SyncMode};
use crate::maps::RegionMaps;
use crate::page::{Flush, PageWrite};

/// First field of the log: "rRiM" on disk.
pub const DISK_MAGIC: u32 = 0x4d69_5272;
/// The version written. Version 1 is the same on little-endian machines.
pub const DISK_VERSION: u32 = 2;

/// Where the bits start, in bytes.
const BITS: usize = 1024;
/// The kernel's bitsets are arrays of 64-bit words.
const WORD_BITS: u32 = 64;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawHeader {
    magic: U32,
    version: U32,
    regions: U64,
}

const _: () = assert!(size_of::<RawHeader>() == 16);
const _: () = assert!(offset_of!(RawHeader, version) == 4);
const _: () = assert!(offset_of!(RawHeader, regions) == 8);

/// A dirty-region log in a file or device of its own.
#[derive(Clone, Debug)]
pub struct DiskLog {
    region_size: u64,
    mode: SyncMode,
    block_size: u32,
    maps: RegionMaps,
    /// What is on disk, `io_size` bytes; header and bits are brought up to date when it is written.
    image: Vec<u8>,
    note: ResumeNote,
}

impl DiskLog {
    /// A log of `regions` regions of `region_size` bytes on a device with logical blocks of
    /// `block_size` bytes (512 for a file). Everything is dirty until it is resumed.
    ///
    /// # Panics
    /// If `block_size` is 0.
    pub fn new(region_size: u64, regions: u32, block_size: u32, mode: SyncMode) -> DiskLog {
        let maps = RegionMaps::new(regions, regions.max(1), false);
        let image = vec![0; DiskLog::len_of(regions, block_size) as usize];
        DiskLog { region_size, mode, block_size, maps, image, note: ResumeNote::NotResumed }
    }

    /// How many bytes of a file or device with such blocks a log of so many regions takes.
    ///
    /// # Panics
    /// If `block_size` is 0.
    pub fn len_of(regions: u32, block_size: u32) -> u64 {
        let words = regions.div_ceil(WORD_BITS) as usize;
        (BITS + words * 8).next_multiple_of(block_size as usize) as u64
    }

    /// How many regions a log says that it has; `None` if it is no log of a version that is known.
    pub fn regions_of(image: &[u8]) -> Option<u64> {
        let (header, _) = RawHeader::read_from_prefix(image).ok()?;
        let is_known = header.magic == DISK_MAGIC && (1..=DISK_VERSION).contains(&header.version.get());
        is_known.then(|| header.regions.get())
    }

    /// How many bytes of the log file or device are read and written; it must be at least so long.
    pub fn io_size(&self) -> u64 {
        self.image.len() as u64
    }

    /// What `image` says of the clean bits, and what to make of it.
    fn read(&mut self, image: Option<&[u8]>) -> (BitVec<u8, Lsb0>, ResumeNote) {
        let regions = self.maps.regions() as usize;
        let all = |clean| BitVec::repeat(clean, regions);
        let Some(image) = image else {
            return (all(false), ResumeNote::Unreadable);
        };
        let have = image.len().min(self.image.len());
        self.image.fill(0);
        self.image[..have].copy_from_slice(&image[..have]);
        match self.mode {
            SyncMode::Default => {}
            mode => return (all(mode == SyncMode::NoSync), ResumeNote::Ignored),
        }
        let magic = RawHeader::read_from_prefix(image).ok().map(|(header, _)| header);
        let Some(header) = magic.filter(|header| header.magic == DISK_MAGIC) else {
            return (all(false), ResumeNote::NoLog);
        };
        if !(1..=DISK_VERSION).contains(&header.version.get()) {
            return (all(false), ResumeNote::UnknownVersion { version: header.version.get() });
        }
        if have < self.image.len() {
            let (len, need) = (image.len() as u64, self.io_size());
            return (all(false), ResumeNote::TooShort { len, need });
        }
        let mut clean = BitVec::from_slice(&self.image[BITS..]);
        clean.truncate(regions);
        let had = header.regions.get();
        if had >= regions as u64 {
            return (clean, ResumeNote::Trusted);
        }
        clean[had as usize..].fill(false);
        (clean, ResumeNote::Grown { from: had })
    }

    fn whole(&self) -> Flush {
        let mut bytes = self.image.clone();
        let header = RawHeader {
            magic: DISK_MAGIC.into(),
            version: DISK_VERSION.into(),
            regions: u64::from(self.maps.regions()).into(),
        };
        bytes[..size_of::<RawHeader>()].copy_from_slice(header.as_bytes());
        let clean = self.maps.clean_bytes();
        let words = self.maps.regions().div_ceil(WORD_BITS) as usize;
        bytes[BITS..BITS + words * 8].fill(0);
        bytes[BITS..BITS + clean.len()].copy_from_slice(clean);
        Flush { writes: vec![PageWrite { offset: 0, bytes }] }
    }
}

impl DirtyLog for DiskLog {
    fn kind(&self) -> LogKind {
        LogKind::Disk
    }

    fn region_size(&self) -> u64 {
        self.region_size
    }

    fn maps(&self) -> &RegionMaps {
        &self.maps
    }

    fn maps_mut(&mut self) -> &mut RegionMaps {
        &mut self.maps
    }

    /// Takes the one image, at least [`DiskLog::io_size`] bytes unless it is new; always writes.
    ///
    /// # Panics
    /// If there is more than one image.
    fn resume(&mut self, images: &[Option<&[u8]>]) -> Flush {
        assert!(images.len() <= 1, "a disk log is one file");
        let (clean, note) = self.read(images.first().copied().flatten());
        self.maps.adopt(clean);
        self.note = note;
        self.mode = SyncMode::Default;
        let _ = self.maps.take_touched();
        self.whole()
    }

    fn note(&self) -> ResumeNote {
        self.note
    }

    fn flush(&mut self) -> Flush {
        if self.maps.take_touched().is_empty() { Flush::default() } else { self.whole() }
    }

    fn flush_failed(&mut self) {
        if self.maps.regions() > 0 {
            self.maps.touch_page(0);
        }
    }

    fn resize(&mut self, regions: u32) {
        self.maps.resize(regions, regions.max(1));
        self.image.resize(DiskLog::len_of(regions, self.block_size) as usize, 0);
    }

    fn all_pages(&self) -> Flush {
        self.whole()
    }
}
