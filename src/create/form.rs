//! Carries a plan out: creates and sizes files, writes the log, formats the legs.
//!
//! Until the first leg is formatted every step can be taken back and is, if a later one fails: files
//! that were created are removed, files that were enlarged get their length back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mirrord_log::{
    Backing, DirtyLog, InternalLog, Layout, LegEntry, LogPlace, Superblock, SyncMode, format_leg, wipe_leg,
};
use mirrord_raid::{Held, Leg, LegState, Lineage, Region};
use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::Errno;
use uuid::Uuid;

use super::candidate::Candidate;
use super::error::CreateError;
use super::log_place::LogPlan;
use super::plan::{Origin, Plan};
use crate::extents;
use crate::leg::OpenLeg;
use crate::limits::check_file_size;
use crate::log_place::place_text;
use crate::stamp;

/// The volume that came of it.
#[derive(Debug)]
pub(super) struct Formed {
    pub(super) volume: Uuid,
    pub(super) legs: Vec<PathBuf>,
    /// Where the log is, as the command line has it.
    pub(super) log: String,
}

/// What to take back when it fails.
#[derive(Debug, Default)]
pub(super) struct Undo {
    created: Vec<PathBuf>,
    enlarged: Vec<(File, u64, SystemTime)>,
}

impl Undo {
    /// Makes the entries of new files durable.
    pub(super) fn sync_directories(&self) {
        self.created.iter().for_each(|path| sync_directory(path));
    }

    pub(super) fn keep(mut self) {
        self.created.clear();
        self.enlarged.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for path in &self.created {
            let _ = std::fs::remove_file(path);
        }
        for (file, len, modified) in &self.enlarged {
            let _ = file.set_len(*len).and_then(|()| file.set_modified(*modified));
        }
    }
}

/// Makes the volume.
pub(super) fn form(
    name: &str,
    candidates: Vec<Candidate>,
    plan: &Plan,
    log: LogPlan,
    preallocate: bool,
) -> Result<Formed, CreateError> {
    let dirty = match log.adopted() {
        Some(dirty) => dirty.to_vec(),
        None => dirty_regions(&candidates, plan)?,
    };
    let mut undo = Undo::default();
    let mut legs = Vec::with_capacity(candidates.len());
    for (candidate, layout) in candidates.into_iter().zip(&plan.layouts) {
        let given = candidate.given.clone();
        let was = candidate.there.as_ref().and_then(|there| Some(there.was.as_ref()?.layout));
        let leg = open(candidate, plan.geometry.size(), &mut undo)?;
        make_room(&leg, &given, layout, preallocate, &mut undo)?;
        legs.push((given, leg, was));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let state = |index| match plan.origin {
        Origin::Leg(source) if source != index => LegState::Syncing,
        Origin::Equal | Origin::Leg(_) => LegState::InSync,
    };
    let entry = |index| LegEntry::new(Uuid::new_v4(), state(index));
    let mut superblock = Superblock {
        volume: log.volume().unwrap_or_else(Uuid::new_v4),
        name: name.to_owned(),
        leg: Leg::new(0),
        legs: (0..legs.len()).map(entry).collect(),
        size: plan.geometry.size(),
        region_size: plan.geometry.region_size(),
        log: log.place.clone(),
        log_identity: None,
        leg_file: None,
        event_count: 1,
        lineage: Lineage::new(log.session().unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0), legs.len()),
        held: Held::default(),
        recent: None,
        clean: dirty.is_empty(),
        equal: dirty.is_empty(),
        log_failed: false,
        created: now,
        updated: now,
    };
    let internal = internal_log(&superblock, plan, &dirty);
    let log_text = place_text(&log.place);
    superblock.log_identity = log.write(&superblock, plan.geometry, &dirty, &mut undo.created)?;
    for (index, ((given, leg, was), layout)) in legs.iter().zip(&plan.layouts).enumerate() {
        superblock.leg = Leg::new(index);
        // It would be content of a larger volume, and other than on the other legs.
        if let Some(was) = was.filter(|was| was.room() < layout.room()) {
            wipe_leg(&leg.meta, &was)
                .map_err(|source| CreateError::Format { path: given.clone(), source })?;
        }
        cut(leg, given, layout)?;
        stamp::take_away(&leg.meta);
        format_leg(&leg.meta, layout, &superblock, &internal)
            .map_err(|source| CreateError::Format { path: given.clone(), source })?;
    }
    undo.sync_directories();
    undo.keep();
    let legs = legs.into_iter().map(|(_, leg, _)| leg.path).collect();
    Ok(Formed { volume: superblock.volume, legs, log: log_text })
}

