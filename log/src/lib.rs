//! `mirrord-log` remembers: which regions of a volume may differ between its legs (the
//! dirty-region log), and what each leg is (footer and superblock at its tail).
//!
//! - [`DirtyLog`] and its kinds [`InternalLog`], [`CoreLog`], [`DiskLog`]: bookkeeping without IO.
//!   A log hands out the writes that would make it durable; somebody else carries them out.
//! - [`Layout`], [`Footer`], [`Superblock`], [`InternalLog`]: the formats on a leg, format version 1.
//!   [`DiskLog`] is the format of the kernel's dm-log "disk".
//! - [`MetaIo`]: the log worker's IO, through io_uring where it is permitted.
//! - [`remote`]: the log of a volume that a log server keeps, as the volume has it.
//! - [`wire`]: what a mirror asks of a log that somebody else keeps, in the format of dm-log-userspace.
//! - [`read_leg`], [`format_leg`]: the metadata of one leg, blocking, for create, start and inspect.
//!
//! What fails its check or is of a newer version is never trusted: its regions are dirty, or the
//! leg is refused with an error that says why.

#![forbid(unsafe_code)]

mod core;
mod disk;
mod errno;
mod footer;
mod internal;
mod io;
mod label;
mod layout;
mod leg;
mod log;
mod lost;
mod maps;
mod page;
mod relocate;
pub mod remote;
pub mod server;
mod superblock;
pub mod wire;

pub use crate::core::CoreLog;
pub use disk::{DISK_MAGIC, DISK_VERSION, DiskLog, LogOwner};
pub use footer::{FOOTER_VERSION, Footer, FooterError};
pub use internal::{InternalLog, LogSector, SECTOR_REGIONS, SectorError, decode_sector, newest_generation};
pub use io::{Hung, MetaIo, Target, TimeOut};
pub use label::{LabelError, LogIdentity, LogLabel, MAX_DEVICE_NAME};
pub use layout::{Layout, LayoutError, PAGE, PAGE_REGIONS, log_pages};
pub use leg::{
    Backing, FormatLegError, LegMetadata, ReadLegError, convert_leg, format_leg, measure, read_leg,
    superblock_write, wipe_leg,
};
pub use log::{DirtyLog, LogKind, LogStatus, ResumeNote, SyncMode};
pub use lost::lost_footer;
pub use maps::{Dirty, RegionMaps};
pub use page::{Flush, PageWrite};
pub use relocate::Relocation;
pub use remote::RemoteLog;
pub use superblock::{
    KNOWN_FLAGS, LegEntry, LegFileNote, LogPlace, MAX_NAME, MAX_PLACE, PickError, SUPERBLOCK_VERSION,
    SlotError, Superblock, pick,
};
