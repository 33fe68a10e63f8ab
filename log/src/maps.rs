//! The bookkeeping that every kind of log shares: which regions are clean, which are in sync and
//! which are being recovered, as in the kernel's dm-log, with both counts at hand.
//!
//! `clean` is what is durable in the end; `sync` lives in memory only. A region is resynced first,
//! then `sync` is set, and its `clean` bit follows with the next clear. Bits past the last region
//! are always 0. It also keeps which pages of the log changed, so that a flush writes no others.

use bitvec::prelude::{BitVec, Lsb0};
use bitvec::slice::IterZeros;
use mirrord_raid::Region;

type Bits = BitVec<u8, Lsb0>;

/// Which regions are clean, in sync and being recovered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionMaps {
    clean: Bits,
    sync: Bits,
    recovering: Bits,
    dirty: u32,
    in_sync: u32,
    search: u32,
    page_regions: u32,
    touched: Bits,
}

/// The dirty regions of a log in ascending order.
#[derive(Clone, Debug)]
pub struct Dirty<'a>(IterZeros<'a, u8, Lsb0>);

impl Iterator for Dirty<'_> {
    type Item = Region;
    fn next(&mut self) -> Option<Region> {
        self.0.next().map(|index| Region(index as u32))
    }
}

impl RegionMaps {
    /// Maps of `regions` regions, all clean and in sync or all neither; `page_regions` share a page
    /// of the log. Every page counts as changed.
    pub(crate) fn new(regions: u32, page_regions: u32, clean: bool) -> RegionMaps {
        let bits = Bits::repeat(clean, regions as usize);
        let mut maps = RegionMaps {
            clean: bits.clone(),
            sync: bits.clone(),
            recovering: Bits::repeat(false, regions as usize),
            dirty: 0,
            in_sync: 0,
            search: 0,
            page_regions,
            touched: Bits::repeat(true, regions.div_ceil(page_regions) as usize),
        };
        maps.adopt(bits);
        maps
    }

    /// Makes it so many regions, `page_regions` of which share a page: new ones are clean and in sync. Every page counts
    /// as changed.
    pub(crate) fn resize(&mut self, regions: u32, page_regions: u32) {
        let gone = self.clean.get(regions as usize..).map_or(0, |gone| gone.count_zeros());
        assert_eq!(gone, 0, "a dirty region is cut off");
        for (bits, new) in [(&mut self.clean, true), (&mut self.sync, true), (&mut self.recovering, false)] {
            bits.resize(regions as usize, new);
            bits.set_uninitialized(false);
        }
        self.in_sync = self.sync.count_ones() as u32;
        self.search = 0;
        self.page_regions = page_regions;
        self.touched = Bits::repeat(true, regions.div_ceil(page_regions) as usize);
    }

    /// Takes `clean` over as read from disk: in sync is what is clean, the search for work starts
    /// over.
    pub(crate) fn adopt(&mut self, mut clean: Bits) {
        assert_eq!(clean.len(), self.clean.len());
        clean.set_uninitialized(false);
        self.in_sync = clean.count_ones() as u32;
        self.dirty = clean.len() as u32 - self.in_sync;
        self.sync.clone_from(&clean);
        self.clean = clean;
        self.restart();
    }

    /// Takes both maps over as they were, whole bytes; every page counts as changed.
    pub(crate) fn restore(&mut self, clean: &[u8], sync: &[u8]) {
        let bits = |bytes: &[u8]| {
            let mut bits = Bits::from_slice(bytes);
            bits.truncate(self.clean.len());
            bits
        };
        let (clean, mut sync) = (bits(clean), bits(sync));
        sync.set_uninitialized(false);
        assert_eq!(sync.len(), self.sync.len());
        self.adopt(clean);
        self.in_sync = sync.count_ones() as u32;
        self.sync = sync;
        self.touch_all();
    }

    /// Forgets recoveries under way and starts the search for work over.
    pub(crate) fn restart(&mut self) {
        self.recovering.fill(false);
        self.search = 0;
    }

    /// How many regions.
    pub fn regions(&self) -> u32 {
        self.clean.len() as u32
    }

    /// Whether the region's dirty bit is unset.
    pub fn is_clean(&self, region: Region) -> bool {
        self.clean[region.index()]
    }

    /// Whether the region is the same on every leg.
    pub fn in_sync(&self, region: Region) -> bool {
        self.sync[region.index()]
    }

    /// Sets the region's dirty bit.
    pub fn mark(&mut self, region: Region) {
        if self.clean.replace(region.index(), false) {
            self.dirty += 1;
            self.touch(region);
        }
    }

    /// Unsets the region's dirty bit.
    pub fn clear(&mut self, region: Region) {
        if !self.clean.replace(region.index(), true) {
            self.dirty -= 1;
            self.touch(region);
        }
    }

    /// The next region that is neither in sync nor handed out already.
    pub fn get_resync_work(&mut self) -> Option<Region> {
        while self.search < self.regions() {
            let from = self.search as usize;
            let found = self.sync[from..].first_zero().map(|ahead| from + ahead);
            self.search = found.map_or(self.regions(), |index| index as u32 + 1);
            if let Some(index) = found
                && !self.recovering.replace(index, true)
            {
                return Some(Region(index as u32));
            }
        }
        None
    }