/// Regions in which legs may differ: those in which any of them is not a hole.
fn dirty_regions(candidates: &[Candidate], plan: &Plan) -> Result<Vec<Region>, CreateError> {
    if plan.origin == Origin::Equal {
        return Ok(Vec::new());
    }
    let mut is_dirty = vec![false; plan.geometry.regions() as usize];
    for candidate in candidates {
        let Some(there) = &candidate.there else { continue };
        let mark = |region: Region| is_dirty[region.index()] = true;
        extents::data_regions(&there.leg.meta, plan.geometry, mark).map_err(|source| CreateError::Io {
            path: candidate.given.clone(),
            verb: "read it",
            source,
        })?;
    }
    Ok((0..plan.geometry.regions()).map(Region).filter(|region| is_dirty[region.index()]).collect())
}

/// A file ends with its metadata.
pub(super) fn cut(leg: &OpenLeg, given: &Path, layout: &Layout) -> Result<(), CreateError> {
    let io_error = |source| CreateError::Io { path: given.to_owned(), verb: "change its length", source };
    if leg.backing == Backing::File && leg.len > layout.end {
        leg.meta.set_len(layout.end).map_err(io_error)?;
    }
    Ok(())
}

pub(super) fn open(candidate: Candidate, size: u64, undo: &mut Undo) -> Result<OpenLeg, CreateError> {
    let Candidate { given, there, .. } = candidate;
    if let Some(there) = there {
        return Ok(there.leg);
    }
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&given);
    created.map_err(|source| CreateError::Io { path: given.clone(), verb: "create it", source })?;
    undo.created.push(given.clone());
    let leg = OpenLeg::open(&given)?;
    let block = leg.data.offset_align();
    if !size.is_multiple_of(block.into()) {
        return Err(CreateError::BlockSize { size, block, path: given });
    }
    Ok(leg)
}

/// Gives a file its length and allocates its metadata, or all of it.
pub(super) fn make_room(
    leg: &OpenLeg,
    given: &Path,
    layout: &Layout,
    preallocate: bool,
    undo: &mut Undo,
) -> Result<(), CreateError> {
    if leg.backing == Backing::Device {
        return Ok(());
    }
    check_file_size("leg", given, leg.backing, layout.end)?;
    let io_error = |verb| move |source| CreateError::Io { path: given.to_owned(), verb, source };
    if leg.len < layout.end {
        let again = leg.meta.try_clone().map_err(io_error("open it"))?;
        let modified = leg.meta.metadata().and_then(|metadata| metadata.modified());
        leg.meta.set_len(layout.end).map_err(io_error("enlarge it"))?;
        undo.enlarged.push((again, leg.len, modified.map_err(io_error("look at it"))?));
    }
    let from = if preallocate { 0 } else { layout.room() };
    match fallocate(&leg.meta, FallocateFlags::empty(), from, layout.end - from) {
        Ok(()) => Ok(()),
        // Formatting writes the metadata; where files cannot be allocated that has to do.
        Err(Errno::OPNOTSUPP) if !preallocate => Ok(()),
        Err(Errno::NOSPC) => Err(full(leg, given, layout.end - from)),
        Err(errno) => Err(io_error("allocate it")(io::Error::from(errno))),
    }
}

/// Not every free block can be had: file systems keep some back.
fn full(leg: &OpenLeg, given: &Path, need: u64) -> CreateError {
    let free = fstatvfs(&leg.meta).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    CreateError::NoSpace { path: given.to_owned(), need, free }
}

/// The internal log is there whatever the kind; one that is not used vouches for nothing.
fn internal_log(superblock: &Superblock, plan: &Plan, dirty: &[Region]) -> InternalLog {
    let is_used = superblock.log == LogPlace::Internal;
    let mode = if is_used { SyncMode::NoSync } else { SyncMode::Sync };
    let geometry = plan.geometry;
    let mut log = InternalLog::new(superblock.volume, geometry.region_size(), geometry.regions(), mode);
    if is_used {
        for region in dirty {
            log.mark(*region);
        }
    }
    log
}

/// Makes the entry of a new file durable. One that is lost is missed at start, nothing worse.
fn sync_directory(path: &Path) {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
        tracing::warn!(dir = %dir.display(), %error, "cannot make a new file's name durable");
    }
}
