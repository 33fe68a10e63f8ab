//! One life of the daemon: the engine's parts, and everything that is under way around them.

use std::collections::VecDeque;
use std::sync::Arc;

use mirrord_log::DirtyLog;
use mirrord_raid::{
    Action, Background, BackgroundAction, COPY_SLOTS, Errno, Leg, LegErrors, LegIo, LegSet, LogWorker,
    MAX_LEGS, Mirror, MirrorQueue, Op, Record, SCRUB_IO, SCRUB_TAGS, WorkerAction,
};

use crate::beside::Beside;
use crate::late::Late;

/// Slots of the background worker: copies, the flush and the scrub.
pub(crate) const SLOTS: usize = SCRUB_IO as usize + 1;

/// Its buffers: one for each copy, and for each leg one of the scrub.
pub(crate) const BUFFERS: usize = SCRUB_TAGS as usize + MAX_LEGS;

/// The slot of the background worker that repairs.
pub(crate) const REPAIR_SLOT: u32 = COPY_SLOTS - 1;

/// How far a life has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(crate) enum Phase {
    /// The log is written to every leg in use.
    Filling,
    /// The start is recorded.
    Recording,
    /// Requests come.
    Serving,
    /// Requests come no more, those under way end.
    Draining,
    Stopping,
    Stopped,
    /// The start failed: the process exits.
    Failed,
}

/// One IO under way on a leg.
#[derive(Clone, Copy)]
pub(crate) struct LegJob {
    /// The queue, or the background worker.
    pub(crate) queue: u16,
    pub(crate) io: LegIo,
    /// Sectors yet to move, as bits.
    pub(crate) todo: u32,
    /// Of a write.
    pub(crate) ticket: u32,
    pub(crate) submitted: u64,
    /// It never gets to the leg: this is how it ends.
    pub(crate) refused: Option<Errno>,
    /// Of a read: it met a bad sector.
    pub(crate) met_bad: bool,
}

/// Something that will happen, some time.
#[derive(Clone, Copy)]
pub(crate) enum Pending {
    Leg(LegJob),
    /// A ring finds its oldest completion.
    Ended(u16),
    /// A queue, or the background worker, finds its notes.
    Wake(u16),
    WakeWorker,
    /// The throttle lets a copy go on.
    Proceed(u32),
    /// Metadata moves on to a leg.
    Meta(Leg),
    /// The log moves on to its place beside the legs.
    Log,
    /// Something that was given up moves on.
    Late(u32),
}

/// A request of the front end under way.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) op: Op,
    /// In sectors.
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// Sectors of the volume that it changes.
    pub(crate) changes: std::ops::Range<usize>,
    pub(crate) fua: bool,
    /// The stamp of sector s of the volume is `stamp + s`.
    pub(crate) stamp: u64,
    pub(crate) start: u64,
    /// Sectors of the volume that a leg took.
    pub(crate) landed: Vec<(Leg, std::ops::Range<usize>)>,
    /// Legs in sync all the while.
    pub(crate) steady: LegSet,
    /// Legs that failed a read of it.
    pub(crate) unreadable: LegSet,
}

/// What is being made durable.
pub(crate) enum MetaKind {
    /// The log on every leg, before the volume is served.
    StartFill,
    Commit,
    Record(Box<Record>),
    Fill,
}

pub(crate) struct Meta {
    pub(crate) kind: MetaKind,
    pub(crate) to: LegSet,
    pub(crate) pending: LegSet,
    pub(crate) errors: LegErrors,
    pub(crate) legs: Vec<MetaLeg>,
}

/// Metadata on its way to one leg.
#[derive(Default)]
pub(crate) struct MetaLeg {
    /// Sectors and blocks that have not landed.
    pub(crate) writes: Vec<(u32, u64)>,
    pub(crate) ticket: u32,
    /// When the flush behind the writes was submitted.
    pub(crate) flush: Option<u64>,
    /// Nothing of it gets to the leg.
    pub(crate) refused: bool,
}

/// A slot of a queue or of the background worker: how its present step goes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Outcome {
    pub(crate) pending: u32,
    pub(crate) ok: LegSet,
    pub(crate) failed: LegSet,
}

/// A resync window between its read and the end of its writes, in bytes of the volume.
pub(crate) type Window = Option<(u64, u64)>;

