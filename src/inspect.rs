//! What the metadata on a leg, or a disk log in the kernel's format, says. Only reads; takes no lock,
//! so what a running volume writes meanwhile may be seen half done.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mirrord_log::{
    Backing, DISK_MAGIC, DirtyLog, DiskLog, Footer, FooterError, InternalLog, LegFileNote, LogIdentity,
    LogLabel, LogPlace, PAGE, ResumeNote, SECTOR_REGIONS, SlotError, Superblock, SyncMode, decode_sector,
    lost_footer, measure,
};
use mirrord_raid::{FailReason, Geometry, LegState, MAX_REGIONS};
use serde::Serialize;
use uuid::Uuid;

use crate::failure::describe;
use crate::leg::{LegError, open_to_read};
use crate::signature;

/// What is at a path.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// Where.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// `file` or `device`.
    pub backing: &'static str,
    /// What was found.
    #[serde(flatten)]
    pub found: Found,
}

/// What was found.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Found {
    /// A leg.
    Leg(Box<LegReport>),
    /// A disk log.
    DiskLog(DiskLogReport),
    /// Neither.
    Other {
        /// Why it is no leg.
        footer: String,
        /// What it holds.
        signatures: Vec<SignatureReport>,
    },
}

/// A leg.
#[derive(Debug, Serialize)]
pub struct LegReport {
    /// Why it cannot be started, if it cannot.
    pub problem: Option<String>,
    /// Its footer.
    pub footer: FooterReport,
    /// Its superblock slots.
    pub slots: [SlotReport; 2],
    /// Which slot counts.
    pub newest_slot: Option<usize>,
    /// Its internal log area.
    pub log: LogReport,
}

/// A footer and the layout it records; offsets in bytes.
#[derive(Debug, Serialize)]
pub struct FooterReport {
    /// Volume that the leg was made for.
    pub volume: Uuid,
    /// The leg.
    pub leg: Uuid,
    /// Size of the volume when it was made.
    pub size_bytes: u64,
    /// Where the superblock slots are.
    pub slot_offsets: [u64; 2],
    /// Where the log is.
    pub log_offset: u64,
    /// How long it is, in pages of 4 KiB.
    pub log_pages: u32,
    /// Where the footer is.
    pub footer_offset: u64,
}

/// A superblock slot: what it says, or why it says nothing.
#[derive(Debug, Serialize)]
pub struct SlotReport {
    /// Why it cannot be used.
    pub error: Option<String>,
    /// What it says.
    #[serde(flatten)]
    pub superblock: Option<SuperblockReport>,
}

/// A superblock.
#[derive(Debug, Serialize)]
pub struct SuperblockReport {
    /// Generation of the write.
    pub generation: u64,
    /// The volume.
    pub volume: Uuid,
    /// Its name.
    pub name: String,
    /// Which leg this is.
    pub leg_index: usize,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Size of a region.
    pub region_size_bytes: u64,
    /// Event count.
    pub event_count: u64,
    /// The start that wrote it.
    pub session: String,
    /// Earlier starts that it comes from.
    pub past_sessions: Vec<PastReport>,
    /// Stopped cleanly.
    pub clean: bool,
    /// Stopped in good order, so that legs in sync are equal whatever the log says.
    pub equal: bool,
    /// The log lost a mark.
    pub log_failed: bool,
    /// Where legs may differ that are equal elsewhere, if that is less than what is dirty.
    pub recent: Option<RecentReport>,
    /// `internal` `core` `disk` `remote`.
    pub log_kind: &'static str,
    /// Path or address of the log.
    pub log_place: Option<String>,
    /// The file or device that a disk log is in, if that is recorded.
    pub log_identity: Option<IdentityReport>,
    /// The file that the leg was, if it was one.
    pub leg_file: Option<LegFileReport>,
    /// Seconds since 1970.
    pub created: u64,
    /// Seconds since 1970.
    pub updated: u64,
    /// The legs by index.
    pub legs: Vec<EntryReport>,
}

