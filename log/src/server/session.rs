//! What is saved of a log of the kernel, so that a server that comes after a killed one goes on where that left: its
//! name and arguments, how far it is, and both of its bitmaps.
//!
//! A header, the arguments, the clean bits, the bits of what is in sync, each in whole bytes. Written whole when
//! the log's life changes much, later byte by byte. Only ever read by a server of the same version on the same
//! machine since it was booted.

use std::mem::{offset_of, size_of};

use mirrord_raid::{Region, SECTOR};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::construct::is_block_size;
use super::{
    Book, ClientId, CoreLog, DiskLog, Errno, Life, Log, LogId, LogServer, Output, Refusal, Refused, Save,
};
use crate::log::SyncMode;
use crate::wire::{LogName, MAX_UUID, TableArgs, TableKind};

/// Which notes. Each log of the kernel has its own, whose number is used once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Why notes cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RestoreError {
    /// They are cut off, or were made by another version.
    #[error("not the notes of a log, or of another version")]
    Format,
    /// They are of a log that another server of this machine served, and that this one refuses.
    #[error(transparent)]
    Refused(#[from] Refused),
}

const MAGIC: U64 = U64::from_bytes(*b"mrLogSes");
const VERSION: u32 = 1;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawSession {
    magic: U64,
    version: U32,
    /// Of the arguments.
    text_len: U32,
    luid: U64,
    /// Of the log's device, in bytes; 0 for a core log, and for one whose device was not opened yet.
    block_size: U32,
    /// See [`life_code`].
    life: u8,
    /// The log was constructed anew.
    again: u8,
    uuid_len: u8,
    /// How its device failed, or 0.
    failed: u8,
    uuid: [u8; MAX_UUID],
}

const _: () = assert!(size_of::<RawSession>() == 160);
const _: () = assert!(offset_of!(RawSession, life) == 28);
const _: () = assert!(offset_of!(RawSession, uuid) == 32);

/// Lives that a log can go on from. One that was busy did not get there.
const fn life_code(life: Life) -> u8 {
    match life {
        Life::Opening | Life::Pending | Life::Returned | Life::Resuming => 0,
        Life::Live => 1,
        Life::Suspending | Life::Closing => 2,
        Life::Suspended => 3,
    }
}

const LIVES: [Life; 4] = [Life::Pending, Life::Live, Life::Suspending, Life::Suspended];

impl LogServer {
    /// Saves all of a log of the kernel.
    pub(super) fn save(&mut self, id: LogId, out: &mut Output) {
        let next = SessionId(self.next_session);
        let log = self.log(id);
        if !log.by_kernel() {
            return;
        }
        let session = *log.session.get_or_insert(next);
        if session == next {
            self.next_session += 1;
        }
        let bytes = self.log(id).session_bytes();
        out.saves.push(Save::Put { session, bytes });
    }

    /// Saves how far a log of the kernel is.
    pub(super) fn save_life(&mut self, id: LogId, out: &mut Output) {
        let log = self.log(id);
        let byte = life_code(log.life);
        log.patch(offset_of!(RawSession, life), byte, out);
    }

    /// What a server that was here before had saved of a log of the kernel. To be called before anything else.
    ///
    /// # Errors
    /// When it says nothing that can be used, and may be removed; or when its log is refused.
    pub fn restore(
        &mut self,
        session: SessionId,
        bytes: &[u8],
        out: &mut Output,
    ) -> Result<(), RestoreError> {
        let log = restored(session, bytes, self.now).ok_or(RestoreError::Format)?;
        let args = TableArgs::parse(log.text.as_bytes()).map_err(|_| RestoreError::Format)?;
        if let (Some(kind), false) = (args.clustered, self.config.single_host) {
            let (uuid, kind) = (log.uuid.escape_ascii().to_string(), kind.to_owned());
            return Err(RestoreError::Refused(Refused { uuid, refusal: Refusal::Clustered { kind } }));
        }
        self.next_session = self.next_session.max(session.0 + 1);
        let id = self.add(log);
        self.reopen(id, out);
        Ok(())
    }
}

