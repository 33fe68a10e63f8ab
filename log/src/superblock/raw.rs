//! The 4096 bytes of a superblock slot, declared once. Little-endian; magic, version and checksum
//! keep their places in all versions, so that a newer one can be told from a damaged one.

use std::ffi::OsStr;
use std::mem::{offset_of, size_of};
use std::os::unix::ffi::OsStrExt;

use mirrord_raid::{
    FailReason, Held, Leg, LegSet, LegState, Lineage, MAX_LEGS, MAX_PAST, MAX_REGIONS, Past, RECENT_GROUPS,
    Recent,
};
use uuid::Uuid;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{LegEntry, LegFileNote, LogPlace, MAX_COUNTER, MAX_NAME, MAX_PLACE, SlotError, Superblock};
use crate::label::RawLogIdentity;
use crate::layout::PAGE;

/// The format version written and read.
pub const SUPERBLOCK_VERSION: u32 = 1;
/// Incompatible features that this version knows.
pub const KNOWN_FLAGS: u64 = FEATURE_ROSTER;

/// An index is vacant, or its leg is a spare.
const FEATURE_ROSTER: u64 = 1;

/// Larger groups of regions than any volume needs.
const MAX_RECENT_SHIFT: u8 = Recent::shift_for(MAX_REGIONS as u32);

const MAGIC: [u8; 8] = *b"mirrordS";
const FLAG_CLEAN: u8 = 1;
const FLAG_LOG_FAILED: u8 = 2;
/// Who does not know it resyncs what is dirty.
const FLAG_EQUAL: u8 = 4;

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawLeg {
    uuid: [u8; 16],
    state: u8,
    reason: u8,
    /// One more than the index of the leg whose place it takes; 0: none. It may be ignored: then both stay.
    replaces: u8,
    reserved: [u8; 5],
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawPast {
    session: U64,
    event_count: U64,
    held_by: u8,
    reserved: [u8; 7],
}

/// All zero where it is not kept.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawLineage {
    session: U64,
    written: u8,
    past_count: u8,
    reserved: [u8; 6],
    last_out: [U64; MAX_LEGS],
    past: [RawPast; MAX_PAST],
}

/// All zero where it is not kept.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawProgress {
    /// By leg: the newest event count that it held when this record was begun; 0: not recorded; all bits set: the leg
    /// is to be copied whole, whatever it holds.
    held: [U64; MAX_LEGS],
    reserved: [u8; 64],
}

/// All zero where it is not recorded: then every dirty region counts. It may be ignored.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawRecent {
    /// 1: recorded.
    recorded: u8,
    /// Legs that are equal to each other but in the groups that are set, a bit for each.
    legs: u8,
    /// Binary logarithm of the number of regions in a group.
    shift: u8,
    reserved: [u8; 125],
    /// A bit for each group.
    groups: [U64; RECENT_GROUPS / 64],
}

/// All zero where it is not kept.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawLegFile {
    born: U64,
    written: U64,
    reserved: [u8; 112],
}

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
pub(super) struct RawSlot {
    magic: [u8; 8],
    pub(super) version: U32,
    /// Of all 4096 bytes with this field zero.
    pub(super) crc: U32,
    /// Features a reader must know to touch the leg.
    pub(super) incompatible: U64,
    generation: U64,
    volume: [u8; 16],
    leg: [u8; 16],
    pub(super) size: U64,
    pub(super) region_size: U64,
    event_count: U64,
    created: U64,
    updated: U64,
    pub(super) leg_index: u8,
    pub(super) leg_count: u8,
    pub(super) log_kind: u8,
    flags: u8,
    pub(super) name_len: U16,
    pub(super) place_len: U16,
    name: [u8; MAX_NAME],
    place: [u8; MAX_PLACE],
    legs: [RawLeg; MAX_LEGS],
    lineage: RawLineage,
    progress: RawProgress,
    log_identity: RawLogIdentity,
    leg_file: RawLegFile,
    recent: RawRecent,
    reserved: [u8; 320],
}

