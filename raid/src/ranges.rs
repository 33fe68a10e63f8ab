//! Range locks: overlapping writes reach all legs in one order, across queues; resync keeps out of
//! the way of writers by holding the range that it copies.
//!
//! A lock lies within one region and belongs to one part of a request (or to a resync window). Locks
//! are granted first come, first served: a later one waits for an earlier one that it overlaps,
//! even while that still waits, so nobody starves. Shared locks (reads) do not exclude each other.
//! The table is cut into shards by region; a shard's mutex is held for a few instructions and
//! never over IO.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::geometry::Region;
use crate::types::QueueId;

/// Chosen well above the number of queues, so that two queues seldom meet at one shard.
const SHARDS: usize = 64;

/// Who holds or waits for a range: a slot of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Owner {
    /// The queue.
    pub queue: QueueId,
    /// Its slot.
    pub io: u32,
}

/// How a range is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// Together with other shared holds.
    Shared,
    /// Alone.
    Exclusive,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    end: u64,
    hold: Hold,
    owner: Owner,
}

impl Range {
    fn excludes(&self, other: &Range) -> bool {
        self.start < other.end
            && other.start < self.end
            && (self.hold == Hold::Exclusive || other.hold == Hold::Exclusive)
    }
}

#[derive(Debug, Default)]
struct Shard {
    held: Vec<Range>,
    waiting: VecDeque<Range>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct RangeLocks {
    shards: Box<[Mutex<Shard>]>,
}

impl Default for RangeLocks {
    fn default() -> RangeLocks {
        RangeLocks { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl RangeLocks {
    fn shard(&self, region: Region) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[region.index() % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `len` bytes at `offset`, which lie in `region`. `false`: `owner` waits, and a later
    /// [`RangeLocks::release`] will name it as granted.
    #[must_use]
    pub fn acquire(&self, owner: Owner, region: Region, offset: u64, len: u64, hold: Hold) -> bool {
        let range = Range { start: offset, end: offset + len, hold, owner };
        let mut shard = self.shard(region);
        let free = !shard.held.iter().chain(&shard.waiting).any(|other| other.excludes(&range));
        if free {
            shard.held.push(range);
        } else {
            shard.waiting.push_back(range);
        }
        free
    }

    /// Gives back what `owner` holds in `region` and adds those that hold their range now to `granted`.
    pub fn release(&self, owner: Owner, region: Region, granted: &mut Vec<Owner>) {
        let mut shard = self.shard(region);
        let at = shard.held.iter().position(|range| range.owner == owner);
        shard.held.swap_remove(at.expect("a range was released that is not held"));
        let mut next = 0;
        while next < shard.waiting.len() {
            let range = shard.waiting[next];
            let earlier = shard.waiting.iter().take(next);
            if shard.held.iter().chain(earlier).any(|other| other.excludes(&range)) {
                next += 1;
            } else {
                shard.waiting.remove(next);
                shard.held.push(range);
                granted.push(range.owner);
            }
        }
    }

    /// Whether nothing is held or waited for.
    pub fn is_idle(&self) -> bool {
        self.shards.iter().all(|shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.held.is_empty() && shard.waiting.is_empty()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: Region = Region(0);

    fn owner(io: u32) -> Owner {
        Owner { queue: QueueId(0), io }
    }

    fn release(locks: &RangeLocks, io: u32) -> Vec<u32> {
        let mut granted = Vec::new();
        locks.release(owner(io), R, &mut granted);
        granted.into_iter().map(|o| o.io).collect()
    }

    #[test]
    fn overlapping_writes_queue_up_in_order() {
        let locks = RangeLocks::default();
        assert!(locks.acquire(owner(1), R, 0, 8, Hold::Exclusive));
        assert!(locks.acquire(owner(2), R, 8, 8, Hold::Exclusive), "they only touch");
        assert!(!locks.acquire(owner(3), R, 4, 8, Hold::Exclusive));
        assert!(!locks.acquire(owner(4), R, 6, 1, Hold::Exclusive), "behind 3");
        assert!(release(&locks, 1).is_empty(), "3 still waits for 2, and 4 for 3");
        assert_eq!(release(&locks, 2), [3]);
        assert_eq!(release(&locks, 3), [4]);
        assert!(release(&locks, 4).is_empty());
        assert!(locks.is_idle());
    }

    #[test]
    fn shared_holds_let_each_other_in_but_do_not_pass_a_waiting_writer() {
        let locks = RangeLocks::default();
        assert!(locks.acquire(owner(1), R, 0, 8, Hold::Shared));
        assert!(locks.acquire(owner(2), R, 0, 8, Hold::Shared));
        assert!(!locks.acquire(owner(3), R, 0, 8, Hold::Exclusive));
        assert!(!locks.acquire(owner(4), R, 0, 8, Hold::Shared));
        assert!(release(&locks, 1).is_empty());
        assert_eq!(release(&locks, 2), [3]);
        assert_eq!(release(&locks, 3), [4]);
    }
}
