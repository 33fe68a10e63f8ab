//! Carries out what the engine asks for: one function per sender of actions, each a plain match.

use mirrord_log::Flush;
use mirrord_raid::{
    Action, BackgroundAction, BackgroundEvent, Errno, Event, LegIo, LegOp, LegSet, Region, SCRUB_IO,
    WorkerAction, WorkerEvent,
};

use crate::config::SECTOR;
use crate::coverage::Saw;
use crate::daemon::{LegJob, MetaKind, Pending, Phase};
use crate::sim::{Sim, trace};

impl Sim {
    pub(crate) fn queue_event(&mut self, queue: u16, event: Event) {
        trace!(self, "queue {queue} <- {event:?}");
        let d = self.d();
        let mut actions = std::mem::take(&mut d.queue_actions);
        d.queues[usize::from(queue)].handle(event, &mut actions);
        for action in actions.drain(..) {
            self.queue_action(queue, action);
        }
        self.d().queue_actions = actions;
    }

    fn queue_action(&mut self, queue: u16, action: Action) {
        trace!(self, "queue {queue} -> {action:?}");
        match action {
            Action::Submit(io) => self.submit(queue, io),
            Action::Overlay { tag, offset, len } => self.overlay(queue, tag, offset, len),
            Action::Complete { tag, result } => self.complete(queue, tag, result),
            Action::WakeWorker => self.d().wake_worker(),
            Action::Wake(to) => self.d().wake(to.0),
        }
    }

    pub(crate) fn background_event(&mut self, event: BackgroundEvent) {
        trace!(self, "background <- {event:?}");
        let d = self.d();
        let mut actions = std::mem::take(&mut d.background_actions);
        d.background.handle(event, &mut actions);
        let id = self.config.queues;
        let mut compare = None;
        for action in actions.drain(..) {
            trace!(self, "background -> {action:?}");
            match action {
                BackgroundAction::Queue(action) => {
                    if let Action::Submit(io) = action
                        && io.op == LegOp::Read
                    {
                        self.window_opens(io);
                    }
                    self.queue_action(id, action);
                }
                BackgroundAction::Pace { io, .. } => self.d().pending.push(Pending::Proceed(io)),
                BackgroundAction::Unpace { io } => {
                    self.d().pending.retain(|it| !matches!(it, Pending::Proceed(of) if *of == io));
                }
                BackgroundAction::Compare { legs, offset, len } => compare = Some((legs, offset, len)),
                BackgroundAction::Patch { from, to, at, len } => self.patch(from, to, at, len),
                BackgroundAction::Scrub(report) => self.scrub_report(report),
            }
        }
        self.d().background_actions = actions;
        self.close_windows();
        if let Some((legs, offset, len)) = compare {
            self.compare(legs, offset, len);
        }
    }

    pub(crate) fn worker_event(&mut self, event: WorkerEvent) {
        trace!(self, "worker <- {event:?}");
        let before = self.live().mirror.legs.states();
        let d = self.d();
        let mut actions = std::mem::take(&mut d.worker_actions);
        d.worker.handle(event, &mut actions);
        self.check_leg_states(before);
        self.look_at_size();
        for action in actions.drain(..) {
            self.worker_action(action);
        }
        self.d().worker_actions = actions;
        if self.live().phase == Phase::Recording && self.live().worker.is_settled() {
            self.serve();
        }
    }

    fn worker_action(&mut self, action: WorkerAction) {
        trace!(self, "worker -> {action:?}");
        match action {
            WorkerAction::LogMark(regions) => {
                for region in regions.iter() {
                    self.d().ever_dirty |= 1u64 << region.0;
                    self.saw_mark(region);
                    self.d().log.mark(region);
                }
            }
            WorkerAction::LogClear(regions) => {
                for region in regions.iter() {
                    self.check_clear(region);
                    self.d().log.clear(region);
                }
            }
            WorkerAction::SizeLog(regions) => self.d().log.resize(regions),
            WorkerAction::Commit { .. } if self.commit_in_place() => {}
            WorkerAction::Commit { legs } => {
                let flush = self.d().log.flush();
                self.start_meta(MetaKind::Commit, legs, Some(flush));
            }
            WorkerAction::Record(record) => {
                let legs = record.legs;
                let committing = self.is_committing();
                self.saw.saw_if(Saw::RecordInCommit, committing);
                if self.live().phase == Phase::Recording {
                    self.current = self.live().mirror.legs.states().in_sync();
                }
                self.record_begins(&record);
                self.start_meta(MetaKind::Record(record), legs, None);
            }
            WorkerAction::FillLog { leg } => {
                // Of a log beside the legs nothing is written; the leg is flushed all the same, as at a start.
                let pages = match self.place {
                    None => self.live().log.all_pages(),
                    Some(_) => Flush::default(),
                };
                self.start_meta(MetaKind::Fill, LegSet::one(leg), Some(pages));
            }
            WorkerAction::Wake(queue) => self.d().wake(queue.0),
            WorkerAction::Again => self.d().wake_worker(),
            WorkerAction::Stopped => {
                self.check_stopped();
                self.d().phase = Phase::Stopped;
            }
        }
    }

    fn submit(&mut self, queue: u16, io: LegIo) {
        let refused = self.refusal(&io);
        if refused.is_none() {
            self.check_submit(queue, io);
        }
        let is_write = matches!(io.op, LegOp::Write { .. } | LegOp::Zero { .. });
        if queue == self.config.queues && io.io == SCRUB_IO && is_write {
            let first = (io.offset / SECTOR) as usize;
            self.changes_since_splits(&(first..first + (io.len / SECTOR) as usize));
        }
        let submitted = self.moment();
        let ticket = if is_write && refused.is_none() { self.disks[io.leg.index()].begin() } else { 0 };
        let todo = ((1u64 << (io.len / SECTOR)) - 1) as u32;
        let outcomes = &mut self.d().outcomes[usize::from(queue)];
        if outcomes.len() <= io.io as usize {
            outcomes.resize(io.io as usize + 1, Default::default());
        }
        outcomes[io.io as usize].pending += 1;
        let job = LegJob { queue, io, todo, ticket, submitted, refused, met_bad: false };
        self.d().pending.push(Pending::Leg(job));
    }

    /// As the real ring: why an IO does not get to its leg, if it does not.
    pub(crate) fn refusal(&mut self, io: &LegIo) -> Option<Errno> {
        if self.hangs(io.leg, io.op == LegOp::Read) {
            self.saw.saw(Saw::Refused);
            return Some(Errno::GIVEN_UP);
        }
        (io.op.is_durable() && self.live().forgetful.contains(io.leg)).then_some(Errno::EIO)
    }

    /// The volume is served from now on: what was recovered is what it holds.
    fn serve(&mut self) {
        trace!(self, "served, {:?}", self.live().mirror.legs.states());
        self.d().phase = Phase::Serving;
        let size = self.live().mirror.geometry().size();
        self.size_is(size);
        let source =
            self.live().mirror.legs.states().in_sync().lowest().expect("invariant 4: no leg in sync");
        self.images_are_settled(source);
        self.recents_are_settled();
        self.recovered(source);
        let dirty = self.live().mirror.regions.unclean();
        self.saw.saw(if dirty > 0 { Saw::DirtyStart } else { Saw::CleanStart });
    }

    /// The region's sectors.
    pub(crate) fn region_sectors(&self, region: Region) -> std::ops::Range<usize> {
        self.region(region.0)
    }
}