const _: () = assert!(size_of::<RawLeg>() == 24);
const _: () = assert!(size_of::<RawPast>() == 24);
const _: () = assert!(size_of::<RawLineage>() == 848);
const _: () = assert!(size_of::<RawProgress>() == 128);
const _: () = assert!(size_of::<RawRecent>() == 1152);
const _: () = assert!(size_of::<RawLegFile>() == 128);
const _: () = assert!(size_of::<RawSlot>() == PAGE as usize);
const _: () = assert!(offset_of!(RawSlot, version) == 8);
const _: () = assert!(offset_of!(RawSlot, crc) == 12);
const _: () = assert!(offset_of!(RawSlot, incompatible) == 16);
const _: () = assert!(offset_of!(RawSlot, generation) == 24);
const _: () = assert!(offset_of!(RawSlot, volume) == 32);
const _: () = assert!(offset_of!(RawSlot, size) == 64);
const _: () = assert!(offset_of!(RawSlot, event_count) == 80);
const _: () = assert!(offset_of!(RawSlot, leg_index) == 104);
const _: () = assert!(offset_of!(RawSlot, name) == 112);
const _: () = assert!(offset_of!(RawSlot, place) == 176);
const _: () = assert!(offset_of!(RawSlot, legs) == 1200);
const _: () = assert!(offset_of!(RawSlot, lineage) == 1392);
const _: () = assert!(offset_of!(RawSlot, progress) == 2240);
const _: () = assert!(offset_of!(RawSlot, log_identity) == 2368);
const _: () = assert!(offset_of!(RawSlot, leg_file) == 2496);
const _: () = assert!(offset_of!(RawSlot, recent) == 2624);
const _: () = assert!(offset_of!(RawSlot, reserved) == 3776);

impl RawSlot {
    pub(super) fn checksum(&mut self) {
        self.crc = U32::ZERO;
        self.crc = crc32fast::hash(self.as_bytes()).into();
    }

    #[cfg(test)]
    pub(super) fn set_leg_codes(&mut self, index: usize, state: u8, reason: u8) {
        (self.legs[index].state, self.legs[index].reason) = (state, reason);
    }

    #[cfg(test)]
    pub(super) fn set_replaces(&mut self, index: usize, replaces: u8) {
        self.legs[index].replaces = replaces;
    }

    #[cfg(test)]
    pub(super) fn set_counters(&mut self, generation: u64, event_count: u64, past: u64) {
        (self.generation, self.event_count) = (generation.into(), event_count.into());
        self.lineage.past[0].event_count = past.into();
    }

    #[cfg(test)]
    pub(super) fn set_recent(&mut self, recorded: u8, shift: u8) {
        (self.recent.recorded, self.recent.shift) = (recorded, shift);
    }

    #[cfg(test)]
    pub(super) fn set_past_count(&mut self, count: u8) {
        self.lineage.past_count = count;
    }
}

