//! What the driver tells the log worker, and what the log worker has it do.

use crate::assemble::Replaces;
use crate::geometry::Regions;
use crate::held::Held;
use crate::lineage::Lineage;
use crate::mirror::LegErrors;
use crate::recent::Recent;
use crate::types::{Errno, Leg, LegMap, LegSet, LegState, QueueId};

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
    /// The log that lost a mark is in its place again, for one that has a place of its own. The driver promises: the whole
    /// log, as it was in memory at some moment after the last commit that was answered, well or not, is durable
    /// there. A commit that is not answered yet may be, and counts by its answer. Nothing happens if no mark was lost.
    LogBack,
    /// The volume is about to be served: record that.
    Start,
    /// A leg is to be taken out by hand: nothing happens to the last one in sync.
    Fail {
        /// Which.
        leg: Leg,
    },
    /// A leg in sync is to be split off as it is between two writes, and tracked from then on. Nothing happens to
    /// the last one in sync, while another is being split off, or if writes under way do not end.
    Split {
        /// Which.
        leg: Leg,
    },
    /// A failed or tracked leg is back, a spare is to be used, or a new one is there at an index that was vacant:
    /// its file is open on every queue.
    Return {
        /// Which.
        leg: Leg,
        /// It holds nobody knows what: all of it is to be copied. A spare, or a new one, is in any case.
        full: bool,
        /// The leg that is removed once this one is in sync.
        replaces: Option<Leg>,
    },
    /// A leg that ran out of space has room again, and its file is still the one that every queue has. Nothing happens
    /// to one that is in another state by now.
    Room {
        /// Which.
        leg: Leg,
    },
    /// A new leg is there, at an index that was vacant, as a spare.
    AddSpare {
        /// Which.
        leg: Leg,
    },
    /// A leg is to be the volume's no longer: nothing happens to the last one in sync.
    Remove {
        /// Which.
        leg: Leg,
    },
    /// What is to be done when a leg fails.
    Spares {
        /// Spares whose files are open on every queue.
        ready: LegSet,
        /// One of them takes the place of a leg that fails.
        allocate: bool,
    },
    /// The volume is to have this size, in bytes: larger than before. Nothing happens unless every leg is in sync and
    /// recorded so, nothing else is changed just now, and the tables have room. Every leg has room for it and
    /// for its log, and holds zeroes behind the old size, durably.
    Grow {
        /// In bytes.
        size: u64,
    },
    /// Hold resync, or let it go on.
    PauseResync(bool),
    /// No request will come any more: clear what can be cleared, record, and say [`WorkerAction::Stopped`].
    Stop,
}

/// What to do, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WorkerAction {
    /// Set the regions' bits in the log's memory.
    LogMark(Regions),
    /// Unset them.
    LogClear(Regions),
    /// The log in memory has so many regions from now on, and all of it is to be written by the next commit; new ones
    /// are clean, those that are gone were.
    SizeLog(u32),
    /// Make the log durable as its memory is now (on these legs, if it is on the legs), then send
    /// [`WorkerEvent::Committed`]. If it is not on the legs, all other actions but a second commit may come before that
    /// is done, [`WorkerAction::LogClear`] and [`WorkerAction::SizeLog`] among them: the next commit's.
    Commit {
        /// Legs in use.
        legs: LegSet,
    },
    /// Make superblocks that say this durable on these legs, then send [`WorkerEvent::Recorded`].
    Record(Box<Record>),
    /// Write the whole log to the leg, if it is on the legs, then send [`WorkerEvent::LogFilled`].
    FillLog {
        /// Which.
        leg: Leg,
    },
    /// Give a queue, or the background worker, a `Woken`.
    Wake(QueueId),
    /// There is more to do than fits into one turn: send a [`WorkerEvent::Woken`], behind what has come meanwhile.
    Again,
    /// All is recorded: the volume can be closed.
    Stopped,
}

/// What the superblocks are to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Where to write it.
    pub legs: LegSet,
    /// Size of the volume, in bytes.
    pub size: u64,
    /// Every leg's state.
    pub states: LegMap<LegState>,
    /// By leg: the leg whose place it takes once it is in sync.
    pub replaces: Replaces,
    /// Greater than in every record before.
    pub event_count: u64,
    /// The volume was stopped with a clean log.
    pub clean: bool,
    /// The volume was stopped in good order: the legs in sync are equal.
    pub equal: bool,
    /// The log lost a mark: nobody may trust it at the next start.
    pub log_failed: bool,
    /// Where the record comes from.
    pub lineage: Lineage,
    /// What each leg held when it was begun.
    pub held: Held,
    /// Where legs may differ that are equal elsewhere, if that is less than what is dirty.
    pub recent: Option<Recent>,
}
