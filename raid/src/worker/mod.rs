//! The log worker as a state machine: the one owner of what is durable about a volume.
//!
//! It commits marks in groups, clears regions lazily in two steps, records leg states in the
//! superblocks, hands stale regions to the background worker and promotes legs that have none
//! left. Records go before commits, and one durable operation is under way at a time, but for what is said
//! below; whatever arrives meanwhile is committed together by the next commit (group commit).
//!
//! A log that is not on the legs may not answer for long: it can be in another host. So one commit of it may be under
//! way *beside* a record or a fill, and nothing but marks waits for it:
//!
//! - A mark is answered when its commit is done and no record is wanted or under way. A record under way may be older
//!   than the failure of that commit, so that none is wanted is not enough. Whenever `log_failed` is not what the
//!   last record that was begun says, a record is wanted; so the one that answers marks says it.
//! - A mark that waits for a record which fails is undone only if no commit under way has the region, too: who
//!   asked for that one will write.
//! - What is cleared meanwhile is clean in memory and goes into the next commit; who writes there asks for a mark, which
//!   the next commit has as well, behind the clear.
//! - A leg that comes is stale where a mark is under way. A fill writes nothing for such a log, so no commit can miss it.
//! - A split waits with all writes held, so it gives up if a commit does not end ([`split`]); a growth, which holds up
//!   legs that come and splits only, does so later ([`grow`]). What they had the commit do is right without them.
//! - The last record of a stop is not begun beside a commit: it says whether that one failed.
//!
//! The log that lost a mark comes back ([`WorkerEvent::LogBack`]). The marks of all commits that were answered are
//! durable then, also of those that failed, since they stayed set in its memory; for those of a commit under way
//! its answer counts, and if that is an error the log is lost anew.
//!
//! Leg states move here and nowhere else:
//!
//! | from | to | when |
//! |---|---|---|
//! | in sync | failed | a write, flush, commit or record failed on it and worked on another leg in sync |
//! | in sync, syncing | failed | it could not be read and cannot be repaired (see `repair.rs`), another leg in sync could |
//! | in sync | syncing | a write failed on every leg in sync, and this is not the source |
//! | syncing | failed | a write (other than for lack of space), flush, commit or record failed on it |
//! | in sync, syncing | failed | by hand ([`WorkerEvent::Fail`]) |
//! | in sync | tracked | by hand ([`WorkerEvent::Split`]), no write under way and all flushed |
//! | failed, tracked, spare, vacant | syncing | the driver says that it is there ([`WorkerEvent::Return`]), or a leg failed that a spare takes the place of, and it has the whole log |
//! | vacant | spare | by hand ([`WorkerEvent::AddSpare`]) |
//! | any | vacant | by hand ([`WorkerEvent::Remove`]), or another that takes its place is in sync |
//! | syncing | in sync | stale nowhere, flushed since, and recorded so |
//!
//! A leg is failed only while another leg in sync carried the operation out, so the last leg in
//! sync is never failed. Runs on the log worker's thread.

mod ahead;
mod beat;
mod durable;
mod grow;
mod marks;
mod messages;
mod recent;
mod repair;
mod resync;
mod roster;
mod scrub;
mod settings;
mod split;
mod states;
#[cfg(test)]
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::assemble::Replaces;
use crate::geometry::Region;
use crate::held::Held;
use crate::lineage::Lineage;
use crate::mirror::{Mirror, QueueNote, WorkerNote};
use crate::ranges::Owner;
use crate::types::{Errno, FailReason, Leg, LegMap, LegSet, LegState, MAX_LEGS, QueueId};
use ahead::Ahead;
use beat::Beats;
use durable::{COMMIT_IO, KINDS, Metadata, RECORD_IO};
use grow::Growing;
pub use messages::{Record, WorkerAction, WorkerEvent};
use recent::Recents;
use split::Splitting;

/// A clear is tried every so many ticks. A region is cleared after one to two such intervals without a
/// write; shorter, and a busy volume spends its time on flushes.
const CLEAR_TICKS: u32 = 3;

/// Ticks for which resync leaves a leg alone after a copy to it failed.
const HOLD_OFF_TICKS: u32 = 5;

/// Regions that one turn looks at, marks or clears, one by one: some 50 ns each, and users' marks wait for the turn.
const TURN_REGIONS: u32 = 1 << 14;

/// Stands for a queue where none waits for a mark.
const NOBODY: QueueId = QueueId(u16::MAX);
/// Who asks for marks that only copies need.
const FOR_COPIES: Owner = Owner { queue: NOBODY, io: 0 };
/// Who asks for marks before they are needed.
const AHEAD: Owner = Owner { queue: NOBODY, io: 1 };

#[derive(Debug)]
enum Doing {
    Nothing,
    Record(Box<Record>),
    Fill(Leg),
}

