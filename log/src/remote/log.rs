//! The remote log as the log worker sees it: bookkeeping in memory, and the list of what changed since the last commit.

use mirrord_raid::Region;

use super::Changes;
use crate::log::{DirtyLog, LogKind, ResumeNote};
use crate::maps::RegionMaps;
use crate::page::Flush;

/// A dirty-region log that a server keeps.
#[derive(Clone, Debug)]
pub struct RemoteLog {
    region_size: u64,
    maps: RegionMaps,
    /// Regions whose bit changed since the last commit, some perhaps several times.
    changed: Vec<Region>,
}

impl RemoteLog {
    /// A log of `regions` regions of `region_size` bytes of which the server said that these are dirty.
    pub fn new(region_size: u64, regions: u32, dirty: impl IntoIterator<Item = Region>) -> RemoteLog {
        let mut maps = RegionMaps::new(regions, regions.max(1), true);
        for region in dirty {
            maps.mark(region);
            maps.set_region_sync(region, false);
        }
        RemoteLog { region_size, maps, changed: Vec::new() }
    }
}

impl DirtyLog for RemoteLog {
    fn kind(&self) -> LogKind {
        LogKind::Remote
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

    fn mark(&mut self, region: Region) {
        if self.maps.is_clean(region) {
            self.maps.mark(region);
            self.changed.push(region);
        }
    }

    fn clear(&mut self, region: Region) {
        if !self.maps.is_clean(region) {
            self.maps.clear(region);
            self.changed.push(region);
        }
    }

    fn take_changes(&mut self) -> Changes {
        self.changed.sort_unstable();
        self.changed.dedup();
        let mut changes = Changes::default();
        for region in self.changed.drain(..) {
            match self.maps.is_clean(region) {
                true => changes.clears.push(region),
                false => changes.marks.push(region),
            }
        }
        changes
    }

    fn resume(&mut self, _images: &[Option<&[u8]>]) -> Flush {
        self.maps.restart();
        Flush::default()
    }

    /// The server's affair.
    fn note(&self) -> ResumeNote {
        ResumeNote::Trusted
    }

    /// Nothing: see [`DirtyLog::take_changes`].
    fn flush(&mut self) -> Flush {
        Flush::default()
    }

    fn flush_failed(&mut self) {}

    fn resize(&mut self, regions: u32) {
        self.maps.resize(regions, regions.max(1));
    }

    fn all_pages(&self) -> Flush {
        Flush::default()
    }
}
