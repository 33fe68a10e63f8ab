//! What a scrub is told, and what there is to say of it: the words of status, of the control socket and of what is
//! remembered. Field names are the interface: add, never rename.

mod store;

use mirrord_raid::{Difference, Leg, LegSet};
use serde::{Deserialize, Serialize};

pub(crate) use store::{Memory, Store, UnderWay};

/// Ranges that a result names; more are counted.
pub const MOST_RANGES: usize = 256;

/// What a daemon is told about scrubs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum ScrubOrder {
    /// Begin one.
    Start {
        /// Write what differs anew.
        #[serde(default)]
        repair: bool,
        /// From this leg (path, index or UUID), not from the majority.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<String>,
        /// Compare at most so many bytes of the volume per second; 0 or absent: no limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rate: Option<u64>,
    },
    /// Change the limit of the one under way; 0: none.
    Rate {
        /// Bytes of the volume per second.
        rate: u64,
    },
    /// Hold the one under way, or let it go on.
    Pause {
        /// Held.
        paused: bool,
    },
    /// End the one under way.
    Cancel,
    /// Begin one whenever the last one ended so many days ago; 0: never.
    Schedule {
        /// Days.
        days: u32,
    },
}

/// How scrubbing is.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// One is under way.
    pub active: bool,
    /// It is held by `scrub --pause`.
    pub paused: bool,
    /// It waits for this: `resync` (which goes first), `split`, or `legs` (a second one in sync).
    pub waiting_for: Option<String>,
    /// It repairs.
    pub repair: bool,
    /// From this leg.
    pub from: Option<usize>,
    /// Its limit in bytes of the volume per second, if there is one.
    pub limit_bytes_per_second: Option<u64>,
    /// Bytes of the volume that are done.
    pub done_bytes: u64,
    /// Bytes of the volume.
    pub total_bytes: u64,
    /// Bytes of the volume per second, lately.
    pub bytes_per_second: u64,
    /// Seconds to go, if it is going.
    pub eta_seconds: Option<u64>,
    /// What the one under way has found so far.
    pub current: Option<ScrubResult>,
    /// What the last one found.
    pub last: Option<ScrubResult>,
    /// One begins whenever the last one ended so many days ago.
    pub schedule_days: Option<u32>,
}

/// What a scrub found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScrubResult {
    /// When it began: RFC 3339 in UTC.
    pub begun: String,
    /// The same, in seconds since 1970.
    pub begun_unix_seconds: u64,
    /// When it ended.
    pub ended: Option<String>,
    /// The same, in seconds since 1970.
    pub ended_unix_seconds: Option<u64>,
    /// How long it took: while it was held, and while the volume was stopped, does not count.
    pub duration_milliseconds: u64,
    /// It came to the end of the volume.
    pub complete: bool,
    /// It repaired.
    pub repair: bool,
    /// Ranges in which legs differed.
    pub mismatched_ranges: u64,
    /// Bytes of these.
    pub mismatched_bytes: u64,
    /// Ranges of these that were repaired: the legs are alike there now.
    pub repaired_ranges: u64,
    /// Bytes of these.
    pub repaired_bytes: u64,
    /// Windows that a leg could not read all of. What another leg had there was written anew.
    pub read_errors: u64,
    /// Legs that more than half of the legs did not agree with somewhere.
    pub outvoted: Vec<Outvoted>,
    /// The first ranges in which legs differed, at most 256.
    pub ranges: Vec<ScrubRange>,
}

/// A leg that more than half of the legs did not agree with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Outvoted {
    /// Its place in the volume.
    pub leg: usize,
    /// In how many bytes.
    pub bytes: u64,
}

/// A range in which legs differed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScrubRange {
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u64,
    /// The legs that were compared, by what they had.
    pub groups: Vec<Vec<usize>>,
    /// Legs that more than half of the legs did not agree with. None if there is no majority.
    pub outvoted: Vec<usize>,
    /// Legs that were written anew.
    pub repaired: Vec<usize>,
}

