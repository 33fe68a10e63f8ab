//! The formats under chance: round trips, single bit flips, torn log pages, arbitrary bytes, and
//! both durable logs against a naive model.

use mirrord_log::{
    DirtyLog, DiskLog, Flush, Footer, InternalLog, Layout, LegEntry, LegFileNote, LogIdentity, LogLabel,
    LogPlace, PAGE_REGIONS, SECTOR_REGIONS, Superblock, SyncMode, decode_sector, pick,
};
use mirrord_raid::{
    FailReason, Held, Leg, LegSet, LegState, Lineage, MAX_LEGS, MAX_PAST, Past, RECENT_GROUPS, Recent, Region,
};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use uuid::Uuid;

const VOLUME: Uuid = Uuid::from_u128(0x1234);

fn states() -> impl Strategy<Value = LegState> {
    prop::sample::select(vec![
        LegState::InSync,
        LegState::Syncing,
        LegState::Tracked,
        LegState::Failed(FailReason::Io),
        LegState::Failed(FailReason::NoSpace),
        LegState::Failed(FailReason::Missing),
        LegState::Failed(FailReason::Admin),
    ])
}

fn places() -> impl Strategy<Value = LogPlace> {
    prop_oneof![
        Just(LogPlace::Internal),
        Just(LogPlace::Core),
        "[^\0]{1,256}".prop_map(|path| LogPlace::Disk(path.into())),
        "[a-z0-9.:]{1,1024}".prop_map(LogPlace::Remote),
    ]
}

fn identities() -> impl Strategy<Value = Option<LogIdentity>> {
    prop_oneof![
        Just(None),
        any::<(u64, u64)>().prop_map(|(inode, born)| Some(LogIdentity::File { inode, born })),
        "[^/]{0,24}".prop_map(|name| Some(LogIdentity::Device { name })),
    ]
}

/// Event counts and generations that can be recorded: they count up from 1 and never get as far as 2^63.
const COUNTS: std::ops::Range<u64> = 0..1 << 63;

prop_compose! {
    fn lineages(count: usize)(
        session in any::<u64>(),
        written in 0..1u16 << count,
        last_out in any::<[u64; MAX_LEGS]>(),
        past in vec((any::<u64>(), COUNTS, 0..1u16 << count), 0..=MAX_PAST),
    ) -> Lineage {
        let legs = |bits: u16| LegSet::from_bits(bits as u8);
        let past = past.into_iter().map(|(session, event_count, held_by)| Past {
            session,
            event_count,
            held_by: legs(held_by),
        });
        Lineage { session, written: legs(written), last_out, past: past.collect() }
    }
}

prop_compose! {
    fn superblocks()(legs in vec((any::<u128>(), states()), 1..=MAX_LEGS))(
        lineage in lineages(legs.len()),
        legs in Just(legs),
        ids in any::<(u128, u64, u64, [bool; 3], [u64; MAX_LEGS])>(),
        event_count in COUNTS,
        name in "[^\0]{1,16}",
        leg in any::<prop::sample::Index>(),
        sectors in 1u64..1 << 40,
        log in places(),
        log_identity in identities(),
        file in any::<(u64, u64)>(),
        recent in prop::option::of((any::<u8>(), 0u8..=9, vec(any::<u64>(), RECENT_GROUPS / 64))),
    ) -> Superblock {
        let (volume, created, updated, [clean, equal, log_failed], held) = ids;
        let (size, count) = (sectors * 512, legs.len());
        Superblock {
            volume: Uuid::from_u128(volume),
            name,
            leg: Leg::new(leg.index(legs.len())),
            legs: legs.into_iter().map(|(id, state)| LegEntry::new(Uuid::from_u128(id), state)).collect(),
            size,
            region_size: mirrord_raid::Geometry::default_region_size(size),
            log,
            log_identity,
            leg_file: Some(LegFileNote { born: file.0, written: file.1 }).filter(|note| note.born != 0),
            event_count,
            lineage,
            held: Held::from_recorded(held),
            recent: recent.map(|(bits, shift, groups)| {
                let all = LegSet::first(count);
                let groups = groups.try_into().expect("as many as there is room for");
                Recent::from_recorded(LegSet::from_bits(bits).intersect(all), shift, groups)
            }),
            clean,
            equal,
            log_failed,
            created,
            updated,
        }
    }
}

/// Applies writes to an area that grows.
fn apply(area: &mut Vec<u8>, flush: &Flush) {
    for write in &flush.writes {
        let at = write.offset as usize;
        area.resize(area.len().max(at + write.bytes.len()), 0);
        area[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }
}

fn dirty(log: &dyn DirtyLog) -> Vec<u32> {
    log.dirty().map(|region| region.0).collect()
}

/// Each single bit flip of `bytes`.
fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    })
}

