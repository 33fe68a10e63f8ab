//! Superblock slots: round trip, damage, versions, torn pairs.

use mirrord_raid::{FailReason, LegSet, Past, Region};
use zerocopy::{FromBytes, IntoBytes};

use super::raw::RawSlot;
use super::*;

fn superblock() -> Superblock {
    let leg = |uuid, state| LegEntry::new(Uuid::from_u128(uuid), state);
    Superblock {
        volume: Uuid::from_u128(1),
        name: "home".into(),
        leg: Leg::new(1),
        legs: vec![leg(10, LegState::InSync), leg(11, LegState::Failed(FailReason::NoSpace))],
        size: 1 << 20,
        region_size: 4096,
        log: LogPlace::Disk("/var/lib/home.log".into()),
        log_identity: None,
        leg_file: None,
        event_count: 5,
        lineage: Lineage {
            session: 7,
            written: LegSet::first(2),
            last_out: [0, 5, 0, 0, 0, 0, 0, 0],
            past: vec![Past { session: 6, event_count: 3, held_by: LegSet::from_bits(2) }],
        },
        held: Held::from_recorded([4, 3, 0, 0, 0, 0, 0, u64::MAX]),
        recent: Some(recent()),
        clean: true,
        equal: true,
        log_failed: false,
        created: 1_700_000_000,
        updated: 1_700_000_001,
    }
}

fn recent() -> Recent {
    let mut recent = Recent::new(LegSet::first(2), 3);
    [0, 70, 65535].into_iter().for_each(|region| recent.insert(Region(region)));
    recent
}

fn patched(generation: u64, patch: impl Fn(&mut RawSlot)) -> Vec<u8> {
    let mut raw = RawSlot::read_from_bytes(&superblock().encode(generation)).unwrap();
    patch(&mut raw);
    raw.checksum();
    raw.as_bytes().to_vec()
}

fn torn(generation: u64) -> Vec<u8> {
    let mut bytes = superblock().encode(generation);
    bytes[512..1024].fill(0xa5);
    bytes
}

#[test]
fn each_fault_has_its_error() {
    let bad = |field| SlotError::BadField { field };
    for (bytes, error) in [
        (vec![0; 4096], SlotError::NotMirrord),
        (superblock().encode(1)[..4095].to_vec(), SlotError::NotMirrord),
        (torn(1), SlotError::Checksum),
        (patched(1, |raw| raw.version = 0.into()), bad("version")),
        (patched(1, |raw| raw.version = 9.into()), SlotError::NewerVersion { found: 9 }),
        (patched(1, |raw| raw.incompatible = 6.into()), SlotError::UnknownFlags { flags: 6 }),
        (patched(1, |raw| raw.set_leg_codes(0, 9, 0)), bad("leg state")),
        (patched(1, |raw| raw.set_leg_codes(0, 3, 9)), bad("leg state")),
        (patched(1, |raw| raw.set_leg_codes(0, 0, 0)), bad("leg state")),
        (patched(1, |raw| raw.set_replaces(0, 9)), bad("leg to replace")),
        (patched(1, |raw| raw.leg_count = 9), bad("number of legs")),
        (patched(1, |raw| raw.leg_count = 0), bad("number of legs")),
        (patched(1, |raw| raw.leg_count = 1), bad("leg index")),
        (patched(1, |raw| raw.leg_index = 255), bad("leg index")),
        (patched(1, |raw| raw.leg_index = 0), bad("leg UUID")),
        (patched(1, |raw| raw.log_kind = 0), bad("log kind")),
        (patched(1, |raw| raw.log_kind = 2), bad("log place")),
        (patched(1, |raw| raw.name_len = 65.into()), bad("name")),
        (patched(1, |raw| raw.name_len = 5.into()), bad("name")),
        (patched(1, |raw| raw.place_len = 1025.into()), bad("log place")),
        (patched(1, |raw| raw.set_past_count(33)), bad("lineage")),
        (patched(1, |raw| raw.set_recent(2, 0)), bad("recent regions")),
        (patched(1, |raw| raw.set_recent(1, 10)), bad("recent regions")),
        (patched(1, |raw| raw.set_counters(MAX_COUNTER, 1, 0)), bad("generation")),
        (patched(1, |raw| raw.set_counters(u64::MAX, 1, 0)), bad("generation")),
        (patched(1, |raw| raw.set_counters(1, MAX_COUNTER, 0)), bad("event count")),
        (patched(1, |raw| raw.set_counters(1, u64::MAX, 0)), bad("event count")),
        (patched(1, |raw| raw.set_counters(1, 1, MAX_COUNTER)), bad("lineage")),
        (patched(1, |raw| raw.size = 0.into()), bad("size or region size")),
        (patched(1, |raw| raw.region_size = 4097.into()), bad("size or region size")),
    ] {
        assert_eq!(Superblock::decode(&bytes), Err(error));
    }
}

