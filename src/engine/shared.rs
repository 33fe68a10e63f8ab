//! What the threads of a running volume share beside the [`Mirror`]: how to wake each other, the inbox
//! of each queue, the log worker's mailbox, and figures for status.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mirrord_log::TimeOut;
use mirrord_raid::{Action, Leg, Mirror, QueueId, Replaces, WorkerAction, WorkerEvent};
use mirrord_ublk::{Engine, LegFile, Request, Ring, Source, Wake};

use uuid::Uuid;

use super::latency::Latencies;
use super::places::Places;
use super::scrub::ScrubBook;
use super::throttle::Throttle;
use super::worker::{Durable, LegMeta};
use crate::remote::Remote;

/// Locks, also after a panic elsewhere: every value behind these locks is whole at all times.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What others have for a queue.
#[derive(Default)]
pub(super) struct Inbox {
    post: Mutex<Post>,
}

#[derive(Default)]
struct Post {
    requests: VecDeque<Request>,
    /// Where the queue is to pull requests from henceforth.
    source: Option<Box<dyn Source>>,
    /// It is to pull although nothing came.
    nudged: bool,
}

impl Inbox {
    /// Appends the requests to `into`; gives the new source, if there is one, and whether to pull.
    pub(super) fn take(&self, into: &mut VecDeque<Request>) -> (Option<Box<dyn Source>>, bool) {
        let mut post = lock(&self.post);
        into.append(&mut post.requests);
        (post.source.take(), std::mem::take(&mut post.nudged))
    }
}

/// A ring is to use this file for a leg from now on, or none.
pub(super) struct LegChange {
    pub(super) leg: Leg,
    pub(super) file: Option<Arc<LegFile>>,
    /// Told when it does.
    pub(super) done: SyncSender<io::Result<()>>,
}

/// The log worker is to use this metadata of a leg from now on, or none.
pub(super) struct MetaChange {
    pub(super) leg: Leg,
    pub(super) meta: Option<LegMeta>,
    /// Who the leg is from now on, if that is new.
    pub(super) uuid: Option<Uuid>,
    /// Told when it does.
    pub(super) done: SyncSender<()>,
}

/// Something for the log worker's thread to do with all that is durable, between two of its turns.
pub(super) type Job = Box<dyn FnOnce(&mut Durable) + Send>;

/// The log worker's mailbox.
#[derive(Default)]
pub(super) struct Mailbox {
    events: Mutex<Mail>,
    arrived: Condvar,
}

#[derive(Default)]
struct Mail {
    events: Vec<WorkerEvent>,
    changes: Vec<MetaChange>,
    jobs: Vec<Job>,
    /// Legs that have room again, and the file on which that was seen.
    rooms: Vec<(Leg, Arc<LegFile>)>,
    woken: bool,
}

impl Mailbox {
    /// Makes the log worker take a turn.
    pub(super) fn wake(&self) {
        let mut mail = lock(&self.events);
        if !mail.woken {
            mail.woken = true;
            self.arrived.notify_one();
        }
    }

    pub(super) fn send(&self, event: WorkerEvent) {
        lock(&self.events).events.push(event);
        self.arrived.notify_one();
    }

    pub(super) fn change(&self, change: MetaChange) {
        let mut mail = lock(&self.events);
        mail.changes.push(change);
        mail.woken = true;
        self.arrived.notify_one();
    }

    pub(super) fn run(&self, job: Job) {
        let mut mail = lock(&self.events);
        mail.jobs.push(job);
        mail.woken = true;
        self.arrived.notify_one();
    }

    /// A leg that ran out of space has room again, as seen on this file.
    pub(super) fn room(&self, leg: Leg, file: Arc<LegFile>) {
        let mut mail = lock(&self.events);
        mail.rooms.push((leg, file));
        mail.woken = true;
        self.arrived.notify_one();
    }

    /// Legs that were found to have room again.
    pub(super) fn take_rooms(&self) -> Vec<(Leg, Arc<LegFile>)> {
        std::mem::take(&mut lock(&self.events).rooms)
    }

    /// Jobs that have come.
    pub(super) fn take_jobs(&self) -> Vec<Job> {
        std::mem::take(&mut lock(&self.events).jobs)
    }

    /// Changes that have come.
    pub(super) fn take_changes(&self) -> Vec<MetaChange> {
        std::mem::take(&mut lock(&self.events).changes)
    }

