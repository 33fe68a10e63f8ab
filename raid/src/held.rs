//! What each leg is known to hold: how an older image of a leg is told from the leg itself.
//!
//! Every record has for each leg the newest event count that the leg durably held when the record was begun. A leg whose own
//! newest record has a lower one is an image of itself from before: all on it is stale. That is exact. A record that a
//! crash cut short leaves a leg one behind, and the next record says that the leg held it only once the leg answered.
//!
//! For that to tell of what was written, records go out while the volume is written to (*beats*, `worker/beat.rs`), and
//! a region is cleared only after two records that were begun after the last write to it are complete:
//!
//! - The first of them, R, is on every leg in use. An image from before that write was begun lacks it.
//! - The second says that the legs held R. It is on every leg in use before the region is cleared, so whichever record
//!   decides a later start says it, too, and an image from before the write is told.
//! - Until then the region is dirty in the log: on every other leg, or in the log's own place. An image that is level with
//!   what is recorded, or one record behind, differs from its leg in dirty regions only, and is copied to there.
//!
//! No step looks at where the log is, so this holds for each kind of it. A log in memory is lost at a crash, and all
//! is dirty; after a clean stop, which writes two records at least after the last write, the first paragraph tells.
//!
//! What this cannot tell: that every leg was replaced by an image of one moment; that a leg which is started alone is an
//! image of itself (but the legs that come back to it become equal to it: `assemble.rs`, its rules for logs of legs that
//! return and for records of another history); that the last of an image was read when the newest record but one was on the leg already, and what was written
//! to it before that was read earlier. The last of these can be told where the system knows when a leg's file was made
//! ([`LegRecord::other_file`]).

use crate::assemble::LegRecord;
use crate::types::{Leg, LegSet, MAX_LEGS};

/// Of a leg that is not believed, whatever it says.
const NEVER: u64 = u64::MAX;

/// By leg: the newest event count that it durably holds; 0 if that is not known. See the module's documentation.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Held([u64; MAX_LEGS]);

impl Held {
    /// As it is recorded: by leg, the event count; 0 if it is not known, [`u64::MAX`] if the leg is not believed.
    pub const fn from_recorded(counts: [u64; MAX_LEGS]) -> Held {
        Held(counts)
    }

    /// As [`Held::from_recorded`] takes it.
    pub const fn recorded(self) -> [u64; MAX_LEGS] {
        self.0
    }

    /// What is known of one leg.
    pub(crate) fn of(self, leg: Leg) -> u64 {
        self.0[leg.index()]
    }

    pub(crate) fn set(&mut self, leg: Leg, event_count: u64) {
        self.0[leg.index()] = event_count;
    }

    /// Whatever the leg holds is not believed, before it takes a record.
    pub(crate) fn never_believe(&mut self, leg: Leg) {
        self.set(leg, NEVER);
    }

    /// These legs have taken this record.
    pub(crate) fn took(&mut self, legs: LegSet, event_count: u64) {
        legs.iter().for_each(|leg| self.set(leg, event_count));
    }

    /// Whether the leg that this record is on held a newer one.
    pub(crate) fn is_older(self, record: &LegRecord) -> bool {
        record.event_count < self.of(record.index)
    }
}