/// The file or device that a disk log is in.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum IdentityReport {
    /// A file.
    File {
        /// Its inode.
        inode: u64,
        /// When it was created, in ns since 1970; 0 if that is not known.
        born: u64,
    },
    /// A device.
    Device {
        /// What it is called whatever its number; empty if that is not known.
        name: String,
    },
}

/// The file that a leg was when its superblock was written.
#[derive(Debug, Serialize)]
pub struct LegFileReport {
    /// When it was created, in ns since 1970.
    pub born: u64,
    /// When the superblock was written, in ns since 1970.
    pub written: u64,
}

/// What was written to lately, while some leg is out or copied to.
#[derive(Debug, Serialize)]
pub struct RecentReport {
    /// The legs that are equal to each other but there.
    pub legs: Vec<usize>,
    /// How many groups of regions that are.
    pub groups: u32,
    /// Regions of a group.
    pub regions_per_group: u32,
}

/// A start that another one went on from.
#[derive(Debug, Serialize)]
pub struct PastReport {
    /// The start.
    pub session: String,
    /// The newest event count of it that was found.
    pub event_count: u64,
    /// Legs whose newest record may be of it.
    pub held_by: Vec<usize>,
}

/// A leg as a superblock records it.
#[derive(Debug, Serialize)]
pub struct EntryReport {
    /// The leg.
    pub uuid: Uuid,
    /// `in_sync` `syncing` `tracked` `failed`.
    pub state: &'static str,
    /// Why it is failed.
    pub reason: Option<&'static str>,
}

/// The internal log of a leg.
#[derive(Debug, Serialize)]
pub struct LogReport {
    /// Whether the volume uses it.
    pub in_use: bool,
    /// Regions of the volume.
    pub regions: u32,
    /// Regions whose bit is set, or that a bad sector covers.
    pub dirty_regions: u64,
    /// Sectors of 512 bytes that were looked at.
    pub sectors: u32,
    /// Those that failed their check.
    pub bad_sectors: u32,
    /// Highest generation.
    pub generation: u64,
}

/// A disk log.
#[derive(Debug, Serialize)]
pub struct DiskLogReport {
    /// Version in its header.
    pub version: u32,
    /// Regions in its header.
    pub regions: u64,
    /// The volume whose log it is, if it says so.
    pub volume: Option<Uuid>,
    /// The start of that volume that used it last.
    pub session: Option<String>,
    /// Regions that are not clean, if the log can be understood.
    pub dirty_regions: Option<u64>,
    /// What is wrong with it.
    pub note: Option<String>,
}

/// Something else.
#[derive(Debug, Serialize)]
pub struct SignatureReport {
    /// What.
    pub name: &'static str,
    /// Where, in bytes.
    pub offset: u64,
}

/// Looks at `path`.
///
/// # Errors
/// When it is neither file nor device, or cannot be read.
pub fn inspect(path: &Path) -> Result<Inspection, LegError> {
    let io_error = |source| LegError::Io { path: path.to_owned(), source };
    let file = open_to_read(path)?;
    let (backing, len) = measure(&file).map_err(io_error)?;
    let found = find(&file, backing, len).map_err(io_error)?;
    Ok(Inspection {
        path: path.to_owned(),
        len_bytes: len,
        backing: if backing == Backing::File { "file" } else { "device" },
        found,
    })
}

