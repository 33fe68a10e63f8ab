//! A leg's metadata on its way to another place: whatever a crash leaves of it, the leg is there, once.

use std::fs::File;
use std::os::unix::fs::FileExt;

use mirrord_log::{
    Backing, DirtyLog, InternalLog, Layout, LayoutError, LegEntry, LegMetadata, LogPlace, PAGE, PageWrite,
    ReadLegError, Relocation, Superblock, SyncMode, format_leg, lost_footer, measure, read_leg,
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
        clean: false,
        equal: false,
        log_failed: false,
        created: 1,
        updated: 1,
    }
}

/// Regions 3 and 200 are dirty.
fn log() -> InternalLog {
    let mut log = InternalLog::new(superblock().volume, 4096, REGIONS, SyncMode::NoSync);
    [3, 200].into_iter().for_each(|region| log.mark(Region(region)));
    log
}

fn old() -> Layout {
    Layout::for_file(SIZE, REGIONS).unwrap()
}

fn made() -> File {
    let file = tempfile::tempfile().unwrap();
    // The last of the data looks like metadata, too.
    file.write_all_at(&[7; PAGE as usize], SIZE - PAGE).unwrap();
    format_leg(&file, &old(), &superblock(), &log()).unwrap();
    file
}

fn reread(file: &File) -> Result<LegMetadata, ReadLegError> {
    let (backing, len) = measure(file).unwrap();
    read_leg(file, backing, len)
}

/// The leg is there, as it was, in this place.
fn assert_whole(file: &File, layout: &Layout, generation: u64, what: &str) {
    let leg = reread(file).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((&leg.superblock, leg.generation, &leg.layout), (&superblock(), generation, layout), "{what}");
    let mut log = InternalLog::new(superblock().volume, 4096, REGIONS, SyncMode::Default);
    let _ = log.resume(&[Some(&leg.log_area)]);
    assert_eq!(log.dirty().collect::<Vec<_>>(), [Region(3), Region(200)], "{what}");
}

fn put(file: &File, write: &PageWrite) {
    file.write_all_at(&write.bytes, write.offset).unwrap();
}

/// Sizes to grow to: by so little that the old metadata is in the way, and far beyond it.
const SIZES: [u64; 4] = [SIZE + 512, SIZE + 3 * PAGE, SIZE + (1 << 20), SIZE + (100 << 30)];

fn moves(size: u64) -> (Layout, Relocation) {
    let regions = size.div_ceil(4096).min(1 << 22) as u32;
    let new = old().grown_file(size, regions).unwrap();
    assert!(new.is_valid() && new.room() >= size && new.slots[0] >= old().end, "{new:?}");
    (new, Relocation::new(&old(), &new, &superblock(), 1, &log().all_pages()))
}

#[test]
fn a_crash_at_any_step_leaves_the_leg_in_one_place() {
    for size in SIZES {
        let (new, steps) = moves(size);
        let sectors = steps.block.iter().flat_map(|write| {
            let each = write.bytes.chunks(512).enumerate();
            each.map(|(i, bytes)| PageWrite { offset: write.offset + i as u64 * 512, bytes: bytes.to_vec() })
        });
        let sectors: Vec<PageWrite> = sectors.collect();
        // Any of the block's sectors may have arrived: each alone, and more and more of them either way round.
        for at in 0..=sectors.len() {
            for some in [&sectors[..at], &sectors[at..], sectors.get(at..=at).unwrap_or(&[])] {
                let file = made();
                file.set_len(new.end).unwrap();
                some.iter().for_each(|write| put(&file, write));
                assert_whole(&file, &old(), 1, &format!("{size}: some of the block, {at}"));
            }
        }
        let file = made();
        file.set_len(new.end).unwrap();
        steps.block.iter().for_each(|write| put(&file, write));
        put(&file, &steps.footer);
        assert_whole(&file, &new, steps.generation, "footer");
        assert_eq!(lost_footer(&file, new.end).unwrap(), None, "it is not lost");
        put(&file, &steps.wipe);
        assert_whole(&file, &new, steps.generation, "wiped");
        // Cut off again, the old metadata is not in force.
        file.set_len(old().end).unwrap();
        assert!(matches!(reread(&file), Err(ReadLegError::NoFooter)));
    }
}

