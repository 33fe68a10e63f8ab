//! Commits, records and fills on the legs as durable IO among that of all threads: each is looked at only when what began
//! before has been handled, and fails on a leg that a flush failed on meanwhile.

use super::{LogWorker, WorkerEvent};
use crate::durable::Ticket;
use crate::mirror::{LOG_WORKER, LegErrors, WorkerNote};
use crate::ranges::Owner;
use crate::request::Action;
use crate::types::{Errno, Leg, LegSet, MAX_LEGS};

/// A commit of a log that is on the legs.
pub(super) const COMMIT_IO: u32 = 0;
/// A record, or a fill: one of them at a time.
pub(super) const RECORD_IO: u32 = 1;
pub(super) const KINDS: usize = 2;

/// One that is under way.
#[derive(Debug)]
pub(super) struct Metadata {
    legs: LegSet,
    ticket: Ticket,
    /// Failed flushes of each leg before it began.
    failed_flushes: [u32; MAX_LEGS],
    /// It is done, and waits until others are handled.
    done: Option<WorkerEvent>,
}

impl LogWorker {
    /// A durable operation is about to be sent to these legs.
    pub(super) fn begin_metadata(&mut self, io: u32, legs: LegSet) {
        let failed_flushes = self.mirror.legs.failed_flushes();
        let ticket = self.mirror.durable.begin(legs);
        self.metadata[io as usize] = Some(Metadata { legs, ticket, failed_flushes, done: None });
    }

    /// A durable operation is done: gives its event if that may be handled now.
    pub(super) fn metadata_done(&mut self, io: u32, event: WorkerEvent) -> Option<WorkerEvent> {
        let Some(metadata) = &mut self.metadata[io as usize] else { return Some(event) };
        let (legs, ticket) = (metadata.legs, metadata.ticket);
        let errors = errors_of(&event, legs);
        metadata.done = Some(event);
        let mut own = Vec::new();
        for leg in legs.iter() {
            if errors[leg.index()].is_some_and(|errno| !errno.is_given_up() && !errno.is_no_space()) {
                // Data that was written before may be lost with it.
                self.mirror.legs.flush_failed(leg);
            }
            let wake = &mut self.wake;
            let act = |action| {
                if let Action::Wake(queue) = action {
                    wake.push(queue)
                }
            };
            self.mirror.durable_handled(LOG_WORKER, ticket, leg, &mut own, act);
        }
        own.into_iter().for_each(|io| self.mirror.tell_worker(WorkerNote::Joined { io }));
        let ok = legs.iter().filter(|leg| errors[leg.index()].is_none()).collect();
        let joined = self.mirror.durable.join(Owner { queue: LOG_WORKER, io }, ok);
        if joined { self.metadata_joined(io) } else { None }
    }

    /// No durable IO that began before is left to be handled: gives the event of the operation.
    pub(super) fn metadata_joined(&mut self, io: u32) -> Option<WorkerEvent> {
        let metadata = self.metadata[io as usize].take()?;
        let event = metadata.done?;
        let failed_flushes = self.mirror.legs.failed_flushes();
        let mut errors = errors_of(&event, metadata.legs);
        for leg in metadata.legs.iter().map(Leg::index) {
            if failed_flushes[leg] != metadata.failed_flushes[leg] {
                errors[leg].get_or_insert(Errno::EIO);
            }
        }
        Some(match event {
            WorkerEvent::Committed { log_error, .. } => WorkerEvent::Committed { errors, log_error },
            WorkerEvent::Recorded { .. } => WorkerEvent::Recorded { errors },
            WorkerEvent::LogFilled { .. } => {
                let error = errors.into_iter().flatten().next();
                WorkerEvent::LogFilled { result: error.map_or(Ok(()), Err) }
            }
            event => event,
        })
    }
}

fn errors_of(event: &WorkerEvent, legs: LegSet) -> LegErrors {
    match *event {
        WorkerEvent::Committed { errors, .. } | WorkerEvent::Recorded { errors } => errors,
        WorkerEvent::LogFilled { result: Err(errno) } => {
            std::array::from_fn(|leg| legs.contains(Leg::new(leg)).then_some(errno))
        }
        _ => [None; MAX_LEGS],
    }
}
