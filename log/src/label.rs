//! Whose a disk log is: what the log says itself (its *label*, in sector 1, of which the kernel knows nothing and which it
//! keeps), and what the superblocks say of the file or device that it is in ([`LogIdentity`]).
//!
//! A log is believed only under the label of its volume, and its bits only if they are those that the deciding superblock
//! was written with: the log names the session that used it last, as the superblock does. A start needs two writes to go
//! from one session to the next, and may end between them, so a label names the next session, too, until that is recorded:
//!
//! | step | label | superblocks |
//! |---|---|---|
//! | before | old | old |
//! | the whole log is written | old, next new | old |
//! | the start is recorded | old, next new | old or new |
//! | the log is named | new | new |
//!
//! Nothing is written to the volume before the last step. So a log that names the superblock's session in either place
//! has every mark, and any other one is an older copy, or belongs to a later session than these legs.

use std::mem::size_of;

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::superblock::SlotError;

/// Where the label is, in bytes: in the second half of sector 1. A log server's note of an owner has the first.
pub(crate) const LABEL: usize = 768;

/// "mrLB" on disk.
const MAGIC: U32 = U32::from_bytes(*b"mrLB");

/// The version written and read.
const VERSION: u32 = 1;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawLabel {
    magic: U32,
    version: U32,
    volume: [u8; 16],
    session: U64,
    next: U64,
    /// Of all of it with this field zero.
    crc: U32,
    reserved: [u8; 20],
}

/// Bytes of a label.
pub(crate) const LABEL_LEN: usize = size_of::<RawLabel>();

const _: () = assert!(LABEL_LEN == 64);
const _: () = assert!(LABEL + LABEL_LEN <= 1024);

/// What a disk log says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogLabel {
    /// The volume that it is the log of.
    pub volume: Uuid,
    /// The session of the volume that used it last.
    pub session: u64,
    /// The session that is about to.
    pub next: Option<u64>,
}

/// Why a label says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LabelError {
    /// Its checksum does not match.
    #[error("its label is damaged")]
    Checksum,
    /// Written by a newer mirrord.
    #[error("its label has version {found}, newer than the known {VERSION}")]
    NewerVersion {
        /// Its version.
        found: u32,
    },
}

impl LogLabel {
    /// Whether the log's bits are those that a superblock of this session was written with.
    pub fn is_of(&self, session: u64) -> bool {
        session != 0 && (self.session == session || self.next == Some(session))
    }

    /// The label in the image of a log, at least 1024 bytes; `None` if it has none.
    ///
    /// # Errors
    /// See [`LabelError`].
    pub fn read(image: &[u8]) -> Result<Option<LogLabel>, LabelError> {
        let raw = image.get(LABEL..).and_then(|bytes| RawLabel::read_from_prefix(bytes).ok());
        let Some((mut raw, _)) = raw.filter(|(raw, _)| raw.magic == MAGIC) else { return Ok(None) };
        let crc = raw.crc;
        raw.checksum();
        if raw.crc != crc {
            return Err(LabelError::Checksum);
        }
        match raw.version.get() {
            VERSION => {}
            found => return Err(LabelError::NewerVersion { found }),
        }
        let next = Some(raw.next.get()).filter(|&next| next != 0);
        Ok(Some(LogLabel { volume: Uuid::from_bytes(raw.volume), session: raw.session.get(), next }))
    }

    pub(crate) fn encode(&self) -> [u8; LABEL_LEN] {
        let mut raw = RawLabel::new_zeroed();
        (raw.magic, raw.version) = (MAGIC, VERSION.into());
        raw.volume = *self.volume.as_bytes();
        (raw.session, raw.next) = (self.session.into(), self.next.unwrap_or(0).into());
        raw.checksum();
        let mut bytes = [0; LABEL_LEN];
        bytes.copy_from_slice(raw.as_bytes());
        bytes
    }
}

impl RawLabel {
    fn checksum(&mut self) {
        self.crc = U32::ZERO;
        self.crc = crc32fast::hash(self.as_bytes()).into();
    }
}

/// Most bytes in the stable name of a device.
pub const MAX_DEVICE_NAME: usize = 96;

/// The file or device that a disk log is in, as superblocks record it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogIdentity {
    /// A file.
    File {
        /// Its inode.
        inode: u64,
        /// When it was created, in ns since 1970; 0 if its file system does not say.
        born: u64,
    },
    /// A device.
    Device {
        /// What it is called whatever its number, at most [`MAX_DEVICE_NAME`] bytes; empty if nothing is known.
        name: String,
    },
}

impl LogIdentity {
    /// Whether a log with the label that is expected, in this file, is another file than the one that was recorded: a
    /// copy. A creation time that both have decides, for not every file system keeps its inode numbers.
    pub fn is_copied_to(&self, found: &LogIdentity) -> bool {
        match (self, found) {
            (LogIdentity::File { inode, born }, LogIdentity::File { inode: other, born: others }) => {
                if *born != 0 && *others != 0 { born != others } else { inode != other }
            }
            (LogIdentity::Device { name }, LogIdentity::Device { name: other }) => {
                !name.is_empty() && !other.is_empty() && name != other
            }
            _ => true,
        }
    }
}

/// All zero where nothing is recorded.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
pub(crate) struct RawLogIdentity {
    /// 1: a file, 2: a device.
    kind: u8,
    name_len: u8,
    reserved: [u8; 6],
    inode: U64,
    born: U64,
    name: [u8; MAX_DEVICE_NAME],
    reserved_end: [u8; 8],
}

