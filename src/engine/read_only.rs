//! A leg that was split off, served for reading: queues and a front end as ever, and nobody who records anything. In
//! place of the log worker there is a thread that waits for the stop.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64};
use std::sync::{Arc, Mutex};

use mirrord_log::{LogPlace, TimeOut};
use mirrord_raid::{Geometry, LegMap, LegState, Mirror, WorkerEvent};
use mirrord_ublk::{BufferPool, Engine, EngineKind, PoolConfig, Wake};

use super::front::{self, Serving};
use super::scrub::ScrubBook;
use super::shared::{Inbox, Mailbox, Shared};
use super::status::{Facts, LegCounts, LegFacts};
use super::throttle::Throttle;
use super::watch::{Seen, Watch};
use super::{Closing, ServeError, ServeOptions, Threads, Volume, lock, spawn, start_ring};
use crate::events::Journal;
use crate::split_leg::SplitLeg;

impl Volume {
    /// Serves a leg that was split off as the volume `name` that nobody can write to. Nothing is written to the leg.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn serve_read_only(split: SplitLeg, name: &str, options: ServeOptions) -> Result<Volume, ServeError> {
        let SplitLeg { path, data, superblock } = split;
        let unfit = || ServeError::BlockSize { path: path.clone(), block_size: data.offset_align() };
        let geometry = Geometry::new(superblock.size, superblock.region_size).map_err(|_| unfit())?;
        let block_size = data.offset_align().max(512);
        if !geometry.size().is_multiple_of(block_size.into()) {
            return Err(unfit());
        }
        // Of its own: the origin's is another device.
        let uuid = superblock.leg_uuid();
        let serving = Serving {
            name: name.to_owned(),
            volume: uuid,
            size: geometry.size(),
            region_size: geometry.region_size(),
            block_size,
            physical_block_size: data.physical_block(),
            read_only: true,
        };
        let prepared = front::prepare(&serving, &options)?;
        if options.own_mounts {
            prepared.leave_mounts();
        }
        let (leg_timeout, notice) = prepared.leg_timeout(options.leg_timeout);
        let options = ServeOptions { leg_timeout, ..options };
        let queues = usize::from(prepared.queues);
        let states = LegMap::from(vec![LegState::InSync]);
        let journal = Journal::new(name, uuid);
        let shared = Arc::new(Shared {
            mirror: Arc::new(Mirror::new(geometry, &states, [], queues as u16)),
            inboxes: (0..queues).map(|_| Inbox::default()).collect(),
            wakes: (0..=queues)
                .map(|_| Wake::new())
                .collect::<io::Result<_>>()
                .map_err(ServeError::Engine)?,
            mailbox: Mailbox::default(),
            changes: (0..=queues).map(|_| Mutex::default()).collect(),
            throttle: Throttle::new(None),
            scrub: ScrubBook::new(Arc::clone(&journal)),
            in_flight: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            event_count: AtomicU64::new(superblock.event_count),
            resync_paused: AtomicBool::new(false),
            log_failed: AtomicBool::new(false),
            fill_failed: AtomicU8::new(0),
            replaces: Mutex::default(),
            split_pause: AtomicU64::new(0),
            remote: None,
            fenced: Arc::default(),
            leg_limit: TimeOut::new(leg_timeout),
            places: Arc::default(),
            latencies: None,
        });
        let pool = BufferPool::new(PoolConfig { max_io: prepared.max_io as usize, ..PoolConfig::default() })
            .map_err(ServeError::Engine)?;
        let paths = vec![path.display().to_string()];
        let watch = Arc::new(Mutex::new(Watch::new(Arc::clone(&journal), paths, Seen::of(&shared))));
        let mut facts = Facts {
            name: name.to_owned(),
            uuid,
            device: options.mount.clone(),
            front: prepared.name(&options),
            front_note: prepared.note.clone(),
            engine: EngineKind::IoUring,
            block_size,
            leg_timeout,
            log: LogPlace::Core,
            log_note: None,
            dirty_at_start: 0,
            read_only: true,
            legs: Mutex::new(LegMap::from(vec![LegFacts {
                path,
                uuid,
                direct: data.direct(),
                before: LegCounts::default(),
            }])),
        };
        let files = LegMap::from(vec![Some(data)]);
        let waiting = Arc::clone(&shared);
        let worker = spawn("mirrord-log", move || await_stop(&waiting))?;
        let mut threads = Threads { queues: Vec::new(), worker: Some(worker) };
        for index in 0..queues {
            let (thread, kind) = start_ring(&shared, index, queues, prepared.depth, &options, &pool, &files)?;
            facts.engine = kind;
            threads.queues.push(thread);
        }
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
            notices: notice.into_iter().collect(),
        };
        match front {
            Ok(Some(front)) => {
                volume.facts.device = front.path().to_owned();
                volume.front = Mutex::new(Some(front));
            }
            Ok(None) => {}
            Err(error) => {
                volume.close();
                return Err(error);
            }
        }
        lock(&volume.watch).started(volume.facts.device.display().to_string());
        Ok(volume)
    }

    /// Whether nobody can write to it.
    pub fn is_read_only(&self) -> bool {
        self.facts.read_only
    }
}

fn await_stop(shared: &Shared) {
    let mut events = Vec::new();
    while !events.contains(&WorkerEvent::Stop) {
        events.clear();
        shared.mailbox.receive(&mut events, None);
        drop((shared.mailbox.take_jobs(), shared.mailbox.take_changes()));
    }
}
