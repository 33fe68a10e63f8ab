//! All arithmetic on bytes, sectors and regions.

/// Bytes in a sector.
pub const SECTOR: u64 = 512;

/// Most regions a volume can have: 512 KiB of bitmap.
pub const MAX_REGIONS: u64 = 1 << 22;

/// Smallest region: one page, so that no IO block ever spans two regions.
const MIN_REGION_BYTES: u64 = 4096;

/// The default aims at this many regions at most (32 KiB of bitmap, a mark writes one page) ...
const DEFAULT_REGIONS: u64 = 1 << 18;
/// ... and at regions no smaller than this: below it a resync is seeks, not bytes.
const DEFAULT_REGION_BYTES: u64 = 1 << 20;

/// A region of the volume by its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Region(pub u32);

impl Region {
    /// As an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Regions one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Regions {
    /// The first.
    pub first: Region,
    /// How many.
    pub count: u32,
}

impl Regions {
    /// Just this one.
    pub const fn one(region: Region) -> Regions {
        Regions { first: region, count: 1 }
    }

    /// Takes in a region, if it is the next one; whether it was.
    pub fn grow(&mut self, region: Region) -> bool {
        let is_next = self.first.0 + self.count == region.0;
        self.count += u32::from(is_next);
        is_next
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Region> {
        (self.first.0..self.first.0 + self.count).map(Region)
    }
}

/// Size of a volume and of its regions, both in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    size: u64,
    region_shift: u32,
}

/// Why a size or region size cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GeometryError {
    /// Size of zero or not a multiple of a sector.
    #[error("volume size {size} is not a positive multiple of 512 bytes")]
    Size {
        /// The size, in bytes.
        size: u64,
    },
    /// Region size is not a power of two of at least 4096 bytes.
    #[error("region size {region_size} is not a power of two of at least 4096 bytes")]
    RegionSize {
        /// The region size, in bytes.
        region_size: u64,
    },
    /// The region size would give more regions than the log can hold.
    #[error(
        "region size {region_size} is too small for {size} bytes: at most {MAX_REGIONS} regions; use {least} or more"
    )]
    TooManyRegions {
        /// The region size, in bytes.
        region_size: u64,
        /// The volume's size, in bytes.
        size: u64,
        /// The smallest region size that works, in bytes.
        least: u64,
    },
}

impl Geometry {
    /// A volume of `size` bytes in regions of `region_size` bytes.
    ///
    /// # Errors
    /// See [`GeometryError`].
    pub fn new(size: u64, region_size: u64) -> Result<Geometry, GeometryError> {
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(GeometryError::Size { size });
        }
        if !region_size.is_power_of_two() || region_size < MIN_REGION_BYTES {
            return Err(GeometryError::RegionSize { region_size });
        }
        if size.div_ceil(region_size) > MAX_REGIONS {
            let least = size.div_ceil(MAX_REGIONS).next_power_of_two();
            return Err(GeometryError::TooManyRegions { region_size, size, least });
        }
        Ok(Geometry { size, region_shift: region_size.trailing_zeros() })
    }

    /// How many regions the tables of a running volume have room for, so that it can grow while it is served:
    /// 16 times as many, and at least as many as a volume has by default. Room that is not used costs no memory.
    pub fn room_in_tables(&self) -> u32 {
        let room = (16 * u64::from(self.regions())).max(DEFAULT_REGIONS);
        room.min(MAX_REGIONS) as u32
    }

    /// The same regions over another size, which was found to be one before.
    pub(crate) const fn with_size(self, size: u64) -> Geometry {
        Geometry { size, ..self }
    }

    /// The region size used when none is asked for, in bytes.
    pub fn default_region_size(size: u64) -> u64 {
        size.div_ceil(DEFAULT_REGIONS).next_power_of_two().max(DEFAULT_REGION_BYTES)
    }

    /// The volume's size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The size of a region in bytes (the last region of a volume may be shorter).
    pub const fn region_size(&self) -> u64 {
        1 << self.region_shift
    }

    /// How many regions.
    pub const fn regions(&self) -> u32 {
        self.size.div_ceil(1 << self.region_shift) as u32
    }

    /// The region that holds byte `offset`.
    pub const fn region_at(&self, offset: u64) -> Region {
        Region((offset >> self.region_shift) as u32)
    }

    /// First byte of a region.
    pub const fn region_start(&self, region: Region) -> u64 {
        (region.0 as u64) << self.region_shift
    }

    /// Bytes in a region.
    pub fn region_len(&self, region: Region) -> u64 {
        self.region_size().min(self.size - self.region_start(region))
    }

    /// Whether the range lies inside the volume.
    pub fn contains(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.size)
    }

    /// Splits a range at region borders.
    pub fn parts(&self, offset: u64, len: u64) -> Parts {
        Parts { region_shift: self.region_shift, offset, end: offset + len }
    }
}

/// The parts of a range, each within one region: `(region, offset, len)`.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    region_shift: u32,
    offset: u64,
    end: u64,
}

impl Iterator for Parts {
    type Item = (Region, u64, u64);
    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.end {
            return None;
        }
        let region = self.offset >> self.region_shift;
        let border = (region + 1) << self.region_shift;
        let offset = self.offset;
        self.offset = border.min(self.end);
        Some((Region(region as u32), offset, self.offset - offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stop_at_region_borders() {
        let g = Geometry::new(10 << 20, 1 << 20).unwrap();
        let parts: Vec<_> = g.parts((1 << 20) - 4096, (1 << 20) + 8192).collect();
        assert_eq!(
            parts,
            [(Region(0), (1 << 20) - 4096, 4096), (Region(1), 1 << 20, 1 << 20), (Region(2), 2 << 20, 4096)]
        );
        assert_eq!(g.parts(5, 0).count(), 0);
    }

    #[test]
    fn bad_geometry_is_refused() {
        assert_eq!(Geometry::new(0, 4096), Err(GeometryError::Size { size: 0 }));
        assert_eq!(Geometry::new(1000, 4096), Err(GeometryError::Size { size: 1000 }));
        assert!(matches!(Geometry::new(1 << 20, 3 << 20), Err(GeometryError::RegionSize { .. })));
        assert!(matches!(Geometry::new(1 << 20, 512), Err(GeometryError::RegionSize { .. })));
        assert_eq!(
            Geometry::new(1 << 40, 4096),
            Err(GeometryError::TooManyRegions { region_size: 4096, size: 1 << 40, least: 1 << 18 })
        );
    }

    #[test]
    fn default_region_size_grows_with_the_volume() {
        assert_eq!(Geometry::default_region_size(1 << 30), 1 << 20);
        assert_eq!(Geometry::default_region_size(1 << 40), 4 << 20);
        assert_eq!(Geometry::default_region_size(16 << 40), 64 << 20);
    }

    #[test]
    fn the_last_region_may_be_short() {
        let g = Geometry::new((1 << 20) + 512, 1 << 20).unwrap();
        assert_eq!(g.regions(), 2);
        assert_eq!(g.region_len(Region(1)), 512);
    }
}
