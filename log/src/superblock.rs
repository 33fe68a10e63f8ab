//! What a volume is and how its legs stand, as every leg records it.
//!
//! Two slots are written in turn, generation g to slot g % 2, so that a torn write loses only the
//! newer one. A slot whose checksum is right but which cannot be understood (newer version, unknown
//! flags, unknown codes) is not torn: falling back to the older slot would trust an outdated view of
//! the legs, so the leg is refused. Reserved bytes are written as zero and ignored when read; what a
//! reader must not ignore gets an incompatible flag.

mod raw;

use std::path::PathBuf;

use mirrord_raid::{Geometry, Held, Leg, LegState, Lineage, MAX_LEGS, MAX_PAST, Past, Recent, Replaces};
use uuid::Uuid;

use crate::label::{LogIdentity, MAX_DEVICE_NAME};
use crate::log::LogKind;

pub use raw::{KNOWN_FLAGS, SUPERBLOCK_VERSION};

/// Most bytes in the name of a volume.
pub const MAX_NAME: usize = 64;
/// Most bytes in the path or address of a log.
pub const MAX_PLACE: usize = 1024;

/// Counters stay below this. None gets there by counting: what is there was damaged or made up, and one that wraps
/// would make the newest record the oldest.
pub(crate) const MAX_COUNTER: u64 = 1 << 63;

/// Where the log of a volume is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogPlace {
    /// On every leg.
    Internal,
    /// In memory.
    Core,
    /// In this file or device.
    Disk(PathBuf),
    /// In the log server at this address.
    Remote(String),
}

impl LogPlace {
    /// The kind of log.
    pub fn kind(&self) -> LogKind {
        match self {
            LogPlace::Internal => LogKind::Internal,
            LogPlace::Core => LogKind::Core,
            LogPlace::Disk(_) => LogKind::Disk,
            LogPlace::Remote(_) => LogKind::Remote,
        }
    }
}

/// One leg as the superblock records it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LegEntry {
    /// The leg.
    pub uuid: Uuid,
    /// Its state.
    pub state: LegState,
    /// The leg whose place it takes once it is in sync.
    pub replaces: Option<Leg>,
}

impl LegEntry {
    /// Of an index that no leg has.
    pub const VACANT: LegEntry = LegEntry { uuid: Uuid::nil(), state: LegState::Vacant, replaces: None };

    /// A leg that replaces no other.
    pub const fn new(uuid: Uuid, state: LegState) -> LegEntry {
        LegEntry { uuid, state, replaces: None }
    }
}

/// The file that a leg was on when a superblock was written to it, and when that was. A device has none, nor has a file of
/// a file system that does not say when it was created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LegFileNote {
    /// When the file was created, in ns since 1970; not 0.
    pub born: u64,
    /// When the superblock was written, in ns since 1970.
    pub written: u64,
}

impl LegFileNote {
    /// Whether a file that was created at `born` (ns since 1970; 0 if that is not known) is another one, made before the
    /// superblock was written. If it is a copy, some of it may have been read before that.
    pub fn is_copied_before(&self, born: u64) -> bool {
        born != 0 && born != self.born && born <= self.written
    }
}

/// What a superblock says. The generation is not part of it: it belongs to the write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// The volume.
    pub volume: Uuid,
    /// The volume's name: 1 to [`MAX_NAME`] bytes.
    pub name: String,
    /// Which of `legs` this leg is.
    pub leg: Leg,
    /// Every leg of the volume by index: 1 to [`MAX_LEGS`]; indices beyond are vacant.
    pub legs: Vec<LegEntry>,
    /// Size of the volume in bytes.
    pub size: u64,
    /// Size of a region in bytes.
    pub region_size: u64,
    /// Where the log is; path or address at most [`MAX_PLACE`] bytes.
    pub log: LogPlace,
    /// The file or device that a disk log is in, if that was recorded.
    pub log_identity: Option<LogIdentity>,
    /// The file that this leg is on, if that was recorded.
    pub leg_file: Option<LegFileNote>,
    /// Grows with each change of leg states; the newest wins at assembly.
    pub event_count: u64,
    /// Where this record comes from: at most [`MAX_PAST`] sessions before.
    pub lineage: Lineage,
    /// By leg, which record it held when this one was begun.
    pub held: Held,
    /// Where legs may differ that are equal elsewhere, if that is less than what is dirty.
    pub recent: Option<Recent>,
    /// Whether the volume was stopped cleanly: no write was in flight and every leg was flushed.
    pub clean: bool,
    /// Whether the volume was stopped in good order: the legs in sync are equal, whatever the log says.
    pub equal: bool,
    /// Whether the log lost a mark (its own place failed): every region is dirty, whatever it says.
    pub log_failed: bool,
    /// When the volume was made, in seconds since 1970.
    pub created: u64,
    /// When this was written, in seconds since 1970.
    pub updated: u64,
}

