//! The internal log: a bitmap at the tail of every leg.
//!
//! A page of 4 KiB is eight sectors of 512 bytes, each checked by itself: magic, index, generation,
//! CRC32 (over the volume's UUID and the sector), then 480 bytes of bits, set = dirty. A power cut
//! tears at 512 bytes; a torn page is then a mix of old and new sectors that are each valid, so it
//! costs nothing: a mark whose sector did not arrive was never durable, thus no data was written
//! under it. A sector that fails its check, or was left by another volume, means that its regions
//! are dirty. The generation grows with each flush; it tells a reader which sectors are newer, and
//! nothing is decided by it.

use std::mem::{offset_of, size_of};

use bitvec::prelude::{BitVec, Lsb0};
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::layout::{PAGE, PAGE_REGIONS, log_pages};
use crate::log::{DirtyLog, LogKind, ResumeNote, SyncMode};
use crate::maps::RegionMaps;
use crate::page::{Flush, PageWrite};
use crate::superblock::MAX_COUNTER;

/// Regions in one sector of the log.
pub const SECTOR_REGIONS: u32 = 8 * BITS as u32;

const SECTOR: usize = 512;
const BITS: usize = 480;
const PAGE_SECTORS: u32 = (PAGE as usize / SECTOR) as u32;
const MAGIC: U32 = U32::from_bytes(*b"mrDL");

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawSector {
    magic: U32,
    /// Of the volume's UUID and this sector with this field zero.
    crc: U32,
    generation: U64,
    index: U32,
    reserved: [u8; 12],
    bits: [u8; BITS],
}

const _: () = assert!(size_of::<RawSector>() == SECTOR);
const _: () = assert!(offset_of!(RawSector, crc) == 4);
const _: () = assert!(offset_of!(RawSector, generation) == 8);
const _: () = assert!(offset_of!(RawSector, index) == 16);
const _: () = assert!(offset_of!(RawSector, bits) == 32);

/// One sector of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSector {
    /// The flush that wrote it.
    pub generation: u64,
    /// [`SECTOR_REGIONS`] bits, set = dirty.
    pub dirty: [u8; BITS],
}

/// Why a sector of the log cannot be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SectorError {
    /// No magic, or not a whole sector.
    #[error("not a sector of a mirrord log")]
    NotMirrord,
    /// Damaged, or of another volume.
    #[error("the log sector fails its checksum")]
    Checksum,
    /// A sector from elsewhere in the log.
    #[error("the log sector belongs at index {found}")]
    Misplaced {
        /// Where it belongs.
        found: u32,
    },
    /// A generation that no log gets to by counting.
    #[error("the log sector has an impossible generation")]
    BadGeneration,
}

/// Reads sector `index` of the log of `volume`.
///
/// # Errors
/// See [`SectorError`].
pub fn decode_sector(volume: Uuid, index: u32, bytes: &[u8]) -> Result<LogSector, SectorError> {
    let mut raw = RawSector::read_from_bytes(bytes).map_err(|_| SectorError::NotMirrord)?;
    if raw.magic != MAGIC {
        return Err(SectorError::NotMirrord);
    }
    let crc = std::mem::take(&mut raw.crc);
    if crc != checksum(volume, &raw) {
        return Err(SectorError::Checksum);
    }
    if raw.index != index {
        return Err(SectorError::Misplaced { found: raw.index.get() });
    }
    if raw.generation.get() >= MAX_COUNTER {
        return Err(SectorError::BadGeneration);
    }
    Ok(LogSector { generation: raw.generation.get(), dirty: raw.bits })
}

/// The newest generation in a log area of `volume`; 0 if no sector of it is a good one.
pub fn newest_generation(volume: Uuid, area: &[u8]) -> u64 {
    let sectors = (0..).zip(area.chunks_exact(SECTOR));
    let good = sectors.filter_map(|(index, bytes)| decode_sector(volume, index, bytes).ok());
    good.map(|sector| sector.generation).max().unwrap_or(0)
}

fn checksum(volume: Uuid, raw: &RawSector) -> U32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(volume.as_bytes());
    hasher.update(raw.as_bytes());
    hasher.finalize().into()
}

/// A dirty-region log on every leg.
#[derive(Clone, Debug)]
pub struct InternalLog {
    volume: Uuid,
    region_size: u64,
    maps: RegionMaps,
    generation: u64,
    last: Vec<u32>,
    note: ResumeNote,
}

impl InternalLog {
    /// A log for `volume` of `regions` regions of `region_size` bytes: all clean for
    /// [`SyncMode::NoSync`], else all dirty until it is resumed. All of it is still to be written.
    pub fn new(volume: Uuid, region_size: u64, regions: u32, mode: SyncMode) -> InternalLog {
        let maps = RegionMaps::new(regions, PAGE_REGIONS, mode == SyncMode::NoSync);
        InternalLog {
            volume,
            region_size,
            maps,
            generation: 0,
            last: Vec::new(),
            note: ResumeNote::NotResumed,
        }
    }

