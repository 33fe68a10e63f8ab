//! The scrub of a running volume, as threads other than the background worker's see it: orders go in, what it
//! reports is added up here, for status, for events, and for whoever remembers it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mirrord_raid::{Leg, ScrubCommand, ScrubRepair, ScrubReport, ScrubWait};

use super::Volume;
use super::meter::Meter;
use super::shared::{Shared, lock};
use crate::events::{Journal, What, now};
use crate::scrub::{MOST_RANGES, ScrubResult, ScrubStatus};

/// Between two events about differences.
const TELL: Duration = Duration::from_secs(1);

/// Why a volume is not scrubbed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScrubError {
    /// One is under way.
    #[error("a scrub is under way: see `mirrord status`, or end it with `mirrord scrub --cancel` first")]
    UnderWay,
    /// None is.
    #[error("no scrub is under way")]
    NotUnderWay,
    /// Too late.
    #[error("the volume is being stopped")]
    Stopping,
    /// There is nothing to compare.
    #[error(
        "it has {in_sync} leg in sync, and a scrub compares legs: wait until another is (`mirrord wait`), or give one \
         back (`mirrord leg add`)"
    )]
    TooFewLegs {
        /// Legs in sync.
        in_sync: usize,
    },
    /// The leg to repair from may be older than the volume.
    #[error("leg {leg} is not in sync: what differs can be repaired from a leg in sync only")]
    NotInSync {
        /// The leg.
        leg: Leg,
    },
}

/// A scrub that begins, or goes on.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Begin {
    /// Where, in bytes.
    pub(crate) next: u64,
    pub(crate) paused: bool,
    pub(crate) repair: bool,
    pub(crate) from: Option<Leg>,
    /// Bytes per second.
    pub(crate) rate: Option<u64>,
    /// What was found before `next`.
    pub(crate) result: ScrubResult,
}

/// How far it is.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Stand {
    /// The one under way.
    pub(crate) under_way: Option<Begin>,
    /// What the last one found.
    pub(crate) last: Option<ScrubResult>,
    pub(crate) schedule_days: Option<u32>,
    /// Grows when something is to be remembered at once.
    pub(crate) version: u64,
}

#[derive(Default)]
struct Book {
    commands: Vec<ScrubCommand>,
    stand: Stand,
    waits: Option<ScrubWait>,
    /// A window is being compared.
    busy: bool,
    /// No other will be: the volume is being stopped.
    halted: bool,
    /// Since when it has been going.
    since: Option<Instant>,
    meter: Meter,
    /// Ranges that there is yet to be told of, their bytes, and where the first is.
    untold: (u64, u64, u64),
    told: Option<Instant>,
}

impl Book {
    /// How long it has been going, all told.
    fn result(&self) -> Option<ScrubResult> {
        let mut result = self.stand.under_way.as_ref()?.result.clone();
        result.duration_milliseconds += self.since.map_or(0, |since| since.elapsed().as_millis() as u64);
        Some(result)
    }

    /// From now on its time counts, or not.
    fn runs(&mut self, runs: bool) {
        if let (Some(result), Some(under_way)) = (self.result(), &mut self.stand.under_way) {
            under_way.result.duration_milliseconds = result.duration_milliseconds;
        }
        self.since = runs.then(Instant::now);
    }
}

/// See the module's documentation.
pub(super) struct ScrubBook {
    book: Mutex<Book>,
    changed: Condvar,
    journal: Arc<Journal>,
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

impl ScrubBook {
    pub(super) fn new(journal: Arc<Journal>) -> ScrubBook {
        ScrubBook { book: Mutex::default(), changed: Condvar::new(), journal }
    }

    /// What the background worker is to tell its machine.
    pub(super) fn take_commands(&self) -> Vec<ScrubCommand> {
        std::mem::take(&mut lock(&self.book).commands)
    }

    /// Shows whether a window is being compared.
    pub(super) fn show_busy(&self, busy: bool) {
        let mut book = lock(&self.book);
        book.busy = busy;
        if book.halted && !busy {
            self.changed.notify_all();
        }
    }