const _: () = assert!(size_of::<RawLogIdentity>() == 128);

impl RawLogIdentity {
    pub(crate) fn of(identity: Option<&LogIdentity>) -> RawLogIdentity {
        let mut raw = RawLogIdentity::new_zeroed();
        match identity {
            None => {}
            Some(LogIdentity::File { inode, born }) => {
                (raw.kind, raw.inode, raw.born) = (1, (*inode).into(), (*born).into());
            }
            Some(LogIdentity::Device { name }) => {
                (raw.kind, raw.name_len) = (2, name.len() as u8);
                raw.name[..name.len()].copy_from_slice(name.as_bytes());
            }
        }
        raw
    }

    pub(crate) fn read(&self) -> Result<Option<LogIdentity>, SlotError> {
        let bad = SlotError::BadField { field: "log identity" };
        Ok(match self.kind {
            0 => None,
            1 => Some(LogIdentity::File { inode: self.inode.get(), born: self.born.get() }),
            2 => {
                let name = self.name.get(..usize::from(self.name_len)).ok_or(bad)?;
                Some(LogIdentity::Device { name: String::from_utf8(name.to_vec()).map_err(|_| bad)? })
            }
            _ => return Err(bad),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(label: &LogLabel) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[LABEL..LABEL + LABEL_LEN].copy_from_slice(&label.encode());
        image
    }

    #[test]
    fn a_label_is_read_as_it_was_written_or_not_at_all() {
        for next in [None, Some(9)] {
            let label = LogLabel { volume: Uuid::from_u128(7), session: 8, next };
            let image = image(&label);
            assert_eq!(LogLabel::read(&image), Ok(Some(label)));
            for at in LABEL..LABEL + LABEL_LEN {
                let mut bad = image.clone();
                bad[at] ^= 4;
                assert_ne!(LogLabel::read(&bad), Ok(Some(label)), "byte {at}");
            }
        }
        assert_eq!(LogLabel::read(&[0; 1024]), Ok(None));
        assert_eq!(LogLabel::read(&[]), Ok(None));
    }

    #[test]
    fn a_log_is_of_the_session_that_used_it_and_of_the_one_that_is_about_to() {
        let label = |next| LogLabel { volume: Uuid::from_u128(7), session: 8, next };
        assert!(label(None).is_of(8) && label(Some(9)).is_of(8) && label(Some(9)).is_of(9));
        assert!(!label(None).is_of(9) && !label(Some(9)).is_of(10) && !label(None).is_of(0));
        assert!(!LogLabel { session: 0, ..label(None) }.is_of(0), "a session that is not known");
    }

    #[test]
    fn no_later_write_takes_the_label_away() {
        use crate::disk::LogOwner;
        use crate::log::DirtyLog;
        use mirrord_raid::Region;
        for block in [512, 4096] {
            let mut file = Vec::new();
            let mut land = |flush: crate::Flush| {
                for write in flush.writes {
                    let end = write.offset as usize + write.bytes.len();
                    file.resize(end.max(file.len()), 0);
                    file[write.offset as usize..end].copy_from_slice(&write.bytes);
                }
                file.clone()
            };
            let label = LogLabel { volume: Uuid::from_u128(7), session: 8, next: Some(9) };
            let mut log = crate::DiskLog::new(4096, 40_000, block, crate::SyncMode::NoSync);
            let _ = log.resume(&[Some(&[])]);
            log.set_label(&label);
            assert_eq!(LogLabel::read(&land(log.all_pages())), Ok(Some(label)));
            log.recorded(9);
            let named = Ok(Some(LogLabel { session: 9, next: None, ..label }));
            assert_eq!(LogLabel::read(&land(log.flush())), named);
            log.mark(Region(0));
            assert_eq!(LogLabel::read(&land(log.flush())), named);
            let owner = LogOwner { luid: 3, released: false };
            log.set_owner(owner);
            log.resize(80_000);
            let image = land(log.flush());
            assert_eq!((LogLabel::read(&image), crate::DiskLog::owner_of(&image)), (named, Some(owner)));
            // As the kernel, a log server or another start takes it over.
            let mut again = crate::DiskLog::new(4096, 80_000, block, crate::SyncMode::Sync);
            let image = land(again.resume(&[Some(&image)]));
            assert_eq!((LogLabel::read(&image), crate::DiskLog::owner_of(&image)), (named, Some(owner)));
        }
    }

    #[test]
    fn a_copy_is_told_from_the_file() {
        let file = |inode, born| LogIdentity::File { inode, born };
        let device = |name: &str| LogIdentity::Device { name: name.to_owned() };
        for (one, other, is_copy) in [
            (file(1, 5), file(1, 5), false),
            (file(1, 5), file(2, 5), false),
            (file(1, 5), file(1, 6), true),
            (file(1, 0), file(1, 6), false),
            (file(1, 0), file(2, 0), true),
            (device("x"), device("x"), false),
            (device("x"), device("y"), true),
            (device("x"), device(""), false),
            (file(1, 5), device("x"), true),
        ] {
            assert_eq!(one.is_copied_to(&other), is_copy, "{one:?} {other:?}");
            assert_eq!(other.is_copied_to(&one), is_copy, "{one:?} {other:?}");
        }
    }
}
