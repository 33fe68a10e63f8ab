//! The engine: a volume being served. Starts the threads, wires the state machines of `mirrord-raid` to
//! rings, logs and the front end, and takes all of it down again.
//!
//! ```text
//!     front end <--pull, answer-- queue threads (ring + MirrorQueue) --leg IO--> legs
//!                                      |      ^
//!                                 notes|      |notes
//!                                      v      |
//!            log worker thread (LogWorker + log + superblocks)  <--->  background thread (ring + Background)
//! ```
//!
//! Guarantee: once [`Volume::serve`] returns, the superblocks say that the volume is in use; once
//! [`Volume::stop`] returns, everything written is on the legs, the log is as clean as it can be, and
//! the legs are unlocked, but for those where IO that was given up is still under way.

mod background;
mod front;
mod latency;
mod legs;
mod log;
mod map;
mod meter;
mod opened;
mod options;
mod places;
mod queue;
mod read_only;
mod relocate;
mod remote;
mod resize;
mod roster;
mod samples;
mod scrub;
mod shared;
mod status;
mod strangers;
mod throttle;
mod watch;
mod worker;

use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mirrord_log::{LogKind, MetaIo, TimeOut};
use mirrord_raid::{
    Assembly, COPY_SLOTS, Leg, LegErrors, LegMap, LegSet, LegState, LogWorker, MAX_LEGS, Mirror, QueueId,
    Region, SCRUB_TAGS, WorkerEvent,
};
use mirrord_ublk::{
    BufferPool, Engine, EngineKind, FrontEnd, LegFile, PoolConfig, RingConfig, Shutdown, Wake, plain_spawn,
};

use rustix::fs::{FlockOperation, flock};

use crate::events::Journal;
use crate::limits::check_descriptors;
use crate::map::{VolumeMap, regions_per_cell};
use crate::start::{Opened, leg_paths};
use crate::status::VolumeStatus;
use background::READY;
use front::Serving;
pub(crate) use front::default_queues;
pub use latency::Histogram;
use latency::Latencies;
pub(crate) use latency::{BUCKETS, KINDS};
pub use legs::ChangeError;
use log::{OpenedLog, open_log};
use meter::Meter;
use opened::{block_size, legs_metadata, physical_block_size};
pub use options::{
    FrontChoice, LogFallback, LogOptions, RemoteOptions, ServeError, ServeOptions, SparePolicy, StopError,
};
pub use places::Farewell;
use places::Places;
pub use resize::ResizeError;
pub use roster::Purpose;
use scrub::ScrubBook;
pub use scrub::ScrubError;
pub(crate) use scrub::{Begin, Stand};
use shared::{Inbox, Mailbox, Shared, lock};
use status::Facts;
use throttle::Throttle;
use watch::{Seen, Watch};
use worker::{Durable, Worker};

/// How long IO on a leg may take once a stop is forced: a flush to a slow disk ends within it.
pub const FORCED_LEG_TIMEOUT: Duration = Duration::from_secs(30);

/// A volume being served. Dropping it without [`Volume::stop`] is like a crash.
pub struct Volume {
    shared: Arc<Shared>,
    facts: Facts,
    front: Mutex<Option<Box<dyn FrontEnd>>>,
    meter: Mutex<Meter>,
    threads: Mutex<Threads>,
    closing: Arc<Closing>,
    journal: Arc<Journal>,
    watch: Arc<Mutex<Watch>>,
    handed_over: AtomicBool,
    pool: Arc<BufferPool>,
    files: Mutex<LegMap<Option<Arc<LegFile>>>>,
    /// One leg comes or goes at a time.
    changing: Mutex<()>,
    spares: SparePolicy,
    /// Held while legs are changed behind the volume's end, beside the engine: they are not let go of meanwhile.
    beside: Mutex<()>,
    notices: Vec<String>,
}

#[derive(Default)]
struct Threads {
    queues: Vec<JoinHandle<()>>,
    worker: Option<JoinHandle<()>>,
}

/// Whether the front end is gone, by our doing or not, and whether all is closed.
#[derive(Default)]
struct Closing {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Closing {
    fn unmounted(&self) {
        lock(&self.state).0 = true;
        self.changed.notify_all();
    }