#[test]
fn any_bit_flip_is_detected() {
    let layout = Layout::for_file(1 << 20, 256).unwrap();
    let footer = Footer { volume: VOLUME, leg: Uuid::from_u128(5), size: 1 << 20, layout };
    assert!(flips(&footer.encode()).all(|bytes| Footer::decode(&bytes).is_err()));

    let superblock = Superblock {
        volume: VOLUME,
        name: "name".into(),
        leg: Leg::new(0),
        legs: vec![LegEntry::new(Uuid::from_u128(5), LegState::InSync)],
        size: 1 << 20,
        region_size: 4096,
        log: LogPlace::Disk("/log".into()),
        log_identity: Some(LogIdentity::File { inode: 1, born: 2 }),
        leg_file: Some(LegFileNote { born: 1, written: 2 }),
        event_count: 3,
        lineage: Lineage::default(),
        held: Held::default(),
        recent: None,
        clean: false,
        equal: false,
        log_failed: false,
        created: 4,
        updated: 5,
    };
    assert!(flips(&superblock.encode(9)).all(|bytes| Superblock::decode(&bytes).is_err()));

    let mut log = InternalLog::new(VOLUME, 4096, SECTOR_REGIONS, SyncMode::NoSync);
    log.mark(Region(77));
    let sector = &log.all_pages().writes[0].bytes[..512];
    assert!(decode_sector(VOLUME, 0, sector).is_ok());
    assert!(flips(sector).all(|bytes| decode_sector(VOLUME, 0, &bytes).is_err()));
}

proptest! {
    #[test]
    fn a_superblock_round_trips(superblock in superblocks(), generation in COUNTS) {
        let bytes = superblock.encode(generation);
        prop_assert_eq!(bytes.len(), 4096);
        prop_assert_eq!(Superblock::decode(&bytes), Ok((superblock, generation)));
    }

    #[test]
    fn a_torn_slot_is_the_old_one_the_new_one_or_lost(
        old in superblocks(), new in superblocks(), cut in 0usize..=8,
    ) {
        let (old_bytes, new_bytes) = (old.encode(3), new.encode(5));
        let torn = [&new_bytes[..cut * 512], &old_bytes[cut * 512..]].concat();
        let other = old.encode(4);
        let found = pick(&other, &torn).unwrap();
        prop_assert!(found == (old, 4) || found == (new, 5));
    }

    #[test]
    fn a_torn_log_page_is_old_or_new_sector_by_sector(
        old in btree_set(0..2 * PAGE_REGIONS, 0..40),
        new in btree_set(0..2 * PAGE_REGIONS, 0..40),
        arrived in vec(any::<bool>(), 16),
    ) {
        let regions = 2 * PAGE_REGIONS;
        let mut log = InternalLog::new(VOLUME, 4096, regions, SyncMode::NoSync);
        let mut disk = Vec::new();
        old.iter().for_each(|region| log.mark(Region(*region)));
        apply(&mut disk, &log.flush());
        old.difference(&new).for_each(|region| log.clear(Region(*region)));
        new.difference(&old).for_each(|region| log.mark(Region(*region)));
        let mut after = disk.clone();
        apply(&mut after, &log.flush());
        for (sector, arrived) in arrived.iter().enumerate() {
            if *arrived {
                disk[sector * 512..][..512].copy_from_slice(&after[sector * 512..][..512]);
            }
        }
        let mut again = InternalLog::new(VOLUME, 4096, regions, SyncMode::Default);
        let _ = again.resume(&[Some(&disk)]);
        prop_assert_eq!(again.note(), mirrord_log::ResumeNote::Trusted);
        let expected: Vec<u32> = (0..regions)
            .filter(|region| {
                let set = if arrived[(region / SECTOR_REGIONS) as usize] { &new } else { &old };
                set.contains(region)
            })
            .collect();
        prop_assert_eq!(dirty(&again), expected);
        prop_assert!(old.intersection(&new).all(|region| !again.is_clean(Region(*region))));
    }

    #[test]
    fn a_damaged_log_never_loses_a_mark(
        marks in btree_set(0..PAGE_REGIONS + 9, 1..40),
        damage in vec((0usize..8192, any::<u8>()), 0..6),
    ) {
        let mut log = InternalLog::new(VOLUME, 4096, PAGE_REGIONS + 9, SyncMode::NoSync);
        marks.iter().for_each(|region| log.mark(Region(*region)));
        let mut disk = Vec::new();
        apply(&mut disk, &log.flush());
        damage.iter().for_each(|(at, byte)| disk[*at] = *byte);
        let mut again = InternalLog::new(VOLUME, 4096, PAGE_REGIONS + 9, SyncMode::Default);
        let repair = again.resume(&[Some(&disk)]);
        prop_assert!(marks.iter().all(|region| !again.is_clean(Region(*region))));
        apply(&mut disk, &repair);
        let found = dirty(&again);
        prop_assert!(again.resume(&[Some(&disk)]).is_empty());
        prop_assert_eq!(dirty(&again), found);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..5000), regions in 1u32..40_000) {
        let _ = Footer::decode(&bytes);
        let _ = pick(&bytes, &bytes);
        let _ = decode_sector(VOLUME, 0, &bytes);
        let mut log = InternalLog::new(VOLUME, 4096, regions, SyncMode::Default);
        let _ = log.resume(&[Some(&bytes)]);
        prop_assert_eq!(log.dirty_count(), u64::from(regions));
        let mut log = DiskLog::new(4096, regions, 512, SyncMode::Default);
        let _ = log.resume(&[Some(&bytes)]);
        let _ = LogLabel::read(&bytes);
    }

    #[test]
    fn arbitrary_fields_under_a_right_checksum_never_panic(
        superblock in superblocks(),
        damage in vec((0usize..2600, any::<u8>()), 1..8),
    ) {
        let layout = Layout::for_file(1 << 20, 256).unwrap();
        let footer = Footer { volume: VOLUME, leg: VOLUME, size: 1 << 20, layout };
        for mut bytes in [superblock.encode(1), footer.encode()] {
            for (at, byte) in &damage {
                bytes[if *at < 16 { 16 } else { *at }] = *byte;
            }
            bytes[12..16].fill(0);
            let crc = crc32fast::hash(&bytes).to_le_bytes();
            bytes[12..16].copy_from_slice(&crc);
            let _ = pick(&bytes, &[]);
            let _ = Footer::decode(&bytes);
        }
    }

    #[test]
    fn an_arbitrary_disk_log_is_read_as_it_says(
        bits in vec(any::<u8>(), 512), had: u64, regions in 1u32..4096,
    ) {
        let header = [&0x4d69_5272u32.to_le_bytes()[..], &2u32.to_le_bytes(), &had.to_le_bytes()].concat();
        let image = [&header[..], &[0; 1008], &bits].concat();
        let mut log = DiskLog::new(4096, regions, 512, SyncMode::Default);
        let _ = log.resume(&[Some(&image)]);
        for region in 0..regions {
            let set = bits[region as usize / 8] >> (region % 8) & 1 == 1;
            prop_assert_eq!(log.is_clean(Region(region)), set && u64::from(region) < had);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Mark(usize),
    Clear(usize),
    Flush,
    FlushLost,
    Suspend,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0usize..12).prop_map(Step::Mark),
        4 => (0usize..12).prop_map(Step::Clear),
        3 => Just(Step::Flush),
        1 => Just(Step::FlushLost),
        1 => Just(Step::Suspend),
        1 => Just(Step::Crash),
    ];
    vec(step, 1..60)
}