fn find(file: &File, backing: Backing, len: u64) -> io::Result<Found> {
    let rounded = if backing == Backing::File { len } else { len / PAGE * PAGE };
    let footer = match rounded.checked_sub(PAGE) {
        Some(at) => Footer::decode(&read(file, at, PAGE)?),
        None => Err(FooterError::NotMirrord),
    };
    let error = match footer {
        Ok(footer) => return leg(file, backing, len, &footer).map(|leg| Found::Leg(Box::new(leg))),
        Err(error) => error,
    };
    if backing == Backing::File
        && error == FooterError::NotMirrord
        && let Some(footer) = lost_footer(file, len)?
    {
        return leg(file, backing, len, &footer).map(|leg| Found::Leg(Box::new(leg)));
    }
    if let Some(log) = disk_log(file, len)? {
        return Ok(Found::DiskLog(log));
    }
    let signatures = signature::found(file, len)?;
    let report = |found: signature::Signature| SignatureReport { name: found.name, offset: found.offset };
    Ok(Found::Other { footer: error.to_string(), signatures: signatures.into_iter().map(report).collect() })
}

fn leg(file: &File, backing: Backing, len: u64, footer: &Footer) -> io::Result<LegReport> {
    let layout = footer.layout;
    let decoded = layout.slots.map(|slot| read(file, slot, PAGE).map(|bytes| Superblock::decode(&bytes)));
    let decoded = decoded.map(|slot| slot.unwrap_or(Err(SlotError::NotMirrord)));
    let generation =
        |slot: &Result<(Superblock, u64), SlotError>| slot.as_ref().ok().map(|(_, generation)| *generation);
    let newest_slot =
        (0..2).filter(|slot| decoded[*slot].is_ok()).max_by_key(|slot| generation(&decoded[*slot]));
    let problem = mirrord_log::read_leg(file, backing, len).err().map(|error| describe(&error));
    let newest = newest_slot.and_then(|slot| decoded[slot].as_ref().ok()).map(|(superblock, _)| superblock);
    let area = read(file, layout.log, layout.log_len())?;
    let log = log_report(newest, &area);
    let slots = decoded.map(|slot| match slot {
        Ok((superblock, generation)) => {
            SlotReport { error: None, superblock: Some(superblock_report(&superblock, generation)) }
        }
        Err(error) => SlotReport { error: Some(error.to_string()), superblock: None },
    });
    let footer = FooterReport {
        volume: footer.volume,
        leg: footer.leg,
        size_bytes: footer.size,
        slot_offsets: layout.slots,
        log_offset: layout.log,
        log_pages: layout.log_pages,
        footer_offset: layout.footer,
    };
    Ok(LegReport { problem, footer, slots, newest_slot, log })
}

fn log_report(superblock: Option<&Superblock>, area: &[u8]) -> LogReport {
    let geometry = superblock.and_then(Superblock::geometry);
    let (Some(superblock), Some(geometry)) = (superblock, geometry) else {
        return LogReport {
            in_use: false,
            regions: 0,
            dirty_regions: 0,
            sectors: 0,
            bad_sectors: 0,
            generation: 0,
        };
    };
    let regions = geometry.regions();
    let sectors = regions.div_ceil(SECTOR_REGIONS);
    let good = (0..sectors).zip(area.chunks(512));
    let good = good.filter_map(|(index, bytes)| decode_sector(superblock.volume, index, bytes).ok());
    let generations: Vec<u64> = good.map(|sector| sector.generation).collect();
    let mut log = InternalLog::new(superblock.volume, geometry.region_size(), regions, SyncMode::Default);
    let _ = log.resume(&[Some(area)]);
    LogReport {
        in_use: superblock.log == LogPlace::Internal,
        regions,
        dirty_regions: log.dirty_count(),
        sectors,
        bad_sectors: sectors - generations.len() as u32,
        generation: generations.into_iter().max().unwrap_or(0),
    }
}

