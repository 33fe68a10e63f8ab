//! The dirty-region log as the engine and the log server see it: the verbs of the kernel's
//! dm-dirty-log, without IO.
//!
//! Marks and clears change memory only. [`DirtyLog::flush`] hands out the writes that make all of
//! them durable; one flush is under way at a time, and calling `flush` again says that the one
//! before was written, unless [`DirtyLog::flush_failed`] was called. Two duties stay with the caller,
//! who knows the legs: no data is written under a mark before the flush that holds it is durable,
//! and every leg is flushed before a clear is.

use mirrord_raid::{Assembly, Region};

use crate::maps::{Dirty, RegionMaps};
use crate::page::Flush;
use crate::remote::Changes;

/// Where a log keeps its bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum LogKind {
    /// On every leg.
    Internal,
    /// In memory only.
    Core,
    /// In a file or device of its own, in the kernel's format.
    Disk,
    /// In a log server.
    Remote,
}

impl LogKind {
    /// The word used on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            LogKind::Internal => "internal",
            LogKind::Core => "core",
            LogKind::Disk => "disk",
            LogKind::Remote => "remote",
        }
    }
}

/// What is known of the legs when a log is first resumed (words of the kernel's mirror table).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SyncMode {
    /// What the log says; nothing when it is new.
    #[default]
    Default,
    /// Nothing, whatever the log says: everything is dirty.
    Sync,
    /// The legs are equal, whatever the log says: everything is clean.
    NoSync,
}

impl SyncMode {
    /// How a volume's log is resumed at a start that comes to this: one that lost marks is not believed, and whether all is
    /// dirty or all is clean the superblocks know.
    pub fn at_start(assembly: &Assembly) -> SyncMode {
        match (assembly.all_dirty, assembly.log_lost) {
            (true, _) => SyncMode::Sync,
            (false, true) => SyncMode::NoSync,
            (false, false) => SyncMode::Default,
        }
    }
}

impl SyncMode {
    /// The same of a volume whose log is not known: after a clean stop with all clean the legs are equal.
    pub fn without_log(assembly: &Assembly) -> SyncMode {
        if assembly.dirty_without_log { SyncMode::Sync } else { SyncMode::NoSync }
    }
}

/// What was found when a log was resumed. Everything but `Trusted`, `Grown` and, for `NoSync`,
/// `Ignored` made regions dirty that the log could not vouch for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ResumeNote {
    /// Not resumed since it was made.
    #[default]
    NotResumed,
    /// Read and trusted in full, or nothing to read (core).
    Trusted,
    /// `bad` of `total` sectors, over all legs, failed their check: their regions are dirty.
    BadSectors {
        /// Sectors that failed, were missing or belong to another volume.
        bad: u32,
        /// Sectors looked at.
        total: u32,
    },
    /// What is there is not a log: a new one is made, everything dirty.
    NoLog,
    /// There was something to read but [`SyncMode`] said not to.
    Ignored,
    /// Written by an unknown version: everything is dirty. The writes of this resume replace it.
    UnknownVersion {
        /// The version found.
        version: u32,
    },
    /// Shorter than a log of so many regions: everything is dirty.
    TooShort {
        /// Bytes there.
        len: u64,
        /// Bytes needed.
        need: u64,
    },
    /// Could not be read: everything is dirty.
    Unreadable,
    /// The log had fewer regions than the volume has now: the new ones are dirty.
    Grown {
        /// Regions it had.
        from: u64,
    },
}

/// A log at a glance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogStatus {
    /// Its kind.
    pub kind: LogKind,
    /// Regions in the volume.
    pub regions: u32,
    /// Bytes in a region.
    pub region_size: u64,
    /// Regions whose dirty bit is set.
    pub dirty_regions: u64,
    /// Regions in sync.
    pub sync_count: u64,
    /// What the last resume found.
    pub note: ResumeNote,
}

/// A dirty-region log. A region not below [`DirtyLog::regions`] is a programmer error and panics.
pub trait DirtyLog: Send {
    /// Its kind.
    fn kind(&self) -> LogKind;

    /// Bytes in a region.
    fn region_size(&self) -> u64;

    /// Its bookkeeping.
    fn maps(&self) -> &RegionMaps;

    /// Its bookkeeping, to change.
    fn maps_mut(&mut self) -> &mut RegionMaps;

    /// Takes the state over from what is on disk and returns the writes to make before anything else.
    ///
    /// `images` are, for `internal`, the log areas of the legs in use, whose union counts; for `disk`
    /// the one log file; for `core` nothing. `None` stands for one that could not be read.
    fn resume(&mut self, images: &[Option<&[u8]>]) -> Flush;

    /// What the last resume found.
    fn note(&self) -> ResumeNote;

    /// The writes that make every mark and clear so far durable.
    fn flush(&mut self) -> Flush;

    /// What changed since this was last asked, for a log that a server keeps; nothing for others.
    fn take_changes(&mut self) -> Changes {
        Changes::default()
    }

    /// The writes of the last flush (or resume) did not all become durable: the next flush has them
    /// again.
    fn flush_failed(&mut self);

    /// The superblocks are of this session now: a log in a place of its own says so with the next flush.
    fn recorded(&mut self, _session: u64) {}

    /// Makes it a log of so many regions: new ones are clean. The next flush has all of it. Regions that are cut off
    /// have to be clean.
    fn resize(&mut self, regions: u32);

    /// The whole log as writes, to bring a returning leg or a new place up to date.
    fn all_pages(&self) -> Flush;

    /// How many regions.
    fn regions(&self) -> u32 {
        self.maps().regions()
    }

    /// Whether the region's dirty bit is unset.
    fn is_clean(&self, region: Region) -> bool {
        self.maps().is_clean(region)
    }

    /// Whether the region is the same on every leg.
    fn in_sync(&self, region: Region) -> bool {
        self.maps().in_sync(region)
    }

    /// Sets every region's dirty bit; durable after the next flush.
    fn mark_all(&mut self) {
        (0..self.regions()).for_each(|region| self.mark(Region(region)));
    }

    /// Sets the region's dirty bit; durable after the next flush.
    fn mark(&mut self, region: Region) {
        self.maps_mut().mark(region);
    }

    /// Unsets the region's dirty bit; durable after the next flush.
    fn clear(&mut self, region: Region) {
        self.maps_mut().clear(region);
    }

    /// The next region to resync. Each is handed out once; one whose resync failed comes again only
    /// after a resume, so that a failing leg is not tried in a loop.
    fn get_resync_work(&mut self) -> Option<Region> {
        self.maps_mut().get_resync_work()
    }

    /// Records that the region is in sync or is not. Does not clear it.
    fn set_region_sync(&mut self, region: Region, in_sync: bool) {
        self.maps_mut().set_region_sync(region, in_sync);
    }

    /// How many regions are in sync. O(1).
    fn sync_count(&self) -> u64 {
        self.maps().sync_count()
    }

    /// How many regions are dirty. O(1).
    fn dirty_count(&self) -> u64 {
        self.maps().dirty_count()
    }

    /// The dirty regions in ascending order.
    fn dirty(&self) -> Dirty<'_> {
        self.maps().dirty()
    }

    /// The log at a glance.
    fn status(&self) -> LogStatus {
        LogStatus {
            kind: self.kind(),
            regions: self.regions(),
            region_size: self.region_size(),
            dirty_regions: self.dirty_count(),
            sync_count: self.sync_count(),
            note: self.note(),
        }
    }

    /// The volume stops: the last writes.
    fn suspend(&mut self) -> Flush {
        self.flush()
    }
}