pub(crate) struct Daemon {
    pub(crate) mirror: Arc<Mirror>,
    pub(crate) queues: Vec<MirrorQueue>,
    pub(crate) background: Background,
    pub(crate) worker: LogWorker,
    pub(crate) log: Box<dyn DirtyLog>,
    pub(crate) beside: Beside,
    pub(crate) phase: Phase,
    pub(crate) pending: Vec<Pending>,
    /// Wakes that are pending: bit q for queue q, the highest for the worker.
    pub(crate) awake: u32,
    /// By queue (the background worker last): leg IO that has ended on its leg, oldest first. The ring has not
    /// looked at its completions yet, or the queue at what the ring gave it.
    pub(crate) ended: Vec<VecDeque<(LegJob, Result<(), Errno>)>>,
    pub(crate) meta: Option<Meta>,
    /// By queue and tag.
    pub(crate) clients: Vec<Vec<Option<Client>>>,
    pub(crate) in_flight: usize,
    /// By queue (the background worker last) and tag.
    pub(crate) buffers: Vec<Vec<Vec<u64>>>,
    /// By queue (the background worker last) and slot.
    pub(crate) outcomes: Vec<Vec<Outcome>>,
    pub(crate) windows: [Window; SLOTS],
    /// Operations that failed on some legs: the legs it worked on, those it failed on, and whether the
    /// latter may be failed even if it worked on none in sync (a copy or a flush of their own).
    pub(crate) troubles: Vec<(LegSet, LegSet, bool)>,
    /// Reads of each leg that failed.
    pub(crate) failed_reads: [u32; MAX_LEGS],
    /// Legs that said that they are gone.
    pub(crate) gone: LegSet,
    /// Legs that failed a flush since they were opened.
    pub(crate) unflushed: LegSet,
    /// Legs of which a flush ended badly after it was given up: the next one says so.
    pub(crate) forgetful: LegSet,
    /// Legs that were given back, and may be on their way in.
    pub(crate) given_back: LegSet,
    /// What was given up and has not ended.
    pub(crate) late: Vec<Late>,
    pub(crate) last_late: u32,
    /// Durable operations on the legs since the stop began, without those after a tick.
    pub(crate) stop_operations: u32,
    /// A tick went by since the last one.
    pub(crate) ticked: bool,
    /// Regions whose bit was durable at the start, or that were marked since.
    pub(crate) ever_dirty: u64,
    pub(crate) paused: bool,
    /// A scrub is under way.
    pub(crate) scrubbing: bool,
    pub(crate) queue_actions: Vec<Action>,
    pub(crate) worker_actions: Vec<WorkerAction>,
    pub(crate) background_actions: Vec<BackgroundAction>,
}

const WORKER: u16 = 31;

impl Daemon {
    /// Wakes a queue, or the background worker, unless that is under way.
    pub(crate) fn wake(&mut self, queue: u16) {
        if self.awake & (1 << queue) == 0 {
            self.awake |= 1 << queue;
            self.pending.push(Pending::Wake(queue));
        }
    }

    pub(crate) fn wake_worker(&mut self) {
        if self.awake & (1 << WORKER) == 0 {
            self.awake |= 1 << WORKER;
            self.pending.push(Pending::WakeWorker);
        }
    }

    pub(crate) fn woken(&mut self, queue: u16) {
        self.awake &= !(1 << queue);
    }

    pub(crate) fn worker_woken(&mut self) {
        self.woken(WORKER);
    }

    /// When the oldest read under way began.
    pub(crate) fn oldest_read(&self, now: u64) -> u64 {
        let clients = self.clients.iter().flatten().flatten();
        clients.filter(|c| c.op == Op::Read).map(|c| c.start).min().unwrap_or(now)
    }

    /// Leg IO under way on the legs that is waited for.
    pub(crate) fn jobs_on_legs(&self) -> impl Iterator<Item = &LegJob> {
        self.pending.iter().filter_map(|pending| match pending {
            Pending::Leg(job) if job.refused.is_none() => Some(job),
            _ => None,
        })
    }

    /// Leg IO that is waited for: under way, or ended and not handled.
    pub(crate) fn leg_jobs(&self) -> impl Iterator<Item = &LegJob> {
        self.jobs_on_legs().chain(self.ended.iter().flatten().map(|(job, _)| job))
    }

    /// A leg IO has ended: its ring finds that out some time later.
    pub(crate) fn end(&mut self, job: LegJob, result: Result<(), Errno>) {
        self.ended[usize::from(job.queue)].push_back((job, result));
        self.pending.push(Pending::Ended(job.queue));
    }
}