    /// What the scrub has to say.
    pub(super) fn report(&self, report: &ScrubReport) {
        let mut book = lock(&self.book);
        let Some(under_way) = &mut book.stand.under_way else { return };
        match *report {
            ScrubReport::Reached { next } => under_way.next = next,
            ScrubReport::Differs { difference, legs, repaired } => {
                under_way.result.add(&difference, legs, repaired);
                if under_way.result.mismatched_ranges <= MOST_RANGES as u64 {
                    tracing::warn!(?difference, ?legs, ?repaired, "legs differ");
                }
                let (ranges, bytes, first) = book.untold;
                let first = if ranges == 0 { difference.offset } else { first };
                book.untold = (ranges + 1, bytes + difference.len, first);
            }
            ScrubReport::Unreadable { .. } => under_way.result.read_errors += 1,
            ScrubReport::Waits { wait } => book.waits = wait,
            ScrubReport::Ended { complete } => {
                book.runs(false);
                book.waits = None;
                self.tell_differences(&mut book, true);
                let Some(Begin { mut result, .. }) = book.stand.under_way.take() else { return };
                result.complete = complete;
                result.ended = Some(now());
                result.ended_unix_seconds = Some(unix_seconds());
                self.journal.add(What::ScrubFinished {
                    complete,
                    mismatched_ranges: result.mismatched_ranges,
                    mismatched_bytes: result.mismatched_bytes,
                    repaired_ranges: result.repaired_ranges,
                    read_errors: result.read_errors,
                });
                book.stand.last = Some(result);
                self.is_to_be_remembered(&mut book);
            }
        }
        self.tell_differences(&mut book, false);
    }

    fn tell_differences(&self, book: &mut Book, at_once: bool) {
        let (ranges, bytes, first_offset) = book.untold;
        let lately = book.told.is_some_and(|told| told.elapsed() < TELL);
        if ranges > 0 && (at_once || !lately) {
            self.journal.add(What::ScrubMismatch { ranges, bytes, first_offset });
            (book.untold, book.told) = ((0, 0, 0), Some(Instant::now()));
        }
    }

    fn is_to_be_remembered(&self, book: &mut Book) {
        book.stand.version += 1;
        self.changed.notify_all();
    }

    /// For status.
    pub(super) fn status(&self, total_bytes: u64, limit: Option<u64>) -> ScrubStatus {
        let mut book = lock(&self.book);
        let current = book.result();
        let Book { stand, waits, meter, .. } = &mut *book;
        let schedule_days = stand.schedule_days;
        let Some(under_way) = &stand.under_way else {
            return ScrubStatus {
                total_bytes,
                last: stand.last.clone(),
                schedule_days,
                ..Default::default()
            };
        };
        let (done, left) = (under_way.next, total_bytes.saturating_sub(under_way.next));
        let rate = meter.sample(Instant::now(), done, done, left).bytes_per_second;
        let waiting_for = waits.map(|wait| match wait {
            ScrubWait::Resync => "resync",
            ScrubWait::Split => "split",
            ScrubWait::Legs => "legs",
        });
        ScrubStatus {
            active: true,
            paused: under_way.paused,
            waiting_for: waiting_for.map(str::to_owned),
            repair: under_way.repair,
            from: under_way.from.map(Leg::index),
            limit_bytes_per_second: limit,
            done_bytes: done,
            total_bytes,
            bytes_per_second: rate as u64,
            eta_seconds: (!under_way.paused && rate >= 1.0).then(|| (left as f64 / rate).ceil() as u64),
            current,
            last: stand.last.clone(),
            schedule_days,
        }
    }
}

impl Shared {
    fn order_scrub(&self, command: ScrubCommand) {
        lock(&self.scrub.book).commands.push(command);
        self.wake(self.mirror.background());
    }
}

impl Volume {
    /// Begins a scrub, or lets one go on where it was.
    ///
    /// # Errors
    /// See [`ScrubError`].
    pub(crate) fn begin_scrub(&self, mut begin: Begin, resumed: bool) -> Result<(), ScrubError> {
        let in_sync = self.shared.mirror.legs.states().in_sync();
        let repair = match (begin.repair, begin.from) {
            (false, _) => ScrubRepair::No,
            (true, None) => ScrubRepair::FromMost,
            (true, Some(leg)) => ScrubRepair::From(leg),
        };
        let mut book = lock(&self.shared.scrub.book);
        if book.halted {
            return Err(ScrubError::Stopping);
        }
        if book.stand.under_way.is_some() {
            return Err(ScrubError::UnderWay);
        }
        if !resumed {
            if in_sync.len() < 2 {
                return Err(ScrubError::TooFewLegs { in_sync: in_sync.len() });
            }
            if let Some(leg) = begin.from.filter(|&leg| !in_sync.contains(leg)) {
                return Err(ScrubError::NotInSync { leg });
            }
            begin.result = ScrubResult {
                begun: now(),
                begun_unix_seconds: unix_seconds(),
                repair: begin.repair,
                ..ScrubResult::default()
            };
        }
        let (from, paused) = (begin.next, begin.paused);
        self.shared.throttle.set_scrub(begin.rate);
        self.journal.add(What::ScrubStarted { repair: begin.repair, offset: from });
        book.stand.under_way = Some(begin);
        book.meter = Meter::default();
        (book.untold, book.told) = ((0, 0, 0), None);
        book.runs(!paused);
        self.shared.scrub.is_to_be_remembered(&mut book);
        drop(book);
        self.shared.order_scrub(ScrubCommand::Pause(paused));
        self.shared.order_scrub(ScrubCommand::Start { from, repair });
        Ok(())
    }

