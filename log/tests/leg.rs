//! A leg's metadata on real files: made, read back, and every way to be no leg.

use std::fs::File;
use std::os::unix::fs::FileExt;

use mirrord_log::{
    Backing, DirtyLog, FormatLegError, InternalLog, Layout, LegEntry, LogPlace, MetaIo, ReadLegError,
    ResumeNote, SlotError, Superblock, SyncMode, Target, format_leg, measure, read_leg, superblock_write,
    wipe_leg,
};
use mirrord_raid::{Held, Leg, LegState, Lineage, Region};
use uuid::Uuid;

const REGIONS: u32 = 256;
const SIZE: u64 = REGIONS as u64 * 4096;

fn superblock() -> Superblock {
    Superblock {
        volume: Uuid::from_u128(1),
        name: "v".into(),
        leg: Leg::new(0),
        legs: vec![LegEntry::new(Uuid::from_u128(2), LegState::InSync)],
        size: SIZE,
        region_size: 4096,
        log: LogPlace::Internal,
        log_identity: None,
        leg_file: None,
        event_count: 1,
        lineage: Lineage::default(),
        held: Held::default(),
        recent: None,
        clean: true,
        equal: false,
        log_failed: false,
        created: 1,
        updated: 1,
    }
}

fn log() -> InternalLog {
    InternalLog::new(superblock().volume, 4096, REGIONS, SyncMode::NoSync)
}

fn layout() -> Layout {
    Layout::for_file(SIZE, REGIONS).unwrap()
}

fn made() -> File {
    let file = tempfile::tempfile().unwrap();
    format_leg(&file, &layout(), &superblock(), &log()).unwrap();
    file
}

fn reread(file: &File) -> Result<mirrord_log::LegMetadata, ReadLegError> {
    let (backing, len) = measure(file).unwrap();
    read_leg(file, backing, len)
}

#[test]
fn a_leg_comes_back_as_it_was_made() {
    let file = made();
    let leg = reread(&file).unwrap();
    assert_eq!((leg.superblock, leg.generation, leg.layout), (superblock(), 1, layout()));
    assert_eq!(leg.log_area.len() as u64, layout().log_len());
    assert_eq!(measure(&file).unwrap(), (Backing::File, layout().end));
}

#[test]
fn a_device_is_read_from_its_last_whole_block() {
    let file = tempfile::tempfile().unwrap();
    let layout = Layout::for_device(2 << 20, REGIONS).unwrap();
    file.set_len(2 << 20).unwrap();
    format_leg(&file, &layout, &superblock(), &log()).unwrap();
    file.set_len((2 << 20) + 512).unwrap();
    assert_eq!(read_leg(&file, Backing::Device, (2 << 20) + 512).unwrap().layout, layout);
    assert!(matches!(read_leg(&file, Backing::File, (2 << 20) + 512), Err(ReadLegError::NoFooter)));
}

#[test]
fn superblock_writes_take_turns() {
    let file = made();
    for generation in 2..6 {
        let legs = vec![LegEntry::new(Uuid::from_u128(100 + u128::from(generation)), LegState::InSync)];
        let new = Superblock { event_count: generation * 10, legs, ..superblock() };
        let write = superblock_write(&layout(), &new, generation);
        assert_eq!(write.offset, layout().slots[(generation % 2) as usize]);
        file.write_all_at(&write.bytes[..512], write.offset).unwrap();
        let torn = reread(&file).unwrap();
        assert!(torn.generation == generation - 1 && torn.superblock.event_count != new.event_count);
        file.write_all_at(&write.bytes, write.offset).unwrap();
        let leg = reread(&file).unwrap();
        assert_eq!((leg.superblock, leg.generation), (new, generation));
    }
}

#[test]
fn marks_written_by_the_worker_are_read_back() {
    let (left, right) = (made(), made());
    let (mut log, mut io) = (log(), MetaIo::new());
    let _ = log.flush();
    log.mark(Region(9));
    let base = layout().log;
    let targets = [&left, &right].map(|file| Target { file, base, hung: None });
    let results = io.write_and_sync(&targets, &log.flush().writes);
    assert!(results.iter().all(|result| result.is_ok()), "{results:?}");
    for file in [&left, &right] {
        let mut again = InternalLog::new(superblock().volume, 4096, REGIONS, SyncMode::Default);
        assert!(again.resume(&[Some(&reread(file).unwrap().log_area)]).is_empty());
        assert_eq!(again.note(), ResumeNote::Trusted);
        assert_eq!(again.dirty().collect::<Vec<_>>(), [Region(9)]);
    }
}

