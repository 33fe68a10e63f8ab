//! A queue's thread: one ring, one [`MirrorQueue`] and the front end's [`Source`] for this queue. It turns
//! requests and completions into events and carries out the actions.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mirrord_raid::{Action, Event, LegMap, MirrorQueue, QueueId};
use mirrord_ublk::{LegDone, LegFile, Op, Pulled, Request, Ring, RingConfig, Source, Wakeup};

use super::latency::Stopwatch;
use super::remote::FENCED;
use super::shared::Shared;

/// [`Source::batch`] while there is no source.
const BATCH: usize = 4;

/// Runs queue `id` until the volume stops. `ready` is told which engine the ring has, or why there is none.
pub(super) fn run(
    shared: &Arc<Shared>,
    id: QueueId,
    config: RingConfig,
    legs: LegMap<Option<Arc<LegFile>>>,
    ready: &dyn Fn(io::Result<mirrord_ublk::EngineKind>),
) {
    let tags = config.tags;
    let ring = match Ring::new(config, legs) {
        Ok(ring) => ring,
        Err(error) => return ready(Err(error)),
    };
    ready(Ok(ring.kind()));
    let latencies = shared.latencies.as_ref().map(|all| Arc::clone(&all[usize::from(id.0)]));
    let mut queue = Queue {
        shared: Arc::clone(shared),
        id,
        ring,
        stopwatch: latencies.map(|latencies| Stopwatch::new(tags, latencies)),
        machine: MirrorQueue::new(Arc::clone(&shared.mirror), id),
        pending: (0..tags).map(|_| None).collect(),
        free: (0..tags).rev().collect(),
        backlog: VecDeque::new(),
        source: None,
        batch: BATCH,
        more: false,
        actions: Vec::new(),
    };
    queue.serve();
}

struct Queue {
    shared: Arc<Shared>,
    id: QueueId,
    ring: Ring,
    /// Takes the time of requests, if somebody wants to know.
    stopwatch: Option<Stopwatch>,
    machine: MirrorQueue,
    /// Requests under way by tag; their buffers are with the ring.
    pending: Vec<Option<Request>>,
    free: Vec<u32>,
    /// Requests that wait for a tag.
    backlog: VecDeque<Request>,
    /// Where to pull further requests from.
    source: Option<Box<dyn Source>>,
    /// See [`Source::batch`].
    batch: usize,
    /// There may be some.
    more: bool,
    actions: Vec<Action>,
}

impl Queue {
    fn serve(&mut self) {
        let mut done: Vec<LegDone> = Vec::new();
        loop {
            let Wakeup { woken, readable } = match self.turn(&mut done) {
                Ok(wakeup) => wakeup,
                Err(error) => {
                    // IO in flight is lost track of: nothing can be answered truthfully any more.
                    // The log on disk tells the next start what to resync.
                    tracing::error!(%error, queue = self.id.0, "the ring failed; stopping at once");
                    std::process::abort();
                }
            };
            self.more |= readable;
            for LegDone { io, leg, result } in done.drain(..done.len().min(self.batch)) {
                self.machine.handle(Event::LegDone { io, leg, result }, &mut self.actions);
                self.act();
            }
            if woken {
                let (source, nudged) = self.shared.inboxes[self.id.0 as usize].take(&mut self.backlog);
                self.more |= nudged;
                self.serve_from(source);
                self.shared.change_legs(self.id.0 as usize, &mut self.ring);
                self.machine.handle(Event::Woken, &mut self.actions);
                self.act();
            }
            self.pull();
            while let Some(tag) = self.free.pop() {
                let Some(request) = self.backlog.pop_front() else {
                    self.free.push(tag);
                    break;
                };
                self.start(tag, request);
            }
            if self.shared.stopping.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Hands leg IO to the kernel and collects completions; waits only if there is nothing else to do.
    fn turn(&mut self, done: &mut Vec<LegDone>) -> io::Result<Wakeup> {
        match self.may_pull() || !done.is_empty() {
            true => self.ring.poll(done),
            false => self.ring.wait(done, None),
        }
    }

    fn may_pull(&self) -> bool {
        self.more && self.source.is_some() && !self.free.is_empty()
    }

    /// Goes over to a new source.
    fn serve_from(&mut self, source: Option<Box<dyn Source>>) {
        let Some(mut source) = source else { return };
        match source.start(&mut self.ring) {
            Ok(()) => {
                self.batch = source.batch();
                self.source = Some(source);
                self.more = true;
            }
            Err(error) => tracing::error!(%error, queue = self.id.0, "cannot serve the front end"),
        }
    }

    /// Takes requests from the source, no more than there are tags for: what is left can wait there, where
    /// other queues reach it.
    fn pull(&mut self) {
        if !self.may_pull() {
            return;
        }
        let Some(source) = &mut self.source else { return };
        let before = self.backlog.len();
        // Counted before the source looks whether its users were cut off: a stop sees that there is something, or the
        // source sees the stop.
        let in_flight = &self.shared.in_flight;
        in_flight.fetch_add(1, Ordering::SeqCst);
        let pulled = source.pull(&mut self.ring, self.batch.min(self.free.len()), &mut self.backlog);
        match (self.backlog.len() - before) as u64 {
            0 => in_flight.fetch_sub(1, Ordering::SeqCst),
            more => in_flight.fetch_add(more - 1, Ordering::SeqCst),
        };
        self.more = pulled == Pulled::More;
        if pulled == Pulled::Ended {
            self.ring.watch(None);
            self.source = None;
        }
    }

    fn start(&mut self, tag: u32, mut request: Request) {
        if let Some(stopwatch) = &mut self.stopwatch {
            stopwatch.begin(tag);
        }
        if let Some(buffer) = request.buf.take() {
            self.ring.attach(tag, buffer);
        }
        let event = mirrord_raid::Request {
            tag,
            op: request.op,
            offset: request.offset,
            len: request.len,
            fua: request.fua,
            patch: request.patch.is_some(),
        };
        self.pending[tag as usize] = Some(request);
        if self.shared.fenced.load(Ordering::SeqCst) {
            return self.complete(tag, Err(FENCED));
        }
        self.machine.handle(Event::Request(event), &mut self.actions);
        self.act();
    }

    fn act(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match self.shared.pass_on(action) {
                Some(Action::Submit(io)) => self.ring.submit(&io),
                Some(Action::Overlay { tag, offset, len }) => {
                    let request = self.pending[tag as usize].as_ref().expect("a request under way");
                    let patch = request.patch.as_ref().expect("only a patched request is overlaid");
                    patch.apply(self.ring.buffer_mut(tag), request.offset, offset, len);
                }
                Some(Action::Complete { tag, result }) => self.complete(tag, result),
                Some(Action::WakeWorker | Action::Wake(_)) | None => {}
            }
        }
        self.actions = actions;
    }

    fn complete(&mut self, tag: u32, result: Result<(), mirrord_raid::Errno>) {
        let request = self.pending[tag as usize].take().expect("a request under way");
        self.free.push(tag);
        if let Some(stopwatch) = &self.stopwatch {
            stopwatch.end(tag, request.op);
        }
        // Who is answered is likely to ask anew at once.
        self.more = true;
        let buffer = match request.op {
            Op::Read | Op::Write => Some(self.ring.detach(tag)),
            Op::Zero { .. } | Op::Flush => None,
        };
        if result.is_err() {
            // The log worker tells of errors, and not all of them come by it.
            self.shared.mailbox.wake();
        }
        request.done.complete(result, buffer);
        self.shared.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}