    fn closed(&self) {
        lock(&self.state).1 = true;
        self.changed.notify_all();
    }
}

impl Volume {
    /// Serves `opened`: brings the logs up to date, records the legs' states, starts resync where it is
    /// due, and mounts. Returns when the volume can be used.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn serve(opened: Opened, options: ServeOptions) -> Result<Volume, ServeError> {
        let block_size = block_size(&opened)?;
        let paths = leg_paths(&opened);
        let mut template = opened.authority().clone();
        let serving = Serving {
            name: template.name.clone(),
            volume: template.volume,
            size: opened.geometry.size(),
            region_size: opened.geometry.region_size(),
            block_size,
            physical_block_size: physical_block_size(&opened),
            read_only: false,
        };
        let prepared = front::prepare(&serving, &options)?;
        if options.own_mounts {
            prepared.leave_mounts();
        }
        let (leg_timeout, notice) = prepared.leg_timeout(options.leg_timeout);
        // From here on `None` is for ever.
        let options = ServeOptions { leg_timeout, ..options };
        check_descriptors(MAX_LEGS, prepared.queues.into())?;
        let session = uuid::Uuid::new_v4().as_u64_pair().0;
        let OpenedLog { mut log, file: log_file, remote, place, identity, note: log_note, notices } =
            open_log(&opened, &options, session)?;
        (template.log, template.log_identity) = (place, identity);
        let examined = samples::examine(&opened, log.as_mut())?;
        let dirty: Vec<Region> = log.dirty().collect();
        let states = opened.assembly.states(&dirty).filled(|| LegState::Vacant);
        let copy_whole = opened.assembly.copy_whole;
        if !copy_whole.is_empty() {
            log.mark_all();
        }
        if let Some(remote) = &remote {
            remote.commit_and_wait(log.take_changes())?;
        }
        let log_on_legs = log.kind() == LogKind::Internal;
        let queues = usize::from(prepared.queues);
        let mirror = Mirror::assembled(&opened.assembly, opened.geometry, &states, &dirty, queues as u16);

        let journal = Journal::new(&template.name, template.volume);
        let shared = Arc::new(Shared {
            mirror: Arc::new(mirror),
            inboxes: (0..queues).map(|_| Inbox::default()).collect(),
            wakes: (0..=queues)
                .map(|_| Wake::new())
                .collect::<io::Result<_>>()
                .map_err(ServeError::Engine)?,
            mailbox: Mailbox::default(),
            changes: (0..=queues).map(|_| Mutex::default()).collect(),
            throttle: Throttle::new(options.resync_rate),
            in_flight: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            event_count: AtomicU64::new(opened.assembly.event_count),
            resync_paused: AtomicBool::new(false),
            log_failed: AtomicBool::new(false),
            fill_failed: AtomicU8::new(0),
            replaces: Mutex::new(opened.assembly.replaces),
            split_pause: AtomicU64::new(0),
            remote,
            fenced: Arc::default(),
            leg_limit: TimeOut::new(leg_timeout),
            scrub: ScrubBook::new(Arc::clone(&journal)),
            places: Arc::default(),
            latencies: options.latencies.then(|| (0..queues).map(|_| Arc::<Latencies>::default()).collect()),
        });
        let pool = BufferPool::new(PoolConfig { max_io: prepared.max_io as usize, ..PoolConfig::default() })
            .map_err(ServeError::Engine)?;

        let paths = paths.filled(PathBuf::new);
        let watch = {
            let paths = paths.iter().map(|(_, path)| path.display().to_string()).collect();
            Arc::new(Mutex::new(Watch::new(Arc::clone(&journal), paths, Seen::of(&shared))))
        };

