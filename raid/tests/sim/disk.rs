//! A leg's disk: what is stable, what is cached, and everything written since that is not stable yet.
//!
//! A sector holds a `u64` instead of 512 bytes: for the volume's data a stamp that no two writes
//! share, for metadata the number of a block in [`crate::blocks::Blocks`]. Writes land sector by
//! sector in the cache and in the journal. A flush makes stable what completed before it was
//! submitted, and no more. A flush that fails marks all that is cached as lost, as Linux does: still
//! readable, never again written by a later flush. Linux tells each open file of the leg once of an error of the
//! page cache; an error of the device's own cache is told once, to the flush that met it. A power cut keeps, of
//! each sector, the stable value or any value journalled since.
//!
//! A sector can go bad: it cannot be read until it is written anew, and is bad again if a power cut
//! takes that write back. What it would have said is still here, for the checks; no read returns it.

use crate::rng::Rng;

/// A stamp with this bit set reads as zeroes.
pub(crate) const ZERO: u64 = 1 << 63;

/// When a write that did not complete completed.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Entry {
    sector: u32,
    ticket: u32,
    /// A flush failed since, in this cache.
    lost: Option<Cache>,
    value: u64,
}

/// A leg's open files: one for metadata, and one for the data IO of each ring.
pub(crate) const META_FILE: usize = 0;
const FILES: usize = 8;

/// The open file that the IO of a ring goes through.
pub(crate) fn data_file(queue: u16) -> usize {
    1 + usize::from(queue)
}

/// What fails in a flush.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// The page cache is not written to the device.
    Pages,
    /// The device does not write its own cache to the medium.
    Device,
}

pub(crate) struct Disk {
    stable: Vec<u64>,
    cached: Vec<u64>,
    /// Sectors that are bad, stable and cached.
    stable_bad: Vec<bool>,
    bad: Vec<bool>,
    journal: Vec<Entry>,
    /// When each write of this boot completed, by its ticket.
    done: Vec<u64>,
    /// Per sector, the last pass that settled it: scratch of `flush_done`.
    settled: Vec<u64>,
    pass: u64,
    /// Failed flushes so far; each open file is told of each once.
    failed_flushes: u32,
    told: [u32; FILES],
}

impl Disk {
    pub(crate) fn new(sectors: usize) -> Disk {
        Disk {
            stable: vec![ZERO; sectors],
            cached: vec![ZERO; sectors],
            stable_bad: vec![false; sectors],
            bad: vec![false; sectors],
            journal: Vec::new(),
            done: Vec::new(),
            settled: vec![0; sectors],
            pass: 0,
            failed_flushes: 0,
            told: [0; FILES],
        }
    }

    pub(crate) fn read(&self, sector: usize) -> u64 {
        self.cached[sector]
    }

    pub(crate) fn stable(&self, sector: usize) -> u64 {
        self.stable[sector]
    }

    /// Whether the sector cannot be read.
    pub(crate) fn is_bad(&self, sector: usize) -> bool {
        self.bad[sector]
    }

    /// The sector goes bad, if it is stable (what is only cached needs no disk to be read).
    pub(crate) fn go_bad(&mut self, sector: usize) -> bool {
        let stable = self.unflushed(sector).next().is_none();
        if stable {
            (self.stable_bad[sector], self.bad[sector]) = (true, true);
        }
        stable
    }

    /// No sector is bad any more.
    pub(crate) fn heal(&mut self) {
        self.stable_bad.fill(false);
        self.bad.fill(false);
    }

    /// Puts a value there as if it had been there for ever.
    pub(crate) fn format(&mut self, sector: usize, value: u64) {
        (self.stable[sector], self.cached[sector]) = (value, value);
    }

    /// Writes a sector anew and syncs it: nothing that was written there before comes after it.
    pub(crate) fn overwrite(&mut self, sector: usize, value: u64) {
        self.journal.retain(|entry| entry.sector as usize != sector);
        self.format(sector, value);
    }

    /// As [`Disk::format`], and the sector can be read.
    pub(crate) fn format_well(&mut self, sector: usize, value: u64) {
        self.format(sector, value);
        (self.stable_bad[sector], self.bad[sector]) = (false, false);
    }

    /// A write is submitted: its ticket.
    pub(crate) fn begin(&mut self) -> u32 {
        self.done.push(NEVER);
        self.done.len() as u32 - 1
    }

