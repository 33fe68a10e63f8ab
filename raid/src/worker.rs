//! The log worker as a state machine: the one owner of what is durable about a volume.
//!
//! It commits marks in groups, clears regions lazily in two steps, records leg states in the
//! superblocks, hands stale regions to the background worker and promotes legs that have none
//! left. One durable operation is under way at a time, and records go before commits; whatever
//! arrives meanwhile is committed together by the next one (group commit).
//!
//! Leg states move here and nowhere else:
//!
//! | from | to | when |
//! |---|---|---|
//! | in sync | failed | a write, flush, commit or record failed on it and worked on another leg in sync |
//! | in sync | syncing | a write failed on every leg in sync, and this is not the source |
//! | syncing | failed | a write (other than for lack of space), flush, commit or record failed on it |
//! | failed | syncing | the driver says that it is back ([`WorkerEvent::Return`]), and it has the whole log |
//! | syncing | in sync | stale nowhere, flushed since, and recorded so |
//!
//! A leg is failed only while another leg in sync carried the operation out, so the last leg in
//! sync is never failed. Runs on the log worker's thread.

use std::sync::Arc;

use crate::background::COPY_SLOTS;
use crate::geometry::Region;
use crate::mirror::{Counters, LegErrors, Mirror, QueueNote, WorkerNote};
use crate::ranges::Owner;
use crate::region::RegionState;
use crate::types::{Errno, FailReason, Leg, LegMap, LegSet, LegState, MAX_LEGS, QueueId};

/// A clear is tried every so many ticks. A region is cleared after one to two such intervals without a
/// write; shorter, and a busy volume spends its time on flushes.
const CLEAR_TICKS: u32 = 3;

/// Ticks for which resync leaves a leg alone after a copy to it failed.
const HOLD_OFF_TICKS: u32 = 5;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WorkerEvent {
    /// Somebody emitted a wake for the log worker.
    Woken,
    /// A second went by. Only needed while [`LogWorker::wants_tick`].
    Tick,
    /// The commit is done. For a log that is on every leg: the legs that failed.
    Committed {
        /// Errors of the legs it failed on.
        errors: LegErrors,
        /// Error of a log that has a place of its own.
        log_error: Option<Errno>,
    },
    /// The record is done.
    Recorded {
        /// Errors of the legs it failed on.
        errors: LegErrors,
    },
    /// The whole log is on the leg, or not.
    LogFilled {
        /// How it went.
        result: Result<(), Errno>,
    },
    /// The volume is about to be served: record that.
    Start,
    /// A failed leg is back: its file is open on every queue.
    Return {
        /// Which.
        leg: Leg,
    },
    /// Hold resync, or let it go on.
    PauseResync(bool),
    /// No request will come any more: clear what can be cleared, record, and say [`WorkerAction::Stopped`].
    Stop,
}

/// What to do, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WorkerAction {
    /// Set the region's bit in the log's memory.
    LogMark(Region),
    /// Unset it.
    LogClear(Region),
    /// Make the log durable (on these legs, if it is on the legs), then send [`WorkerEvent::Committed`].
    Commit {
        /// Legs in use.
        legs: LegSet,
    },
    /// Make superblocks that say this durable on these legs, then send [`WorkerEvent::Recorded`].
    Record(Record),
    /// Write the whole log to the leg, then send [`WorkerEvent::LogFilled`].
    FillLog {
        /// Which.
        leg: Leg,
    },
    /// Give a queue, or the background worker, a `Woken`.
    Wake(QueueId),
    /// All is recorded: the volume can be closed.
    Stopped,
}

/// What the superblocks are to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Where to write it.
    pub legs: LegSet,
    /// Every leg's state.
    pub states: LegMap<LegState>,
    /// Greater than in every record before.
    pub event_count: u64,
    /// The volume was stopped with a clean log.
    pub clean: bool,
    /// The log lost a mark: nobody may trust it at the next start.
    pub log_failed: bool,
}

