//! The disk log of a volume to be created: looked at before, written with the legs.
//!
//! A file is created or reused, a device is used as it is; both are locked, like legs, while they are
//! worked on. It may not be a leg, and what it holds is overwritten only with force. A log that is to be
//! adopted is read and left as it is: one that is not exactly that of a mirror of this shape is refused.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use mirrord_log::remote::Changes;
use mirrord_log::{
    Backing, DirtyLog, DiskLog, LogIdentity, LogLabel, LogPlace, MAX_PLACE, PageWrite, ResumeNote,
    Superblock, SyncMode,
};
use mirrord_raid::{Geometry, Region, SECTOR};
use uuid::Uuid;

use super::CreateOptions;
use super::candidate::Candidate;
use super::error::CreateError;
use super::plan::{Plan, check_free};
use crate::leg::FileId;
use crate::log_file::{LogFile, LogFileError};
use crate::remote::{Address, Remote, RemoteError, Setup};
use crate::units::format_size;
use crate::{extents, signature};

/// The log of the volume.
#[derive(Debug)]
pub(super) struct LogPlan {
    /// As superblocks record it.
    pub(super) place: LogPlace,
    /// The open log file, if it is on disk and exists.
    file: Option<LogFile>,
    block: u32,
    /// What an adopted log says is dirty.
    adopted: Option<Vec<Region>>,
    /// The log on a server, and the volume and session that it was made for.
    remote: Option<(Remote, Uuid, u64)>,
}

/// Checks the log that was asked for.
pub(super) fn look(options: &CreateOptions, legs: &[Candidate], plan: &Plan) -> Result<LogPlan, CreateError> {
    let path = match &options.log {
        LogPlace::Disk(path) => path,
        LogPlace::Remote(address) if !options.adopt_log => return look_at_server(address, options, plan),
        _ if options.adopt_log => return Err(CreateError::AdoptWhat),
        other => {
            return Ok(LogPlan { place: other.clone(), file: None, block: 0, adopted: None, remote: None });
        }
    };
    let io_error = |verb| move |source| CreateError::Io { path: path.clone(), verb, source };
    let absolute = std::path::absolute(path).map_err(io_error("find it"))?;
    if absolute.as_os_str().len() > MAX_PLACE {
        return Err(CreateError::LogPathTooLong { path: path.clone() });
    }
    let id = FileId::of_path(path).ok();
    let is_leg = |leg: &&Candidate| match &leg.there {
        Some(there) => Some(there.leg.id()) == id,
        None => same_place(&leg.path, &absolute),
    };
    if let Some(leg) = legs.iter().find(is_leg) {
        return Err(CreateError::LogIsLeg { path: path.clone(), leg: leg.given.clone() });
    }
    let place = LogPlace::Disk(absolute.clone());
    let file = match LogFile::open(path) {
        Ok(file) => file,
        Err(LogFileError::NotFound { .. }) if !options.adopt_log => {
            let dir = absolute.parent().unwrap_or(Path::new("/"));
            fs::metadata(dir).map_err(io_error("create it"))?;
            let log = LogPlan { place, file: None, block: SECTOR as u32, adopted: None, remote: None };
            check_free(dir, path, log.new_log(plan.geometry, false).io_size())?;
            return Ok(log);
        }
        Err(error) => return Err(error.into()),
    };
    let (backing, len) = (file.backing, file.len);
    let metadata = file.file.metadata().map_err(io_error("look at it"))?;
    let mut log = LogPlan { place, block: file.block, file: Some(file), adopted: None, remote: None };
    let need = log.new_log(plan.geometry, false).io_size();
    if backing == Backing::Device && len < need {
        return Err(LogFileError::TooSmall { path: path.clone(), len, need }.into());
    }
    if options.adopt_log {
        log.adopted = Some(log.read(path, len, plan.geometry)?);
        return Ok(log);
    }
    if !options.force {
        log.check_content(path, len)?;
    }
    if backing == Backing::File {
        check_free(path, path, need.saturating_sub(metadata.blocks() * SECTOR))?;
    }
    Ok(log)
}

/// Makes the log on its server, all clean.
fn look_at_server(address: &str, options: &CreateOptions, plan: &Plan) -> Result<LogPlan, CreateError> {
    let parsed: Address =
        address.parse().map_err(|source| RemoteError::Address { text: address.to_owned(), source })?;
    let (volume, session) = (Uuid::new_v4(), Uuid::new_v4().as_u64_pair().0);
    let place = LogPlace::Remote(parsed.to_string());
    if parsed.to_string().len() > MAX_PLACE {
        return Err(CreateError::LogPathTooLong { path: address.into() });
    }
    let (remote, _) = Remote::open(Setup {
        address: parsed,
        tls: options.serve.log_tls.clone(),
        volume,
        size: plan.geometry.size(),
        region_size: plan.geometry.region_size(),
        session,
        mode: SyncMode::NoSync,
        last: None,
        take_over: false,
        fallback: false,
        tell: None,
    })?;
    Ok(LogPlan { place, file: None, block: 0, adopted: None, remote: Some((remote, volume, session)) })
}

/// Whether two paths of files that need not exist are one.
fn same_place(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    one == other || (place(one).is_some() && place(one) == place(other))
}

