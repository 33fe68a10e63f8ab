//! Legs that come to a running volume anew, and leave it for good.
//!
//! A new leg is made on its file first, then given to every thread, then to the log worker, which copies the volume
//! to it. One that leaves is recorded as gone first, then every thread lets go of it, then its metadata is wiped.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mirrord_log::{
    Backing, InternalLog, LegEntry, LegMetadata, LogPlace, Superblock, SyncMode, convert_leg, wipe_leg,
};
use mirrord_raid::{Held, Leg, LegSet, LegState, Lineage, WorkerEvent};
use uuid::Uuid;

use super::legs::{ChangeError, read, read_at};
use super::shared::lock;
use super::status::{LegCounts, LegFacts};
use super::worker::LegMeta;
use super::{SparePolicy, Volume};
use crate::create::Joining;
use crate::failure::describe;
use crate::leg::{FileId, OpenLeg, Patience};
use crate::stamp;

/// What a new leg is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// One copy more.
    Copy,
    /// To take the place of a leg that fails.
    Spare,
    /// To take the place of this leg, which leaves once the new one is in sync.
    Replace(Leg),
}

impl Volume {
    /// Makes a leg of what is at `path` and adds it. Overwrites what is there with `force` only. Returns once it is
    /// recorded: as a spare, or being copied to. Before that `remember` is told of it: a volume whose legs nobody
    /// knows where to find cannot be started.
    ///
    /// # Errors
    /// See [`ChangeError`]. Nothing was changed, but after [`ChangeError::Io`] and [`ChangeError::Fill`].
    pub fn new_leg(
        &self,
        path: &Path,
        purpose: Purpose,
        force: bool,
        preallocate: bool,
        remember: impl FnOnce(Leg, &Path),
    ) -> Result<Leg, ChangeError> {
        let _one = lock(&self.changing);
        self.check_not_own(path)?;
        self.check_not_where_another_was(path)?;
        let replaces = match purpose {
            Purpose::Replace(old) => Some(self.check_replaceable(old)?),
            Purpose::Copy | Purpose::Spare => None,
        };
        let leg = self.free_index(path)?;
        let source = self.shared.mirror.legs.states().in_sync().lowest();
        let source = source.ok_or_else(|| ChangeError::Restless { path: path.to_owned() })?;
        let joining = Joining::look(path, self.shared.mirror.geometry(), force, preallocate)?;
        let block_size = joining.leg.data.offset_align();
        if block_size > self.facts.block_size {
            return Err(ChangeError::BlockSize { path: path.to_owned(), block_size });
        }
        let uuid = Uuid::new_v4();
        let like = self.read_leg_in_use(source)?.superblock;
        let (open, layout) = joining.make(like, leg, uuid)?;
        let meta = LegMeta {
            grows: open.backing == Backing::File,
            hung: LegMeta::hung(&open.data),
            data: Arc::clone(&open.data),
            file: open.meta,
            layout,
            // As `format_leg` leaves it.
            generation: 1,
        };
        remember(leg, &open.path);
        self.exchange(leg, Some(&open.data), Some(meta), Some(uuid))?;
        let direct = open.data.direct();
        let before = LegCounts::of(&self.shared.mirror.legs.counters[leg]);
        lock(&self.watch).moved(leg, open.path.display().to_string());
        lock(&self.facts.legs)[leg] = LegFacts { path: open.path, uuid, direct, before };
        lock(&self.files)[leg] = Some(open.data);
        let recorded = if purpose == Purpose::Spare {
            self.shared.mailbox.send(WorkerEvent::AddSpare { leg });
            self.await_state(leg, "recording the spare", |volume| {
                Ok(volume.state(leg) == LegState::Spare && volume.is_recorded(leg))
            })
        } else {
            self.take_in(leg, true, replaces)
        };
        if let Err(error) = recorded {
            // As long as the others may say that it is a leg it stays one.
            let _ = self.remove(leg).and_then(|()| self.let_go(leg)).and_then(|()| self.wipe(leg));
            return Err(error);
        }
        self.tell_of_spares();
        Ok(leg)
    }

