//! The internal log: torn pages, damage, many regions.

use mirrord_raid::Region;

use super::*;

const VOLUME: Uuid = Uuid::from_u128(0x6d69_7272);

fn log(regions: u32, mode: SyncMode) -> InternalLog {
    InternalLog::new(VOLUME, 4096, regions, mode)
}

/// A log area with the writes applied.
fn apply(area: &mut Vec<u8>, flush: &Flush) {
    for write in &flush.writes {
        let at = write.offset as usize;
        area.resize(area.len().max(at + write.bytes.len()), 0);
        area[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }
}

fn area(log: &InternalLog) -> Vec<u8> {
    let mut area = Vec::new();
    apply(&mut area, &log.all_pages());
    area
}

fn resumed(regions: u32, images: &[Option<&[u8]>]) -> InternalLog {
    let mut log = log(regions, SyncMode::Default);
    let _ = log.resume(images);
    log
}

fn dirty(log: &InternalLog) -> Vec<u32> {
    log.dirty().map(|region| region.0).collect()
}

#[test]
fn a_flush_writes_only_changed_pages() {
    let regions = 2 * PAGE_REGIONS + 100;
    let mut first = log(regions, SyncMode::NoSync);
    let flush = first.flush();
    assert_eq!(flush.writes.len(), 3);
    assert!(first.flush().is_empty());
    let mut disk = Vec::new();
    apply(&mut disk, &flush);
    for region in [PAGE_REGIONS, PAGE_REGIONS + 1, regions - 1] {
        first.mark(Region(region));
    }
    let flush = first.flush();
    assert_eq!(flush.writes.iter().map(|w| w.offset).collect::<Vec<_>>(), [PAGE, 2 * PAGE]);
    apply(&mut disk, &flush);
    first.mark(Region(PAGE_REGIONS));
    assert!(first.flush().is_empty());
    let mut again = log(regions, SyncMode::Default);
    assert!(again.resume(&[Some(&disk)]).is_empty());
    assert_eq!(again.note(), ResumeNote::Trusted);
    assert_eq!(dirty(&again), [PAGE_REGIONS, PAGE_REGIONS + 1, regions - 1]);
    assert_eq!((again.dirty_count(), again.sync_count()), (3, u64::from(regions) - 3));
    assert_eq!(again.generation(), first.generation());
}

#[test]
fn a_failed_flush_is_written_again() {
    let mut log = log(PAGE_REGIONS * 2, SyncMode::NoSync);
    let _ = log.flush();
    log.mark(Region(5));
    let failed = log.flush();
    log.mark(Region(PAGE_REGIONS));
    log.flush_failed();
    let flush = log.flush();
    assert_eq!((failed.writes.len(), flush.writes.len()), (1, 2));
    assert!(log.flush().is_empty());
    log.flush_failed();
    assert!(log.flush().is_empty());
}

#[test]
fn the_union_of_the_legs_counts() {
    let mut left = log(100, SyncMode::NoSync);
    let mut right = left.clone();
    left.mark(Region(3));
    right.mark(Region(99));
    let (left, right) = (area(&left), area(&right));
    let mut log = log(100, SyncMode::Default);
    let flush = log.resume(&[Some(&left), Some(&right)]);
    assert_eq!(dirty(&log), [3, 99]);
    assert_eq!(log.note(), ResumeNote::Trusted);
    let mut both = left.clone();
    apply(&mut both, &flush);
    assert_eq!(dirty(&resumed(100, &[Some(&both)])), [3, 99]);
}

#[test]
fn what_cannot_be_read_is_dirty() {
    let regions = SECTOR_REGIONS * 9 + 5;
    let good = area(&log(regions, SyncMode::NoSync));
    let mut torn = good.clone();
    torn[9 * SECTOR + 100] ^= 4;
    let log = resumed(regions, &[Some(&good), Some(&torn)]);
    assert_eq!(log.note(), ResumeNote::BadSectors { bad: 1, total: 20 });
    assert_eq!(dirty(&log), (SECTOR_REGIONS * 9..regions).collect::<Vec<_>>());

    let log = resumed(regions, &[Some(&good[..PAGE as usize])]);
    assert_eq!(log.note(), ResumeNote::BadSectors { bad: 2, total: 10 });
    assert_eq!(log.dirty_count(), u64::from(SECTOR_REGIONS) + 5);

    let log = resumed(regions, &[Some(&good), None]);
    assert_eq!(log.note(), ResumeNote::BadSectors { bad: 10, total: 20 });
    assert_eq!(log.dirty_count(), u64::from(regions));

    let log = resumed(regions, &[]);
    assert_eq!((log.note(), log.sync_count()), (ResumeNote::Unreadable, 0));
}

#[test]
fn a_bad_sector_is_repaired_at_resume() {
    let mut bad = area(&log(50, SyncMode::NoSync));
    bad[40] ^= 1;
    let mut log = log(50, SyncMode::Default);
    let flush = log.resume(&[Some(&bad)]);
    apply(&mut bad, &flush);
    let again = resumed(50, &[Some(&bad)]);
    assert_eq!((again.note(), again.dirty_count()), (ResumeNote::Trusted, 50));
}

#[test]
fn a_page_of_another_volume_is_not_trusted() {
    let foreign = InternalLog::new(Uuid::from_u128(99), 4096, 50, SyncMode::NoSync);
    let log = resumed(50, &[Some(&area(&foreign))]);
    assert_eq!(log.note(), ResumeNote::BadSectors { bad: 1, total: 1 });
    assert_eq!(log.dirty_count(), 50);
}

#[test]
fn a_misplaced_sector_is_not_trusted() {
    let good = area(&log(SECTOR_REGIONS * 2, SyncMode::NoSync));
    let sector = &good[SECTOR..2 * SECTOR];
    assert!(decode_sector(VOLUME, 1, sector).is_ok());
    assert_eq!(decode_sector(VOLUME, 0, sector), Err(SectorError::Misplaced { found: 1 }));
    assert_eq!(decode_sector(VOLUME, 1, &sector[1..]), Err(SectorError::NotMirrord));
}

#[test]
fn bits_past_the_last_region_are_not_set() {
    for regions in [1, 7, 8, 9, SECTOR_REGIONS - 1, SECTOR_REGIONS, SECTOR_REGIONS + 1] {
        let image = area(&log(regions, SyncMode::Sync));
        let ones: u32 = (0..PAGE_SECTORS)
            .map(|index| decode_sector(VOLUME, index, &image[index as usize * SECTOR..][..SECTOR]).unwrap())
            .flat_map(|sector| sector.dirty)
            .map(u8::count_ones)
            .sum();
        assert_eq!(ones, regions);
    }
}

#[test]
fn a_generation_that_would_wrap_is_damage() {
    let mut first = log(100, SyncMode::NoSync);
    first.generation = MAX_COUNTER - 3;
    let _ = first.flush();
    let good = area(&first);
    first.generation = u64::MAX;
    let bad = area(&first);
    let again = resumed(100, &[Some(&good)]);
    assert_eq!((again.dirty_count(), again.generation()), (0, MAX_COUNTER - 2));
    let again = resumed(100, &[Some(&bad), Some(&good)]);
    assert_eq!((again.dirty_count(), again.generation()), (100, MAX_COUNTER - 1));
}
