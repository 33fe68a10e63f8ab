//! The disk log: byte for byte the format of the kernel's dm-log "disk" (drivers/md/dm-log.c), so
//! that the kernel's dm-mirror and mirrord can take over each other's log.
//!
//! Sector 0 holds the magic, the version and the number of regions; the bits start at byte 1024,
//! region r in bit r % 8 of byte r / 8, set = clean. The log's length is rounded up to the logical block; bytes
//! that are neither header nor bits are kept as they were read. It is written whole when it is resumed, later only
//! the blocks whose bits changed (the kernel always writes all of it). There is no checksum: what the kernel trusts is
//! trusted.
//!
//! Sector 1, of which the kernel knows nothing and which it keeps, says whose the log is: of which volume and session
//! ([`LogLabel`]), and, if a server keeps it for a volume elsewhere, of which life of that ([`DiskLog::owner`]).
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

use crate::label::{LABEL, LABEL_LEN, LogLabel};
use crate::log::{DirtyLog, LogKind, ResumeNote, SyncMode};
use crate::maps::RegionMaps;
use crate::page::{Flush, PageWrite};

/// First field of the log: "rRiM" on disk.
pub const DISK_MAGIC: u32 = 0x4d69_5272;
/// The version written. Version 1 is the same on little-endian machines.
pub const DISK_VERSION: u32 = 2;

/// Where the bits start, in bytes.
const BITS: usize = 1024;
/// Where it says whose the log is, in bytes.
const OWNER: usize = 512;
/// Bits in a sector: what a page is to [`RegionMaps`].
const SECTOR_BITS: u32 = 512 * 8;
const OWNER_MAGIC: U32 = U32::from_bytes(*b"mrOW");
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

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawOwner {
    magic: U32,
    released: U32,
    luid: U64,
}

const _: () = assert!(size_of::<RawOwner>() == 16);
const _: () = assert!(OWNER + size_of::<RawOwner>() <= LABEL);

/// Whose a log is that a server keeps: the last life of its volume that used it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogOwner {
    /// The number of that life.
    pub luid: u64,
    /// It has said that it does not need the log any more.
    pub released: bool,
}

/// A dirty-region log in a file or device of its own.
#[derive(Clone, Debug)]
pub struct DiskLog {
    region_size: u64,
    mode: SyncMode,
    block_size: u32,
    maps: RegionMaps,
    /// What is on disk, `io_size` bytes; header and bits are brought up to date when it is written.
    image: Vec<u8>,
    /// What is before the bits is to be written.
    head_touched: bool,
    note: ResumeNote,
}

impl DiskLog {
    /// A log of `regions` regions of `region_size` bytes on a device with logical blocks of
    /// `block_size` bytes (512 for a file). Everything is dirty until it is resumed.
    ///
    /// # Panics
    /// If `block_size` is 0.
    pub fn new(region_size: u64, regions: u32, block_size: u32, mode: SyncMode) -> DiskLog {
        let maps = RegionMaps::new(regions, SECTOR_BITS, false);
        let image = vec![0; DiskLog::len_of(regions, block_size) as usize];
        let note = ResumeNote::NotResumed;
        DiskLog { region_size, mode, block_size, maps, image, head_touched: true, note }
    }

