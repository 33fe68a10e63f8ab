//! The log worker's thread: carries out what [`LogWorker`] decides, on the metadata of the legs and the
//! log's own file. Every durable word about the volume is written here.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mirrord_log::{
    DirtyLog, Flush, Hung, Layout, LegEntry, LegFileNote, LogKind, MetaIo, Superblock, Target,
    superblock_write,
};
use mirrord_raid::{
    Errno, FailReason, Leg, LegErrors, LegMap, LegSet, LegState, LogWorker, MAX_LEGS, Record, WorkerAction,
    WorkerEvent,
};
use mirrord_ublk::LegFile;
use uuid::Uuid;

use super::remote::FENCED;
use super::shared::{MetaChange, Shared, lock};
use super::watch::{Seen, Watch};
use crate::leg::born;

const TICK: Duration = Duration::from_secs(1);

/// Ticks between two looks whether a leg that ran out of space has room again.
const ROOM_TICKS: u32 = 3;

/// Room that a leg which ran out of space must have to come back, whatever is stale on it.
const ROOM_AT_MOST: u64 = 64 << 20;

/// A leg's metadata, open for writing.
pub(super) struct LegMeta {
    pub(super) file: std::fs::File,
    pub(super) layout: Layout,
    /// Of the newest superblock on it.
    pub(super) generation: u64,
    /// On a file system that it may fill, not a device of its own.
    pub(super) grows: bool,
    /// For its data: has the leg's lock.
    pub(super) data: Arc<LegFile>,
    /// What hangs there, data and metadata.
    pub(super) hung: Hung,
}

impl LegMeta {
    pub(super) fn target(&self, base: u64) -> Target<'_> {
        Target { file: &self.file, base, hung: Some(&self.hung) }
    }

    /// What is known of a leg to those who do IO there.
    pub(super) fn hung(data: &LegFile) -> Hung {
        Hung { changes: Arc::clone(data.hung_changes()), forgetful: Arc::clone(data.forgetful()) }
    }
}

/// What the log worker's thread owns.
pub(super) struct Durable {
    pub(super) legs: LegMap<Option<LegMeta>>,
    pub(super) log: Box<dyn DirtyLog>,
    /// Where a disk log is.
    pub(super) log_file: Option<std::fs::File>,
    /// What every superblock of the volume says; leg, states and counts are filled in.
    pub(super) superblock: Superblock,
    /// The newest record, if every leg that it went to has it.
    pub(super) recorded: Option<Record>,
    pub(super) io: MetaIo,
}

impl Durable {
    /// The whole log, onto every leg in use or into its own file, durable; and what else of metadata is on these legs: a
    /// daemon that was killed may have left its last superblock in the page cache alone, and the next one goes to the
    /// other slot.
    pub(super) fn write_whole_log(&mut self, legs: LegSet) -> (LegErrors, Option<Errno>) {
        let pages = self.log.all_pages();
        let (mut errors, log_error) = self.write_log(legs, &pages);
        if self.log.kind() != LogKind::Internal {
            let metas = metas_of(&self.legs, legs, &mut errors);
            let targets: Vec<Target<'_>> = metas.iter().map(|(_, meta)| meta.target(0)).collect();
            for ((leg, _), result) in metas.iter().zip(self.io.write_and_sync(&targets, &[])) {
                errors[leg.index()] = errno(result).err();
            }
        }
        (errors, log_error)
    }

    /// The start is recorded: a log in a file of its own says so before the volume is served.
    pub(super) fn name_log(&mut self, session: u64) -> io::Result<()> {
        if self.log.kind() != LogKind::Disk {
            return Ok(());
        }
        self.log.recorded(session);
        let (_, log_error) = self.commit(LegSet::EMPTY, LegSet::EMPTY);
        let failed = |errno| io::Error::other(format!("the log cannot be written on its file: {errno}"));
        log_error.map_or(Ok(()), |errno| Err(failed(errno)))
    }

    /// Nothing is written on legs that are `short`.
    fn commit(&mut self, legs: LegSet, short: LegSet) -> (LegErrors, Option<Errno>) {
        let flush = self.log.flush();
        if flush.is_empty() {
            return ([None; MAX_LEGS], None);
        }
        let (mut errors, log_error) = self.write_log(legs.minus(short), &flush);
        short.iter().for_each(|leg| errors[leg.index()] = Some(Errno::ENXIO));
        if log_error.is_some() || errors.iter().any(Option::is_some) {
            self.log.flush_failed();
        }
        (errors, log_error)
    }

