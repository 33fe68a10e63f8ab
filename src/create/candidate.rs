//! A leg-to-be before anything is done to it: what is there, what it holds, how much fits.
//!
//! Opens and locks legs that are there and looks for the place of those that are not. Changes
//! nothing.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mirrord_log::{Backing, LegMetadata, read_leg};
use mirrord_raid::SECTOR;
use mirrord_ublk::NodeKind;
use rustix::fs::{Access, access};

use super::error::CreateError;
use crate::extents;
use crate::leg::{FileId, LegError, OpenLeg, Patience, same_twice};
use crate::signature::{self, Signature};

/// A leg-to-be.
#[derive(Debug)]
pub(super) struct Candidate {
    /// As it was given, for messages.
    pub(super) given: PathBuf,
    /// Absolute.
    pub(super) path: PathBuf,
    /// Device number of the file system it is or will be on; 0 for a block device.
    pub(super) file_system: u64,
    /// A file or directory on that file system.
    pub(super) beside: PathBuf,
    /// What is there.
    pub(super) there: Option<There>,
}

/// A leg-to-be that exists.
#[derive(Debug)]
pub(super) struct There {
    /// Open and locked.
    pub(super) leg: OpenLeg,
    /// Bytes from its start that count as its content: all, or the volume if it was a leg before.
    pub(super) content: u64,
    /// Whether there is anything but holes and zeroes in it.
    pub(super) has_data: bool,
    /// What its content or end says it is.
    pub(super) signatures: Vec<Signature>,
    /// The volume it was a leg of.
    pub(super) was: Option<LegMetadata>,
    /// Bytes allocated to it.
    pub(super) allocated: u64,
}

/// Looks at every path.
///
/// # Errors
/// Whatever makes one of them no leg.
pub(super) fn look(paths: &[PathBuf]) -> Result<Vec<Candidate>, CreateError> {
    check_distinct(paths)?;
    paths.iter().map(|path| Candidate::look(path)).collect()
}

/// Two paths that lead, or would lead, to one file.
fn check_distinct(paths: &[PathBuf]) -> Result<(), CreateError> {
    let mut ids = Vec::new();
    let mut missing: Vec<(&PathBuf, PathBuf)> = Vec::new();
    for path in paths {
        match FileId::of_path(path) {
            Ok(id) => ids.push((path.as_path(), id)),
            Err(_) => {
                let place = place(path)?;
                if let Some((one, _)) = missing.iter().find(|(_, earlier)| *earlier == place) {
                    let (one, other) = ((*one).clone(), path.clone());
                    return Err(LegError::SameTwice { one, other }.into());
                }
                missing.push((path, place));
            }
        }
    }
    Ok(same_twice(&ids)?)
}

/// Where a file that does not exist would be: its directory without links, and its name.
fn place(path: &Path) -> Result<PathBuf, CreateError> {
    let io_error = |source| CreateError::Io { path: path.to_owned(), verb: "create it", source };
    if path.to_str().is_none() {
        return Err(LegError::NotUtf8 { path: path.to_owned() }.into());
    }
    if fs::symlink_metadata(path).is_ok() {
        // It is there and leads nowhere, or somewhere that cannot be looked at.
        let source = fs::metadata(path).err().unwrap_or_else(|| io::ErrorKind::AlreadyExists.into());
        return Err(CreateError::Io { path: path.to_owned(), verb: "look at what is there", source });
    }
    let absolute = std::path::absolute(path).map_err(io_error)?;
    let (Some(dir), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(LegError::Kind { path: path.to_owned(), kind: NodeKind::Directory }.into());
    };
    let dir = dir.canonicalize().map_err(io_error)?;
    access(&dir, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| io_error(errno.into()))?;
    Ok(dir.join(name))
}

impl Candidate {
    fn look(given: &Path) -> Result<Candidate, CreateError> {
        let io_error = |verb| {
            let path = given.to_owned();
            move |source| CreateError::Io { path, verb, source }
        };
        if fs::symlink_metadata(given).is_err() {
            let place = place(given)?;
            let dir = place.parent().unwrap_or(Path::new("/")).to_owned();
            let file_system = fs::metadata(&dir).map_err(io_error("look at its directory"))?.dev();
            let path = std::path::absolute(given).map_err(io_error("find it"))?;
            return Ok(Candidate { given: given.to_owned(), path, file_system, beside: dir, there: None });
        }
        let leg = OpenLeg::open_waiting(given, Patience::SHORT)?;
        let metadata = leg.meta.metadata().map_err(io_error("look at it"))?;
        let was = read_leg(&leg.meta, leg.backing, leg.len).ok();
        let content = was.as_ref().map_or(leg.len, |was| was.superblock.size.min(leg.len));
        let signatures = signature::found(&leg.meta, leg.len).map_err(io_error("read it"))?;
        let has_data = extents::has_data(&leg.meta, 0..content).map_err(io_error("read it"))?;
        let file_system = if leg.backing == Backing::File { metadata.dev() } else { 0 };
        Ok(Candidate {
            given: given.to_owned(),
            path: leg.path.clone(),
            file_system,
            beside: leg.path.clone(),
            there: Some(There {
                leg,
                content,
                has_data,
                signatures,
                was,
                allocated: metadata.blocks().saturating_mul(SECTOR),
            }),
        })
    }

    /// Whether it is a block device.
    pub(super) fn is_device(&self) -> bool {
        self.there.as_ref().is_some_and(|there| there.leg.backing == Backing::Device)
    }

    /// Whether it holds data.
    pub(super) fn has_data(&self) -> bool {
        self.there.as_ref().is_some_and(|there| there.has_data)
    }

    /// What IO on it must be aligned to, in bytes; a sector where that is not known yet.
    pub(super) fn block(&self) -> u32 {
        self.there.as_ref().map_or(SECTOR as u32, |there| there.leg.data.offset_align())
    }
}