/// Regions at the borders of bytes, words, sectors and pages.
const PLACES: [u32; 12] = [0, 1, 7, 8, 63, 64, 3839, 3840, 30719, 30720, 61439, 61445];
const MODEL_REGIONS: u32 = 61446;

/// Runs `steps` on logs from `make` and on two plain lists: what memory and what the disk should say.
fn follow(make: impl Fn(SyncMode) -> Box<dyn DirtyLog>, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut log = make(SyncMode::NoSync);
    let mut disk = Vec::new();
    if log.kind() == mirrord_log::LogKind::Disk {
        apply(&mut disk, &log.resume(&[Some(&[])]));
    }
    apply(&mut disk, &log.all_pages());
    let mut memory = [false; PLACES.len()];
    let mut durable = memory;
    for step in steps {
        match *step {
            Step::Mark(place) => {
                log.mark(Region(PLACES[place]));
                memory[place] = true;
            }
            Step::Clear(place) => {
                log.clear(Region(PLACES[place]));
                memory[place] = false;
            }
            Step::Flush => {
                apply(&mut disk, &log.flush());
                prop_assert!(log.flush().is_empty());
                durable = memory;
            }
            Step::FlushLost => {
                let _ = log.flush();
                log.flush_failed();
            }
            Step::Suspend => {
                apply(&mut disk, &log.suspend());
                durable = memory;
                prop_assert!(log.all_pages().writes.iter().all(|write| write.offset < disk.len() as u64));
            }
            Step::Crash => {
                log = make(SyncMode::Default);
                let flush = log.resume(&[Some(&disk)]);
                apply(&mut disk, &flush);
                memory = durable;
                prop_assert_eq!(log.sync_count(), u64::from(MODEL_REGIONS) - log.dirty_count());
            }
        }
        let expected: Vec<u32> =
            PLACES.iter().zip(memory).filter_map(|(region, dirty)| dirty.then_some(*region)).collect();
        prop_assert_eq!(log.dirty_count(), expected.len() as u64);
        prop_assert_eq!(dirty(log.as_ref()), expected);
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_disk_log_follows_the_model(steps in steps()) {
        follow(|mode| Box::new(DiskLog::new(4096, MODEL_REGIONS, 512, mode)), &steps)?;
    }

    #[test]
    fn an_internal_log_follows_the_model(steps in steps()) {
        follow(|mode| Box::new(InternalLog::new(VOLUME, 4096, MODEL_REGIONS, mode)), &steps)?;
    }
}
