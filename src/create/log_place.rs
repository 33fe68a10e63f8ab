//! The disk log of a volume to be created: looked at before, written with the legs.
//!
//! A file is created or reused, a device is used as it is; both are locked, like legs, while they are
//! worked on. It may not be a leg, and what it holds is overwritten only with force.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mirrord_log::{Backing, DirtyLog, DiskLog, LogPlace, MAX_PLACE, SyncMode, measure};
use mirrord_raid::{Geometry, SECTOR};
use rustix::fs::{FallocateFlags, fallocate, ioctl_blksszget};
use rustix::io::Errno;

use super::candidate::Candidate;
use super::error::CreateError;
use super::plan::{Plan, check_free};
use crate::leg::{FileId, Holder, LOCK_PATIENCE, lock_waiting};
use crate::{extents, signature};

/// The log of the volume.
#[derive(Debug)]
pub(super) struct LogPlan {
    /// As superblocks record it.
    pub(super) place: LogPlace,
    /// The open log file, if it is on disk and exists.
    file: Option<File>,
    block: u32,
}

/// Checks the log that was asked for.
pub(super) fn look(
    place: &LogPlace,
    legs: &[Candidate],
    plan: &Plan,
    force: bool,
) -> Result<LogPlan, CreateError> {
    let path = match place {
        LogPlace::Disk(path) => path,
        LogPlace::Remote(_) => return Err(CreateError::RemoteLog),
        other => return Ok(LogPlan { place: other.clone(), file: None, block: 0 }),
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
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let dir = absolute.parent().unwrap_or(Path::new("/"));
            fs::metadata(dir).map_err(io_error("create it"))?;
            let log = LogPlan { place, file: None, block: SECTOR as u32 };
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
    let log = LogPlan { place, file: Some(file), block };
    let need = log.new_log(plan.geometry, false).io_size();
    if backing == Backing::Device && len < need {
        return Err(CreateError::LogTooSmall { path: path.clone(), len, need });
    }
    if !force {
        log.check_content(path, len)?;
    }
    if backing == Backing::File {
        check_free(path, path, need.saturating_sub(metadata.blocks() * SECTOR))?;
    }
    Ok(log)
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

    fn new_log(&self, geometry: Geometry, clean: bool) -> DiskLog {
        let mode = if clean { SyncMode::NoSync } else { SyncMode::Sync };
        let mut log = DiskLog::new(geometry.region_size(), geometry.regions(), self.block, mode);
        // All clean or all dirty as the mode says: there is nothing yet to read.
        let _ = log.resume(&[Some(&[])]);
        log
    }

    /// Writes the log, all clean but for `dirty`. `created` is told of a file that was created.
    pub(super) fn write(
        mut self,
        geometry: Geometry,
        dirty: &[mirrord_raid::Region],
        created: &mut Vec<PathBuf>,
    ) -> Result<(), CreateError> {
        let LogPlace::Disk(path) = &self.place else { return Ok(()) };
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
