//! Opening a volume's dirty-region log at start and reading what it says.
//!
//! A disk log is believed, and written to, only if it is this volume's ([`LogFile::judge`]). One that is not believed, or
//! that begins anew because the user says so, has every region dirty after an unclean stop. After a clean one with every
//! region clean the legs are equal, and it is clean.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mirrord_log::remote::asked_for;
use mirrord_log::{
    CoreLog, DirtyLog, DiskLog, InternalLog, LogIdentity, LogLabel, LogPlace, ResumeNote, Superblock,
    SyncMode,
};

use super::{RemoteOptions, ServeError, ServeOptions, remote};
use crate::device_name::Devices;
use crate::leg::FileId;
use crate::log_file::{Belief, LogFile, LogFileError};
use crate::log_place::place_text;
use crate::remote::Remote;
use crate::start::Opened;

/// A volume's log that was read: what was dirty is dirty. The writes that it asks for are made with the whole log later.
pub(super) struct OpenedLog {
    pub(super) log: Box<dyn DirtyLog>,
    /// Its file if it has one of its own, which is locked like a leg.
    pub(super) file: Option<File>,
    /// The server that keeps it.
    pub(super) remote: Option<Arc<Remote>>,
    /// Where it is from now on.
    pub(super) place: LogPlace,
    /// The file or device that a disk log is in.
    pub(super) identity: Option<LogIdentity>,
    /// What was wrong with it, for status.
    pub(super) note: Option<String>,
    /// What the user should know.
    pub(super) notices: Vec<String>,
}

/// Opens and reads the log, for a start that is to be recorded as `session`.
///
/// # Errors
/// When a disk log cannot be opened, is in use or not this volume's, or a server does not give it.
pub(super) fn open_log(
    opened: &Opened,
    options: &ServeOptions,
    session: u64,
) -> Result<OpenedLog, ServeError> {
    let start = Start { opened, superblock: opened.authority(), session };
    let mut log = match (&options.log.new, &options.log.at) {
        (Some(place), _) => start.anew(place, options)?,
        (None, Some(at)) if at.kind() != start.superblock.log.kind() => {
            let (given, kind) = (place_text(at), start.superblock.log.kind().name());
            return Err(ServeError::LogKind { given, kind });
        }
        (None, Some(at)) => start.at(at, false, &options.remote)?,
        (None, None) => start.at(&start.superblock.log, true, &options.remote)?,
    };
    // What was written under a smaller size says nothing of the rest.
    opened.assembly.uncovered(opened.geometry).for_each(|region| log.log.mark(region));
    if opened.assembly.all_dirty {
        // What is on the legs was read for its generation only.
        log.log.mark_all();
    }
    Ok(log)
}

struct Start<'a> {
    opened: &'a Opened,
    superblock: &'a Superblock,
    session: u64,
}

