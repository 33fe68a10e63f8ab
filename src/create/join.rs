//! A leg that comes to a volume that is there: looked at as a leg of a new volume would be, then made. It holds
//! nothing of the volume until it is copied to.

use std::path::{Path, PathBuf};

use mirrord_log::{InternalLog, Layout, LegEntry, Superblock, SyncMode, format_leg};
use mirrord_raid::{Geometry, Leg, LegState};
use uuid::Uuid;

use super::candidate::{self, Candidate};
use super::error::CreateError;
use super::form::{self, Undo};
use super::plan;
use crate::leg::OpenLeg;
use crate::signature::MIRRORD;
use crate::stamp;

/// A leg-to-be, open and locked, for which there is room. Dropped, it is as it was.
#[derive(Debug)]
pub(crate) struct Joining {
    pub(crate) leg: OpenLeg,
    pub(crate) layout: Layout,
    given: PathBuf,
    undo: Undo,
}

impl Joining {
    /// Looks at what is at `path` and makes room for a leg of a volume like this.
    ///
    /// # Errors
    /// See [`CreateError`]: also if there is anything on it, without `force`.
    pub(crate) fn look(
        path: &Path,
        geometry: Geometry,
        force: bool,
        preallocate: bool,
    ) -> Result<Joining, CreateError> {
        let mut candidates = candidate::look(&[path.to_owned()])?;
        let candidate = candidates.pop().expect("one path, one candidate");
        if !force {
            check_empty(&candidate)?;
        }
        let layout = plan::layout(&candidate, geometry)?;
        let (size, given) = (geometry.size(), candidate.given.clone());
        if layout.room() < size {
            return Err(CreateError::TooSmall { path: given, size, room: layout.room() });
        }
        plan::check_space(std::slice::from_ref(&candidate), &[layout], preallocate)?;
        let mut undo = Undo::default();
        let leg = form::open(candidate, size, &mut undo)?;
        form::make_room(&leg, &given, &layout, preallocate, &mut undo)?;
        Ok(Joining { leg, layout, given, undo })
    }

    /// Makes it a leg of the volume whose superblocks are `like` this. It calls itself a spare, of an event before
    /// all others: so what it says never decides, and it holds nothing until the others say so.
    ///
    /// # Errors
    /// See [`CreateError`]. It is no leg then.
    pub(crate) fn make(
        self,
        like: Superblock,
        leg: Leg,
        uuid: Uuid,
    ) -> Result<(OpenLeg, Layout), CreateError> {
        let Joining { leg: open, layout, given, undo } = self;
        let mut legs = like.legs.clone();
        legs.resize(legs.len().max(leg.index() + 1), LegEntry::VACANT);
        legs[leg.index()] = LegEntry::new(uuid, LegState::Spare);
        let superblock = Superblock { leg, legs, event_count: 0, clean: false, ..like };
        let regions = superblock.geometry().map_or(0, |geometry| geometry.regions());
        // It vouches for nothing.
        let log = InternalLog::new(superblock.volume, superblock.region_size, regions, SyncMode::Sync);
        form::cut(&open, &given, &layout)?;
        stamp::take_away(&open.meta);
        format_leg(&open.meta, &layout, &superblock, &log)
            .map_err(|source| CreateError::Format { path: given.clone(), source })?;
        undo.sync_directories();
        undo.keep();
        Ok((open, layout))
    }
}

/// Everything there would be overwritten.
fn check_empty(candidate: &Candidate) -> Result<(), CreateError> {
    let Some(there) = &candidate.there else { return Ok(()) };
    let path = candidate.given.clone();
    let way_out = || "give --force to overwrite it".to_owned();
    if let Some(found) = there.signatures.first() {
        let name = match &there.was {
            Some(was) if found.name == MIRRORD => {
                format!("leg {} of the mirrord volume {}", was.superblock.leg.index(), was.superblock.name)
            }
            _ => found.name.to_owned(),
        };
        let (what, offset, way_out) = ("leg", found.offset, way_out());
        return Err(CreateError::Signature { what, path, name, offset, way_out });
    }
    if there.has_data { Err(CreateError::HoldsData { path, way_out: way_out() }) } else { Ok(()) }
}
