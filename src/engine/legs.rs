//! Legs that come and go while the volume is served: failed by hand, split off, given back.
//!
//! A leg that goes is first out and recorded so (the log worker's business), then every thread lets go of its
//! files: nobody holds it any more when the call returns. One that comes is opened, locked and looked at, then
//! given to every thread, and then to the log worker, which takes it in.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use mirrord_log::{
    Backing, DirtyLog, FormatLegError, InternalLog, LegMetadata, LogPlace, ReadLegError, SyncMode, measure,
    read_leg,
};
use mirrord_raid::{
    AssembleOptions, FailReason, Leg, LegSet, LegState, MAX_LEGS, RegionState, WorkerEvent, assemble,
};
use mirrord_ublk::LegFile;
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::shared::{LegChange, MetaChange, lock};
use super::worker::LegMeta;
use super::{Volume, samples};
use crate::create::CreateError;
use crate::leg::{LegError, OpenLeg, Patience, born, open_to_read};
use crate::stamp;
use crate::start::record;

/// How long a thread may take to answer, and a record to be durable.
const ANSWER: Duration = Duration::from_secs(60);

/// Between two looks whether the volume is stopped.
const STOPPED: Duration = Duration::from_millis(100);

/// Between two looks at what becomes of a leg.
const LOOK: Duration = Duration::from_millis(2);

/// How long IO under way on a leg that is out may take to end.
const FREE: Duration = Duration::from_secs(5);

/// How long a split may take to begin.
const BEGIN: Duration = Duration::from_secs(2);

