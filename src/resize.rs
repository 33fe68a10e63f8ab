//! A volume made smaller, while nobody serves it: what is behind its new end is cut off.
//!
//! The legs' metadata stays where it is, and so does what is cut off, out of reach, until the volume grows again and
//! it is made zero. Every leg has to be there, in sync and clean, so that there is one history: a record with the
//! smaller size that reached some legs only is newer than the others, and decides.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use mirrord_log::{LegEntry, Superblock, superblock_write};
use mirrord_raid::{Leg, LegSet, LegState};
use mirrord_ublk::{plain_spawn, ublk};
use uuid::Uuid;

use crate::leg::Patience;
use crate::stamp;
use crate::start::{self, Member, Opened, StartError, StartOptions};

/// Why a volume that is stopped does not have another size. But for [`ShrinkError::Io`] nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ShrinkError {
    /// Its legs do not make it.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Nothing to do.
    #[error("it has that size already")]
    Same,
    /// That is done while it runs.
    #[error("it grows while it runs: start it (mirrord start), then resize it")]
    Larger,
    /// No size for a volume.
    #[error("{size} bytes is no multiple of {unit}, the unit of IO on its legs")]
    Size {
        /// What was asked for, in bytes.
        size: u64,
        /// In bytes.
        unit: u64,
    },
    /// A leg is out, or not there.
    #[error(
        "leg {index}{}: it is not in sync: start the volume, have all legs in sync, and stop it",
        at(path)
    )]
    Leg {
        /// Its index.
        index: usize,
        /// Where it is, if that is known.
        path: Option<PathBuf>,
    },
    /// A leg was written to while the volume was stopped.
    #[error(
        "leg {}: it was written to while it was not served: start the volume with --source naming the leg whose data to \
         take, and stop it", path.display()
    )]
    WrittenTo {
        /// The leg.
        path: PathBuf,
    },
    /// It was killed, or its log could not be emptied.
    #[error("it was not stopped cleanly: start it, wait until it is in sync (mirrord wait), and stop it")]
    Unclean,
    /// A device waits for its daemon, users and all.
    #[error("{} is its device and waits for its daemon: start it, and stop it", path.display())]
    Waits {
        /// The device.
        path: PathBuf,
    },
    /// A leg cannot be written. Those before it have the new size, which counts when all are there.
    #[error("leg {}: recording the new size", path.display())]
    Io {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn at(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or(String::new(), |path| format!(" ({})", path.display()))
}

/// A stopped volume whose legs are open and locked, that may be made smaller.
#[derive(Debug)]
pub struct Shrink {
    opened: Opened,
    size: u64,
}

impl Shrink {
    /// Looks whether the volume on these legs can be made `size` bytes long. Changes nothing.
    ///
    /// # Errors
    /// See [`ShrinkError`].
    pub fn prepare(legs: &[PathBuf], size: u64) -> Result<Shrink, ShrinkError> {
        let opened =
            start::open(legs, &StartOptions { patience: Patience::SHORT, ..StartOptions::default() })?;
        if size == opened.size() {
            return Err(ShrinkError::Same);
        }
        if size > opened.size() {
            return Err(ShrinkError::Larger);
        }
        for (leg, state) in opened.assembly.states(&[]).iter() {
            let member = opened.members[leg].as_ref();
            if *state != LegState::InSync || member.is_none() {
                let path = member.map(|member| member.leg.path.clone());
                return Err(ShrinkError::Leg { index: leg.index(), path });
            }
        }
        let members = || opened.members.iter().filter_map(|(_, member)| member.as_ref());
        if opened.assembly.all_dirty || !members().all(|member| member.metadata.superblock.clean) {
            return Err(ShrinkError::Unclean);
        }
        // The record of the new size would hide it: the next start could compare samples only.
        let was_written_to = |member: &&Member| {
            stamp::was_written_to(&member.leg.meta, member.metadata.superblock.event_count)
        };
        if let Some(member) = members().find(was_written_to) {
            return Err(ShrinkError::WrittenTo { path: member.leg.path.clone() });
        }
        let unit = members().map(|member| u64::from(member.leg.data.offset_align())).fold(512, u64::max);
        if size == 0 || !size.is_multiple_of(unit) {
            return Err(ShrinkError::Size { size, unit });
        }
        if let Ok(Some(path)) = ublk::waiting(opened.uuid().into_bytes(), &plain_spawn()) {
            return Err(ShrinkError::Waits { path });
        }
        Ok(Shrink { opened, size })
    }

    /// Its size now, in bytes.
    pub fn old_size(&self) -> u64 {
        self.opened.size()
    }

    /// Its UUID.
    pub fn uuid(&self) -> Uuid {
        self.opened.uuid()
    }

    /// Records the smaller size on every leg.
    ///
    /// # Errors
    /// [`ShrinkError::Io`].
    pub fn carry_out(self) -> Result<(), ShrinkError> {
        let Opened { assembly, members, .. } = &self.opened;
        // As a session of its own, whose one record is that of its end.
        let mut lineage = assembly.lineage(Uuid::new_v4().as_u64_pair().0);
        lineage.written = members.legs().collect::<LegSet>();
        for (leg, member) in members.iter().filter_map(|(leg, member)| Some((leg, member.as_ref()?))) {
            let superblock = Superblock {
                leg,
                size: self.size,
                event_count: assembly.event_count + 1,
                lineage: lineage.clone(),
                legs: entries(&self.opened, leg),
                ..member.metadata.superblock.clone()
            };
            let (layout, generation) = (&member.metadata.layout, member.metadata.generation + 1);
            let write = superblock_write(layout, &superblock, generation);
            stamp::take_away(&member.leg.meta);
            let written = member.leg.meta.write_all_at(&write.bytes, write.offset);
            written
                .and_then(|()| stamp::leave(&member.leg.meta, superblock.event_count))
                .map_err(|source| ShrinkError::Io { path: member.leg.path.clone(), source })?;
        }
        Ok(())
    }
}

fn entries(opened: &Opened, leg: Leg) -> Vec<LegEntry> {
    let own = opened.members[leg].as_ref().map(|member| member.metadata.superblock.legs.clone());
    let in_sync = |entry: LegEntry| LegEntry { state: LegState::InSync, ..entry };
    own.unwrap_or_default().into_iter().map(in_sync).collect()
}