/// A commit under way.
#[derive(Debug)]
struct Committing {
    legs: LegSet,
    marks: Vec<(Region, Owner)>,
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

/// A range of a leg that is to be written anew, in bytes.
#[derive(Clone, Copy, Debug)]
struct Repair {
    leg: Leg,
    offset: u64,
    len: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stopping {
    No,
    /// Asked to.
    Asked,
    /// The last clear was tried.
    Cleared,
    /// No leg in sync took the commit of the last clears: the log on the legs has bits set that are clear in memory.
    Unclear,
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
    /// Of the volume, as the next record says.
    size: u64,
    event_count: u64,
    lineage: Lineage,
    held: Held,
    log_failed: bool,
    beats: Beats,
    recents: Recents,
    /// The record under way has no other reason than to be one.
    is_beat: bool,
    /// The legs in sync were flushed for the stop.
    flushed_to_stop: bool,
    doing: Doing,
    /// Beside what is done otherwise only if the log is not on the legs.
    committing: Option<Committing>,
    /// Of what is being done, that which goes to the legs.
    metadata: [Option<Metadata>; KINDS],
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
    /// Of these, and of the one being filled: those to be copied whole.
    returning_full: LegSet,
    /// While there are any: the regions before this one are marked durably.
    marked_until: u32,
    /// A mark for them failed: the next try waits for a tick.
    full_held_off: bool,
    /// Legs taken back, and the region before which it is known where they are stale: they are not copied to yet.
    settling: [Option<u32>; MAX_LEGS],
    /// Where the next look for regions to clear begins.
    clear_cursor: u32,
    /// Regions that one turn looks at, at most.
    turn_regions: u32,
    /// So many were looked at in this turn.
    looked_at: u32,
    /// More is to be looked at at once.
    has_more: bool,
    copies: Vec<Copy>,
    copy_cursor: u32,
    /// Handed to the background worker, which goes by their order.
    repairs: VecDeque<Repair>,
    /// Repairs that each leg needed lately.
    repaired_lately: [u32; MAX_LEGS],
    splitting: Option<Splitting>,
    replaces: Replaces,
    /// Legs that are to be removed as soon as nothing is under way with them.
    removals: LegSet,
    /// Spares that can be used when a leg fails.
    ready_spares: LegSet,
    growing: Option<Growing>,
    ahead: Ahead,
    paused: bool,
    hold_off: [u32; MAX_LEGS],
    ticks: u32,
    stopping: Stopping,
    wake: Vec<QueueId>,
    notes: Vec<WorkerNote>,
}

impl LogWorker {
    /// The log worker of a volume whose legs are in these states, recorded with this event count.
    /// `lineage`: of the records to come ([`crate::Assembly::lineage`]).
    /// `log_on_legs`: the log is on every leg, so a commit that fails on a leg fails the leg.
    pub fn new(
        mirror: Arc<Mirror>,
        states: LegMap<LegState>,
        event_count: u64,
        lineage: Lineage,
        log_on_legs: bool,
    ) -> LogWorker {
        let size = mirror.geometry().size();
        let in_sync = states.iter().filter(|&(_, &state)| state == LegState::InSync);
        let recents = Recents::new(&mirror, in_sync.map(|(leg, _)| leg).collect());
        LogWorker {
            mirror,
            size,
            log_on_legs,
            states,
            event_count,
            lineage,
            held: Held::default(),
            log_failed: false,
            beats: Beats::new(event_count),
            recents,
            is_beat: false,
            flushed_to_stop: false,
            doing: Doing::Nothing,
            committing: None,
            metadata: Default::default(),
            flushing: Flushing::Nothing,
            record_wanted: false,
            record_held_off: false,
            marks: Vec::new(),
            marks_committed: Vec::new(),
            settle: Vec::new(),
            clears: false,
            clears_due: false,
            returning: Vec::new(),
            returning_full: LegSet::EMPTY,
            marked_until: 0,
            full_held_off: false,
            settling: [None; MAX_LEGS],
            clear_cursor: 0,
            turn_regions: TURN_REGIONS,
            looked_at: 0,
            has_more: false,
            copies: Vec::new(),
            copy_cursor: 0,
            repairs: VecDeque::new(),
            repaired_lately: [0; MAX_LEGS],
            splitting: None,
            replaces: Replaces::default(),
            removals: LegSet::EMPTY,
            ready_spares: LegSet::EMPTY,
            growing: None,
            ahead: Ahead::new(0),
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
        (self.looked_at, self.has_more) = (0, false);
        let event = match event {
            WorkerEvent::Committed { .. } => self.metadata_done(COMMIT_IO, event),
            WorkerEvent::Recorded { .. } | WorkerEvent::LogFilled { .. } => {
                self.metadata_done(RECORD_IO, event)
            }
            event => Some(event),
        };
        if let Some(event) = event {
            self.event(event, actions);
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
        if self.has_more {
            actions.push(WorkerAction::Again);
        }
    }

    fn event(&mut self, event: WorkerEvent, actions: &mut Vec<WorkerAction>) {
        match event {
            WorkerEvent::Woken => {}
            WorkerEvent::Tick => self.tick(),
            WorkerEvent::Committed { errors, log_error } => self.committed(errors, log_error, actions),
            WorkerEvent::Recorded { errors } => self.recorded(errors, actions),
            WorkerEvent::LogFilled { result } => self.log_filled(result),
            WorkerEvent::LogBack => self.log_is_back(),
            WorkerEvent::Start => {
                // Assembly may have changed states, and the superblocks do not say so yet.
                for (leg, &state) in self.states.iter() {
                    self.mirror.legs.set(leg, state);
                }
                self.record_wanted = true;
            }
            WorkerEvent::Fail { leg } => self.fail_by_hand(leg),
            WorkerEvent::Split { leg } => self.split(leg),
            WorkerEvent::Return { leg, full, replaces } => self.take_back(leg, full, replaces),
            WorkerEvent::Room { leg } => {
                if self.states[leg] == LegState::Failed(FailReason::NoSpace) {
                    self.take_back(leg, false, None);
                }
            }
            WorkerEvent::AddSpare { leg } => self.add_spare(leg),
            WorkerEvent::Remove { leg } => self.removals.insert(leg),
            WorkerEvent::Spares { ready, allocate } => {
                self.ready_spares = if allocate { ready } else { LegSet::EMPTY };
            }
            WorkerEvent::Grow { size } => self.grow(size),
            WorkerEvent::PauseResync(paused) => self.paused = paused,
            WorkerEvent::Stop => {
                if self.stopping == Stopping::No {
                    self.stopping = Stopping::Asked;
                    self.give_up_returns();
                }
            }
        }
    }

    /// Whether a [`WorkerEvent::Tick`] a second is needed. An idle, clean volume needs none.
    pub fn wants_tick(&self) -> bool {
        self.mirror.regions.unclean() > 0
            || self.record_wanted
            || self.clears
            || self.splitting.is_some()
            || self.growing.is_some()
            || self.beats.are_due()
            || self.recents.wanted
            || !self.returning_full.is_empty()
            || self.is_settling()
            || self.hold_off.iter().chain(&self.repaired_lately).any(|&n| n > 0)
    }

    /// Whether the turn may look at more regions one by one; how many, if so.
    fn may_look_at(&self) -> u32 {
        self.turn_regions.saturating_sub(self.looked_at)
    }

    /// Whether nothing durable is under way or waiting.
    pub fn is_settled(&self) -> bool {
        self.nothing_is_under_way() && !self.record_wanted && self.marks.is_empty()
    }

    fn nothing_is_under_way(&self) -> bool {
        matches!(self.doing, Doing::Nothing) && self.committing.is_none()
    }

    fn answer_mark(&mut self, from: Owner, result: Result<(), Errno>) {
        if from.queue != NOBODY {
            self.tell(from.queue, QueueNote::Marked { io: from.io, result });
        }
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
                    self.want_told(region);
                    self.mark_ahead(region);
                } else {
                    self.marked_in_log(region, from);
                }
            }
            WorkerNote::Missed { region, ok, errors, durable, from } => {
                self.missed(region, ok, errors, durable, from);
            }
            WorkerNote::Joined { io } => {
                if let Some(event) = self.metadata_joined(io) {
                    self.event(event, actions);
                }
            }
            WorkerNote::Unreadable { leg, offset, len, errno } => self.unreadable(leg, offset, len, errno),
            WorkerNote::Repaired { ok, errors } => self.repaired(ok, &errors),
            WorkerNote::Scrubbed { region, errors } => self.scrubbed(region, &errors),
            WorkerNote::Flushed { legs, errors } => self.flushed(legs, errors, actions),
            WorkerNote::Copied { region, ok, errors } => self.copied(region, ok, errors),
        }
    }