fn superblock_report(superblock: &Superblock, generation: u64) -> SuperblockReport {
    let entry = |entry: &mirrord_log::LegEntry| {
        let (state, reason) = state_name(entry.state);
        EntryReport { uuid: entry.uuid, state, reason }
    };
    let past = |past: &mirrord_raid::Past| PastReport {
        session: format!("{:016x}", past.session),
        event_count: past.event_count,
        held_by: past.held_by.iter().map(mirrord_raid::Leg::index).collect(),
    };
    let recent = |recent: &mirrord_raid::Recent| RecentReport {
        legs: recent.legs.iter().map(mirrord_raid::Leg::index).collect(),
        groups: recent.count(),
        regions_per_group: 1 << recent.shift,
    };
    SuperblockReport {
        generation,
        volume: superblock.volume,
        name: superblock.name.escape_debug().to_string(),
        leg_index: superblock.leg.index(),
        size_bytes: superblock.size,
        region_size_bytes: superblock.region_size,
        event_count: superblock.event_count,
        session: format!("{:016x}", superblock.lineage.session),
        past_sessions: superblock.lineage.past.iter().map(past).collect(),
        clean: superblock.clean,
        equal: superblock.equal,
        log_failed: superblock.log_failed,
        recent: superblock.recent.as_ref().map(recent),
        log_kind: superblock.log.kind().name(),
        log_place: match &superblock.log {
            LogPlace::Internal | LogPlace::Core => None,
            LogPlace::Disk(path) => Some(path.display().to_string()),
            LogPlace::Remote(address) => Some(address.clone()),
        },
        log_identity: superblock.log_identity.as_ref().map(|identity| match identity {
            LogIdentity::File { inode, born } => IdentityReport::File { inode: *inode, born: *born },
            LogIdentity::Device { name } => IdentityReport::Device { name: name.escape_debug().to_string() },
        }),
        leg_file: superblock.leg_file.map(|LegFileNote { born, written }| LegFileReport { born, written }),
        created: superblock.created,
        updated: superblock.updated,
        legs: superblock.legs.iter().map(entry).collect(),
    }
}

/// The words of `status --json`.
fn state_name(state: LegState) -> (&'static str, Option<&'static str>) {
    match state {
        LegState::InSync => ("in_sync", None),
        LegState::Syncing => ("syncing", None),
        LegState::Tracked => ("tracked", None),
        LegState::Spare => ("spare", None),
        LegState::Vacant => ("removed", None),
        LegState::Failed(reason) => {
            let reason = match reason {
                FailReason::Io => "io_error",
                FailReason::NoSpace => "no_space",
                FailReason::Missing => "missing",
                FailReason::Admin => "by_hand",
            };
            ("failed", Some(reason))
        }
    }
}

/// A log in the kernel's format: its header and how many of its bits are set.
fn disk_log(file: &File, len: u64) -> io::Result<Option<DiskLogReport>> {
    let head = read(file, 0, len.min(16))?;
    let word =
        |at: usize| head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let (Some(DISK_MAGIC), Some(version), Some(low), Some(high)) = (word(0), word(4), word(8), word(12))
    else {
        return Ok(None);
    };
    let regions = u64::from(high) << 32 | u64::from(low);
    let Some(count) = u32::try_from(regions).ok().filter(|count| u64::from(*count) <= MAX_REGIONS) else {
        let note = Some("more regions than mirrord takes".to_owned());
        return Ok(Some(DiskLogReport {
            version,
            regions,
            volume: None,
            session: None,
            dirty_regions: None,
            note,
        }));
    };
    let mut log = DiskLog::new(Geometry::default_region_size(0), count, 512, SyncMode::Default);
    let image = read(file, 0, log.io_size().min(len))?;
    let _ = log.resume(&[Some(&image)]);
    let note = match log.note() {
        ResumeNote::UnknownVersion { .. } => Some("unknown version".to_owned()),
        ResumeNote::TooShort { len, need } => Some(format!("{len} of {need} bytes are there")),
        _ => None,
    };
    let dirty_regions = note.is_none().then(|| log.dirty_count());
    let label = LogLabel::read(&image);
    let note = note.or(label.as_ref().err().map(ToString::to_string));
    let label = label.ok().flatten();
    let volume = label.map(|label| label.volume);
    let session = label.map(|label| format!("{:016x}", label.session));
    Ok(Some(DiskLogReport { version, regions, volume, session, dirty_regions, note }))
}

fn read(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}
