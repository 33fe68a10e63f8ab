//! Where metadata lies on a leg: all arithmetic on it is here.
//!
//! ```text
//! 0            size   4 KiB border
//! | volume data |.....| slot 0 | slot 1 | log pages | footer |
//!                       4 KiB    4 KiB    n x 4 KiB   4 KiB
//! ```
//! On a file the block starts at the first 4 KiB border after the volume; on a device it ends at the
//! last 4 KiB border. The log pages are there whatever the kind of log, so that a volume can change
//! to the internal log later.

use std::num::NonZeroU64;

use mirrord_raid::MAX_REGIONS;

/// Unit of all metadata, in bytes: the largest logical block of common devices.
pub const PAGE: u64 = 4096;

/// Regions in one page of the internal log: eight sectors of [`crate::SECTOR_REGIONS`].
pub const PAGE_REGIONS: u32 = 8 * crate::internal::SECTOR_REGIONS;

/// Slots and footer, in pages.
const FIXED_PAGES: u64 = 3;

/// Largest offset a file can have.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// Pages of internal log for so many regions: at least one.
pub const fn log_pages(regions: u32) -> u32 {
    if regions == 0 { 1 } else { regions.div_ceil(PAGE_REGIONS) }
}

/// Where the metadata of a leg lies, in bytes from the start of the leg.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// The two superblock slots, 4 KiB each.
    pub slots: [u64; 2],
    /// The internal log area.
    pub log: u64,
    /// Its length in pages of 4 KiB.
    pub log_pages: u32,
    /// The footer, 4 KiB.
    pub footer: u64,
    /// First byte after the footer.
    pub end: u64,
}

/// Why a leg cannot hold the metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// The device has no room for it.
    #[error("it has {len} bytes and needs {need}")]
    TooShort {
        /// Length of the device in bytes.
        len: u64,
        /// Bytes needed.
        need: u64,
    },
    /// The file would be longer than a file can be.
    #[error("a volume of {size} bytes is larger than a file can be")]
    TooLarge {
        /// Size of the volume in bytes.
        size: u64,
    },
}

impl Layout {
    /// For a volume of `size` bytes and `regions` regions in a file.
    ///
    /// # Errors
    /// [`LayoutError::TooLarge`] if the file would end past the largest file offset.
    pub fn for_file(size: u64, regions: u32) -> Result<Layout, LayoutError> {
        let pages = log_pages(regions);
        let start =
            size.checked_next_multiple_of(PAGE).filter(|start| *start <= MAX_OFFSET - block_len(pages));
        start.map(|start| Layout::at(start, pages)).ok_or(LayoutError::TooLarge { size })
    }

    /// For a volume of `regions` regions on a device of `device_len` bytes. The volume must fit in
    /// [`Layout::room`].
    ///
    /// # Errors
    /// [`LayoutError::TooShort`] if there is no room for the metadata and one page of data.
    pub fn for_device(device_len: u64, regions: u32) -> Result<Layout, LayoutError> {
        let pages = log_pages(regions);
        let (end, need) = (device_len / PAGE * PAGE, block_len(pages) + PAGE);
        if end < need {
            return Err(LayoutError::TooShort { len: device_len, need });
        }
        Ok(Layout::at(end - block_len(pages), pages))
    }

    /// The largest volume that fits a device of `device_len` bytes, in bytes, a multiple of 4 KiB.
    /// `None` if none does.
    pub fn usable_on_device(device_len: u64, region_size: NonZeroU64) -> Option<u64> {
        let end = device_len / PAGE * PAGE;
        let mut pages = 1;
        loop {
            let size = end.checked_sub(block_len(pages)).filter(|size| *size > 0)?;
            let regions = u32::try_from(size.div_ceil(region_size.get())).ok()?;
            if log_pages(regions) <= pages {
                return Some(size);
            }
            pages += 1;
        }
    }

    /// Bytes before the metadata: the most a volume on this leg can have.
    pub const fn room(&self) -> u64 {
        self.slots[0]
    }

    /// Length of the log area in bytes.
    pub const fn log_len(&self) -> u64 {
        self.log_pages as u64 * PAGE
    }

    /// Whether this is a layout that [`Layout::for_file`] or [`Layout::for_device`] could have made
    /// for at most [`MAX_REGIONS`] regions.
    pub fn is_valid(&self) -> bool {
        let (start, pages) = (self.slots[0], self.log_pages);
        start.is_multiple_of(PAGE)
            && (1..=log_pages(MAX_REGIONS as u32)).contains(&pages)
            && start <= MAX_OFFSET - block_len(pages)
            && *self == Layout::at(start, pages)
    }

    fn at(start: u64, log_pages: u32) -> Layout {
        let log = start + 2 * PAGE;
        let footer = log + u64::from(log_pages) * PAGE;
        Layout { slots: [start, start + PAGE], log, log_pages, footer, end: footer + PAGE }
    }
}

const fn block_len(log_pages: u32) -> u64 {
    (FIXED_PAGES + log_pages as u64) * PAGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(len: u64, region_size: u64) -> Option<u64> {
        Layout::usable_on_device(len, NonZeroU64::new(region_size).unwrap())
    }

    #[test]
    fn a_file_gets_its_metadata_appended() {
        let layout = Layout::for_file(10_000_384, 10).unwrap();
        assert_eq!(layout.slots, [10_002_432, 10_006_528]);
        assert_eq!((layout.log, layout.log_pages), (10_010_624, 1));
        assert_eq!((layout.footer, layout.end), (10_014_720, 10_018_816));
        assert!(layout.is_valid());
        assert_eq!(Layout::for_file(u64::MAX, 1), Err(LayoutError::TooLarge { size: u64::MAX }));
        assert!(Layout::for_file(MAX_OFFSET - 8192, 1).is_err());
    }

    #[test]
    fn a_device_ends_with_its_metadata() {
        let layout = Layout::for_device((1 << 20) + 512, PAGE_REGIONS + 1).unwrap();
        assert_eq!((layout.log_pages, layout.end), (2, 1 << 20));
        assert_eq!(layout.room(), (1 << 20) - 5 * PAGE);
        assert!(layout.is_valid());
        assert_eq!(
            Layout::for_device(16384 + 4095, 1),
            Err(LayoutError::TooShort { len: 16384 + 4095, need: 20480 })
        );
        assert!(Layout::for_device(20480, 1).is_ok());
    }

    #[test]
    fn the_usable_size_fits_and_is_the_largest() {
        for (len, region_size) in
            [(1 << 20, 4096), (200 << 20, 4096), ((1 << 30) + 513, 4096), (1 << 40, 1 << 20)]
        {
            let size = usable(len, region_size).unwrap();
            let regions = |size: u64| size.div_ceil(region_size) as u32;
            assert!(size <= Layout::for_device(len, regions(size)).unwrap().room());
            let more = size + PAGE;
            assert!(more > Layout::for_device(len, regions(more)).unwrap().room());
        }
        assert_eq!(usable(16384, 4096), None);
        assert_eq!(usable(20480, 4096), Some(4096));
        assert_eq!(usable(0, 4096), None);
    }

    #[test]
    fn log_pages_cover_the_regions() {
        assert_eq!(PAGE_REGIONS, 30720);
        assert_eq!([0, 1, 30720, 30721].map(log_pages), [1, 1, 1, 2]);
    }
}