impl Start<'_> {
    /// The log at `place`; a device that has another number is looked for, if it `may_be_elsewhere`.
    fn at(
        &self,
        place: &LogPlace,
        may_be_elsewhere: bool,
        options: &RemoteOptions,
    ) -> Result<OpenedLog, ServeError> {
        let mode = SyncMode::at_start(&self.opened.assembly);
        match place {
            LogPlace::Internal => Ok(self.internal(mode)),
            LogPlace::Core => Ok(self.core(self.opened.assembly.all_dirty)),
            LogPlace::Disk(path) => {
                let (path, notice) = match may_be_elsewhere {
                    true => self.find_device(path),
                    false => (path.clone(), None),
                };
                let opened = self.disk(&path, mode);
                let mut log = opened.map_err(|source| self.refused(source, false))?;
                log.notices.extend(notice);
                Ok(log)
            }
            LogPlace::Remote(address) => self.remote(address, asked_for(&self.opened.assembly), options),
        }
    }

    /// A log that begins anew at `place`.
    fn anew(&self, place: &LogPlace, options: &ServeOptions) -> Result<OpenedLog, ServeError> {
        let mode = SyncMode::without_log(&self.opened.assembly);
        let mut log = match place {
            LogPlace::Internal => self.internal(mode),
            LogPlace::Core => self.core(mode == SyncMode::Sync),
            LogPlace::Disk(path) => {
                let log = self.new_disk(path, mode, options.log.force);
                log.map_err(|source| self.refused(source, true))?
            }
            LogPlace::Remote(address) => self.remote(address, (mode, None), &options.remote)?,
        };
        log.notices.push(format!("the log begins anew: {}", Start::outcome(mode)));
        Ok(log)
    }

    fn outcome(mode: SyncMode) -> &'static str {
        match mode {
            SyncMode::NoSync => "the volume was stopped with every region clean, so every region is clean",
            _ => "every region is dirty",
        }
    }

    fn refused(&self, source: LogFileError, is_new: bool) -> ServeError {
        ServeError::Log { name: self.superblock.name.clone(), source, is_new }
    }

    fn read(&self, mut log: impl DirtyLog + 'static, images: &[Option<&[u8]>], place: LogPlace) -> OpenedLog {
        let _ = log.resume(images);
        let note = note_text(log.note());
        OpenedLog {
            note,
            log: Box::new(log),
            file: None,
            remote: None,
            place,
            identity: None,
            notices: Vec::new(),
        }
    }

    fn internal(&self, mode: SyncMode) -> OpenedLog {
        let (geometry, trusted) = (self.opened.geometry, self.opened.assembly.trusted);
        let log = InternalLog::new(self.superblock.volume, geometry.region_size(), geometry.regions(), mode);
        let members = trusted.iter().map(|leg| self.opened.members[leg].as_ref());
        let images: Vec<_> =
            members.map(|member| member.map(|member| &member.metadata.log_area[..])).collect();
        self.read(log, &images, LogPlace::Internal)
    }

    /// It holds nothing: whether all is dirty or all is clean, the superblocks know.
    fn core(&self, is_dirty: bool) -> OpenedLog {
        let geometry = self.opened.geometry;
        let mode = if is_dirty { SyncMode::Sync } else { SyncMode::NoSync };
        self.read(CoreLog::new(geometry.region_size(), geometry.regions(), mode), &[], LogPlace::Core)
    }

    fn remote(
        &self,
        address: &str,
        known: (SyncMode, Option<u64>),
        options: &RemoteOptions,
    ) -> Result<OpenedLog, ServeError> {
        let (log, remote) = remote::open(self.opened, address, known, self.session, options)?;
        let (place, note) = (LogPlace::Remote(address.to_owned()), note_text(log.note()));
        Ok(OpenedLog {
            log,
            file: None,
            remote: Some(remote),
            place,
            identity: None,
            note,
            notices: Vec::new(),
        })
    }

    /// The log's device, if it was recorded by a name that leads elsewhere than its path does now.
    fn find_device(&self, path: &Path) -> (PathBuf, Option<String>) {
        let Some(LogIdentity::Device { name }) = &self.superblock.log_identity else {
            return (path.to_owned(), None);
        };
        match Devices::default().find(name) {
            Some(found) if FileId::of_path(&found).ok() != FileId::of_path(path).ok() => {
                let notice = format!("log {}: it is {} by now", path.display(), found.display());
                (found, Some(notice))
            }
            _ => (path.to_owned(), None),
        }
    }

    fn disk(&self, path: &Path, mode: SyncMode) -> Result<OpenedLog, LogFileError> {
        let file = LogFile::open(path)?;
        let regions = self.opened.geometry.regions();
        let without_log = SyncMode::without_log(&self.opened.assembly);
        let (mode, disbelief) = match file.judge(self.superblock, self.opened.assembly.session, regions)? {
            Belief::Newest | Belief::Unlabelled => (mode, None),
            Belief::OtherSession => {
                (without_log, Some("the log is not as the last session of the volume left it"))
            }
            Belief::Copy => (without_log, Some("the log is a copy, in another file than before")),
        };
        let log = DiskLog::new(self.opened.geometry.region_size(), regions, file.block, mode);
        file.check_limit(log.io_size())?;
        let image = file.read(log.io_size()).ok();
        let mut log = self.labelled(log, image.as_deref(), file, mode);
        // After a clean stop nothing was lost with it.
        if let (Some(why), SyncMode::Sync) = (disbelief, mode) {
            log.note = Some(format!("{why}: {}", Start::outcome(mode)));
        }
        Ok(log)
    }

    fn new_disk(&self, path: &Path, mode: SyncMode, force: bool) -> Result<OpenedLog, LogFileError> {
        let opened = match LogFile::open(path) {
            Err(LogFileError::NotFound { .. }) => LogFile::create(path),
            opened => opened,
        };
        let mut file = opened?;
        if !force {
            file.check_replaceable(self.superblock)?;
        }
        let geometry = self.opened.geometry;
        let log = DiskLog::new(geometry.region_size(), geometry.regions(), file.block, mode);
        file.make_room(log.io_size())?;
        Ok(self.labelled(log, Some(&[]), file, mode))
    }

    /// The log, read and with its label for the start. One that is not believed is of no session until the start is
    /// recorded: were the write of it torn, its old bits would else be taken for those of this start.
    fn labelled(&self, mut log: DiskLog, image: Option<&[u8]>, file: LogFile, mode: SyncMode) -> OpenedLog {
        let _ = log.resume(&[image]);
        let (session, next) = match mode {
            SyncMode::Default => (self.opened.assembly.session, Some(self.session)),
            SyncMode::Sync | SyncMode::NoSync => (0, None),
        };
        log.set_label(&LogLabel { volume: self.superblock.volume, session, next });
        OpenedLog {
            note: note_text(log.note()),
            log: Box::new(log),
            remote: None,
            place: LogPlace::Disk(file.path.clone()),
            identity: Some(file.identity()),
            file: Some(file.file),
            notices: Vec::new(),
        }
    }
}

/// What was wrong with the log, in words for status.
fn note_text(note: ResumeNote) -> Option<String> {
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