#[derive(Debug)]
enum Doing {
    Nothing,
    Commit { legs: LegSet, marks: Vec<(Region, Owner)> },
    Record(Record),
    Fill(Leg),
}

#[derive(Debug)]
enum Flushing {
    Nothing,
    /// In order to clear these regions.
    Clear(Vec<Region>),
    /// In order to promote this leg.
    Promote(Leg),
}

#[derive(Clone, Copy, Debug)]
struct Copy {
    region: Region,
    targets: LegSet,
    /// Targets that were found stale here again since the copy began.
    again: LegSet,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stopping {
    No,
    /// Asked to.
    Asked,
    /// The last clear was tried.
    Cleared,
    /// The last record is under way.
    Recording,
    Done,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct LogWorker {
    mirror: Arc<Mirror>,
    log_on_legs: bool,
    states: LegMap<LegState>,
    event_count: u64,
    log_failed: bool,
    doing: Doing,
    flushing: Flushing,
    /// The leg states changed since the last record began, or that record failed.
    record_wanted: bool,
    /// The last record failed on every leg in sync: the next try waits for a tick.
    record_held_off: bool,
    /// Marks to commit next.
    marks: Vec<(Region, Owner)>,
    /// Marks that are committed and wait for a record.
    marks_committed: Vec<(Region, Owner)>,
    /// Answers that wait for a record.
    settle: Vec<(Owner, Result<(), Errno>)>,
    /// Clears were done in the log's memory and not committed.
    clears: bool,
    /// A tick went by since: nothing else asked for a commit, so they get one of their own.
    clears_due: bool,
    returning: Vec<Leg>,
    copies: Vec<Copy>,
    copy_cursor: u32,
    paused: bool,
    hold_off: [u32; MAX_LEGS],
    ticks: u32,
    stopping: Stopping,
    wake: Vec<QueueId>,
    notes: Vec<WorkerNote>,
}

impl LogWorker {
    /// The log worker of a volume whose legs are in these states, recorded with this event count.
    /// `log_on_legs`: the log is on every leg, so a commit that fails on a leg fails the leg.
    pub fn new(
        mirror: Arc<Mirror>,
        states: LegMap<LegState>,
        event_count: u64,
        log_on_legs: bool,
    ) -> LogWorker {
        LogWorker {
            mirror,
            log_on_legs,
            states,
            event_count,
            log_failed: false,
            doing: Doing::Nothing,
            flushing: Flushing::Nothing,
            record_wanted: false,
            record_held_off: false,
            marks: Vec::new(),
            marks_committed: Vec::new(),
            settle: Vec::new(),
            clears: false,
            clears_due: false,
            returning: Vec::new(),
            copies: Vec::new(),
            copy_cursor: 0,
            paused: false,
            hold_off: [0; MAX_LEGS],
            ticks: 0,
            stopping: Stopping::No,
            wake: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Takes one event and adds what is to be done to `actions`.
    pub fn handle(&mut self, event: WorkerEvent, actions: &mut Vec<WorkerAction>) {
        match event {
            WorkerEvent::Woken => {}
            WorkerEvent::Tick => self.tick(),
            WorkerEvent::Committed { errors, log_error } => self.committed(errors, log_error, actions),
            WorkerEvent::Recorded { errors } => self.recorded(errors, actions),
            WorkerEvent::LogFilled { result } => self.log_filled(result),
            WorkerEvent::Start => {
                // Assembly may have changed states, and the superblocks do not say so yet.
                for (leg, &state) in self.states.iter() {
                    self.mirror.legs.set(leg, state);
                }
                self.record_wanted = true;
            }
            WorkerEvent::Return { leg } => {
                let is_under_way =
                    self.returning.contains(&leg) || matches!(self.doing, Doing::Fill(now) if now == leg);
                if matches!(self.states[leg], LegState::Failed(_)) && !is_under_way {
                    self.returning.push(leg);
                }
            }
            WorkerEvent::PauseResync(paused) => self.paused = paused,
            WorkerEvent::Stop => {
                if self.stopping == Stopping::No {
                    self.stopping = Stopping::Asked;
                }
            }
        }
        let mut notes = std::mem::take(&mut self.notes);
        self.mirror.take_worker_notes(&mut notes);
        for note in &notes {
            self.note(*note, actions);
        }
        self.notes = notes;
        self.next(actions);
        self.wake.sort_unstable();
        self.wake.dedup();
        actions.extend(self.wake.drain(..).map(WorkerAction::Wake));
    }

    /// Whether a [`WorkerEvent::Tick`] a second is needed. An idle, clean volume needs none.
    pub fn wants_tick(&self) -> bool {
        self.mirror.regions.unclean() > 0
            || self.record_wanted
            || self.clears
            || self.hold_off.iter().any(|&ticks| ticks > 0)
    }

    /// Whether nothing durable is under way or waiting.
    pub fn is_settled(&self) -> bool {
        matches!(self.doing, Doing::Nothing) && !self.record_wanted && self.marks.is_empty()
    }

    /// Whether resync is held.
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// The event count of the newest record.
    pub fn event_count(&self) -> u64 {
        self.event_count
    }

    /// Whether the log lost a mark since the volume was started.
    pub fn log_failed(&self) -> bool {
        self.log_failed
    }

    fn tell(&mut self, queue: QueueId, note: QueueNote) {
        self.mirror.tell_queue(queue, note);
        self.wake.push(queue);
    }

    fn tell_background(&mut self, note: QueueNote) {
        self.tell(self.mirror.background(), note);
    }

    fn note(&mut self, note: WorkerNote, actions: &mut Vec<WorkerAction>) {
        match note {
            WorkerNote::Mark { region, from } => {
                if self.mirror.regions.want_mark(region) {
                    self.marks.push((region, from));
                } else {
                    self.tell(from.queue, QueueNote::Marked { io: from.io, result: Ok(()) });
                }
            }
            WorkerNote::Missed { region, ok, errors, durable, from } => {
                self.missed(region, ok, errors, durable, from);
            }
            WorkerNote::Flushed { legs, errors } => self.flushed(legs, errors, actions),
            WorkerNote::Copied { region, ok, errors } => self.copied(region, ok, errors),
        }
    }

    /// Starts the next durable operation, if none is under way, and hands out work.
    fn next(&mut self, actions: &mut Vec<WorkerAction>) {
        if matches!(self.doing, Doing::Nothing) {
            if self.record_wanted && !self.record_held_off {
                self.start_record(false, actions);
            } else if !self.record_wanted
                && let Some(leg) = self.returning.pop()
            {
                self.doing = Doing::Fill(leg);
                actions.push(WorkerAction::FillLog { leg });
            } else if !self.marks.is_empty() || self.clears_due {
                self.start_commit(actions);
            }
        }
        if self.stopping == Stopping::No {
            self.promote();
            self.hand_out_copies();
        } else {
            self.go_on_stopping(actions);
        }
    }

    fn tick(&mut self) {
        self.record_held_off = false;
        self.clears_due = self.clears;
        for ticks in &mut self.hold_off {
            *ticks = ticks.saturating_sub(1);
        }
        self.ticks = self.ticks.wrapping_add(1);
        if self.stopping == Stopping::No && self.ticks.is_multiple_of(CLEAR_TICKS) {
            self.start_clear(false);
        }
    }

    // ---- leg states

    fn in_sync(&self) -> LegSet {
        self.states.iter().filter(|&(_, &s)| s == LegState::InSync).map(|(leg, _)| leg).collect()
    }

    fn in_use(&self) -> LegSet {
        let in_use = |s| matches!(s, LegState::InSync | LegState::Syncing);
        self.states.iter().filter(|&(_, &s)| in_use(s)).map(|(leg, _)| leg).collect()
    }

    /// Legs in sync that are recorded so: the others among the legs in sync are on their way there, and
    /// may turn out not to get there.
    fn surely_in_sync(&self) -> LegSet {
        self.in_sync().intersect(self.mirror.legs.states().in_sync())
    }

    /// Takes a leg out of use, at once for the queues and soon for the superblocks.
    fn fail(&mut self, leg: Leg, errno: Errno) {
        if matches!(self.states[leg], LegState::InSync | LegState::Syncing) {
            let reason = if errno.is_no_space() { FailReason::NoSpace } else { FailReason::Io };
            self.states[leg] = LegState::Failed(reason);
            self.mirror.legs.set(leg, self.states[leg]);
            self.record_wanted = true;
        }
    }

    /// Fails the legs with errors if the operation worked on another leg in sync; `false` if it did not.
    fn fail_legs(&mut self, ok: LegSet, errors: &LegErrors) -> bool {
        if ok.intersect(self.surely_in_sync()).is_empty() {
            return false;
        }
        for leg in self.mirror.all_legs().collect::<LegSet>().iter() {
            if let Some(errno) = errors[leg.index()] {
                self.fail(leg, errno);
            }
        }
        true
    }

    fn set_stale(&mut self, leg: Leg, region: Region) {
        self.mirror.legs.set_stale(leg, region);
        for copy in self.copies.iter_mut().filter(|copy| copy.region == region) {
            copy.again.insert(leg);
        }
    }

    fn missed(
        &mut self,
        region: Option<Region>,
        ok: LegSet,
        mut errors: LegErrors,
        durable: bool,
        from: Owner,
    ) {
        let in_sync = self.surely_in_sync();
        let source = in_sync.lowest();
        let result = if ok.intersect(in_sync).is_empty() {
            // No leg in sync has it: the request fails and no leg does. Whatever reached a leg, the
            // source's bytes are the volume's from here on.
            let errno = in_sync.iter().find_map(|leg| errors[leg.index()]).unwrap_or(Errno::EIO);
            if durable && (region.is_none() || !errno.is_no_space()) {
                self.mirror.legs.break_flush();
            }
            if let Some(region) = region {
                self.mirror.undo_write();
                for leg in self.in_use().iter().filter(|&leg| Some(leg) != source) {
                    self.set_stale(leg, region);
                    if self.states[leg] == LegState::InSync {
                        self.states[leg] = LegState::Syncing;
                        self.mirror.legs.set(leg, LegState::Syncing);
                        self.record_wanted = true;
                    }
                }
            }
            Err(errno)
        } else {
            for leg in self.mirror.all_legs().collect::<LegSet>().iter() {
                // A leg that is syncing and has no room stays; it is stale here, that is all.
                if let (Some(region), LegState::Syncing, Some(errno)) =
                    (region, self.states[leg], errors[leg.index()])
                    && errno.is_no_space()
                {
                    self.set_stale(leg, region);
                    self.hold_off[leg.index()] = HOLD_OFF_TICKS;
                    errors[leg.index()] = None;
                }
            }
            self.fail_legs(ok, &errors);
            if durable && self.mirror.legs.flush_broken() { Err(Errno::EIO) } else { Ok(()) }
        };
        if self.everything_is_recorded() {
            self.tell(from.queue, QueueNote::Settled { io: from.io, result });
        } else {
            self.settle.push((from, result));
        }
    }

    fn everything_is_recorded(&self) -> bool {
        let states = self.mirror.legs.states();
        !self.record_wanted && states.all().iter().all(|leg| states.recorded(leg))
    }

    // ---- records

    fn start_record(&mut self, clean: bool, actions: &mut Vec<WorkerAction>) {
        self.record_wanted = false;
        self.event_count += 1;
        let record = Record {
            legs: self.in_use(),
            states: self.states.clone(),
            event_count: self.event_count,
            clean,
            log_failed: self.log_failed,
        };
        self.doing = Doing::Record(record.clone());
        actions.push(WorkerAction::Record(record));
    }

    fn recorded(&mut self, errors: LegErrors, actions: &mut Vec<WorkerAction>) {
        let Doing::Record(record) = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            unreachable!("no record is under way")
        };
        let failed: LegSet = record.legs.iter().filter(|leg| errors[leg.index()].is_some()).collect();
        let ok = record.legs.minus(failed);
        // A leg that took the record that it is in sync is, whatever became of the others.
        let promoted = ok.intersect(self.in_sync()).minus(self.surely_in_sync());
        for leg in promoted.iter().filter(|&leg| record.states[leg] == LegState::InSync) {
            self.mirror.legs.set(leg, LegState::InSync);
        }
        if !failed.is_empty() && !self.fail_legs(ok, &errors) {
            return self.record_failed(actions);
        }
        for (leg, &state) in record.states.iter() {
            self.mirror.legs.set_recorded(leg, state);
        }
        if self.record_wanted {
            return;
        }
        for (region, from) in std::mem::take(&mut self.marks_committed) {
            self.marked(region, from);
        }
        for (from, result) in std::mem::take(&mut self.settle) {
            self.tell(from.queue, QueueNote::Settled { io: from.io, result });
        }
        if self.stopping == Stopping::Recording {
            self.stopping = Stopping::Done;
            actions.push(WorkerAction::Stopped);
        }
    }

    /// No leg in sync took the record: what waits for it fails, and it is tried again later.
    fn record_failed(&mut self, actions: &mut Vec<WorkerAction>) {
        self.record_wanted = true;
        self.record_held_off = true;
        for (region, from) in std::mem::take(&mut self.marks_committed) {
            self.mark_failed(region, from, Errno::EIO, actions);
        }
        for (from, result) in std::mem::take(&mut self.settle) {
            let result = result.and(Err(Errno::EIO));
            self.tell(from.queue, QueueNote::Settled { io: from.io, result });
        }
        if self.stopping == Stopping::Recording {
            self.stopping = Stopping::Done;
            actions.push(WorkerAction::Stopped);
        }
    }

    // ---- marks

    fn start_commit(&mut self, actions: &mut Vec<WorkerAction>) {
        let marks = std::mem::take(&mut self.marks);
        for &(region, _) in &marks {
            // A commit that failed may have left it clean since the mark was asked for.
            self.mirror.regions.want_mark(region);
            actions.push(WorkerAction::LogMark(region));
        }
        let legs = self.in_use();
        Counters::add(&self.mirror.counters.commits, 1);
        self.clears = false;
        self.clears_due = false;
        self.doing = Doing::Commit { legs, marks };
        actions.push(WorkerAction::Commit { legs });
    }

    fn committed(&mut self, errors: LegErrors, log_error: Option<Errno>, actions: &mut Vec<WorkerAction>) {
        let Doing::Commit { legs, marks } = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            unreachable!("no commit is under way")
        };
        if log_error.is_some() && !self.log_failed {
            // The log's own place is broken. Once the superblocks say so, every mark is as good as
            // durable: the next start takes the whole volume for dirty.
            self.log_failed = true;
            self.record_wanted = true;
        }
        let failed: LegSet = legs.iter().filter(|leg| errors[leg.index()].is_some()).collect();
        if self.log_on_legs && !failed.is_empty() && !self.fail_legs(legs.minus(failed), &errors) {
            let errno = self.in_sync().iter().find_map(|leg| errors[leg.index()]).unwrap_or(Errno::EIO);
            self.clears = true;
            for (region, from) in marks {
                self.mark_failed(region, from, errno, actions);
            }
            return;
        }
        if self.record_wanted {
            self.marks_committed.extend(marks);
        } else {
            for (region, from) in marks {
                self.marked(region, from);
            }
        }
    }

    fn marked(&mut self, region: Region, from: Owner) {
        self.mirror.regions.marked(region);
        self.tell(from.queue, QueueNote::Marked { io: from.io, result: Ok(()) });
    }

    fn mark_failed(&mut self, region: Region, from: Owner, errno: Errno, actions: &mut Vec<WorkerAction>) {
        let is_committed = self.marks_committed.iter().any(|&(other, _)| other == region);
        if !is_committed && self.mirror.regions.state(region) == RegionState::Marking {
            self.mirror.regions.mark_failed(region);
            actions.push(WorkerAction::LogClear(region));
            self.clears = true;
        }
        self.tell(from.queue, QueueNote::Marked { io: from.io, result: Err(errno) });
    }

    // ---- clears

    /// First step of a clear: flushes the legs if there is a region to clear. When stopping, legs are
    /// flushed in any case, and a region need not have been left alone for a while.
    fn start_clear(&mut self, stopping: bool) {
        if !matches!(self.flushing, Flushing::Nothing) {
            return;
        }
        let regions = self.clearable(stopping);
        if stopping || !regions.is_empty() {
            self.flushing = Flushing::Clear(regions);
            self.tell_background(QueueNote::Flush { legs: self.in_use() });
        }
    }

    /// Regions that are cleaning now. None while a leg is out: it is stale wherever the log is dirty.
    fn clearable(&self, at_once: bool) -> Vec<Region> {
        let legs = &self.mirror.legs;
        let every_leg = legs.states().all();
        if self.in_use() != every_leg || legs.flush_broken() || self.mirror.regions.unclean() == 0 {
            return Vec::new();
        }
        let table = &self.mirror.regions;
        let in_sync = table.unclean_regions().filter(|&region| legs.readable(region) == every_leg);
        in_sync.filter(|&region| table.start_cleaning(region, at_once)).collect()
    }

    fn flushed(&mut self, legs: LegSet, errors: LegErrors, actions: &mut Vec<WorkerAction>) {
        let failed: LegSet = legs.iter().filter(|leg| errors[leg.index()].is_some()).collect();
        let was_in_sync = self.in_sync();
        if !failed.is_empty()
            && !self.fail_legs(legs.minus(failed), &errors)
            && !failed.intersect(was_in_sync).is_empty()
        {
            self.mirror.legs.break_flush();
        }
        match std::mem::replace(&mut self.flushing, Flushing::Nothing) {
            Flushing::Nothing => unreachable!("no flush is under way"),
            Flushing::Promote(leg) => {
                if failed.is_empty() && self.can_promote(leg) {
                    self.states[leg] = LegState::InSync;
                    self.record_wanted = true;
                } else if let Some(errno) = errors[leg.index()] {
                    self.fail(leg, errno);
                }
            }
            Flushing::Clear(regions) => {
                let every_leg = self.mirror.legs.states().all();
                let flushed = failed.is_empty() && self.in_use() == every_leg;
                for region in regions {
                    let in_sync = self.mirror.legs.readable(region) == every_leg;
                    if !(flushed && in_sync) {
                        self.mirror.regions.stop_cleaning(region);
                    } else if self.mirror.regions.finish_cleaning(region) {
                        actions.push(WorkerAction::LogClear(region));
                        self.clears = true;
                    }
                }
            }
        }
    }

    // ---- resync

    fn log_filled(&mut self, result: Result<(), Errno>) {
        let Doing::Fill(leg) = std::mem::replace(&mut self.doing, Doing::Nothing) else {
            unreachable!("no leg is being filled")
        };
        if result.is_err() {
            return;
        }
        // Stale everywhere first, then in use, then not stale where the log is clean: a write that
        // begins in a clean region after that look sees the leg in use.
        self.mirror.legs.set_all_stale(leg, true);
        self.mirror.legs.forget_failed_flush(leg);
        self.states[leg] = LegState::Syncing;
        self.mirror.legs.set(leg, LegState::Syncing);
        self.record_wanted = true;
        for region in (0..self.mirror.regions.len()).map(Region) {
            if self.mirror.regions.state(region) == RegionState::Clean {
                self.mirror.legs.clear_stale(leg, region);
            }
        }
        for copy in &mut self.copies {
            copy.again.insert(leg);
        }
        self.hold_off[leg.index()] = 0;
    }

    /// Only once it is recorded as syncing: the legs in sync know then that they cannot go on without it.
    fn can_promote(&self, leg: Leg) -> bool {
        self.states[leg] == LegState::Syncing
            && self.mirror.legs.states().recorded(leg)
            && self.mirror.legs.stale_count(leg) == 0
            && self.copies.iter().all(|copy| !copy.targets.contains(leg))
    }

    fn promote(&mut self) {
        let ready = self.states.legs().find(|&leg| self.can_promote(leg));
        if let (Flushing::Nothing, Some(leg)) = (&self.flushing, ready) {
            self.flushing = Flushing::Promote(leg);
            self.tell_background(QueueNote::Flush { legs: LegSet::one(leg) });
        }
    }

    fn hand_out_copies(&mut self) {
        while !self.paused && self.copies.len() < COPY_SLOTS as usize {
            let Some((region, targets)) = self.resync_work() else { return };
            self.copy_cursor = region.0 + 1;
            self.copies.push(Copy { region, targets, again: LegSet::EMPTY });
            self.tell_background(QueueNote::Copy { region, targets });
        }
    }

    /// The next stale region at or behind the cursor, around the end, with the legs that are stale there.
    fn resync_work(&self) -> Option<(Region, LegSet)> {
        let legs = &self.mirror.legs;
        let ready: LegSet =
            legs.states().syncing().iter().filter(|leg| self.hold_off[leg.index()] == 0).collect();
        let regions = self.mirror.regions.len();
        let find = |from: u32| ready.iter().filter_map(|leg| legs.next_stale(leg, from)).min();
        let mut from = self.copy_cursor % regions;
        let mut wrapped = false;
        loop {
            let Some(region) = find(from) else {
                if wrapped {
                    return None;
                }
                (wrapped, from) = (true, 0);
                continue;
            };
            if self.copies.iter().any(|copy| copy.region == region) {
                from = region.0 + 1;
                if from < regions {
                    continue;
                }
                if wrapped {
                    return None;
                }
                (wrapped, from) = (true, 0);
                continue;
            }
            return Some((region, ready.iter().filter(|&leg| legs.is_stale(leg, region)).collect()));
        }
    }

    fn copied(&mut self, region: Region, ok: LegSet, errors: LegErrors) {
        let at = self.copies.iter().position(|copy| copy.region == region).expect("a copy was handed out");
        let copy = self.copies.swap_remove(at);
        for leg in copy.targets.iter() {
            if self.states[leg] != LegState::Syncing {
                continue;
            }
            if ok.contains(leg) {
                if !copy.again.contains(leg) {
                    self.mirror.legs.clear_stale(leg, region);
                    Counters::add(&self.mirror.counters.resynced_regions, 1);
                }
            } else if let Some(errno) = errors[leg.index()].filter(|errno| !errno.is_no_space()) {
                self.fail(leg, errno);
            } else {
                self.hold_off[leg.index()] = HOLD_OFF_TICKS;
            }
        }
    }

    // ---- stop

    fn go_on_stopping(&mut self, actions: &mut Vec<WorkerAction>) {
        let busy = !matches!(self.doing, Doing::Nothing)
            || !matches!(self.flushing, Flushing::Nothing)
            || !self.copies.is_empty();
        if busy {
            return;
        }
        if self.stopping == Stopping::Asked {
            self.stopping = Stopping::Cleared;
            return self.start_clear(true);
        }
        if self.stopping == Stopping::Cleared {
            if self.clears {
                self.start_commit(actions);
            } else {
                self.stopping = Stopping::Recording;
                self.start_record(self.mirror.regions.unclean() == 0, actions);
            }
        }
    }
}