#[test]
fn a_counter_below_the_limit_is_believed() {
    let bytes = patched(1, |raw| raw.set_counters(MAX_COUNTER - 1, MAX_COUNTER - 1, MAX_COUNTER - 1));
    let (superblock, generation) = Superblock::decode(&bytes).unwrap();
    assert_eq!((superblock.event_count, generation), (MAX_COUNTER - 1, MAX_COUNTER - 1));
}

#[test]
fn legs_that_are_no_copies_need_a_reader_that_knows_them() {
    let flags =
        |superblock: &Superblock| RawSlot::read_from_bytes(&superblock.encode(1)).unwrap().incompatible.get();
    let mut superblock = superblock();
    assert_eq!(flags(&superblock), 0);
    for state in [LegState::Spare, LegState::Vacant] {
        superblock.legs[0] = LegEntry { state, replaces: Some(Leg::new(7)), ..LegEntry::VACANT };
        assert_eq!(flags(&superblock), 1);
        assert_eq!(Superblock::decode(&superblock.encode(1)), Ok((superblock.clone(), 1)));
    }
    // No leg says of itself that it is none.
    superblock.legs[1].state = LegState::Vacant;
    assert_eq!(superblock.check(), Err(SlotError::BadField { field: "leg" }));
}

#[test]
fn a_torn_slot_loses_only_itself() {
    let (old, new) = (superblock().encode(6), superblock().encode(7));
    assert_eq!(pick(&old, &new), Ok((superblock(), 7)));
    assert_eq!(pick(&new, &old), Ok((superblock(), 7)));
    assert_eq!(pick(&old, &torn(7)), Ok((superblock(), 6)));
    assert_eq!(pick(&torn(8), &new), Ok((superblock(), 7)));
    assert_eq!(pick(&[], &new), Ok((superblock(), 7)));
    assert_eq!(
        pick(&[0; 4096], &torn(7)),
        Err(PickError::BothTorn { slot0: SlotError::NotMirrord, slot1: SlotError::Checksum })
    );
}

#[test]
fn a_whole_slot_that_is_not_understood_refuses_the_leg() {
    let good = superblock().encode(6);
    let newer = patched(3, |raw| raw.version = 2.into());
    let flags = patched(3, |raw| raw.incompatible = 2.into());
    let state = patched(3, |raw| raw.set_leg_codes(0, 7, 0));
    for (other, error) in [
        (newer, SlotError::NewerVersion { found: 2 }),
        (flags, SlotError::UnknownFlags { flags: 2 }),
        (state, SlotError::BadField { field: "leg state" }),
    ] {
        for (slot0, slot1) in [(&good, &other), (&other, &good), (&other, &torn(7)), (&torn(8), &other)] {
            assert_eq!(pick(slot0, slot1), Err(PickError::Refused(error)));
        }
    }
}

#[test]
#[should_panic(expected = "checked before it is encoded")]
fn a_name_too_long_is_a_programmer_error() {
    let _ = Superblock { name: "x".repeat(MAX_NAME + 1), ..superblock() }.encode(0);
}