impl LogPlan {
    fn check_content(&self, path: &Path, len: u64) -> Result<(), CreateError> {
        let Some(file) = &self.file else { return Ok(()) };
        let io_error = |source| CreateError::Io { path: path.to_owned(), verb: "read it", source };
        let file = &file.file;
        let found = signature::found(file, len).map_err(io_error)?;
        let (name, offset) = match found.first() {
            Some(found) => (found.name, found.offset),
            None if extents::has_data(file, 0..len).map_err(io_error)? => ("data", 0),
            None => return Ok(()),
        };
        Err(CreateError::Signature {
            what: "log",
            path: path.to_owned(),
            name: name.to_owned(),
            offset,
            way_out: "name another file, or give --force to overwrite it".to_owned(),
        })
    }

    /// The dirty regions of the log that is there.
    fn read(&self, path: &Path, len: u64, geometry: Geometry) -> Result<Vec<Region>, CreateError> {
        let refuse = |why| Err(CreateError::NoSuchLog { path: path.to_owned(), why });
        let (regions, Some(file)) = (geometry.regions(), &self.file) else { return refuse(String::new()) };
        let mut log = DiskLog::new(geometry.region_size(), regions, self.block, SyncMode::Default);
        let image = file.read(log.io_size().min(len))?;
        let _ = log.resume(&[Some(&image)]);
        let fits = |had: u64| had == u64::from(regions);
        match (log.note(), DiskLog::regions_of(&image)) {
            (ResumeNote::Trusted, Some(had)) if fits(had) => Ok(log.dirty().collect()),
            (ResumeNote::Trusted | ResumeNote::Grown { .. } | ResumeNote::TooShort { .. }, Some(had))
                if !fits(had) =>
            {
                let size = geometry.region_size();
                refuse(format!("it has {had} regions, and the volume {regions} of {}", format_size(size)))
            }
            (ResumeNote::TooShort { len, need }, _) => refuse(format!("{len} of its {need} bytes are there")),
            (ResumeNote::UnknownVersion { version }, _) => {
                refuse(format!("its version is {version}, not 1 or 2"))
            }
            _ => refuse("there is none".to_owned()),
        }
    }

    /// The volume that the log was made for; any other can be made if there is none.
    pub(super) fn volume(&self) -> Option<Uuid> {
        self.remote.as_ref().map(|(_, volume, _)| *volume)
    }

    /// The session that had the log; any other can be that of a volume whose log no server keeps.
    pub(super) fn session(&self) -> Option<u64> {
        self.remote.as_ref().map(|(_, _, session)| *session)
    }

    /// The regions that an adopted log says are dirty.
    pub(super) fn adopted(&self) -> Option<&[Region]> {
        self.adopted.as_deref()
    }

    /// What the user should know of the log.
    pub(super) fn notice(&self) -> Option<String> {
        let (LogPlace::Disk(path), Some(dirty)) = (&self.place, &self.adopted) else { return None };
        Some(format!("log {} is adopted: {} regions are dirty", path.display(), dirty.len()))
    }

    fn new_log(&self, geometry: Geometry, clean: bool) -> DiskLog {
        let mode = if clean { SyncMode::NoSync } else { SyncMode::Sync };
        let mut log = DiskLog::new(geometry.region_size(), geometry.regions(), self.block, mode);
        // All clean or all dirty as the mode says: there is nothing yet to read.
        let _ = log.resume(&[Some(&[])]);
        log
    }

    /// Writes the log of the volume, all clean but for `dirty`; of one that was adopted the label alone, which the kernel
    /// takes no notice of. `created` is told of a file that was created. Gives what superblocks are to say of it.
    pub(super) fn write(
        mut self,
        superblock: &Superblock,
        geometry: Geometry,
        dirty: &[Region],
        created: &mut Vec<PathBuf>,
    ) -> Result<Option<LogIdentity>, CreateError> {
        if let Some((remote, ..)) = &self.remote {
            remote.commit_and_wait(Changes { marks: dirty.to_vec(), clears: Vec::new() })?;
            remote.stop();
            return Ok(None);
        }
        let LogPlace::Disk(path) = &self.place else { return Ok(None) };
        let io_error = |source| CreateError::Io { path: path.clone(), verb: "write the log", source };
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = LogFile::create(path)?;
                created.push(path.clone());
                file
            }
        };
        let mut log = self.new_log(geometry, true);
        for region in dirty {
            log.mark(*region);
        }
        file.make_room(log.io_size())?;
        if self.adopted.is_some() {
            let _ = log.resume(&[Some(&file.read(log.io_size())?)]);
        }
        log.set_label(&LogLabel {
            volume: superblock.volume,
            session: superblock.lineage.session,
            next: None,
        });
        for mut write in log.all_pages().writes {
            if self.adopted.is_some() {
                write = PageWrite {
                    offset: SECTOR,
                    bytes: write.bytes[SECTOR as usize..][..SECTOR as usize].to_vec(),
                };
            }
            file.file.write_all_at(&write.bytes, write.offset).map_err(io_error)?;
        }
        file.file.sync_all().map_err(io_error)?;
        Ok(Some(file.identity()))
    }
}