fn restored(session: SessionId, bytes: &[u8], now: u64) -> Option<Log> {
    let (raw, rest) = RawSession::ref_from_prefix(bytes).ok()?;
    if raw.magic != MAGIC || raw.version.get() != VERSION {
        return None;
    }
    let (text, bits) = rest.split_at_checked(raw.text_len.get() as usize)?;
    let mut args = TableArgs::parse(text).ok()?;
    if raw.again != 0 {
        args.mode = SyncMode::Default;
    }
    let life = *LIVES.get(usize::from(raw.life))?;
    let (regions, region_size) = (args.regions(), args.region_sectors * SECTOR);
    let map = regions.div_ceil(8) as usize;
    let (clean, sync) = bits.split_at_checked(map)?;
    if sync.len() != map {
        return None;
    }
    let block_size = raw.block_size.get();
    let is_disk = matches!(args.kind, TableKind::Disk { .. });
    let book = match args.kind {
        TableKind::Core => Book::Core(CoreLog::restore(region_size, regions, clean, sync)),
        TableKind::Disk { .. } if life == Life::Pending => {
            Book::Disk(DiskLog::new(region_size, regions, SECTOR as u32, args.mode))
        }
        TableKind::Disk { .. } if is_block_size(block_size) => {
            Book::Disk(DiskLog::restore(region_size, regions, block_size, clean, sync))
        }
        TableKind::Disk { .. } => return None,
    };
    let uuid = raw.uuid.get(..usize::from(raw.uuid_len)).filter(|uuid| !uuid.is_empty())?;
    let name = LogName { uuid, luid: raw.luid.get() };
    let now_life = if is_disk { Life::Opening } else { life };
    Some(Log {
        since: now,
        heard: false,
        // A pending log has nothing that its device does not tell anew.
        reopened: is_disk.then_some(life),
        again: raw.again != 0,
        returning: raw.again != 0 && life == Life::Pending,
        unsure: raw.again != 0 && life == Life::Pending,
        device_failed: (raw.failed != 0).then_some(Errno(raw.failed.into())),
        session: Some(session),
        ..Log::new(name, ClientId::KERNEL, text, args.mode, now_life, book)
    })
}

impl Log {
    fn session_bytes(&self) -> Vec<u8> {
        let mut raw = RawSession {
            magic: MAGIC,
            version: VERSION.into(),
            text_len: (self.text.len() as u32).into(),
            luid: self.luid.into(),
            block_size: self.opened.as_ref().map_or(0, |opened| opened.block_size).into(),
            life: life_code(self.life),
            again: self.again.into(),
            uuid_len: self.uuid.len() as u8,
            failed: self.device_failed.map_or(0, |errno| u8::try_from(errno.0).unwrap_or(u8::MAX)),
            uuid: [0; MAX_UUID],
        };
        raw.uuid[..self.uuid.len()].copy_from_slice(&self.uuid);
        let maps = self.book.log().maps();
        [raw.as_bytes(), self.text.as_bytes(), maps.clean_bytes(), maps.sync_bytes()].concat()
    }

    fn patch(&self, offset: usize, byte: u8, out: &mut Output) {
        if let Some(session) = self.session {
            out.saves.push(Save::Patch { session, offset: offset as u64, byte });
        }
    }

    /// Its device failed. The kernel's mirror keeps that in mind until its table is replaced, and holds the writes that
    /// waited: a log that is said to live again would hide them.
    pub(super) fn fail_device(&mut self, errno: Errno, out: &mut Output) {
        if self.by_kernel() && self.device_failed.is_none() {
            self.device_failed = Some(errno);
            self.patch(offset_of!(RawSession, failed), u8::try_from(errno.0).unwrap_or(u8::MAX), out);
        }
    }

    /// Saves whether a region is clean.
    pub(super) fn save_clean(&self, region: Region, out: &mut Output) {
        let at = region.index() / 8;
        let maps = self.book.log().maps();
        self.patch(size_of::<RawSession>() + self.text.len() + at, maps.clean_bytes()[at], out);
    }

    /// Saves whether a region is in sync.
    pub(super) fn save_sync(&self, region: Region, out: &mut Output) {
        let at = region.index() / 8;
        let maps = self.book.log().maps();
        let from = size_of::<RawSession>() + self.text.len() + maps.clean_bytes().len();
        self.patch(from + at, maps.sync_bytes()[at], out);
    }
}