    /// A log that goes on from where another left: what is clean and what is in sync, as whole bytes. All of it is
    /// written by the next flush.
    ///
    /// # Panics
    /// If there are too few bytes, or as [`DiskLog::new`].
    pub(crate) fn restore(
        region_size: u64,
        regions: u32,
        block_size: u32,
        clean: &[u8],
        sync: &[u8],
    ) -> DiskLog {
        let mut log = DiskLog::new(region_size, regions, block_size, SyncMode::Default);
        log.maps.restore(clean, sync);
        log.note = ResumeNote::Trusted;
        log
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

    /// Whose the log in `image` is, if it says so.
    pub fn owner_of(image: &[u8]) -> Option<LogOwner> {
        let (owner, _) = RawOwner::read_from_prefix(image.get(OWNER..)?).ok()?;
        let released = owner.released.get() != 0;
        (owner.magic == OWNER_MAGIC).then(|| LogOwner { luid: owner.luid.get(), released })
    }

    /// Whose it is, if it says so.
    pub fn owner(&self) -> Option<LogOwner> {
        DiskLog::owner_of(&self.image)
    }

    /// Makes it somebody's with the next flush, or says that it is needed no more.
    pub fn set_owner(&mut self, owner: LogOwner) {
        if self.owner() != Some(owner) {
            let (luid, released) = (owner.luid.into(), u32::from(owner.released).into());
            let raw = RawOwner { magic: OWNER_MAGIC, released, luid };
            self.image[OWNER..OWNER + size_of::<RawOwner>()].copy_from_slice(raw.as_bytes());
            self.head_touched = true;
        }
    }

    /// Says with the next flush which volume's it is, and of which session. Before it is resumed this is lost.
    pub fn set_label(&mut self, label: &LogLabel) {
        let bytes = label.encode();
        let there = &mut self.image[LABEL..LABEL + LABEL_LEN];
        if *there != bytes {
            there.copy_from_slice(&bytes);
            self.head_touched = true;
        }
    }

    /// What it says counts when it is resumed, whatever it was made with.
    pub(crate) fn believe(&mut self) {
        self.mode = SyncMode::Default;
    }

    /// The logical block that it was made for, in bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
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

    /// Takes over what `image` says, as [`DirtyLog::resume`] does, and is not resumed yet.
    pub(crate) fn look(&mut self, image: Option<&[u8]>) {
        let (clean, note) = self.read(image);
        self.maps.adopt(clean);
        self.note = note;
    }

    fn whole(&self) -> Flush {
        Flush { writes: vec![self.write(0, self.image.len())] }
    }

    /// What is to be on disk from byte `from` to byte `to`, whole sectors.
    fn write(&self, from: usize, to: usize) -> PageWrite {
        let mut bytes = self.image[from..to].to_vec();
        if from == 0 {
            let header = RawHeader {
                magic: DISK_MAGIC.into(),
                version: DISK_VERSION.into(),
                regions: u64::from(self.maps.regions()).into(),
            };
            bytes[..size_of::<RawHeader>()].copy_from_slice(header.as_bytes());
        }
        let clean = self.maps.clean_bytes();
        let words = self.maps.regions().div_ceil(WORD_BITS) as usize;
        // Bits of the last word that stand for no region are 0.
        for (source, end) in [(&[][..], BITS + words * 8), (clean, BITS + clean.len())] {
            let (first, last) = (from.max(BITS), to.min(end));
            if first < last {
                let into = &mut bytes[first - from..last - from];
                if source.is_empty() {
                    into.fill(0);
                } else {
                    into.copy_from_slice(&source[first - BITS..last - BITS]);
                }
            }
        }
        PageWrite { offset: from as u64, bytes }
    }

    /// The blocks that changed, those that are next to each other as one.
    fn touched(&mut self) -> Flush {
        let block = self.block_size as usize;
        let mut writes: Vec<(usize, usize)> = Vec::new();
        let head = std::mem::take(&mut self.head_touched).then_some((0, BITS));
        let sectors = self.maps.take_touched().into_iter().map(|sector| {
            let from = BITS + sector as usize * 512;
            (from, from + 512)
        });
        for (from, to) in head.into_iter().chain(sectors) {
            let (from, to) = (from - from % block, to.next_multiple_of(block));
            match writes.last_mut() {
                Some((_, end)) if *end >= from => *end = to.max(*end),
                _ => writes.push((from, to)),
            }
        }
        Flush { writes: writes.into_iter().map(|(from, to)| self.write(from, to)).collect() }
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
        self.look(images.first().copied().flatten());
        self.mode = SyncMode::Default;
        self.head_touched = false;
        let _ = self.maps.take_touched();
        self.whole()
    }

    fn note(&self) -> ResumeNote {
        self.note
    }

    fn flush(&mut self) -> Flush {
        self.touched()
    }

    fn flush_failed(&mut self) {
        self.head_touched = true;
        self.maps.touch_all();
    }

    fn recorded(&mut self, session: u64) {
        if let Ok(Some(label)) = LogLabel::read(&self.image) {
            self.set_label(&LogLabel { session, next: None, ..label });
        }
    }

    fn resize(&mut self, regions: u32) {
        self.maps.resize(regions, SECTOR_BITS);
        self.head_touched = true;
        self.image.resize(DiskLog::len_of(regions, self.block_size) as usize, 0);
    }

    fn all_pages(&self) -> Flush {
        self.whole()
    }
}