    fn write_log(&mut self, legs: LegSet, flush: &Flush) -> (LegErrors, Option<Errno>) {
        let mut errors = [None; MAX_LEGS];
        match self.log.kind() {
            LogKind::Internal => {
                let metas = metas_of(&self.legs, legs, &mut errors);
                let targets: Vec<Target<'_>> =
                    metas.iter().map(|(_, meta)| meta.target(meta.layout.log)).collect();
                let results = self.io.write_and_sync(&targets, &flush.writes);
                for ((leg, _), result) in metas.iter().zip(results) {
                    errors[leg.index()] = errno(result).err();
                }
                (errors, None)
            }
            LogKind::Disk => {
                let Some(file) = &self.log_file else { return (errors, Some(Errno::EIO)) };
                let results = self.io.write_and_sync(&[Target { file, base: 0, hung: None }], &flush.writes);
                (errors, results.into_iter().find_map(|result| errno(result).err()))
            }
            LogKind::Core | LogKind::Remote => (errors, None),
        }
    }

    /// Nothing is written on legs that are `short`.
    fn record(&mut self, record: &Record, short: LegSet) -> LegErrors {
        let mut errors = [None; MAX_LEGS];
        let mut legs = Vec::new();
        let mut writes = Vec::new();
        for leg in record.legs.iter() {
            let superblock = self.superblock_of(leg, record);
            match (&self.legs[leg], superblock.check_to_write()) {
                (Some(_), _) if short.contains(leg) => errors[leg.index()] = Some(Errno::ENXIO),
                (Some(meta), Ok(())) => {
                    legs.push(leg);
                    // A slot that may be torn is written again, never the other one, which is whole.
                    let write = superblock_write(&meta.layout, &superblock, meta.generation + 1);
                    writes.push((meta.target(0), vec![write]));
                }
                (_, checked) => {
                    tracing::error!(leg = leg.index(), ?checked, "the leg cannot be recorded as one in use");
                    errors[leg.index()] = Some(Errno::EIO);
                }
            }
        }
        let results = self.io.write_each(&writes);
        let is_taken = results.len() == record.legs.len() && results.iter().all(Result::is_ok);
        for (leg, result) in legs.into_iter().zip(results) {
            errors[leg.index()] = errno(result).err();
            if let (None, Some(meta)) = (errors[leg.index()], &mut self.legs[leg]) {
                meta.generation += 1;
            }
        }
        self.recorded = is_taken.then(|| record.clone());
        errors
    }

    pub(super) fn superblock_of(&self, leg: Leg, record: &Record) -> Superblock {
        let entry = |(entry, (leg, &state)): (&LegEntry, (Leg, _))| match state {
            LegState::Vacant => LegEntry::VACANT,
            _ => LegEntry { uuid: entry.uuid, state, replaces: record.replaces[leg.index()] },
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let born = self.legs[leg].as_ref().map_or(0, |meta| born(&meta.file));
        let leg_file = LegFileNote { born, written: now.as_nanos() as u64 };
        Superblock {
            leg,
            leg_file: Some(leg_file).filter(|note| note.born != 0),
            legs: self.superblock.legs.iter().zip(record.states.iter()).map(entry).collect(),
            size: record.size,
            event_count: record.event_count,
            lineage: record.lineage.clone(),
            held: record.held,
            recent: record.recent.clone(),
            clean: record.clean,
            equal: record.equal,
            log_failed: record.log_failed,
            updated: now.as_secs(),
            ..self.superblock.clone()
        }
    }

    /// Another leg has this index from now on.
    fn name_leg(&mut self, leg: Leg, uuid: Uuid) {
        let legs = &mut self.superblock.legs;
        legs.resize(legs.len().max(leg.index() + 1), LegEntry::VACANT);
        legs[leg.index()] = LegEntry::new(uuid, LegState::Vacant);
    }

    /// Legs with metadata under way that was given up are kept as they are, open and locked, for as long as the
    /// process lives.
    pub(super) fn keep_what_hangs(&mut self) {
        for (_, meta) in self.legs.iter_mut() {
            if let Some(meta) = meta.take_if(|meta| self.io.is_late(&meta.file)) {
                meta.data.keep_locked();
                std::mem::forget(meta);
            }
        }
        if let Some(file) = self.log_file.take_if(|file| self.io.is_late(file)) {
            std::mem::forget(file);
        }
    }

    fn fill(&mut self, leg: Leg) -> Result<(), Errno> {
        let (errors, _) = self.write_whole_log(LegSet::one(leg));
        errors[leg.index()].map_or(Ok(()), Err)
    }
}

/// The metadata of these legs. One that has none cannot be written, which is an error as any other.
fn metas_of<'a>(
    all: &'a LegMap<Option<LegMeta>>,
    legs: LegSet,
    errors: &mut LegErrors,
) -> Vec<(Leg, &'a LegMeta)> {
    let mut metas = Vec::with_capacity(legs.len());
    for leg in legs.iter() {
        match &all[leg] {
            Some(meta) => metas.push((leg, meta)),
            None => errors[leg.index()] = Some(Errno::EIO),
        }
    }
    metas
}