    /// Removes a leg for good and lets go of it; its metadata is wiped, its data stays. Returns what the user
    /// should know.
    ///
    /// # Errors
    /// See [`ChangeError`]; it is still a leg then, but after [`ChangeError::Io`].
    pub fn remove_leg(&self, leg: Leg) -> Result<Option<String>, ChangeError> {
        let _one = lock(&self.changing);
        self.remove(leg)?;
        let path = self.leg_path(leg);
        let left = self.let_go(leg).and_then(|()| self.wipe(leg));
        Ok(left.err().map(|error| {
            format!(
                "what {} says of itself could not be wiped ({}); should it turn up again, it is refused as none \
                 of the volume's",
                path.display(),
                describe(&error)
            )
        }))
    }

    /// After a leg left by itself because another took its place: lets go of it. Wiped is only what did not fail.
    /// Whether there was such a leg.
    pub fn dispose_of_removed(&self, leg: Leg, had_failed: bool) -> bool {
        let _one = lock(&self.changing);
        let is_removed = self.state(leg) == LegState::Vacant && self.is_recorded(leg);
        if !is_removed || lock(&self.facts.legs)[leg].uuid.is_nil() {
            return false;
        }
        let gone = self.let_go(leg).and_then(|()| if had_failed { Ok(()) } else { self.wipe(leg) });
        if let Err(error) = gone {
            tracing::warn!(leg = leg.index(), "{}", describe(&error));
        }
        lock(&self.facts.legs)[leg] = LegFacts::default();
        true
    }

    /// Makes a leg, in sync or split off, a volume of its own called `name`, as the volume is now, or was when
    /// the leg was split off. Returns how long writes waited and the new volume's UUID.
    ///
    /// # Errors
    /// See [`ChangeError`]: after one it may be split off and tracked.
    pub fn split_leg_as(&self, leg: Leg, name: &str) -> Result<(Duration, Uuid), ChangeError> {
        let pause = match self.state(leg) {
            LegState::Tracked => Duration::ZERO,
            _ => self.split_leg(leg)?,
        };
        let _one = lock(&self.changing);
        if self.state(leg) != LegState::Tracked {
            return Err(self.wrong_state(leg, "it was given back meanwhile"));
        }
        let path = self.leg_path(leg);
        let open = OpenLeg::open_waiting(&path, Patience::SHORT)?;
        let metadata = read(&open.meta, open.backing, open.len, &open.path)?;
        let own = &metadata.superblock;
        let uuid = if own.volume != self.facts.uuid && own.name == name {
            // It was made so before, and that was not recorded.
            own.volume
        } else if own.volume == self.facts.uuid && own.leg_uuid() == lock(&self.facts.legs)[leg].uuid {
            let superblock = alone(name, &metadata);
            let regions = superblock.geometry().map_or(0, |geometry| geometry.regions());
            let (volume, region_size) = (superblock.volume, superblock.region_size);
            let log = InternalLog::new(volume, region_size, regions, SyncMode::NoSync);
            convert_leg(&open.meta, &metadata, &superblock, &log)
                .map_err(|source| ChangeError::Make { path: path.clone(), source })?;
            superblock.volume
        } else {
            return Err(ChangeError::Stranger { path });
        };
        drop(open);
        self.remove(leg)?;
        lock(&self.facts.legs)[leg] = LegFacts::default();
        Ok((pause, uuid))
    }

    /// Tells the log worker which spares can be used.
    pub(super) fn tell_of_spares(&self) {
        let states = self.shared.mirror.legs.states();
        let files = lock(&self.files);
        let ready: LegSet = states.spare().iter().filter(|&leg| files[leg].is_some()).collect();
        self.shared
            .mailbox
            .send(WorkerEvent::Spares { ready, allocate: self.spares == SparePolicy::Allocate });
    }

    /// Has a leg recorded as gone.
    fn remove(&self, leg: Leg) -> Result<(), ChangeError> {
        if self.state(leg).is_in_use() {
            self.check_not_last(leg)?;
        }
        self.shared.mailbox.send(WorkerEvent::Remove { leg });
        self.await_state(leg, "recording that it is removed", |volume| match volume.state(leg) {
            LegState::Vacant => Ok(volume.is_recorded(leg)),
            LegState::InSync => volume.check_not_last(leg).map(|()| false),
            _ => Ok(false),
        })
    }

