//! Opening a volume's dirty-region log at start and reading what it says.

use std::fs::File;
use std::io;

use mirrord_log::{CoreLog, DirtyLog, DiskLog, InternalLog, LogKind, LogPlace, ResumeNote, SyncMode};

use std::sync::Arc;

use super::{RemoteOptions, ServeError, remote};
use crate::leg::{LOCK_PATIENCE, lock_waiting};
use crate::remote::Remote;
use crate::start::Opened;

/// A volume's log, and where it is kept.
pub(super) struct OpenedLog {
    pub(super) log: Box<dyn DirtyLog>,
    /// Its file if it has one of its own, which is locked like a leg.
    pub(super) file: Option<File>,
    /// The server that keeps it.
    pub(super) remote: Option<Arc<Remote>>,
}

impl OpenedLog {
    fn new(log: impl DirtyLog + 'static) -> OpenedLog {
        OpenedLog { log: Box::new(log), file: None, remote: None }
    }
}

/// Opens the log.
///
/// # Errors
/// When a disk log cannot be opened or is in use, or a server does not give it.
pub(super) fn open_log(opened: &Opened, options: &RemoteOptions) -> Result<OpenedLog, ServeError> {
    let (geometry, superblock) = (opened.geometry, opened.authority());
    let (region_size, regions) = (geometry.region_size(), geometry.regions());
    let mode = SyncMode::at_start(&opened.assembly);
    Ok(match &superblock.log {
        LogPlace::Internal => OpenedLog::new(InternalLog::new(superblock.volume, region_size, regions, mode)),
        LogPlace::Core => {
            // It holds nothing: whether all is dirty or all is clean, the superblocks know.
            let mode = if opened.assembly.all_dirty { SyncMode::Sync } else { SyncMode::NoSync };
            OpenedLog::new(CoreLog::new(region_size, regions, mode))
        }
        LogPlace::Disk(path) => {
            let open = File::options().read(true).write(true).open(path);
            let log_error = |source| ServeError::Log { path: path.clone(), source };
            let file = open.map_err(log_error)?;
            if let Some(holder) = lock_waiting(&file, LOCK_PATIENCE).map_err(log_error)? {
                return Err(ServeError::LogInUse { path: path.clone(), holder });
            }
            // As the kernel rounds its log: to the device's logical block; a file has sectors.
            let block = rustix::fs::ioctl_blksszget(&file).unwrap_or(512);
            let log = DiskLog::new(region_size, regions, block, mode);
            OpenedLog { file: Some(file), ..OpenedLog::new(log) }
        }
        LogPlace::Remote(address) => {
            let (log, remote) = remote::open(opened, address, mode, options)?;
            OpenedLog { log, file: None, remote: Some(remote) }
        }
    })
}

/// Reads the log: what was dirty is dirty. The writes it asks for are made with the whole log later.
pub(super) fn resume_log(
    opened: &Opened,
    log: &mut dyn DirtyLog,
    log_file: Option<&File>,
) -> Result<ResumeNote, ServeError> {
    let mut image = Vec::new();
    let mut images: Vec<Option<&[u8]>> = Vec::new();
    match (log.kind(), log_file) {
        (LogKind::Disk, Some(file)) => {
            let read = io::Read::read_to_end(&mut io::Read::take(file, 1 << 20), &mut image);
            images.push(read.ok().map(|_| &image[..]));
        }
        (LogKind::Internal, _) => {
            for leg in opened.assembly.trusted.iter() {
                let member = opened.members[leg].as_ref();
                images.push(member.map(|member| &member.metadata.log_area[..]));
            }
        }
        _ => {}
    }
    let _ = log.resume(&images);
    // What was written under a smaller size says nothing of the rest.
    opened.assembly.uncovered(opened.geometry).for_each(|region| log.mark(region));
    Ok(log.note())
}

/// What was wrong with the log, in words for status.
pub(super) fn note_text(note: ResumeNote) -> Option<String> {
    match note {
        ResumeNote::Trusted | ResumeNote::Ignored | ResumeNote::NotResumed => None,
        ResumeNote::BadSectors { bad, total } => {
            Some(format!("{bad} of {total} log sectors failed their check: their regions are dirty"))
        }
        ResumeNote::NoLog => Some("there was no log: every region is dirty".to_owned()),
        ResumeNote::UnknownVersion { version } => {
            Some(format!("the log has unknown version {version}: every region is dirty"))
        }
        ResumeNote::TooShort { len, need } => {
            Some(format!("the log has {len} of {need} bytes: every region is dirty"))
        }
        ResumeNote::Unreadable => Some("the log could not be read: every region is dirty".to_owned()),
        ResumeNote::Grown { from } => Some(format!("the log had {from} regions: the new ones are dirty")),
    }
}