    pub(crate) fn land(&mut self, ticket: u32, sector: usize, value: u64) {
        self.cached[sector] = value;
        self.bad[sector] = false;
        self.journal.push(Entry { sector: sector as u32, ticket, lost: None, value });
    }

    /// All of a write landed, or all of it that ever will.
    pub(crate) fn complete(&mut self, ticket: u32, now: u64) {
        self.done[ticket as usize] = now;
    }

    /// A write that had to be durable completed: what it landed is stable.
    pub(crate) fn complete_durably(&mut self, ticket: u32, now: u64) {
        self.complete(ticket, now);
        self.persist(|entry, _| entry.ticket == ticket);
    }

    /// A flush that was submitted at `submitted` worked.
    pub(crate) fn flush_done(&mut self, submitted: u64) {
        self.persist(|entry, done| entry.lost.is_none() && done < submitted);
    }

    /// Makes the newest chosen value of each sector stable and forgets all older ones.
    fn persist(&mut self, chosen: impl Fn(&Entry, u64) -> bool) {
        self.pass += 1;
        let pass = self.pass;
        let mut kept = self.journal.len();
        for at in (0..self.journal.len()).rev() {
            let entry = self.journal[at];
            let sector = entry.sector as usize;
            if self.settled[sector] == pass {
                continue;
            }
            if chosen(&entry, self.done[entry.ticket as usize]) {
                self.settled[sector] = pass;
                self.stable[sector] = entry.value;
                self.stable_bad[sector] = false;
            } else {
                kept -= 1;
                self.journal[kept] = entry;
            }
        }
        self.journal.drain(..kept);
    }

    /// A flush through `file`, which is told, failed: what is cached now stays unwritten for ever.
    pub(crate) fn flush_failed(&mut self, file: usize, cache: Cache) {
        if cache == Cache::Pages {
            self.failed_flushes += 1;
            self.told[file] = self.failed_flushes;
        }
        for entry in &mut self.journal {
            entry.lost.get_or_insert(cache);
        }
    }

    /// Whether an open file has yet to be told of a failed flush; it is told now.
    pub(crate) fn tell(&mut self, file: usize) -> bool {
        std::mem::replace(&mut self.told[file], self.failed_flushes) != self.failed_flushes
    }

    /// The leg's files are opened anew: nothing that failed before is told.
    pub(crate) fn reopen(&mut self) {
        self.told.fill(self.failed_flushes);
    }

    /// All that can be read of it; `None` if not all can.
    pub(crate) fn image(&self) -> Option<Vec<u64>> {
        self.bad.iter().all(|bad| !bad).then(|| self.cached.clone())
    }

    /// What it holds, also where that cannot be read.
    pub(crate) fn holds(&self) -> Vec<u64> {
        self.cached.clone()
    }

    /// Another file, or what was copied from it, is in its place.
    pub(crate) fn become_image(&mut self, sectors: &[u64]) {
        self.cached.copy_from_slice(sectors);
        self.bad.fill(false);
        self.settle();
    }

    /// All that is cached is stable from now on.
    pub(crate) fn settle(&mut self) {
        self.stable.copy_from_slice(&self.cached);
        self.journal.clear();
        self.stable_bad.copy_from_slice(&self.bad);
        self.reopen();
    }

    /// Whether all that is cached is stable.
    pub(crate) fn is_settled(&self) -> bool {
        self.journal.is_empty()
    }

    /// Whether a failed flush left sectors that read well and are not stable.
    pub(crate) fn has_lost(&self) -> bool {
        self.journal.iter().any(|entry| entry.lost.is_some())
    }

    /// Values of `sector` that a power cut could leave, other than the stable one.
    pub(crate) fn unflushed(&self, sector: usize) -> impl Iterator<Item = u64> {
        self.journal.iter().filter(move |e| e.sector as usize == sector).map(|e| e.value)
    }

    /// A sector of `range` that is not stable, if any.
    pub(crate) fn first_unflushed(&self, range: std::ops::Range<usize>) -> Option<usize> {
        self.journal.iter().map(|entry| entry.sector as usize).find(|sector| range.contains(sector))
    }

    /// A sector below `limit` that completed before `time` and is not stable, if any.
    pub(crate) fn unflushed_since(&self, time: u64, limit: usize) -> Option<usize> {
        let late =
            |entry: &&Entry| (entry.sector as usize) < limit && self.done[entry.ticket as usize] < time;
        self.journal.iter().find(late).map(|entry| entry.sector as usize)
    }