    /// Waits for mail, at most `timeout`; adds the events to `into` and says whether anything came.
    pub(super) fn receive(&self, into: &mut Vec<WorkerEvent>, timeout: Option<Duration>) -> bool {
        let mut mail = lock(&self.events);
        let empty = |mail: &mut Mail| mail.events.is_empty() && !mail.woken;
        mail = match timeout {
            Some(timeout) => {
                let result = self.arrived.wait_timeout_while(mail, timeout, empty);
                result.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.arrived.wait_while(mail, empty).unwrap_or_else(PoisonError::into_inner),
        };
        let came = !empty(&mut mail);
        if mail.woken {
            into.push(WorkerEvent::Woken);
            mail.woken = false;
        }
        into.append(&mut mail.events);
        came
    }
}

/// See the module's documentation.
pub(super) struct Shared {
    pub(super) mirror: Arc<Mirror>,
    pub(super) inboxes: Box<[Inbox]>,
    /// One per queue, and last the background worker's.
    pub(super) wakes: Box<[Wake]>,
    pub(super) mailbox: Mailbox,
    /// For each ring, as in `wakes`.
    pub(super) changes: Box<[Mutex<Vec<LegChange>>]>,
    pub(super) throttle: Throttle,
    pub(super) scrub: ScrubBook,
    /// Requests taken in and not answered.
    pub(super) in_flight: AtomicU64,
    /// The queues are to end.
    pub(super) stopping: AtomicBool,
    /// What the log worker shows of itself.
    pub(super) event_count: AtomicU64,
    pub(super) resync_paused: AtomicBool,
    pub(super) log_failed: AtomicBool,
    /// Legs whose log could not be written when they were to be taken in, as bits.
    pub(super) fill_failed: AtomicU8,
    /// By leg: the leg whose place it takes once it is in sync.
    pub(super) replaces: Mutex<Replaces>,
    /// How long writes waited for the last split, in microseconds; 0: there was none.
    pub(super) split_pause: AtomicU64,
    /// The server that keeps the log.
    pub(super) remote: Option<Arc<Remote>>,
    /// Another daemon has the log now, or this one is about to end: nothing is written any more.
    pub(super) fenced: Arc<AtomicBool>,
    /// How long IO on a leg may take before it is given up; a stop that is forced shortens it.
    pub(super) leg_limit: TimeOut,
    /// Whether the files of legs are where they were.
    pub(super) places: Arc<Places>,
    /// One per queue, if requests are timed.
    pub(super) latencies: Option<Box<[Arc<Latencies>]>>,
}

impl Shared {
    pub(super) fn wake(&self, queue: QueueId) {
        self.wakes[queue.0 as usize].wake();
    }

    /// Carries out on `ring` what it is to do with its legs; `number`: its place in `wakes`.
    pub(super) fn change_legs(&self, number: usize, ring: &mut Ring) {
        if let Some(limit) = self.leg_limit.limit() {
            ring.limit_legs(limit);
        }
        for LegChange { leg, file, done } in std::mem::take(&mut *lock(&self.changes[number])) {
            let _ = done.send(ring.replace_leg(leg, file));
        }
    }

    /// Carries out an action that is for another thread; gives others back.
    #[inline]
    pub(super) fn pass_on(&self, action: Action) -> Option<Action> {
        match action {
            Action::WakeWorker => self.mailbox.wake(),
            Action::Wake(queue) => self.wake(queue),
            other => return Some(other),
        }
        None
    }

    /// As [`Shared::pass_on`], for the log worker.
    pub(super) fn pass_on_worker(&self, action: WorkerAction) -> Option<WorkerAction> {
        match action {
            WorkerAction::Wake(queue) => self.wake(queue),
            other => return Some(other),
        }
        None
    }

    pub(super) fn wake_all(&self) {
        self.wakes.iter().for_each(Wake::wake);
    }
}

impl Engine for Shared {
    fn submit(&self, queue: usize, request: Request) {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        lock(&self.inboxes[queue].post).requests.push_back(request);
        self.wakes[queue].wake();
    }

    fn serve(&self, queue: usize, source: Box<dyn Source>) {
        let old = lock(&self.inboxes[queue].post).source.replace(source);
        self.wakes[queue].wake();
        drop(old);
    }

    fn nudge(&self, queue: usize) {
        lock(&self.inboxes[queue].post).nudged = true;
        self.wakes[queue].wake();
    }

    fn queues(&self) -> usize {
        self.inboxes.len()
    }
}