/// Why a leg was not taken out or in.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Nothing by that name.
    #[error("no leg of the volume is called {name} (name it by path, index or UUID)")]
    NoSuchLeg {
        /// What was said.
        name: String,
    },
    /// Without it there would be none.
    #[error("leg {}: it is the only leg in sync: wait until another is (mirrord wait), or stop the volume", path.display())]
    LastInSync {
        /// The leg.
        path: PathBuf,
    },
    /// It is not in a state for that.
    #[error("leg {}: it is {state}: {needed}", path.display())]
    State {
        /// The leg.
        path: PathBuf,
        /// What it is.
        state: &'static str,
        /// What it would have to be, or the way out.
        needed: &'static str,
    },
    /// IO on it was given up and has not ended.
    #[error("leg {}: it hangs: IO that was given up is still under way on it", path.display())]
    Hung {
        /// The leg.
        path: PathBuf,
    },
    /// Writes did not come to an end, or a flush failed.
    #[error("leg {}: it was not split off: writes under way did not end in time, or a leg failed; try again", path.display())]
    Restless {
        /// The leg.
        path: PathBuf,
    },
    /// It cannot be opened.
    #[error(transparent)]
    Leg(#[from] LegError),
    /// Its metadata cannot be used.
    #[error("leg {}: {source}", path.display())]
    Metadata {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReadLegError,
    },
    /// Its log could not be written.
    #[error("leg {}: its log could not be written: it is left out (mirrord status NAME shows its errors)", path.display())]
    Fill {
        /// The leg.
        path: PathBuf,
    },
    /// There are as many as there can be.
    #[error("leg {}: the volume has {MAX_LEGS} legs, and cannot have more: remove one first", path.display())]
    Full {
        /// What was to be one.
        path: PathBuf,
    },
    /// Another is on its way.
    #[error("leg {}: {} takes its place already: remove that first", path.display(), by.display())]
    Replaced {
        /// The leg.
        path: PathBuf,
        /// The other.
        by: PathBuf,
    },
    /// It is the volume.
    #[error("leg {}: it is the volume itself", path.display())]
    Own {
        /// What was given.
        path: PathBuf,
    },
    /// It cannot be made a leg.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its metadata cannot be written.
    #[error("leg {}", path.display())]
    Make {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatLegError,
    },
    /// It belongs elsewhere.
    #[error("leg {}: it is no leg of this volume", path.display())]
    Stranger {
        /// What was given.
        path: PathBuf,
    },
    /// It has what the volume has not.
    #[error("leg {}: it went on without the others, and what it has would be lost: {why}", path.display())]
    NotBehind {
        /// The leg.
        path: PathBuf,
        /// What assembly says.
        why: String,
    },
    /// The volume grew without it.
    #[error("leg {}: it has room for a volume of {room} bytes, and this one has {size}: it is a copy from before the volume grew", path.display())]
    NoRoom {
        /// The leg.
        path: PathBuf,
        /// Size of the volume, in bytes.
        size: u64,
        /// Size of the largest volume that it has room for, in bytes.
        room: u64,
    },
    /// It needs larger blocks than the volume is served with.
    #[error("leg {}: it needs IO in blocks of {block_size} bytes, and the volume has smaller ones: stop it and start it with this leg", path.display())]
    BlockSize {
        /// The leg.
        path: PathBuf,
        /// What it needs, in bytes.
        block_size: u32,
    },
    /// A thread did not do as it was told, or a record could not be made durable.
    #[error("leg {}: {doing}", path.display())]
    Io {
        /// The leg.
        path: PathBuf,
        /// What was under way.
        doing: &'static str,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

/// A state in words.
pub(super) fn name_of(state: LegState) -> &'static str {
    match state {
        LegState::InSync => "in sync",
        LegState::Syncing => "syncing",
        LegState::Tracked => "split off and tracked",
        LegState::Spare => "a spare",
        LegState::Vacant => "removed",
        LegState::Failed(FailReason::Missing) => "missing",
        LegState::Failed(_) => "failed",
    }
}

impl Volume {
    /// The leg of this path, index or UUID.
    ///
    /// # Errors
    /// [`ChangeError::NoSuchLeg`].
    pub fn find_leg(&self, name: &str) -> Result<Leg, ChangeError> {
        let path = std::path::absolute(name).unwrap_or_else(|_| name.into());
        let legs = lock(&self.facts.legs);
        let found = legs.iter().filter(|(_, known)| !known.uuid.is_nil()).find(|(leg, known)| {
            known.path == path || name == leg.index().to_string() || Uuid::try_parse(name) == Ok(known.uuid)
        });
        found.map(|(leg, _)| leg).ok_or_else(|| ChangeError::NoSuchLeg { name: name.to_owned() })
    }

    /// The leg whose superblock is at `path`.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub fn leg_at(&self, path: &Path) -> Result<Leg, ChangeError> {
        self.identify(path)
    }

    /// What there is to say of a leg that is to be made one.
    pub fn is_leg_already(&self, leg: Leg) -> ChangeError {
        self.wrong_state(leg, "it is a leg of the volume already")
    }

    /// Where a leg is, or was.
    pub fn leg_path(&self, leg: Leg) -> PathBuf {
        lock(&self.facts.legs)[leg].path.clone()
    }

    /// Takes a leg out, as if it had failed, and lets go of it. Returns once that is recorded.
    ///
    /// # Errors
    /// See [`ChangeError`]; the leg is still in use then, but after [`ChangeError::Io`].
    pub fn fail_leg(&self, leg: Leg) -> Result<(), ChangeError> {
        let _one = lock(&self.changing);
        let state = self.state(leg);
        if !state.is_in_use() {
            return Err(self.wrong_state(leg, "only a leg in use can be failed"));
        }
        self.check_not_last(leg)?;
        self.shared.mailbox.send(WorkerEvent::Fail { leg });
        let out = LegState::Failed(FailReason::Admin);
        self.await_state(leg, "recording that it is out", |volume| match volume.state(leg) {
            state if state == out => Ok(volume.is_recorded(leg)),
            _ => volume.check_not_last(leg).map(|()| false),
        })?;
        match self.let_go(leg) {
            // It is out; who looks at the volume sees what is under way on it.
            Err(ChangeError::Hung { .. }) => Ok(()),
            result => result,
        }
    }

    /// Splits a leg off as the volume is between two writes, flushed, and lets go of it. What changes from then on
    /// is tracked. Returns how long writes waited.
    ///
    /// # Errors
    /// See [`ChangeError`]; the leg is still in use then, but after [`ChangeError::Io`].
    pub fn split_leg(&self, leg: Leg) -> Result<Duration, ChangeError> {
        let _one = lock(&self.changing);
        if self.state(leg) != LegState::InSync {
            return Err(
                self.wrong_state(leg, "only a leg in sync can be split off (mirrord wait waits for that)")
            );
        }
        self.check_not_last(leg)?;
        if lock(&self.shared.replaces).contains(&Some(leg)) {
            return Err(
                self.wrong_state(leg, "another takes its place: remove that first (mirrord leg remove)")
            );
        }
        if lock(&self.files)[leg].as_ref().is_some_and(|file| file.hung() > 0) {
            return Err(ChangeError::Hung { path: self.leg_path(leg) });
        }
        self.shared.split_pause.store(0, Ordering::Relaxed);
        self.shared.mailbox.send(WorkerEvent::Split { leg });
        let begun = Instant::now();
        self.await_state(leg, "recording that it is split off", |volume| {
            let frozen = volume.shared.mirror.is_frozen();
            let pause = volume.shared.split_pause.load(Ordering::Relaxed);
            match volume.state(leg) {
                LegState::Tracked => Ok(volume.is_recorded(leg) && !frozen && pause > 0),
                _ if frozen || pause == 0 && begun.elapsed() < BEGIN => Ok(false),
                _ => Err(ChangeError::Restless { path: volume.leg_path(leg) }),
            }
        })?;
        self.let_go(leg)?;
        Ok(Duration::from_micros(self.shared.split_pause.load(Ordering::Relaxed)))
    }

    /// Gives a failed, missing or tracked leg at `path` back to the volume, which copies what changed; with `full`
    /// everything, whatever it holds, and so if it was written to by somebody else. Returns the leg, once it is being
    /// copied to, and what the user should know.
    ///
    /// # Errors
    /// See [`ChangeError`]. Nothing was written to it, but after [`ChangeError::Io`].
    pub fn add_leg(
        &self,
        path: &Path,
        tracked: bool,
        full: bool,
    ) -> Result<(Leg, Option<String>), ChangeError> {
        let _one = lock(&self.changing);
        let leg = self.identify(path)?;
        match self.state(leg) {
            LegState::Tracked if tracked => {}
            LegState::Tracked => return Err(self.wrong_state(leg, "give it back with mirrord merge")),
            LegState::Failed(_) if !tracked => {}
            LegState::Failed(_) => return Err(self.wrong_state(leg, "give it back with mirrord leg add")),
            LegState::Spare | LegState::Vacant => {
                return Err(self.wrong_state(leg, "it takes the place of a leg that fails"));
            }
            LegState::InSync | LegState::Syncing => {
                return Err(self.wrong_state(leg, "it is a leg in use already"));
            }
        }
        self.let_go(leg)?;
        let open = OpenLeg::open_waiting(path, Patience::SHORT)?;
        let metadata = read(&open.meta, open.backing, open.len, &open.path)?;
        let full = full | self.check_returning(leg, &open, &metadata)?;
        let touched = !full && self.was_touched(leg, &open, &metadata);
        let note = touched.then(|| {
            format!("leg {} was written to while it was out: all of it is copied", open.path.display())
        });
        stamp::take_away(&open.meta);
        let meta = LegMeta {
            grows: open.backing == Backing::File,
            hung: LegMeta::hung(&open.data),
            data: Arc::clone(&open.data),
            file: open.meta,
            layout: metadata.layout,
            generation: metadata.generation,
        };
        self.exchange(leg, Some(&open.data), Some(meta), None)?;
        {
            let known = &mut lock(&self.facts.legs)[leg];
            known.path.clone_from(&open.path);
            known.direct = open.data.direct();
        }
        lock(&self.watch).moved(leg, open.path.display().to_string());
        lock(&self.files)[leg] = Some(open.data);
        self.take_in(leg, full || touched, None)?;
        Ok((leg, note))
    }

    /// Whether somebody wrote to a leg that was out, as far as can be told.
    fn was_touched(&self, leg: Leg, open: &OpenLeg, metadata: &LegMetadata) -> bool {
        if stamp::was_written_to(&open.meta, metadata.superblock.event_count) {
            return true;
        }
        let mirror = &self.shared.mirror;
        let source = mirror.legs.states().in_sync().lowest();
        let Some((source, file)) =
            source.and_then(|source| Some((source, lock(&self.files)[source].clone()?)))
        else {
            return false;
        };
        let is_clean = |region| mirror.regions.state(region) == RegionState::Clean;
        // What the leg has of a volume that grew since.
        let differ = samples::differ(&[(source, &*file), (leg, &*open.data)], mirror.geometry(), is_clean);
        differ.is_ok_and(|differ| differ.is_some())
    }

    /// Has a leg that every thread has the files of copied to. Returns once that is recorded.
    pub(super) fn take_in(&self, leg: Leg, full: bool, replaces: Option<Leg>) -> Result<(), ChangeError> {
        let bit = LegSet::one(leg).bits();
        self.shared.fill_failed.fetch_and(!bit, Ordering::SeqCst);
        self.shared.mailbox.send(WorkerEvent::Return { leg, full, replaces });
        self.await_state(leg, "writing its log and recording that it is back", |volume| {
            if volume.shared.fill_failed.load(Ordering::SeqCst) & bit != 0 {
                return Err(ChangeError::Fill { path: volume.leg_path(leg) });
            }
            Ok(volume.state(leg).is_in_use() && volume.is_recorded(leg))
        })
    }

    pub(super) fn state(&self, leg: Leg) -> LegState {
        self.shared.mirror.legs.states().of(leg)
    }

    pub(super) fn is_recorded(&self, leg: Leg) -> bool {
        self.shared.mirror.legs.states().recorded(leg)
    }

    pub(super) fn wrong_state(&self, leg: Leg, needed: &'static str) -> ChangeError {
        ChangeError::State { path: self.leg_path(leg), state: name_of(self.state(leg)), needed }
    }

    pub(super) fn check_not_last(&self, leg: Leg) -> Result<(), ChangeError> {
        let others = self.shared.mirror.legs.states().in_sync().minus(LegSet::one(leg));
        if others.is_empty() { Err(ChangeError::LastInSync { path: self.leg_path(leg) }) } else { Ok(()) }
    }

    /// Waits until it is so.
    pub(super) fn await_state(
        &self,
        leg: Leg,
        doing: &'static str,
        so: impl Fn(&Volume) -> Result<bool, ChangeError>,
    ) -> Result<(), ChangeError> {
        let begun = Instant::now();
        while !so(self)? {
            if begun.elapsed() > ANSWER {
                let source = io::ErrorKind::TimedOut.into();
                return Err(ChangeError::Io { path: self.leg_path(leg), doing, source });
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Has every thread let go of a leg that is out: closed, it is unlocked, once IO under way on it has ended.
    pub(super) fn let_go(&self, leg: Leg) -> Result<(), ChangeError> {
        let hangs = lock(&self.files)[leg].as_ref().is_some_and(|file| file.hung() > 0);
        if hangs {
            return Err(ChangeError::Hung { path: self.leg_path(leg) });
        }
        self.exchange(leg, None, None, None)?;
        if let Some(file) = lock(&self.files)[leg].take() {
            stamp(&file);
            drop(file);
            await_free(&self.leg_path(leg));
        }
        Ok(())
    }

    /// Gives all threads other files for a leg.
    pub(super) fn exchange(
        &self,
        leg: Leg,
        file: Option<&Arc<LegFile>>,
        meta: Option<LegMeta>,
        uuid: Option<Uuid>,
    ) -> Result<(), ChangeError> {
        let failed =
            |source| ChangeError::Io { path: self.leg_path(leg), doing: "exchanging its files", source };
        let needed = meta.as_ref().map_or(0, |meta| meta.layout.end);
        self.shared.places.set(leg, file.map(|file| (file, needed)));
        let (done, told) = sync_channel(1);
        self.shared.mailbox.change(MetaChange { leg, meta, uuid, done });
        self.answer(&told).map_err(failed)?;
        let (done, told) = sync_channel(self.shared.changes.len());
        for changes in &self.shared.changes {
            lock(changes).push(LegChange { leg, file: file.cloned(), done: done.clone() });
        }
        self.shared.wake_all();
        for _ in &self.shared.changes {
            self.answer(&told).and_then(|answer| answer).map_err(failed)?;
        }
        Ok(())
    }

    /// What a thread says, unless the volume is stopped: threads that are gone say nothing.
    pub(super) fn answer<T>(&self, told: &Receiver<T>) -> io::Result<T> {
        let begun = Instant::now();
        loop {
            match told.recv_timeout(STOPPED) {
                Ok(answer) => return Ok(answer),
                Err(_) if self.shared.stopping.load(Ordering::SeqCst) => {
                    return Err(io::Error::other("the volume is being stopped"));
                }
                Err(_) if begun.elapsed() > ANSWER => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => {}
            }
        }
    }

    /// Which leg of the volume is there, by its superblock.
    fn identify(&self, path: &Path) -> Result<Leg, ChangeError> {
        let metadata = read_at(path)?;
        let superblock = &metadata.superblock;
        let legs = lock(&self.facts.legs);
        let found = legs.iter().find(|(_, known)| known.uuid == superblock.leg_uuid());
        let found = found.filter(|(leg, _)| superblock.volume == self.facts.uuid && *leg == superblock.leg);
        found.map(|(leg, _)| leg).ok_or_else(|| ChangeError::Stranger { path: path.to_owned() })
    }

    /// Whether all that the leg has is part of what the volume has. `true`: it is an older copy of the leg, or what it holds
    /// was overruled, or the volume does not know of all that the leg was written to, so all of it is to be copied.
    fn check_returning(&self, leg: Leg, open: &OpenLeg, metadata: &LegMetadata) -> Result<bool, ChangeError> {
        let path = || open.path.clone();
        let not_behind = |why: String| ChangeError::NotBehind { path: path(), why };
        let geometry = self.shared.mirror.geometry();
        let room = metadata.room_for(&geometry);
        if room < geometry.size() {
            return Err(ChangeError::NoRoom { path: path(), size: geometry.size(), room });
        }
        let block_size = open.data.offset_align();
        if block_size > self.facts.block_size {
            return Err(ChangeError::BlockSize { path: path(), block_size });
        }
        // A leg that is syncing can be the proof that a record of this one was never complete.
        let in_use = self.shared.mirror.legs.states().in_use();
        let mut found = vec![record(metadata, born(&open.meta))];
        for other in in_use.iter() {
            found.push(record(&self.read_leg_in_use(other)?, 0));
        }
        let options = AssembleOptions { degraded: true, ..AssembleOptions::default() };
        let assembly = assemble(&found, options).map_err(|error| not_behind(error.to_string()))?;
        if assembly.source == leg {
            return Err(not_behind("its record is newer than the volume's".to_owned()));
        }
        // Of a leg that was in use since the start it is known where it may differ.
        let is_known = found[0].lineage.session == assembly.session;
        Ok(assembly.disbelieved.contains(leg) || !is_known && self.its_log_says_more(metadata))
    }

    /// Whether more is dirty in the log of a leg that was out than in the volume's: the leg that the volume went on with may
    /// have been an older copy of itself, with a log that lacks what both were written to.
    fn its_log_says_more(&self, metadata: &LegMetadata) -> bool {
        if self.facts.log != LogPlace::Internal {
            return false;
        }
        let (table, region_size) = (&self.shared.mirror.regions, self.shared.mirror.geometry().region_size());
        let mut log = InternalLog::new(self.facts.uuid, region_size, table.len(), SyncMode::Default);
        let _ = log.resume(&[Some(&metadata.log_area)]);
        log.dirty().any(|region| table.state(region) == RegionState::Clean)
    }
}

/// Notes on a leg that nobody uses any more how it is left.
pub(super) fn stamp(file: &LegFile) {
    if file.is_block_device() || file.hung() > 0 {
        return;
    }
    let this = format!("/proc/self/fd/{}", file.file().as_raw_fd());
    let left = read_at(Path::new(&this)).ok();
    if let Some(left) = left
        && let Err(error) = stamp::leave(file.file(), left.superblock.event_count)
    {
        tracing::warn!(leg = %file.path().display(), %error, "it cannot be flushed");
    }
}

/// Waits until nobody has the leg's lock. A ring's last hold on a file goes some time after the ring let go of it.
fn await_free(path: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < FREE {
        let Ok(file) = open_to_read(path) else { return };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return;
        }
        thread::sleep(LOOK);
    }
    tracing::warn!(leg = %path.display(), "it is still locked: IO is under way on it");
}

/// The metadata of the leg at `path`, which somebody may have locked.
pub(super) fn read_at(path: &Path) -> Result<LegMetadata, ChangeError> {
    let failed = |source| ChangeError::Io { path: path.to_owned(), doing: "reading its metadata", source };
    let file = open_to_read(path)?;
    let (backing, len) = measure(&file).map_err(failed)?;
    read(&file, backing, len, path)
}

pub(super) fn read(file: &File, backing: Backing, len: u64, path: &Path) -> Result<LegMetadata, ChangeError> {
    read_leg(file, backing, len).map_err(|source| ChangeError::Metadata { path: path.to_owned(), source })
}