/// Why one slot cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SlotError {
    /// No magic: never written, or overwritten.
    #[error("not a mirrord superblock")]
    NotMirrord,
    /// The checksum does not match: torn or damaged.
    #[error("the superblock fails its checksum")]
    Checksum,
    /// Written by a newer mirrord.
    #[error("the superblock has version {found}, newer than the known {SUPERBLOCK_VERSION}")]
    NewerVersion {
        /// Its version.
        found: u32,
    },
    /// Needs features that this mirrord does not have.
    #[error("the superblock needs unknown features {flags:#x}")]
    UnknownFlags {
        /// The bits that are not known.
        flags: u64,
    },
    /// The checksum matches but a field makes no sense.
    #[error("the superblock has an impossible {field}")]
    BadField {
        /// Which.
        field: &'static str,
    },
}

impl SlotError {
    /// Whether the slot is lost (never written, torn, damaged) rather than not understood.
    pub fn is_lost(&self) -> bool {
        matches!(self, SlotError::NotMirrord | SlotError::Checksum)
    }
}

/// Why neither slot of a leg can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PickError {
    /// Both slots are lost.
    #[error("both superblock slots are lost: slot 0: {slot0}; slot 1: {slot1}")]
    BothTorn {
        /// What is wrong with slot 0: `NotMirrord` or `Checksum`.
        slot0: SlotError,
        /// What is wrong with slot 1: `NotMirrord` or `Checksum`.
        slot1: SlotError,
    },
    /// A slot is whole but must not be interpreted: never `NotMirrord` or `Checksum`.
    #[error(transparent)]
    Refused(SlotError),
}

/// The newest superblock of the two slots, with its generation.
///
/// # Errors
/// [`PickError`] if both slots are lost or one of them is whole and not understood.
pub fn pick(slot0: &[u8], slot1: &[u8]) -> Result<(Superblock, u64), PickError> {
    match (Superblock::decode(slot0), Superblock::decode(slot1)) {
        (Err(error), _) | (_, Err(error)) if !error.is_lost() => Err(PickError::Refused(error)),
        (Ok(first), Ok(second)) => Ok(if first.1 > second.1 { first } else { second }),
        (Ok(only), Err(_)) | (Err(_), Ok(only)) => Ok(only),
        (Err(slot0), Err(slot1)) => Err(PickError::BothTorn { slot0, slot1 }),
    }
}

impl Superblock {
    /// This leg's UUID.
    pub fn leg_uuid(&self) -> Uuid {
        self.legs[self.leg.index()].uuid
    }

    /// By leg: the leg whose place it takes once it is in sync.
    pub fn replaces(&self) -> Replaces {
        let mut replaces = Replaces::default();
        for (slot, entry) in replaces.iter_mut().zip(&self.legs) {
            *slot = entry.replaces;
        }
        replaces
    }

    /// Size of the volume and of its regions. `None` if they do not fit together.
    pub fn geometry(&self) -> Option<Geometry> {
        Geometry::new(self.size, self.region_size).ok()
    }

    /// Whether every field can be recorded.
    ///
    /// # Errors
    /// [`SlotError::BadField`] names one that cannot.
    pub fn check(&self) -> Result<(), SlotError> {
        let place = match &self.log {
            LogPlace::Internal | LogPlace::Core => 1,
            LogPlace::Disk(path) => path.as_os_str().len(),
            LogPlace::Remote(address) => address.len(),
        };
        let device_name = match &self.log_identity {
            Some(LogIdentity::Device { name }) => name.len(),
            _ => 0,
        };
        let is_counted = |past: &Past| past.event_count < MAX_COUNTER;
        for (field, is_good) in [
            ("name", (1..=MAX_NAME).contains(&self.name.len()) && !self.name.contains('\0')),
            ("number of legs", (1..=MAX_LEGS).contains(&self.legs.len())),
            ("leg index", self.leg.index() < self.legs.len()),
            ("leg", self.legs.get(self.leg.index()).is_some_and(|leg| leg.state != LegState::Vacant)),
            ("size or region size", self.geometry().is_some()),
            ("log place", (1..=MAX_PLACE).contains(&place)),
            ("log identity", device_name <= MAX_DEVICE_NAME),
            ("event count", self.event_count < MAX_COUNTER),
            ("lineage", self.lineage.past.len() <= MAX_PAST && self.lineage.past.iter().all(is_counted)),
        ] {
            if !is_good {
                return Err(SlotError::BadField { field });
            }
        }
        Ok(())
    }

    /// The same, and whether it says of every leg which one that is: what was recorded without is read all the same.
    ///
    /// # Errors
    /// [`SlotError::BadField`] names a field that cannot be recorded.
    pub fn check_to_write(&self) -> Result<(), SlotError> {
        let is_named = |leg: &LegEntry| leg.state == LegState::Vacant || !leg.uuid.is_nil();
        let bad = SlotError::BadField { field: "leg UUID" };
        self.check().and_then(|()| if self.legs.iter().all(is_named) { Ok(()) } else { Err(bad) })
    }
}

#[cfg(test)]
mod tests;