fn errno(result: io::Result<()>) -> Result<(), Errno> {
    result.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno))
}

/// The log worker's thread.
pub(super) struct Worker {
    shared: Arc<Shared>,
    machine: LogWorker,
    pub(super) durable: Durable,
    events: Vec<WorkerEvent>,
    watch: Arc<Mutex<Watch>>,
    /// There are counters to tell of at the next tick.
    untold: bool,
    /// Writes wait.
    frozen_since: Option<Instant>,
    ticks: u32,
    /// Legs on which somebody looks for room, as bits.
    looking: Arc<AtomicU8>,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        machine: LogWorker,
        durable: Durable,
        watch: Arc<Mutex<Watch>>,
    ) -> Worker {
        let (events, frozen_since, looking) = Default::default();
        Worker { shared, machine, durable, events, watch, untold: false, frozen_since, ticks: 0, looking }
    }

    /// Records that the volume is served.
    ///
    /// # Errors
    /// When no leg in sync takes the record.
    pub(super) fn start(&mut self) -> io::Result<()> {
        self.events.push(WorkerEvent::Start);
        self.work();
        if self.machine.is_settled() {
            return Ok(());
        }
        Err(io::Error::other("the superblock of no leg in sync could be written"))
    }

    /// Runs until the volume is stopped and recorded so.
    pub(super) fn serve(mut self) {
        let mut next_tick = Instant::now() + TICK;
        loop {
            let now = Instant::now();
            let wants_tick = self.machine.wants_tick() || self.untold || self.durable.io.has_late();
            let timeout = wants_tick.then(|| next_tick.saturating_duration_since(now));
            let came = self.shared.mailbox.receive(&mut self.events, timeout);
            for MetaChange { leg, meta, uuid, done } in self.shared.mailbox.take_changes() {
                self.durable.legs[leg] = meta;
                if let Some(uuid) = uuid {
                    self.durable.name_leg(leg, uuid);
                }
                let _ = done.send(());
            }
            for (leg, file) in self.shared.mailbox.take_rooms() {
                // What was looked at may be no leg any more, or another one by now.
                let is_same = |meta: &LegMeta| Arc::ptr_eq(&meta.data, &file);
                if self.durable.legs[leg].as_ref().is_some_and(is_same) {
                    self.events.push(WorkerEvent::Room { leg });
                }
            }
            for job in self.shared.mailbox.take_jobs() {
                job(&mut self.durable);
            }
            let now = Instant::now();
            if !came || timeout.is_some() && now >= next_tick {
                self.events.push(WorkerEvent::Tick);
                self.look_for_room();
                self.durable.io.look();
                next_tick = now + TICK;
            }
            if self.work() {
                return self.durable.keep_what_hangs();
            }
        }
    }

    /// Handles all events, also those that carrying actions out brings about. `true`: stopped.
    fn work(&mut self) -> bool {
        let mut actions = Vec::new();
        let mut stopped = false;
        let ticked = self.events.contains(&WorkerEvent::Tick);
        while !self.events.is_empty() {
            for event in std::mem::take(&mut self.events) {
                self.machine.handle(event, &mut actions);
                for action in actions.drain(..) {
                    stopped |= self.act(action);
                }
            }
        }
        self.show(ticked || stopped);
        stopped
    }

    fn act(&mut self, action: WorkerAction) -> bool {
        match self.shared.pass_on_worker(action) {
            Some(WorkerAction::LogMark(regions)) => {
                regions.iter().for_each(|region| self.durable.log.mark(region))
            }
            Some(WorkerAction::LogClear(regions)) => {
                regions.iter().for_each(|region| self.durable.log.clear(region));
            }
            Some(WorkerAction::SizeLog(regions)) => self.durable.log.resize(regions),
            Some(WorkerAction::Commit { legs }) => {
                if let Some(remote) = &self.shared.remote {
                    let changes = self.durable.log.take_changes();
                    if !changes.is_empty() {
                        remote.commit(changes);
                        return false;
                    }
                }
                let short = self.short(legs);
                let (errors, log_error) = self.durable.commit(legs, short);
                if let Some(error) = log_error {
                    tracing::error!(%error, "the log cannot be written: after a crash the whole volume is resynced");
                }
                self.events.push(WorkerEvent::Committed { errors, log_error });
            }
            Some(WorkerAction::Record(record)) => {
                let is_fenced = self.shared.fenced.load(Ordering::SeqCst);
                let errors = match is_fenced {
                    // The legs may be another daemon's by now.
                    true => [Some(FENCED); MAX_LEGS],
                    false => self.durable.record(&record, self.short(record.legs)),
                };
                self.events.push(WorkerEvent::Recorded { errors });
            }
            Some(WorkerAction::FillLog { leg }) => {
                let result = match self.short(LegSet::one(leg)).is_empty() {
                    _ if self.shared.fenced.load(Ordering::SeqCst) => Err(FENCED),
                    true => self.durable.fill(leg),
                    false => Err(Errno::ENXIO),
                };
                if result.is_err() {
                    self.shared.fill_failed.fetch_or(LegSet::one(leg).bits(), Ordering::SeqCst);
                }
                self.events.push(WorkerEvent::LogFilled { result });
            }
            Some(WorkerAction::Stopped) => return true,
            Some(WorkerAction::Again) => self.shared.mailbox.wake(),
            Some(WorkerAction::Wake(_)) | None => {}
        }
        false
    }

    /// Which of these became shorter: what is written to their end would make them long again, and what was cut off
    /// of them zeroes.
    fn short(&self, legs: LegSet) -> LegSet {
        legs.iter().filter(|&leg| !self.shared.places.is_whole(&self.shared, leg)).collect()
    }

    /// Shows figures to status, and tells what changed; counters too `with_counts`.
    fn show(&mut self, with_counts: bool) {
        let shared = &self.shared;
        shared.event_count.store(self.machine.event_count(), Ordering::Relaxed);
        shared.resync_paused.store(self.machine.paused(), Ordering::Relaxed);
        shared.log_failed.store(self.machine.log_failed(), Ordering::Relaxed);
        *lock(&shared.replaces) = self.machine.replaces();
        match (shared.mirror.is_frozen(), self.frozen_since) {
            (true, None) => self.frozen_since = Some(Instant::now()),
            (false, Some(since)) => {
                let pause = since.elapsed();
                shared.split_pause.store(pause.as_micros().max(1) as u64, Ordering::Relaxed);
                tracing::info!(?pause, "writes waited for a split");
                self.frozen_since = None;
            }
            _ => {}
        }
        self.untold = lock(&self.watch).look(Seen::of(shared), with_counts);
    }

    /// A leg that ran out of space comes back when its file system has room for what is stale: unless something
    /// that was given up may still change it. The file system may hang, so each leg is looked at by a thread of its own.
    fn look_for_room(&mut self) {
        self.ticks = self.ticks.wrapping_add(1);
        if !self.ticks.is_multiple_of(ROOM_TICKS) {
            return;
        }
        let mirror = &self.shared.mirror;
        let states = mirror.legs.states();
        let stale = u64::from(mirror.regions.unclean()) * mirror.geometry().region_size();
        for leg in mirror.all_legs().filter(|&leg| states.of(leg) == LegState::Failed(FailReason::NoSpace)) {
            let Some(meta) = self.durable.legs[leg].as_ref() else { continue };
            let bit = LegSet::one(leg).bits();
            let is_looked_at = self.looking.load(Ordering::SeqCst) & bit != 0;
            if is_looked_at || meta.data.hung() > 0 || self.durable.io.is_late(&meta.file) {
                continue;
            }
            let (data, grows, shared) = (Arc::clone(&meta.data), meta.grows, Arc::clone(&self.shared));
            let looking = Arc::clone(&self.looking);
            let look = move || {
                let room = match rustix::fs::fstatvfs(data.as_fd()) {
                    Ok(stat) if grows => stat.f_bavail * stat.f_frsize,
                    _ => u64::MAX,
                };
                looking.fetch_and(!bit, Ordering::SeqCst);
                if room >= stale.min(ROOM_AT_MOST) && data.hung() == 0 {
                    tracing::info!(leg = leg.index(), room, "there is room again");
                    shared.mailbox.room(leg, data);
                }
            };
            self.looking.fetch_or(bit, Ordering::SeqCst);
            if let Err(error) = std::thread::Builder::new().name("mirrord-room".to_owned()).spawn(look) {
                tracing::warn!(%error, "cannot look for room");
                self.looking.fetch_and(!bit, Ordering::SeqCst);
            }
        }
    }
}