#[test]
fn a_file_that_was_made_longer_is_a_leg_unless_it_got_something_at_its_end() {
    for more in [PAGE, PAGE + 1, 511, 1 << 20, (1 << 40) + 7] {
        let file = made();
        let len = old().end + more;
        file.set_len(len).unwrap();
        if more < PAGE {
            assert!(reread(&file).is_err(), "no whole page of zeroes: {more}");
            continue;
        }
        assert_whole(&file, &old(), 1, &format!("{more} bytes longer"));
        // Zeroes that are no hole are no different.
        file.write_all_at(&[0; 3 * PAGE as usize][..more.min(3 * PAGE) as usize], len - more.min(3 * PAGE))
            .unwrap();
        assert_whole(&file, &old(), 1, &format!("{more} bytes of zeroes"));
        file.write_all_at(b"x", len - 1).unwrap();
        assert!(matches!(reread(&file), Err(ReadLegError::NoFooter)));
        file.write_all_at(&[0], len - 1).unwrap();
        // Moved as a whole, a footer is not where it says.
        let mut footer = [0; PAGE as usize];
        file.read_exact_at(&mut footer, old().footer).unwrap();
        file.write_all_at(&[0; PAGE as usize], old().footer).unwrap();
        file.write_all_at(&footer, old().footer - PAGE).unwrap();
        assert!(matches!(reread(&file), Err(ReadLegError::NoFooter)));
    }
    let empty = tempfile::tempfile().unwrap();
    empty.set_len(1 << 42).unwrap();
    assert!(matches!(reread(&empty), Err(ReadLegError::NoFooter)));
}

#[test]
fn data_that_goes_on_for_long_is_not_searched_for_a_footer() {
    let file = made();
    let end = old().end + (1 << 20);
    file.write_all_at(&vec![7; 1 << 20], old().end).unwrap();
    file.set_len(end + PAGE).unwrap();
    assert!(matches!(reread(&file), Err(ReadLegError::NoFooter)));
}

#[test]
fn metadata_stays_where_it_is_while_there_is_room() {
    assert_eq!(old().grown_file(SIZE, REGIONS), Ok(old()));
    assert_eq!(old().grown_device(1 << 30, SIZE, REGIONS), Ok(old()));
    let device = Layout::for_device(4 << 20, REGIONS).unwrap();
    assert_eq!(device.grown_device(4 << 20, device.room(), 1), Ok(device), "it has more than is used");
    let short = device.grown_device((4 << 20) + PAGE, device.room() + PAGE, REGIONS);
    let Err(LayoutError::TooShort { len, need }) = short else { panic!("{short:?}") };
    assert_eq!(len, (4 << 20) + PAGE);
    let grown = device.grown_device(need, device.room() + PAGE, REGIONS).unwrap();
    assert_eq!((grown.slots[0], grown.end), (device.end, need), "the old metadata is not overwritten");
    assert!(matches!(
        device.grown_device(need - 1, device.room() + PAGE, REGIONS),
        Err(LayoutError::TooShort { .. })
    ));
}

#[test]
fn a_device_that_grew_says_what_to_do() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 << 20).unwrap();
    let layout = Layout::for_device(4 << 20, REGIONS).unwrap();
    format_leg(&file, &layout, &superblock(), &log()).unwrap();
    let error = read_leg(&file, Backing::Device, 4 << 20).map(|leg| leg.layout);
    assert_eq!(error.unwrap(), layout);
    file.set_len(8 << 20).unwrap();
    let error = read_leg(&file, Backing::Device, 8 << 20).unwrap_err();
    assert!(error.to_string().contains("as long as it was"), "{error}");
}