fn indices(legs: LegSet) -> Vec<usize> {
    legs.iter().map(Leg::index).collect()
}

impl ScrubResult {
    /// Ranges in which legs still differ.
    pub fn left(&self) -> u64 {
        self.mismatched_ranges - self.repaired_ranges
    }

    /// Legs differ there.
    pub(crate) fn add(&mut self, difference: &Difference, legs: LegSet, repaired: LegSet) {
        let Difference { offset, len, groups } = *difference;
        let majority = groups.majority(legs);
        let outvoted = majority.map_or(LegSet::EMPTY, |most| legs.minus(most));
        let left = legs.minus(repaired);
        let mended = !repaired.is_empty() && left.lowest().is_some_and(|leg| groups.alike(leg, left) == left);
        let mut all: Vec<Vec<usize>> = Vec::new();
        let mut rest = legs;
        while let Some(leg) = rest.lowest() {
            let alike = groups.alike(leg, legs);
            rest = rest.minus(alike);
            all.push(indices(alike));
        }
        let range = ScrubRange {
            offset,
            length: len,
            groups: all,
            outvoted: indices(outvoted),
            repaired: indices(repaired),
        };
        self.mismatched_bytes += len;
        self.repaired_bytes += if mended { len } else { 0 };
        for &leg in &range.outvoted {
            match self.outvoted.iter_mut().find(|known| known.leg == leg) {
                Some(known) => known.bytes += len,
                None => self.outvoted.push(Outvoted { leg, bytes: len }),
            }
        }
        // Ranges go on from one window to the next.
        if let Some(last) = self.ranges.last_mut()
            && self.mismatched_ranges <= MOST_RANGES as u64
            && (last.offset + last.length, &last.groups, &last.repaired)
                == (offset, &range.groups, &range.repaired)
        {
            last.length += len;
            return;
        }
        self.mismatched_ranges += 1;
        self.repaired_ranges += u64::from(mended);
        if self.ranges.len() < MOST_RANGES {
            self.ranges.push(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirrord_raid::differences;

    #[test]
    fn ranges_are_joined_counted_and_kept_up_to_a_point() {
        let legs = LegSet::first(3);
        let differs = |leg: usize, offset| {
            let is_alike = move |one: Leg, other: Leg, _| (one.index() == leg) == (other.index() == leg);
            differences(legs, offset, 512, is_alike)[0]
        };
        let mut result = ScrubResult::default();
        result.add(&differs(2, 0), legs, LegSet::EMPTY);
        result.add(&differs(2, 512), legs, LegSet::EMPTY);
        result.add(&differs(1, 1024), legs, LegSet::EMPTY);
        result.add(&differs(1, 1536), legs, LegSet::one(Leg::new(1)));
        let first = ScrubRange {
            offset: 0,
            length: 1024,
            groups: vec![vec![0, 1], vec![2]],
            outvoted: vec![2],
            repaired: Vec::new(),
        };
        assert_eq!(result.ranges[0], first);
        assert_eq!((result.mismatched_ranges, result.mismatched_bytes, result.ranges.len()), (3, 2048, 3));
        assert_eq!((result.repaired_ranges, result.repaired_bytes, result.left()), (1, 512, 2));
        let outvoted = [2, 1].map(|leg| Outvoted { leg, bytes: 1024 });
        assert_eq!(result.outvoted, outvoted);
        for n in 2..1000 {
            result.add(&differs(0, n * 1024), legs, LegSet::EMPTY);
        }
        assert_eq!((result.mismatched_ranges, result.ranges.len()), (1001, MOST_RANGES));
        // Of two legs neither is wrong, and to write one of them anew mends.
        let pair = LegSet::first(2);
        let mut result = ScrubResult::default();
        result.add(&differences(pair, 0, 512, |_, _, _| false)[0], pair, LegSet::one(Leg::new(0)));
        assert!(result.outvoted.is_empty() && result.left() == 0);
    }
}