        let mut facts = Facts {
            name: template.name.clone(),
            uuid: template.volume,
            device: options.mount.clone(),
            front: prepared.name(&options),
            front_note: prepared.note.clone(),
            engine: EngineKind::IoUring,
            block_size,
            leg_timeout,
            log: template.log.clone(),
            log_note,
            dirty_at_start: log.dirty_count() as u32,
            read_only: false,
            legs: Mutex::new(LegMap::from_fn(paths.len(), |leg| status::LegFacts {
                path: paths[leg].clone(),
                uuid: template.legs.get(leg.index()).map_or(uuid::Uuid::nil(), |entry| entry.uuid),
                direct: opened.member(leg).is_some_and(|member| member.leg.data.direct()),
                before: status::LegCounts::default(),
            })),
        };
        let event_count = opened.assembly.event_count;
        let lineage = opened.assembly.lineage(session);
        let files =
            LegMap::from_fn(paths.len(), |leg| opened.member(leg).map(|member| Arc::clone(&member.leg.data)));
        let Assembly { replaces, held, bounded, .. } = opened.assembly;
        samples::take_stamps_away(&opened);
        let recorded = opened.assembly.states(&[]);
        let is_in_sync = |leg: &Leg| recorded[*leg] == LegState::InSync && opened.member(*leg).is_some();
        let in_sync: LegSet = recorded.legs().filter(is_in_sync).collect();
        let metas = legs_metadata(opened);
        for (leg, meta) in metas.iter() {
            shared.places.set(leg, meta.as_ref().map(|meta| (&meta.data, meta.layout.end)));
        }
        let machine =
            LogWorker::new(Arc::clone(&shared.mirror), states.clone(), event_count, lineage, log_on_legs)
                .with_replaces(replaces)
                .with_held(held)
                .with_bounded(bounded);
        let machine = match &shared.remote {
            Some(remote) => {
                remote::attach(remote, &shared, &journal);
                machine.with_mark_ahead(remote::MARK_AHEAD).with_log_failed(remote.is_without)
            }
            None => machine,
        };
        let worker_thread = {
            let (shared, watch) = (Arc::clone(&shared), Arc::clone(&watch));
            let (tell, ready) = sync_channel(1);
            let durable = move |io: MetaIo| Durable {
                legs: metas,
                log,
                log_file,
                superblock: template,
                recorded: None,
                io,
            };
            let (blocking, time_out) = (options.threads_engine, shared.leg_limit.clone());
            let in_use = shared.mirror.legs.states().in_use();
            let unwritable = Arc::new(Mutex::new([None; MAX_LEGS]));
            let seen = Arc::clone(&unwritable);
            let thread = spawn("mirrord-log", move || {
                let io = if blocking { MetaIo::blocking() } else { MetaIo::new() };
                let worker = Worker::new(shared, machine, durable(io.with_time_out(time_out)), watch);
                run_worker(worker, in_use, session, &tell, &seen);
            })?;
            if let Err(error) = await_ready(&ready) {
                let errors = *lock(&unwritable);
                let failed: LegSet = in_use.iter().filter(|leg| errors[leg.index()].is_some()).collect();
                // One that was in sync has to be left: the others are older.
                if failed.is_empty() || in_sync.minus(failed).is_empty() {
                    return Err(ServeError::Record(error));
                }
                // It has let go of the legs by then.
                let _ = thread.join();
                let why = |leg: Leg| Some((paths[leg].clone(), errors[leg.index()]?));
                return Err(ServeError::Unwritable { legs: failed.iter().filter_map(why).collect() });
            }
            thread
        };
        let mut threads = Threads { queues: Vec::new(), worker: Some(worker_thread) };
        for index in 0..=queues {
            let (thread, kind) = start_ring(&shared, index, queues, prepared.depth, &options, &pool, &files)?;
            if index < queues {
                facts.engine = kind;
            }
            threads.queues.push(thread);
        }
        // Resync, if any is due, is handed out at the worker's next turn.
        shared.mailbox.send(WorkerEvent::Woken);

        let closing = Arc::new(Closing::default());
        let on_gone = {
            let closing = Arc::clone(&closing);
            Box::new(move || closing.unmounted())
        };
        let engine = Arc::clone(&shared) as Arc<dyn Engine>;
        let front = front::start(prepared, &serving, &options, engine, &pool, on_gone);
        let mut volume = Volume {
            shared,
            facts,
            front: Mutex::new(None),
            meter: Mutex::default(),
            threads: Mutex::new(threads),
            closing,
            journal,
            watch,
            handed_over: AtomicBool::new(false),
            pool,
            files: Mutex::new(files),
            changing: Mutex::new(()),
            spares: options.spares,
            beside: Mutex::new(()),
            notices: notices.into_iter().chain(notice).chain(examined).collect(),
        };
        match front {
            Ok(front) => {
                if let Some(front) = &front {
                    volume.facts.device = front.path().to_owned();
                }
                volume.front = Mutex::new(front);
            }
            Err(error) => {
                volume.close();
                return Err(error);
            }
        }
        if let Err(error) = Places::watch(&volume.shared) {
            volume.close();
            return Err(ServeError::Engine(error));
        }
        lock(&volume.watch).started(volume.facts.device.display().to_string());
        // What changed meanwhile is told at the worker's next turn.
        volume.tell_of_spares();
        Ok(volume)
    }

