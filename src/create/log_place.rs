//! The disk log of a volume to be created: looked at before, written with the legs.
//!
//! A file is created or reused, a device is used as it is; both are locked, like legs, while they are
//! worked on. It may not be a leg, and what it holds is overwritten only with force. A log that is to be
//! adopted is read and left as it is: one that is not exactly that of a mirror of this shape is refused.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mirrord_log::remote::Changes;
use mirrord_log::{Backing, DirtyLog, DiskLog, LogPlace, MAX_PLACE, ResumeNote, SyncMode, measure};
use mirrord_raid::{Geometry, Region, SECTOR};
use rustix::fs::{FallocateFlags, fallocate, ioctl_blksszget};
use rustix::io::Errno;
use uuid::Uuid;

use super::CreateOptions;
use super::candidate::Candidate;
use super::error::CreateError;
use super::plan::{Plan, check_free};
use crate::leg::{FileId, Holder, LOCK_PATIENCE, lock_waiting};
use crate::remote::{Address, Remote, RemoteError, Setup};
use crate::units::format_size;
use crate::{extents, signature};

/// The log of the volume.
#[derive(Debug)]
pub(super) struct LogPlan {
    /// As superblocks record it.
    pub(super) place: LogPlace,
    /// The open log file, if it is on disk and exists.
    file: Option<File>,
    block: u32,
    /// What an adopted log says is dirty.
    adopted: Option<Vec<Region>>,
    /// The log on a server, and the volume that it was made for.
    remote: Option<(Remote, Uuid)>,
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
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !options.adopt_log => {
            let dir = absolute.parent().unwrap_or(Path::new("/"));
            fs::metadata(dir).map_err(io_error("create it"))?;
            let log = LogPlan { place, file: None, block: SECTOR as u32, adopted: None, remote: None };
            check_free(dir, path, log.new_log(plan.geometry, false).io_size())?;
            return Ok(log);
        }
        Err(source) => return Err(io_error("look at it")(source)),
    };
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        return Err(CreateError::LogKind { path: path.clone() });
    }
    let flags = if metadata.is_file() { 0 } else { rustix::fs::OFlags::EXCL.bits() as i32 };
    let open = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let file = match open {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
            return Err(CreateError::LogInUse { path: path.clone(), holder: Holder::Unknown });
        }
        file => file.map_err(io_error("open it for writing"))?,
    };
    if let Some(holder) = lock_waiting(&file, LOCK_PATIENCE).map_err(io_error("lock it"))? {
        return Err(CreateError::LogInUse { path: path.clone(), holder });
    }
    let (backing, len) = measure(&file).map_err(io_error("look at it"))?;
    let block = if backing == Backing::Device {
        ioctl_blksszget(&file).unwrap_or(SECTOR as u32)
    } else {
        SECTOR as u32
    };
    let mut log = LogPlan { place, file: Some(file), block, adopted: None, remote: None };
    let need = log.new_log(plan.geometry, false).io_size();
    if backing == Backing::Device && len < need {
        return Err(CreateError::LogTooSmall { path: path.clone(), len, need });
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
    let volume = Uuid::new_v4();
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
        mode: SyncMode::NoSync,
        take_over: false,
        fallback: false,
        tell: None,
    })?;
    Ok(LogPlan { place, file: None, block: 0, adopted: None, remote: Some((remote, volume)) })
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
        let mut image = vec![0; log.io_size().min(len) as usize];
        let io_error = |source| CreateError::Io { path: path.to_owned(), verb: "read it", source };
        file.read_exact_at(&mut image, 0).map_err(io_error)?;
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
        self.remote.as_ref().map(|(_, volume)| *volume)
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

    /// Writes the log, all clean but for `dirty`, unless it was adopted. `created` is told of a file that was
    /// created.
    pub(super) fn write(
        mut self,
        geometry: Geometry,
        dirty: &[Region],
        created: &mut Vec<PathBuf>,
    ) -> Result<(), CreateError> {
        if let Some((remote, _)) = &self.remote {
            remote.commit_and_wait(Changes { marks: dirty.to_vec(), clears: Vec::new() })?;
            remote.stop();
            return Ok(());
        }
        let LogPlace::Disk(path) = &self.place else { return Ok(()) };
        if self.adopted.is_some() {
            return Ok(());
        }
        let io_error = |source| CreateError::Io { path: path.clone(), verb: "write the log", source };
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
                created.push(path.clone());
                file.map_err(io_error)?
            }
        };
        let mut log = self.new_log(geometry, true);
        for region in dirty {
            log.mark(*region);
        }
        if file.metadata().map_err(io_error)?.is_file() {
            match fallocate(&file, FallocateFlags::empty(), 0, log.io_size()) {
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(io_error(errno.into())),
            }
        }
        for write in log.all_pages().writes {
            file.write_all_at(&write.bytes, write.offset).map_err(io_error)?;
        }
        file.sync_all().map_err(io_error)
    }
}