impl Superblock {
    /// As the 4096 bytes on disk.
    ///
    /// # Panics
    /// If [`Superblock::check`] fails.
    pub fn encode(&self, generation: u64) -> Vec<u8> {
        self.check().expect("a superblock is checked before it is encoded");
        let mut raw = RawSlot::new_zeroed();
        raw.magic = MAGIC;
        raw.version = SUPERBLOCK_VERSION.into();
        let has_roster = self.legs.iter().any(|leg| !leg.state.is_copy());
        raw.incompatible = if has_roster { FEATURE_ROSTER } else { 0 }.into();
        raw.generation = generation.into();
        raw.volume = *self.volume.as_bytes();
        raw.leg = *self.leg_uuid().as_bytes();
        raw.size = self.size.into();
        raw.region_size = self.region_size.into();
        raw.event_count = self.event_count.into();
        raw.created = self.created.into();
        raw.updated = self.updated.into();
        raw.leg_index = self.leg.index() as u8;
        raw.leg_count = self.legs.len() as u8;
        let flag = |set, flag| if set { flag } else { 0 };
        raw.flags = flag(self.clean, FLAG_CLEAN)
            | flag(self.log_failed, FLAG_LOG_FAILED)
            | flag(self.equal, FLAG_EQUAL);
        raw.name_len = (self.name.len() as u16).into();
        raw.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        let (kind, place) = match &self.log {
            LogPlace::Internal => (1, &[][..]),
            LogPlace::Core => (2, &[][..]),
            LogPlace::Disk(path) => (3, path.as_os_str().as_bytes()),
            LogPlace::Remote(address) => (4, address.as_bytes()),
        };
        raw.log_kind = kind;
        raw.place_len = (place.len() as u16).into();
        raw.place[..place.len()].copy_from_slice(place);
        for (slot, entry) in raw.legs.iter_mut().zip(&self.legs) {
            let (state, reason) = codes(entry.state);
            let replaces = entry.replaces.map_or(0, |leg| leg.index() as u8 + 1);
            *slot = RawLeg { uuid: *entry.uuid.as_bytes(), state, reason, replaces, reserved: [0; 5] };
        }
        raw.lineage = raw_lineage(&self.lineage);
        raw.log_identity = RawLogIdentity::of(self.log_identity.as_ref());
        if let Some(LegFileNote { born, written }) = self.leg_file {
            (raw.leg_file.born, raw.leg_file.written) = (born.into(), written.into());
        }
        raw.progress.held = self.held.recorded().map(U64::new);
        if let Some(recent) = &self.recent {
            raw.recent.recorded = 1;
            (raw.recent.legs, raw.recent.shift) = (recent.legs.bits(), recent.shift);
            raw.recent.groups = recent.recorded().map(U64::new);
        }
        raw.checksum();
        raw.as_bytes().to_vec()
    }

    /// The superblock and its generation from the 4096 bytes on disk.
    ///
    /// # Errors
    /// See [`SlotError`]; fewer than 4096 bytes are [`SlotError::NotMirrord`].
    pub fn decode(bytes: &[u8]) -> Result<(Superblock, u64), SlotError> {
        let (mut raw, _) = RawSlot::read_from_prefix(bytes).map_err(|_| SlotError::NotMirrord)?;
        if raw.magic != MAGIC {
            return Err(SlotError::NotMirrord);
        }
        let crc = raw.crc;
        raw.checksum();
        if raw.crc != crc {
            return Err(SlotError::Checksum);
        }
        let bad = |field| SlotError::BadField { field };
        match raw.version.get() {
            0 => return Err(bad("version")),
            SUPERBLOCK_VERSION => {}
            found => return Err(SlotError::NewerVersion { found }),
        }
        let unknown = raw.incompatible.get() & !KNOWN_FLAGS;
        if unknown != 0 {
            return Err(SlotError::UnknownFlags { flags: unknown });
        }
        let count = usize::from(raw.leg_count);
        let index = usize::from(raw.leg_index);
        if index >= MAX_LEGS {
            return Err(bad("leg index"));
        }
        let name = raw.name.get(..usize::from(raw.name_len.get())).ok_or(bad("name"))?;
        let place = raw.place.get(..usize::from(raw.place_len.get())).ok_or(bad("log place"))?;
        let superblock = Superblock {
            volume: Uuid::from_bytes(raw.volume),
            name: String::from_utf8(name.to_vec()).map_err(|_| bad("name"))?,
            leg: Leg::new(index),
            legs: raw
                .legs
                .get(..count)
                .ok_or(bad("number of legs"))?
                .iter()
                .map(entry)
                .collect::<Result<_, _>>()?,
            size: raw.size.get(),
            region_size: raw.region_size.get(),
            log: match (raw.log_kind, place) {
                (1, []) => LogPlace::Internal,
                (2, []) => LogPlace::Core,
                (1 | 2, _) => return Err(bad("log place")),
                (3, path) => LogPlace::Disk(OsStr::from_bytes(path).into()),
                (4, address) => {
                    LogPlace::Remote(String::from_utf8(address.to_vec()).map_err(|_| bad("log place"))?)
                }
                _ => return Err(bad("log kind")),
            },
            log_identity: raw.log_identity.read()?,
            leg_file: Some(LegFileNote {
                born: raw.leg_file.born.get(),
                written: raw.leg_file.written.get(),
            })
            .filter(|note| note.born != 0),
            event_count: raw.event_count.get(),
            lineage: lineage(&raw.lineage, LegSet::first(count)).ok_or(bad("lineage"))?,
            held: Held::from_recorded(raw.progress.held.map(U64::get)),
            recent: recent(&raw.recent, LegSet::first(count)).ok_or(bad("recent regions"))?,
            clean: raw.flags & FLAG_CLEAN != 0,
            equal: raw.flags & FLAG_EQUAL != 0,
            log_failed: raw.flags & FLAG_LOG_FAILED != 0,
            created: raw.created.get(),
            updated: raw.updated.get(),
        };
        superblock.check()?;
        if raw.generation.get() >= MAX_COUNTER {
            return Err(bad("generation"));
        }
        if *superblock.leg_uuid().as_bytes() != raw.leg {
            return Err(bad("leg UUID"));
        }
        Ok((superblock, raw.generation.get()))
    }
}

