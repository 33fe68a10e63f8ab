//! Logs that get more regions while they are in use: what they write then is what a log of that size writes.

use mirrord_log::{CoreLog, DirtyLog, DiskLog, InternalLog, PAGE, PAGE_REGIONS, ResumeNote, SyncMode};
use mirrord_raid::Region;
use uuid::Uuid;

const VOLUME: Uuid = Uuid::from_u128(7);
const FEW: u32 = 1001;
const MANY: u32 = 2 * PAGE_REGIONS + 5;

fn dirty(log: &dyn DirtyLog) -> Vec<u32> {
    log.dirty().map(|region| region.0).collect()
}

/// What the writes leave in a place that held nothing.
fn image(log: &dyn DirtyLog, len: u64) -> Vec<u8> {
    let mut image = vec![0xee; len as usize];
    for write in log.all_pages().writes {
        image[write.offset as usize..][..write.bytes.len()].copy_from_slice(&write.bytes);
    }
    image
}

#[test]
fn an_internal_log_writes_all_of_itself_once_it_is_longer() {
    let mut log = InternalLog::new(VOLUME, 4096, FEW, SyncMode::NoSync);
    log.mark(Region(1000));
    let _ = log.flush();
    log.resize(MANY);
    assert_eq!((log.regions(), dirty(&log)), (MANY, vec![1000]));
    assert_eq!(log.flush().writes.len(), 3, "every page, also those where nothing changed");
    log.mark(Region(MANY - 1));
    assert_eq!(log.flush().writes.len(), 1);
    let image = image(&log, 3 * PAGE);
    let mut again = InternalLog::new(VOLUME, 4096, MANY, SyncMode::Default);
    let _ = again.resume(&[Some(&image)]);
    assert_eq!((again.note(), dirty(&again)), (ResumeNote::Trusted, vec![1000, MANY - 1]));
    // Before it was written so long, what is new is not trusted.
    let _ = again.resume(&[Some(&image[..PAGE as usize])]);
    assert!(matches!(again.note(), ResumeNote::BadSectors { .. }));
    assert!(!again.is_clean(Region(PAGE_REGIONS)) && again.is_clean(Region(999)));
    log.clear(Region(MANY - 1));
    log.resize(FEW);
    assert_eq!((log.regions(), dirty(&log)), (FEW, vec![1000]));
}

#[test]
fn a_disk_log_is_the_kernels_whatever_its_size_was() {
    let grown = {
        let mut log = DiskLog::new(4096, FEW, 512, SyncMode::NoSync);
        let _ = log.resume(&[None]);
        (0..FEW).for_each(|region| log.clear(Region(region)));
        log.mark(Region(64));
        log.resize(MANY);
        assert_eq!(log.io_size(), DiskLog::len_of(MANY, 512));
        assert_eq!((log.flush().writes.len(), dirty(&log)), (1, vec![64]));
        image(&log, log.io_size())
    };
    let made = {
        let mut log = DiskLog::new(4096, MANY, 512, SyncMode::NoSync);
        let _ = log.resume(&[None]);
        (0..MANY).for_each(|region| log.clear(Region(region)));
        log.mark(Region(64));
        image(&log, log.io_size())
    };
    assert!(grown == made);
    assert_eq!(DiskLog::regions_of(&grown), Some(MANY.into()));
}

#[test]
fn a_core_log_counts_what_is_new_as_clean() {
    let mut log = CoreLog::new(4096, FEW, SyncMode::NoSync);
    log.mark(Region(3));
    log.resize(MANY);
    assert_eq!((log.regions(), log.sync_count(), dirty(&log)), (MANY, MANY.into(), vec![3]));
}
