//! Durable leg IO under way: flushes, writes that are durable when they are done, and metadata.
//!
//! A lost write is reported once to each open file, and a device that could not flush its own cache reports that
//! to a single request. Another flush of the same leg that ended after the failed one therefore succeeds, and its
//! completion may be handled first, by another thread. So the success of a durable IO is believed only after every
//! durable IO of that leg that began before has been handled; a failure among them is in the
//! leg table by then ([`LegTable::flush_failed`]). An IO that begins later cannot have failed before the success.
//!
//! A thread takes a ticket before it sends a durable IO ([`DurableIo::begin`]), gives it back leg by leg as completions are
//! handled ([`DurableIo::end`]), and asks when all legs are back ([`DurableIo::join`]). Nobody holds a ticket while it
//! waits, so there are no circles. One mutex, held for a few instructions, and only for durable IO.
//!
//! [`LegTable::flush_failed`]: crate::legs::LegTable

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ranges::Owner;
use crate::types::{Leg, LegSet, MAX_LEGS};

/// Names a durable IO; greater than those of all that began before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Ticket(u64);

#[derive(Debug)]
struct UnderWay {
    ticket: Ticket,
    /// Legs on which it has not been handled.
    pending: LegSet,
}

#[derive(Debug)]
struct Waiting {
    owner: Owner,
    /// The first ticket that it does not wait for.
    until: Ticket,
    legs: LegSet,
}

#[derive(Debug, Default)]
struct Inner {
    next: Ticket,
    /// Oldest first.
    under_way: VecDeque<UnderWay>,
    waiting: Vec<Waiting>,
}

impl Inner {
    /// By leg: its oldest IO that has not been handled.
    fn oldest(&self) -> [Option<Ticket>; MAX_LEGS] {
        let mut oldest = [None; MAX_LEGS];
        for under_way in &self.under_way {
            for leg in under_way.pending.iter() {
                oldest[leg.index()].get_or_insert(under_way.ticket);
            }
        }
        oldest
    }
}

fn may_go_on(oldest: &[Option<Ticket>; MAX_LEGS], legs: LegSet, until: Ticket) -> bool {
    legs.iter().all(|leg| oldest[leg.index()].is_none_or(|ticket| ticket >= until))
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct DurableIo {
    inner: Mutex<Inner>,
}

impl DurableIo {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A durable IO is about to be sent to these legs.
    pub(crate) fn begin(&self, legs: LegSet) -> Ticket {
        let mut inner = self.inner();
        let ticket = inner.next;
        inner.next.0 += 1;
        if !legs.is_empty() {
            inner.under_way.push_back(UnderWay { ticket, pending: legs });
        }
        ticket
    }

    /// Its completion on `leg` has been handled, and a failure is known to all. Adds to `released` who waits no longer.
    pub(crate) fn end(&self, ticket: Ticket, leg: Leg, released: &mut Vec<Owner>) {
        let mut inner = self.inner();
        let at = inner.under_way.partition_point(|under_way| under_way.ticket < ticket);
        let under_way = &mut inner.under_way[at];
        debug_assert!(under_way.ticket == ticket && under_way.pending.contains(leg), "{ticket:?} {leg:?}");
        under_way.pending.remove(leg);
        if under_way.pending.is_empty() {
            inner.under_way.remove(at);
        }
        let is_oldest = !inner.under_way.iter().take(at).any(|earlier| earlier.pending.contains(leg));
        if !is_oldest || inner.waiting.is_empty() {
            return;
        }
        let oldest = inner.oldest();
        inner.waiting.retain(|waiting| {
            let done = waiting.legs.contains(leg) && may_go_on(&oldest, waiting.legs, waiting.until);
            if done {
                released.push(waiting.owner);
            }
            !done
        });
    }

    /// Whether every durable IO of these legs that began until now has been handled. `false`: `owner` waits, and a later
    /// [`DurableIo::end`] names it.
    #[must_use]
    pub(crate) fn join(&self, owner: Owner, legs: LegSet) -> bool {
        let mut inner = self.inner();
        let until = inner.next;
        let done = inner.under_way.is_empty() || may_go_on(&inner.oldest(), legs, until);
        if !done {
            inner.waiting.push(Waiting { owner, until, legs });
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::QueueId;

    fn owner(io: u32) -> Owner {
        Owner { queue: QueueId(0), io }
    }

    fn end(durable: &DurableIo, ticket: Ticket, leg: usize) -> Vec<u32> {
        let mut released = Vec::new();
        durable.end(ticket, Leg::new(leg), &mut released);
        released.into_iter().map(|owner| owner.io).collect()
    }

    #[test]
    fn a_success_waits_for_what_began_before_it_was_looked_at() {
        let (durable, both) = (DurableIo::default(), LegSet::first(2));
        let (a, b) = (durable.begin(both), durable.begin(both));
        assert!(end(&durable, b, 0).is_empty() && end(&durable, b, 1).is_empty());
        assert!(!durable.join(owner(1), both), "a is under way");
        let c = durable.begin(both);
        assert!(end(&durable, a, 1).is_empty(), "a is under way on leg 0");
        assert_eq!(end(&durable, a, 0), [1], "c began later");
        assert!(end(&durable, c, 0).is_empty() && end(&durable, c, 1).is_empty());
        assert!(durable.join(owner(2), both));
    }

    #[test]
    fn legs_are_waited_for_by_themselves() {
        let (durable, one) = (DurableIo::default(), LegSet::one(Leg::new(1)));
        let a = durable.begin(LegSet::first(2));
        assert!(end(&durable, a, 1).is_empty());
        assert!(durable.join(owner(1), one), "leg 0 does not matter");
        let b = durable.begin(one);
        assert!(!durable.join(owner(2), one) && !durable.join(owner(3), LegSet::first(2)));
        assert_eq!(end(&durable, b, 1), [2]);
        assert_eq!(end(&durable, a, 0), [3]);
    }
}
