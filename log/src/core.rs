//! The log in memory: nothing is written, so nothing is known after a crash.
//!
//! As in the kernel, its state survives suspend and resume. Unlike there, a region that starts out
//! of sync also starts dirty, so that [`DirtyLog::dirty`] lists what has to be resynced. Whether a
//! volume with this log was stopped cleanly is in its superblock; then it starts as
//! [`SyncMode::NoSync`].

use crate::log::{DirtyLog, LogKind, ResumeNote, SyncMode};
use crate::maps::RegionMaps;
use crate::page::Flush;

/// A dirty-region log in memory.
#[derive(Clone, Debug)]
pub struct CoreLog {
    region_size: u64,
    maps: RegionMaps,
    note: ResumeNote,
}

impl CoreLog {
    /// A log of `regions` regions of `region_size` bytes: all clean for [`SyncMode::NoSync`], else
    /// all dirty.
    pub fn new(region_size: u64, regions: u32, mode: SyncMode) -> CoreLog {
        let clean = mode == SyncMode::NoSync;
        let maps = RegionMaps::new(regions, regions.max(1), clean);
        CoreLog { region_size, maps, note: ResumeNote::NotResumed }
    }

    /// A log that goes on from where another left: what is clean and what is in sync, as whole bytes.
    ///
    /// # Panics
    /// If there are too few bytes.
    pub(crate) fn restore(region_size: u64, regions: u32, clean: &[u8], sync: &[u8]) -> CoreLog {
        let mut log = CoreLog::new(region_size, regions, SyncMode::Default);
        log.maps.restore(clean, sync);
        log.note = ResumeNote::Trusted;
        log
    }
}

impl DirtyLog for CoreLog {
    fn kind(&self) -> LogKind {
        LogKind::Core
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

    fn resume(&mut self, _images: &[Option<&[u8]>]) -> Flush {
        self.maps.restart();
        self.note = ResumeNote::Trusted;
        Flush::default()
    }

    fn note(&self) -> ResumeNote {
        self.note
    }

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

#[cfg(test)]
mod tests {
    use mirrord_raid::Region;

    use super::*;

    #[test]
    fn state_survives_suspend_and_resume() {
        let mut log: Box<dyn DirtyLog> = Box::new(CoreLog::new(4096, 5, SyncMode::Default));
        assert_eq!(log.dirty_count(), 5);
        assert!(log.resume(&[]).is_empty());
        while let Some(region) = log.get_resync_work() {
            if region != Region(2) {
                log.set_region_sync(region, true);
                log.clear(region);
            }
        }
        assert!(log.suspend().is_empty());
        assert!(log.resume(&[]).is_empty());
        assert_eq!(log.sync_count(), 4);
        assert_eq!(log.dirty().collect::<Vec<_>>(), [Region(2)]);
        assert_eq!(log.get_resync_work(), Some(Region(2)));
        let status = log.status();
        assert_eq!((status.kind, status.dirty_regions, status.regions), (LogKind::Core, 1, 5));
    }

    #[test]
    fn nosync_starts_clean() {
        let mut log = CoreLog::new(4096, 5, SyncMode::NoSync);
        assert_eq!((log.dirty_count(), log.sync_count()), (0, 5));
        assert_eq!(log.get_resync_work(), None);
    }
}