    /// Changes the one under way, if there is one.
    fn change_scrub(&self, change: impl FnOnce(&mut Begin)) -> Result<(), ScrubError> {
        let mut book = lock(&self.shared.scrub.book);
        if book.halted {
            return Err(ScrubError::Stopping);
        }
        let under_way = book.stand.under_way.as_mut().ok_or(ScrubError::NotUnderWay)?;
        change(under_way);
        let paused = under_way.paused;
        book.runs(!paused);
        self.shared.scrub.is_to_be_remembered(&mut book);
        Ok(())
    }

    /// Holds the scrub under way, or lets it go on.
    ///
    /// # Errors
    /// [`ScrubError::NotUnderWay`].
    pub(crate) fn pause_scrub(&self, paused: bool) -> Result<(), ScrubError> {
        self.change_scrub(|under_way| under_way.paused = paused)?;
        self.shared.order_scrub(ScrubCommand::Pause(paused));
        Ok(())
    }

    /// Limits the scrub under way to so many bytes of the volume per second.
    ///
    /// # Errors
    /// [`ScrubError::NotUnderWay`].
    pub(crate) fn set_scrub_rate(&self, bytes_per_second: Option<u64>) -> Result<(), ScrubError> {
        self.change_scrub(|under_way| under_way.rate = bytes_per_second)?;
        self.shared.throttle.set_scrub(bytes_per_second);
        self.shared.wake(self.shared.mirror.background());
        Ok(())
    }

    /// Ends the scrub under way and returns when it has ended.
    ///
    /// # Errors
    /// [`ScrubError::NotUnderWay`].
    pub(crate) fn cancel_scrub(&self) -> Result<(), ScrubError> {
        self.change_scrub(|_| {})?;
        self.shared.order_scrub(ScrubCommand::Cancel);
        let scrub = &self.shared.scrub;
        let goes_on = |book: &mut Book| book.stand.under_way.is_some() && !book.halted;
        drop(scrub.changed.wait_while(lock(&scrub.book), goes_on).unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// What a daemon remembered: shown by status from now on.
    pub(crate) fn remember_scrubs(&self, last: Option<ScrubResult>, schedule_days: Option<u32>) {
        let mut book = lock(&self.shared.scrub.book);
        (book.stand.last, book.stand.schedule_days) = (last, schedule_days);
    }

    /// One is to begin whenever the last one ended so many days ago.
    pub(crate) fn schedule_scrubs(&self, days: Option<u32>) {
        let mut book = lock(&self.shared.scrub.book);
        book.stand.schedule_days = days;
        self.shared.scrub.is_to_be_remembered(&mut book);
    }

    /// How far scrubbing is.
    pub(crate) fn scrub_stand(&self) -> Stand {
        let book = lock(&self.shared.scrub.book);
        let mut stand = book.stand.clone();
        if let (Some(under_way), Some(result)) = (&mut stand.under_way, book.result()) {
            under_way.result = result;
        }
        stand
    }

    /// Waits until something other than `version` is to be remembered at once, or the volume is being stopped
    /// (`false`), at most so long.
    pub(crate) fn await_scrub(&self, version: u64, timeout: Option<Duration>) -> bool {
        let scrub = &self.shared.scrub;
        let same = |book: &mut Book| book.stand.version == version && !book.halted;
        let book = lock(&scrub.book);
        let book = match timeout {
            Some(timeout) => {
                let result = scrub.changed.wait_timeout_while(book, timeout, same);
                result.unwrap_or_else(PoisonError::into_inner).0
            }
            None => scrub.changed.wait_while(book, same).unwrap_or_else(PoisonError::into_inner),
        };
        !book.halted
    }

    /// The volume is being stopped: no window is compared any more when this returns. What is under way stays so,
    /// to go on with the next start.
    pub(super) fn halt_scrub(&self) {
        self.shared.order_scrub(ScrubCommand::Pause(true));
        let scrub = &self.shared.scrub;
        let mut book = lock(&scrub.book);
        book.halted = true;
        book.runs(false);
        scrub.changed.notify_all();
        let busy = |book: &mut Book| book.busy || !book.commands.is_empty();
        drop(scrub.changed.wait_while(book, busy).unwrap_or_else(PoisonError::into_inner));
    }
}