    /// What there is to say of it now.
    pub fn status(&self) -> VolumeStatus {
        let mut meter = lock(&self.meter);
        status::status(&self.facts, &self.shared, &lock(&self.files), &mut meter, Instant::now())
    }

    /// How its regions are, from region `from` on, in so many cells that the whole volume makes at most `cells`;
    /// a cell for each region without. See [`VolumeMap::next`].
    pub fn map(&self, cells: Option<NonZeroU32>, from: u32) -> VolumeMap {
        let regions = self.shared.mirror.geometry().regions();
        map::map(&self.facts, &self.shared, from, regions_per_cell(regions, cells))
    }

    /// What happens to it. Closed once it is stopped.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// How long reads, writes and flushes took, if that is measured.
    pub fn latencies(&self) -> Option<[Histogram; KINDS.len()]> {
        self.shared.latencies.as_deref().map(latency::sum)
    }

    /// Whether its device was left to the next daemon.
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::SeqCst)
    }

    /// What the user should know about how it is served.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Where requests go, for a volume that is served without a front end.
    pub fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.shared) as Arc<dyn Engine>
    }

    /// Where the buffers of such requests come from.
    pub fn pool(&self) -> &Arc<BufferPool> {
        &self.pool
    }

    /// Holds resync, or lets it go on.
    pub fn pause_resync(&self, paused: bool) {
        self.shared.mailbox.send(WorkerEvent::PauseResync(paused));
        self.shared.resync_paused.store(paused, Ordering::Relaxed);
    }

    /// Limits resync to so many bytes per second, from now on.
    pub fn set_resync_rate(&self, bytes_per_second: Option<u64>) {
        self.shared.throttle.set(bytes_per_second);
        self.shared.wake(self.shared.mirror.background());
    }

    /// Stops serving, flushes and records everything, and lets go of the legs. `how` says what becomes of
    /// users. One that is forced gives up IO on a leg that takes longer than [`FORCED_LEG_TIMEOUT`], as if that
    /// were the time-out of legs. See [`Volume::left_behind`] afterwards.
    ///
    /// # Errors
    /// [`StopError::Front`] while the volume is in use and is not to be taken away, or if it cannot be handed
    /// over: it is still served.
    pub fn stop(&self, how: Shutdown) -> Result<(), StopError> {
        if how == Shutdown::Force {
            self.shared.leg_limit.shorten_to(FORCED_LEG_TIMEOUT);
            self.shared.wake_all();
        }
        // What waits for a log server would hold the end of the front end up.
        if let Some(remote) = &self.shared.remote {
            remote.hurry();
        }
        if let Some(front) = lock(&self.front).as_mut() {
            if let Err(error) = front.shutdown(how) {
                self.shared.remote.iter().for_each(|remote| remote.take_time());
                return Err(error.into());
            }
            self.handed_over.store(how == Shutdown::HandOver, Ordering::SeqCst);
        }
        self.close();
        Ok(())
    }

    /// Legs of a stopped volume with IO under way that was given up: open and locked until that has ended, which
    /// the end of this process waits for.
    pub fn left_behind(&self) -> Vec<PathBuf> {
        let hung = |file: &Arc<LegFile>| (file.hung() > 0).then(|| file.path().to_owned());
        lock(&self.files).iter().filter_map(|(_, file)| file.as_ref().and_then(hung)).collect()
    }

    /// Waits until the volume is stopped. One that was unmounted from outside is stopped first.
    pub fn wait_closed(&self) {
        let mut state = lock(&self.closing.state);
        while !state.1 {
            if state.0 {
                drop(state);
                self.close();
                return;
            }
            state = self.closing.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until a thread has done all that it does. It may be there for longer: the kernel keeps one that gave up IO
    /// until that has ended.
    fn await_end(thread: &JoinHandle<()>) {
        while !thread.is_finished() {
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the engine once nothing is submitted any more.
    fn close(&self) {
        let mut threads = lock(&self.threads);
        let Some(worker) = threads.worker.take() else { return };
        lock(&self.watch).stopping(self.is_handed_over());
        self.shared.places.end();
        if let Some(remote) = &self.shared.remote {
            remote.hurry();
        }
        drop(lock(&self.front).take());
        while self.shared.in_flight.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !self.facts.read_only {
            self.halt_scrub();
        }
        // A copy that waits for its turn under a low limit would hold the stop up.
        self.set_resync_rate(None);
        self.shared.mailbox.send(WorkerEvent::Stop);
        Self::await_end(&worker);
        if let Some(remote) = &self.shared.remote {
            remote.stop();
        }
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wake_all();
        threads.queues.drain(..).for_each(|thread| Self::await_end(&thread));
        drop(lock(&self.beside));
        if !self.facts.read_only && !self.shared.fenced.load(Ordering::SeqCst) {
            // It may hang, and others ask for the files meanwhile.
            let files: Vec<_> = lock(&self.files).iter().filter_map(|(_, file)| file.clone()).collect();
            files.iter().for_each(|file| legs::stamp(file));
        }
        // A ring lets go of its files some time after it is closed. Nothing is in flight any more, so the
        // legs are free from now on. Where something is, nobody else may have the leg.
        for file in lock(&self.files).iter().filter_map(|(_, file)| file.as_ref()) {
            if file.hung() > 0 {
                tracing::error!(leg = %file.path().display(), "IO that was given up is under way: left locked");
                std::mem::forget(Arc::clone(file));
            } else {
                let _ = flock(file.file(), FlockOperation::Unlock);
            }
        }
        self.journal.close();
        self.closing.closed();
    }
}

/// Between two looks whether a thread has come to its end.
const LOOK: Duration = Duration::from_millis(1);

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, ServeError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run).map_err(ServeError::Engine)
}

fn await_ready<T>(ready: &Receiver<io::Result<T>>) -> io::Result<T> {
    ready.recv_timeout(READY).map_err(|_| io::Error::other("a thread did not come up"))?
}

/// Brings the log up to date everywhere, records the states, and serves until the stop.
fn run_worker(
    mut worker: Worker,
    in_use: LegSet,
    session: u64,
    tell: &std::sync::mpsc::SyncSender<io::Result<()>>,
    unwritable: &Mutex<LegErrors>,
) {
    let (errors, log_error) = worker.durable.write_whole_log(in_use);
    let failed = errors.iter().enumerate().find_map(|(leg, errno)| Some((format!("leg {leg}"), (*errno)?)));
    if let Some((place, errno)) = log_error.map(|errno| ("its file".to_owned(), errno)).or(failed) {
        *lock(unwritable) = errors;
        worker.durable.keep_what_hangs();
        drop(worker);
        let _ = tell.send(Err(io::Error::other(format!("the log cannot be written on {place}: {errno}"))));
        return;
    }
    let started = worker.start().and_then(|()| worker.durable.name_log(session));
    let failed = started.is_err();
    let _ = tell.send(started);
    if !failed {
        worker.serve();
    }
}

/// Starts a queue's thread, or for the last index the background worker's.
fn start_ring(
    shared: &Arc<Shared>,
    index: usize,
    queues: usize,
    depth: u32,
    options: &ServeOptions,
    pool: &Arc<BufferPool>,
    files: &LegMap<Option<Arc<LegFile>>>,
) -> Result<(JoinHandle<()>, EngineKind), ServeError> {
    let background = index == queues;
    let legs = files.iter().filter(|(_, file)| file.is_some()).count() as u32;
    let name = if background { "mirrord-resync".to_owned() } else { format!("mirrord-q{index}") };
    let config = RingConfig {
        name: name.clone(),
        depth: legs * if background { 2 * COPY_SLOTS } else { depth },
        tags: if background { SCRUB_TAGS + MAX_LEGS as u32 } else { depth },
        pool: Arc::clone(pool),
        spawn: plain_spawn(),
        wake: Some(shared.wakes[index].clone()),
        force: options.threads_engine.then_some(EngineKind::Threads),
        leg_timeout: options.leg_timeout,
        fence: Some(Arc::clone(&shared.fenced)),
    };
    let (tell, ready) = sync_channel(1);
    let (shared, pool, files) = (Arc::clone(shared), Arc::clone(pool), files.clone());
    let thread = spawn(&name, move || {
        if background {
            let ready = |result: io::Result<()>| drop(tell.send(result.map(|()| EngineKind::IoUring)));
            background::run(&shared, config, &pool, files, &ready);
        } else {
            let ready = |result| drop(tell.send(result));
            queue::run(&shared, QueueId(index as u16), config, files, &ready);
        }
    })?;
    let kind = await_ready(&ready).map_err(ServeError::Engine)?;
    Ok((thread, kind))
}