    /// Records that the region is in sync or is not, and that nobody recovers it now.
    pub fn set_region_sync(&mut self, region: Region, in_sync: bool) {
        self.recovering.set(region.index(), false);
        if self.sync.replace(region.index(), in_sync) != in_sync {
            if in_sync {
                self.in_sync += 1;
            } else {
                self.in_sync -= 1;
            }
        }
    }

    /// How many regions are in sync.
    pub fn sync_count(&self) -> u64 {
        u64::from(self.in_sync)
    }

    /// How many regions are dirty.
    pub fn dirty_count(&self) -> u64 {
        u64::from(self.dirty)
    }

    /// The dirty regions.
    pub fn dirty(&self) -> Dirty<'_> {
        Dirty(self.clean.iter_zeros())
    }

    /// The clean bits, region r in bit r % 8 of byte r / 8; bits past the last region are 0.
    pub(crate) fn clean_bytes(&self) -> &[u8] {
        self.clean.as_raw_slice()
    }

    /// The bits of what is in sync, as [`RegionMaps::clean_bytes`].
    pub(crate) fn sync_bytes(&self) -> &[u8] {
        self.sync.as_raw_slice()
    }

    /// The pages changed since this was last asked, ascending.
    pub(crate) fn take_touched(&mut self) -> Vec<u32> {
        let pages = self.touched.iter_ones().map(|page| page as u32).collect();
        self.touched.fill(false);
        pages
    }

    /// Counts a page as changed.
    pub(crate) fn touch_page(&mut self, page: u32) {
        self.touched.set(page as usize, true);
    }

    /// Counts every page as changed.
    pub(crate) fn touch_all(&mut self) {
        self.touched.fill(true);
    }

    fn touch(&mut self, region: Region) {
        self.touch_page(region.0 / self.page_regions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_follow_the_bits() {
        let mut maps = RegionMaps::new(13, 8, false);
        assert_eq!((maps.dirty_count(), maps.sync_count()), (13, 0));
        maps.clear(Region(3));
        maps.clear(Region(3));
        maps.clear(Region(12));
        assert_eq!(maps.dirty_count(), 11);
        maps.mark(Region(12));
        maps.mark(Region(12));
        assert_eq!(maps.dirty_count(), 12);
        assert!(maps.is_clean(Region(3)) && !maps.is_clean(Region(12)));
        maps.set_region_sync(Region(5), true);
        maps.set_region_sync(Region(5), true);
        assert_eq!(maps.sync_count(), 1);
        maps.set_region_sync(Region(5), false);
        maps.set_region_sync(Region(5), false);
        assert_eq!(maps.sync_count(), 0);
        assert_eq!(maps.dirty().count(), 12);
    }

    #[test]
    fn only_pages_whose_bits_change_are_touched() {
        let mut maps = RegionMaps::new(20, 8, true);
        assert_eq!(maps.take_touched(), [0, 1, 2]);
        maps.clear(Region(0));
        assert_eq!(maps.take_touched(), []);
        maps.mark(Region(9));
        maps.mark(Region(19));
        assert_eq!(maps.take_touched(), [1, 2]);
        maps.mark(Region(9));
        assert_eq!(maps.take_touched(), []);
    }

    #[test]
    fn new_regions_are_clean_and_all_is_to_be_written() {
        let mut maps = RegionMaps::new(13, 8, true);
        maps.mark(Region(12));
        let _ = maps.take_touched();
        maps.resize(21, 8);
        assert_eq!((maps.regions(), maps.dirty_count(), maps.sync_count()), (21, 1, 21));
        assert_eq!(maps.clean_bytes(), [0xff, 0xef, 0x1f]);
        assert_eq!(maps.take_touched(), [0, 1, 2]);
        maps.mark(Region(20));
        assert_eq!(maps.take_touched(), [2]);
        maps.clear(Region(20));
        maps.resize(13, 8);
        assert_eq!((maps.clean_bytes(), maps.dirty_count()), (&[0xff, 0x0f][..], 1));
    }

    #[test]
    fn work_is_handed_out_once_per_search() {
        let mut maps = RegionMaps::new(10, 10, true);
        for region in [2, 7, 9] {
            maps.set_region_sync(Region(region), false);
        }
        assert_eq!(maps.get_resync_work(), Some(Region(2)));
        assert_eq!(maps.get_resync_work(), Some(Region(7)));
        maps.set_region_sync(Region(2), false);
        assert_eq!(maps.get_resync_work(), Some(Region(9)));
        assert_eq!(maps.get_resync_work(), None);
        maps.set_region_sync(Region(7), true);
        maps.restart();
        assert_eq!(maps.get_resync_work(), Some(Region(2)));
        assert_eq!(maps.get_resync_work(), Some(Region(9)));
        assert_eq!(maps.get_resync_work(), None);
    }
}