    /// The process died; the page cache stays, also what can be read there and is never written. Nothing that
    /// was in flight lands any more. What a device could not flush it has forgotten by now.
    pub(crate) fn kill(&mut self, now: u64) {
        for done in &mut self.done {
            *done = (*done).min(now);
        }
        self.forget(|entry| entry.lost == Some(Cache::Device));
    }

    /// A start syncs a leg before it reads anything there, which works or not, and has the system forget what it
    /// cached of the leg. Whether something was lost.
    pub(crate) fn drop_cache(&mut self, synced: bool) -> bool {
        if synced {
            self.persist(|entry, _| entry.lost.is_none());
        }
        let loses = !self.journal.is_empty();
        self.forget(|_| true);
        loses
    }

    /// These values are nowhere any more: what was there before them can be read.
    fn forget(&mut self, gone: impl Fn(&Entry) -> bool) {
        let sectors: Vec<usize> =
            self.journal.iter().filter(|e| gone(e)).map(|e| e.sector as usize).collect();
        self.journal.retain(|entry| !gone(entry));
        for sector in sectors {
            let left = self.unflushed(sector).last();
            self.cached[sector] = left.unwrap_or(self.stable[sector]);
            self.bad[sector] = left.is_none() && self.stable_bad[sector];
        }
    }

    pub(crate) fn power_cut(&mut self, rng: &mut Rng) {
        let mode = rng.below(4);
        for at in 0..self.journal.len() {
            let entry = self.journal[at];
            let survives = match mode {
                0 => false,
                1 => entry.lost.is_none() || rng.coin(),
                _ => rng.coin(),
            };
            if survives {
                self.stable[entry.sector as usize] = entry.value;
                self.stable_bad[entry.sector as usize] = false;
            }
        }
        self.cached.copy_from_slice(&self.stable);
        self.bad.copy_from_slice(&self.stable_bad);
        self.journal.clear();
        self.done.clear();
    }
}

#[test]
fn a_flush_makes_stable_what_completed_before_it() {
    let mut disk = Disk::new(2);
    let (early, late) = (disk.begin(), disk.begin());
    disk.land(early, 0, 7);
    disk.complete(early, 10);
    disk.land(late, 1, 8);
    disk.complete(late, 12);
    disk.flush_done(11);
    assert_eq!((disk.stable(0), disk.stable(1), disk.read(1)), (7, ZERO, 8));
    assert_eq!(disk.first_unflushed(0..2), Some(1));
}

#[test]
fn a_bad_sector_is_bad_until_a_write_to_it_is_stable() {
    let mut disk = Disk::new(1);
    let mut rng = Rng::new(1);
    assert!(disk.go_bad(0));
    for flushed in [false, true] {
        let write = disk.begin();
        disk.land(write, 0, 7);
        disk.complete(write, 10);
        assert!(!disk.is_bad(0) && !disk.go_bad(0), "what is cached can be read");
        if flushed {
            disk.flush_done(20);
        } else {
            disk.journal.clear();
        }
        disk.power_cut(&mut rng);
        assert_eq!(disk.is_bad(0), !flushed);
    }
}

#[test]
fn what_a_failed_flush_lost_no_later_one_writes() {
    let mut disk = Disk::new(1);
    let write = disk.begin();
    disk.land(write, 0, 7);
    disk.complete(write, 10);
    disk.flush_failed(0, Cache::Device);
    assert!(!disk.tell(0) && !disk.tell(1), "nobody else is told");
    disk.flush_failed(0, Cache::Pages);
    assert!(disk.tell(1) && !disk.tell(1) && !disk.tell(0), "each file is told once");
    disk.flush_done(20);
    assert_eq!((disk.stable(0), disk.read(0)), (ZERO, 7));
    let again = disk.begin();
    disk.land(again, 0, 9);
    disk.complete(again, 21);
    disk.flush_done(30);
    assert!(disk.stable(0) == 9 && !disk.has_lost());
}

#[test]
fn a_cache_that_a_flush_failed_to_write_survives_a_kill_and_not_a_start() {
    let mut disk = Disk::new(2);
    let write = disk.begin();
    disk.land(write, 0, 7);
    disk.complete(write, 10);
    disk.flush_failed(0, Cache::Pages);
    disk.land(write, 1, 8);
    disk.kill(20);
    assert_eq!((disk.read(0), disk.stable(0)), (7, ZERO));
    assert!(disk.drop_cache(true));
    assert_eq!((disk.read(0), disk.read(1), disk.stable(1)), (ZERO, 8, 8));
}