    /// Wipes the metadata of a leg that is none any more, and forgets where it was.
    fn wipe(&self, leg: Leg) -> Result<(), ChangeError> {
        let LegFacts { path, uuid, .. } = std::mem::take(&mut lock(&self.facts.legs)[leg]);
        if self.shared.fenced.load(Ordering::SeqCst) {
            let source =
                std::io::Error::other("another daemon has the log now: this one writes nothing any more");
            return Err(ChangeError::Io { path, doing: "wiping its metadata", source });
        }
        let open = OpenLeg::open_waiting(&path, Patience::SHORT)?;
        let metadata = read(&open.meta, open.backing, open.len, &open.path)?;
        if metadata.superblock.volume != self.facts.uuid || metadata.superblock.leg_uuid() != uuid {
            // Something else is there by now.
            return Ok(());
        }
        stamp::take_away(&open.meta);
        wipe_leg(&open.meta, &metadata.layout).map_err(|source| ChangeError::Make { path, source })
    }

    /// An index for a new leg.
    fn free_index(&self, path: &Path) -> Result<Leg, ChangeError> {
        let vacant = self.shared.mirror.legs.states().vacant();
        let (files, legs) = (lock(&self.files), lock(&self.facts.legs));
        // One that hangs keeps its file, and with that its index.
        let is_free = |leg: &Leg| self.is_recorded(*leg) && legs[*leg].uuid.is_nil() && files[*leg].is_none();
        vacant.iter().find(is_free).ok_or_else(|| ChangeError::Full { path: path.to_owned() })
    }

    fn check_replaceable(&self, old: Leg) -> Result<Leg, ChangeError> {
        if !matches!(self.state(old), LegState::InSync | LegState::Syncing | LegState::Failed(_)) {
            return Err(self.wrong_state(old, "only a leg in use, or one that failed, can be replaced"));
        }
        let replaces = *lock(&self.shared.replaces);
        let states = self.shared.mirror.legs.states();
        let by = states.in_use().iter().find(|by| replaces[by.index()] == Some(old));
        match by {
            Some(by) => Err(ChangeError::Replaced { path: self.leg_path(old), by: self.leg_path(by) }),
            None => Ok(old),
        }
    }

    /// Where a leg is, or was, nothing that is not this leg comes in its place unasked.
    fn check_not_where_another_was(&self, path: &Path) -> Result<(), ChangeError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let legs = lock(&self.facts.legs);
        let there = legs.iter().find(|(_, known)| !known.uuid.is_nil() && known.path == path);
        let Some((leg, _)) = there else { return Ok(()) };
        drop(legs);
        Err(self.wrong_state(
            leg,
            "and what is there now is not this leg: name it where it is, or remove it first (mirrord leg remove)",
        ))
    }

    /// The volume itself is no leg of the volume: whoever opened it here would wait for himself.
    fn check_not_own(&self, path: &Path) -> Result<(), ChangeError> {
        let is_own = |own: &PathBuf| {
            let id = |path: &Path| match FileId::of_path(path).ok()? {
                FileId::Device { rdev } => Some(rdev),
                FileId::File { .. } => None,
            };
            path == own
                || path.canonicalize().is_ok_and(|path| path == *own)
                || id(path).is_some_and(|rdev| id(own) == Some(rdev))
        };
        if is_own(&self.facts.device) { Err(ChangeError::Own { path: path.to_owned() }) } else { Ok(()) }
    }

    /// What the superblock on a leg says that is in use, by the open file: it may have another name by now.
    pub(super) fn read_leg_in_use(&self, leg: Leg) -> Result<LegMetadata, ChangeError> {
        let file = lock(&self.files)[leg].clone();
        let path = file.map(|file| {
            use std::os::fd::AsRawFd;
            format!("/proc/self/fd/{}", file.file().as_raw_fd()).into()
        });
        read_at(&path.unwrap_or_else(|| self.leg_path(leg)))
    }
}

/// The superblock of a leg that becomes a volume of its own.
fn alone(name: &str, metadata: &LegMetadata) -> Superblock {
    let own = &metadata.superblock;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Superblock {
        volume: Uuid::new_v4(),
        name: name.to_owned(),
        leg: Leg::new(0),
        legs: vec![LegEntry::new(own.leg_uuid(), LegState::InSync)],
        size: own.size,
        region_size: own.region_size,
        // A log of its own was the other volume's.
        log: LogPlace::Internal,
        log_identity: None,
        leg_file: None,
        event_count: 1,
        lineage: Lineage::new(Uuid::new_v4().as_u64_pair().0, 1),
        held: Held::default(),
        recent: None,
        clean: true,
        equal: true,
        log_failed: false,
        created: now,
        updated: now,
    }
}