    /// Starts the next durable operation, if it can be, and hands out work.
    fn next(&mut self, actions: &mut Vec<WorkerAction>) {
        while self.go_on_splitting() {}
        self.change_roster();
        self.go_on_growing(actions);
        self.go_on_clearing();
        if matches!(self.doing, Doing::Nothing) && (self.committing.is_none() || !self.log_on_legs) {
            let wants_record = self.record_wanted || self.beats.wanted || self.recents.wanted;
            if wants_record && !self.record_held_off {
                self.start_record(false, false, actions);
            } else if !self.record_wanted
                && self.growing.is_none()
                && let Some(leg) = self.take_returning()
            {
                self.doing = Doing::Fill(leg);
                self.begin_metadata(RECORD_IO, LegSet::one(leg));
                actions.push(WorkerAction::FillLog { leg });
            }
        }
        if self.may_commit() {
            self.mark_for_full();
        }
        self.settle_legs();
        let wants_commit = !self.marks.is_empty() || self.clears_due;
        if wants_commit && self.may_commit() {
            self.start_commit(actions);
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
        self.forget_repairs();
        self.tick_split();
        self.tick_growth();
        self.full_held_off = false;
        if self.stopping == Stopping::No && self.ticks.is_multiple_of(CLEAR_TICKS) {
            self.start_clear(false);
            self.beat();
            self.tell_what_fell();
        }
    }
}
