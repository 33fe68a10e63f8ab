//! How long a call may take, and what is known of one that was given up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use super::{Target, of_sync, timed_out};

/// Looks in a time-out: how exactly it is kept.
pub(super) const TICKS: u32 = 16;

/// Between two looks whether a time-out was set meanwhile.
const UNLIMITED_TICK: Duration = Duration::from_millis(250);

/// How long a file may take over a call, shared by those who set it and those who keep it. None at first: for ever.
#[derive(Clone, Debug, Default)]
pub struct TimeOut {
    /// In milliseconds; 0: none.
    limit: Arc<AtomicU64>,
}

impl TimeOut {
    /// This long, if any.
    pub fn new(limit: Option<Duration>) -> TimeOut {
        let time_out = TimeOut::default();
        limit.into_iter().for_each(|limit| time_out.shorten_to(limit));
        time_out
    }

    /// This long at most, also for calls under way, whose time begins now.
    pub fn shorten_to(&self, limit: Duration) {
        let limit = (limit.as_millis() as u64).max(1);
        let shorter = |now: u64| (now == 0 || limit < now).then_some(limit);
        let _ = self.limit.fetch_update(SeqCst, SeqCst, shorter);
    }

    /// How long; `None`: for ever.
    pub fn limit(&self) -> Option<Duration> {
        let limit = self.limit.load(SeqCst);
        (limit > 0).then(|| Duration::from_millis(limit))
    }

    /// Time until the next look at a call that does not end.
    pub(super) fn tick(&self) -> Duration {
        self.limit().map_or(UNLIMITED_TICK, |limit| limit / TICKS)
    }
}

/// What was given up on a file, shared by all who do IO there.
#[derive(Clone, Debug, Default)]
pub struct Hung {
    /// Counts calls that are under way still. Unless it is 0, nothing else is written to the file, and a call that does not
    /// end is given up without waiting for the time-out.
    pub changes: Arc<AtomicU32>,
    /// One of these calls was a sync, and failed. The kernel reports that failure once, so a later sync that succeeds proves
    /// nothing.
    pub forgetful: Arc<AtomicBool>,
}

/// What goes to one file, as who waits for it and who carries it out see it.
#[derive(Default)]
pub(super) struct Flight {
    pub(super) given_up: AtomicBool,
    pub(super) ended: AtomicBool,
    sync_failed: AtomicBool,
    /// Counted as hung, or not any more.
    counted: AtomicBool,
    hung: Option<Hung>,
}

impl Flight {
    pub(super) fn to(target: &Target<'_>) -> Arc<Flight> {
        Arc::new(Flight { hung: target.hung.cloned(), ..Flight::default() })
    }

    /// Whether another call may be made for it.
    pub(super) fn go_on(&self) -> io::Result<()> {
        if self.given_up.load(SeqCst) { Err(timed_out()) } else { Ok(()) }
    }

    pub(super) fn synced(&self, result: io::Result<()>) -> io::Result<()> {
        self.sync_failed.store(result.is_err(), SeqCst);
        result.map_err(of_sync)
    }

    /// Counts the call as hung, then stops waiting for it: other IO on the file learns of the hang before the caller does.
    pub(super) fn give_up(&self) {
        if let Some(hung) = &self.hung {
            hung.changes.fetch_add(1, SeqCst);
            self.counted.store(true, SeqCst);
        }
        self.given_up.store(true, SeqCst);
        if self.ended.load(SeqCst) {
            self.settle();
        }
    }

    pub(super) fn end(&self) {
        self.ended.store(true, SeqCst);
        if self.given_up.load(SeqCst) {
            self.settle();
        }
    }

    /// It was given up and has ended.
    fn settle(&self) {
        let Some(hung) = self.hung.as_ref().filter(|_| self.counted.swap(false, SeqCst)) else { return };
        if self.sync_failed.load(SeqCst) {
            hung.forgetful.store(true, SeqCst);
        }
        hung.changes.fetch_sub(1, SeqCst);
    }
}

/// Dropped, it says that no call for the flight is under way any more.
pub(super) struct Ends(pub(super) Arc<Flight>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.end();
    }
}