#[test]
fn each_fault_is_named() {
    let damage = |offset: u64, bytes: &[u8]| {
        let file = made();
        file.write_all_at(bytes, offset).unwrap();
        reread(&file).unwrap_err()
    };
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(reread(&empty), Err(ReadLegError::TooShort { len: 0 })));
    assert!(matches!(damage(layout().footer, &[0; 4096]), ReadLegError::NoFooter));
    assert!(matches!(damage(layout().footer + 100, &[1]), ReadLegError::Checksum));
    assert!(matches!(damage(layout().end, &[0]), ReadLegError::NoFooter));
    assert!(matches!(
        damage(layout().slots[0], &[0; 8192]),
        ReadLegError::BothTorn { slot0: SlotError::NotMirrord, slot1: SlotError::NotMirrord }
    ));

    let newer = |bytes: &[u8], version: u8| {
        let mut bytes = bytes.to_vec();
        bytes[8] = version;
        bytes[12..16].fill(0);
        let crc = crc32fast::hash(&bytes).to_le_bytes();
        bytes[12..16].copy_from_slice(&crc);
        bytes
    };
    let slot = newer(&superblock().encode(1), 2);
    assert!(matches!(
        damage(layout().slots[1], &slot),
        ReadLegError::NewerVersion { what: "superblock", found: 2 }
    ));
    let footer = newer(&reread(&made()).unwrap().footer.encode(), 3);
    assert!(matches!(
        damage(layout().footer, &footer),
        ReadLegError::NewerVersion { what: "footer", found: 3 }
    ));

    let file = made();
    let footer = reread(&file).unwrap().footer.encode();
    file.write_all_at(&footer, layout().end).unwrap();
    assert!(matches!(reread(&file), Err(ReadLegError::Moved { .. })));
}

#[test]
fn a_superblock_that_outgrows_its_layout_is_refused() {
    let file = made();
    let large = Superblock { size: SIZE + 4096, ..superblock() };
    let write = superblock_write(&layout(), &large, 2);
    file.write_all_at(&write.bytes, write.offset).unwrap();
    assert!(matches!(reread(&file), Err(ReadLegError::BadField { what: "superblock", field: "size" })));
}

#[test]
fn a_leg_is_not_made_where_it_would_not_be_found() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(layout().end + 1).unwrap();
    let refused = format_leg(&file, &layout(), &superblock(), &log());
    assert!(matches!(refused, Err(FormatLegError::NotLast { .. })));
    let other = InternalLog::new(superblock().volume, 4096, REGIONS + 1, SyncMode::NoSync);
    let refused = format_leg(&file, &layout(), &superblock(), &other);
    assert!(matches!(refused, Err(FormatLegError::DoesNotFit { .. })));
}

#[test]
fn what_fails_while_a_leg_is_made_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let read_only = File::open(file.path()).unwrap();
    let failed = format_leg(&read_only, &layout(), &superblock(), &log());
    assert!(matches!(failed, Err(FormatLegError::Io { what: "footer", .. })));
}

#[test]
fn nothing_of_a_wiped_leg_stays_but_its_data() {
    for longer in [0, 8192] {
        let file = made();
        file.write_all_at(&[7; 4096], SIZE - 4096).unwrap();
        file.set_len(layout().end + longer).unwrap();
        wipe_leg(&file, &layout()).unwrap();
        let len = file.metadata().unwrap().len();
        assert_eq!(len, if longer == 0 { layout().room() } else { layout().end + longer });
        let mut all = vec![0; len as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        assert!(all[SIZE as usize - 4096..SIZE as usize] == [7; 4096]);
        assert!(all[SIZE as usize..].iter().all(|byte| *byte == 0), "metadata is left");
        assert!(matches!(reread(&file), Err(ReadLegError::NoFooter)));
    }
}