fn raw_lineage(lineage: &Lineage) -> RawLineage {
    let mut raw = RawLineage::new_zeroed();
    raw.session = lineage.session.into();
    raw.written = lineage.written.bits();
    raw.past_count = lineage.past.len() as u8;
    raw.last_out = lineage.last_out.map(U64::new);
    for (slot, past) in raw.past.iter_mut().zip(&lineage.past) {
        *slot = RawPast {
            session: past.session.into(),
            event_count: past.event_count.into(),
            held_by: past.held_by.bits(),
            reserved: [0; 7],
        };
    }
    raw
}

/// `None` if it has more sessions than there is room for.
fn lineage(raw: &RawLineage, all: LegSet) -> Option<Lineage> {
    let past = raw.past.get(..usize::from(raw.past_count))?.iter().map(|past| Past {
        session: past.session.get(),
        event_count: past.event_count.get(),
        held_by: LegSet::from_bits(past.held_by).intersect(all),
    });
    Some(Lineage {
        session: raw.session.get(),
        written: LegSet::from_bits(raw.written).intersect(all),
        last_out: raw.last_out.map(U64::get),
        past: past.collect(),
    })
}

/// `None` if it makes no sense.
fn recent(raw: &RawRecent, all: LegSet) -> Option<Option<Recent>> {
    let legs = LegSet::from_bits(raw.legs).intersect(all);
    match raw.recorded {
        0 => Some(None),
        1 if raw.shift <= MAX_RECENT_SHIFT => {
            Some(Some(Recent::from_recorded(legs, raw.shift, raw.groups.map(U64::get))))
        }
        _ => None,
    }
}

fn codes(state: LegState) -> (u8, u8) {
    match state {
        LegState::InSync => (1, 0),
        LegState::Syncing => (2, 0),
        LegState::Failed(FailReason::Io) => (3, 1),
        LegState::Failed(FailReason::NoSpace) => (3, 2),
        LegState::Failed(FailReason::Missing) => (3, 3),
        LegState::Failed(FailReason::Admin) => (3, 4),
        LegState::Tracked => (4, 0),
        LegState::Spare => (5, 0),
        LegState::Vacant => (6, 0),
    }
}

fn entry(raw: &RawLeg) -> Result<LegEntry, SlotError> {
    let state = match (raw.state, raw.reason) {
        (1, 0) => LegState::InSync,
        (2, 0) => LegState::Syncing,
        (3, 1) => LegState::Failed(FailReason::Io),
        (3, 2) => LegState::Failed(FailReason::NoSpace),
        (3, 3) => LegState::Failed(FailReason::Missing),
        (3, 4) => LegState::Failed(FailReason::Admin),
        (4, 0) => LegState::Tracked,
        (5, 0) => LegState::Spare,
        (6, 0) => LegState::Vacant,
        _ => return Err(SlotError::BadField { field: "leg state" }),
    };
    let replaces = match raw.replaces {
        0 => None,
        leg if usize::from(leg) <= MAX_LEGS => Some(Leg::new(usize::from(leg) - 1)),
        _ => return Err(SlotError::BadField { field: "leg to replace" }),
    };
    Ok(LegEntry { uuid: Uuid::from_bytes(raw.uuid), state, replaces })
}
