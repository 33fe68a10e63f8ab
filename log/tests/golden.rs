//! The golden image of format version 1 (tests/golden/leg-v1.img of the project): a leg that must
//! keep opening, and whose bytes a new leg with the same contents must have.
//!
//! It is a file leg of 64 KiB in regions of 4 KiB, each filled with its number, regions 1, 5 and 15
//! dirty. `cargo test -p mirrord-log --test golden -- --ignored` writes it; that is for a new format
//! version under a new name, never for this one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use mirrord_log::{
    DirtyLog, InternalLog, Layout, LegEntry, LogPlace, ResumeNote, Superblock, SyncMode, format_leg, measure,
    read_leg, superblock_write,
};
use mirrord_raid::{FailReason, Held, Leg, LegState, Lineage, Region};
use uuid::Uuid;

const SIZE: u64 = 64 << 10;
const REGION_SIZE: u64 = 4 << 10;
const REGIONS: u32 = 16;
const VOLUME: Uuid = Uuid::from_u128(0x6d69_7272_6f72_4d01_8000_0000_0000_0001);
const DIRTY: [Region; 3] = [Region(1), Region(5), Region(15)];

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/leg-v1.img")
}

fn superblock() -> Superblock {
    let leg = |index: u128, state| LegEntry {
        uuid: Uuid::from_u128(0x6d69_7272_6f72_4c01_8000_0000_0000_0000 + index),
        state,
        replaces: None,
    };
    Superblock {
        volume: VOLUME,
        name: "golden".into(),
        leg: Leg::new(1),
        legs: vec![
            leg(1, LegState::InSync),
            leg(2, LegState::Syncing),
            leg(3, LegState::Failed(FailReason::NoSpace)),
            leg(4, LegState::Tracked),
        ],
        size: SIZE,
        region_size: REGION_SIZE,
        log: LogPlace::Internal,
        log_identity: None,
        leg_file: None,
        event_count: 42,
        lineage: Lineage::default(),
        held: Held::default(),
        recent: None,
        clean: false,
        equal: false,
        log_failed: false,
        created: 1_700_000_000,
        updated: 1_700_000_100,
    }
}

fn log() -> InternalLog {
    let mut log = InternalLog::new(VOLUME, REGION_SIZE, REGIONS, SyncMode::NoSync);
    for region in DIRTY {
        log.mark(region);
    }
    let _ = log.flush();
    log
}

fn write_image(file: &File) {
    let layout = Layout::for_file(SIZE, REGIONS).unwrap();
    for region in 0..REGIONS {
        file.write_all_at(&[region as u8; REGION_SIZE as usize], u64::from(region) * REGION_SIZE).unwrap();
    }
    format_leg(file, &layout, &superblock(), &log()).unwrap();
    let next = superblock_write(&layout, &superblock(), 2);
    file.write_all_at(&next.bytes, next.offset).unwrap();
}

#[test]
#[ignore = "writes the golden image"]
fn write_golden() {
    write_image(&File::create_new(path()).unwrap());
}

#[test]
fn the_golden_leg_keeps_opening() {
    let file = File::open(path()).unwrap();
    let (backing, len) = measure(&file).unwrap();
    let leg = read_leg(&file, backing, len).unwrap();
    assert_eq!(leg.superblock, superblock());
    assert_eq!(leg.generation, 2);
    assert_eq!((leg.footer.volume, leg.footer.leg, leg.footer.size), (VOLUME, superblock().leg_uuid(), SIZE));
    assert_eq!((leg.layout, len), (Layout::for_file(SIZE, REGIONS).unwrap(), 80 << 10));
    let mut log = InternalLog::new(VOLUME, REGION_SIZE, REGIONS, SyncMode::Default);
    assert!(log.resume(&[Some(&leg.log_area)]).is_empty());
    assert_eq!((log.note(), log.generation()), (ResumeNote::Trusted, 1));
    assert_eq!(log.dirty().collect::<Vec<_>>(), DIRTY);
}

#[test]
fn a_new_leg_has_the_same_bytes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    write_image(file.as_file());
    let (new, golden) = (std::fs::read(file.path()).unwrap(), std::fs::read(path()).unwrap());
    assert_eq!(new.len(), golden.len());
    assert_eq!(new.iter().zip(&golden).position(|(new, golden)| new != golden), None);
}