    /// The generation of the last flush.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn sectors(&self) -> u32 {
        self.maps.regions().div_ceil(SECTOR_REGIONS)
    }

    fn encode(&self, page: u32) -> PageWrite {
        let clean = self.maps.clean_bytes();
        let regions = self.maps.regions() as usize;
        let mut bytes = Vec::with_capacity(PAGE as usize);
        for index in page * PAGE_SECTORS..(page + 1) * PAGE_SECTORS {
            let mut raw = RawSector::new_zeroed();
            raw.magic = MAGIC;
            raw.generation = self.generation.into();
            raw.index = index.into();
            let from = (index as usize * BITS).min(clean.len());
            for (dirty, clean) in raw.bits.iter_mut().zip(&clean[from..]) {
                *dirty = !clean;
            }
            if !regions.is_multiple_of(8) && (from..from + BITS).contains(&(regions / 8)) {
                raw.bits[regions / 8 - from] &= (1 << (regions % 8)) - 1;
            }
            raw.crc = checksum(self.volume, &raw);
            bytes.extend_from_slice(raw.as_bytes());
        }
        PageWrite { offset: u64::from(page) * PAGE, bytes }
    }

    fn writes(&mut self, pages: Vec<u32>) -> Flush {
        if !pages.is_empty() {
            self.generation += 1;
        }
        self.last = pages;
        Flush { writes: self.last.iter().map(|page| self.encode(*page)).collect() }
    }
}

/// The union of several log areas as it is read, kept as dirty bits.
struct Union {
    dirty: Vec<u8>,
    bad: u32,
    total: u32,
    generation: u64,
}

impl Union {
    fn add(&mut self, volume: Uuid, sectors: u32, image: &[u8]) {
        for index in 0..sectors {
            let at = index as usize * SECTOR;
            let sector = image.get(at..at + SECTOR).ok_or(SectorError::NotMirrord);
            let bits = &mut self.dirty[index as usize * BITS..][..BITS];
            self.total += 1;
            match sector.and_then(|bytes| decode_sector(volume, index, bytes)) {
                Ok(sector) => {
                    self.generation = self.generation.max(sector.generation);
                    for (all, one) in bits.iter_mut().zip(sector.dirty) {
                        *all |= one;
                    }
                }
                Err(_) => {
                    self.bad += 1;
                    bits.fill(0xff);
                }
            }
        }
    }
}

impl DirtyLog for InternalLog {
    fn kind(&self) -> LogKind {
        LogKind::Internal
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

    /// Everything is dirty if there is no image. Writes the pages in which a leg differs from the
    /// union; which leg that is does not matter, all get them.
    fn resume(&mut self, images: &[Option<&[u8]>]) -> Flush {
        let sectors = self.sectors();
        let fill = if images.is_empty() { 0xff } else { 0 };
        let mut union = Union {
            dirty: vec![fill; sectors as usize * BITS],
            bad: 0,
            total: 0,
            generation: self.generation,
        };
        for image in images {
            union.add(self.volume, sectors, image.unwrap_or(&[]));
        }
        let mut clean = BitVec::<u8, Lsb0>::from_vec(union.dirty.iter().map(|byte| !byte).collect());
        clean.truncate(self.maps.regions() as usize);
        self.maps.adopt(clean);
        self.generation = union.generation;
        self.note = match (images.len(), union.bad) {
            (0, _) => ResumeNote::Unreadable,
            (_, 0) => ResumeNote::Trusted,
            (_, bad) => ResumeNote::BadSectors { bad, total: union.total },
        };
        let _ = self.maps.take_touched();
        let is_current = |page: &u32| {
            let merged = self.encode(*page).bytes;
            images.iter().all(|image| {
                let at = *page as usize * PAGE as usize;
                let there = image.and_then(|image| image.get(at..at + PAGE as usize));
                there.is_some_and(|there| self.same_bits(*page, there, &merged))
            })
        };
        let pages = (0..log_pages(self.maps.regions())).filter(|page| !is_current(page)).collect();
        self.writes(pages)
    }

    fn note(&self) -> ResumeNote {
        self.note
    }

    fn flush(&mut self) -> Flush {
        let pages = self.maps.take_touched();
        self.writes(pages)
    }

    fn flush_failed(&mut self) {
        for page in std::mem::take(&mut self.last) {
            self.maps.touch_page(page);
        }
    }

    fn resize(&mut self, regions: u32) {
        self.maps.resize(regions, PAGE_REGIONS);
        self.last.clear();
    }

    fn all_pages(&self) -> Flush {
        Flush { writes: (0..log_pages(self.maps.regions())).map(|page| self.encode(page)).collect() }
    }
}

impl InternalLog {
    fn same_bits(&self, page: u32, one: &[u8], other: &[u8]) -> bool {
        (page * PAGE_SECTORS..).zip(one.chunks(SECTOR).zip(other.chunks(SECTOR))).all(
            |(index, (one, other))| {
                let [one, other] = [one, other].map(|bytes| decode_sector(self.volume, index, bytes));
                matches!((one, other), (Ok(one), Ok(other)) if one.dirty == other.dirty)
            },
        )
    }
}

#[cfg(test)]
mod tests;
