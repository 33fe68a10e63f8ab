//! The region table: one atomic word per region, shared by every queue and the log worker.
//!
//! A word holds the region's state, a *touched* bit and the number of writes in flight. Who may
//! move a region, and when:
//!
//! | from | to | who | when |
//! |---|---|---|---|
//! | clean | marking | queue | a write begins ([`RegionTable::begin_write`]) |
//! | clean | marking | log worker | a mark that was asked for is committed, an earlier try failed ([`RegionTable::want_mark`]) |
//! | clean | marking | log worker | somebody is about to write there, by the look of it ([`RegionTable::mark_ahead`]) |
//! | marking | dirty | log worker | the mark is durable ([`RegionTable::marked`]) |
//! | marking | clean | log worker | the mark could not be made durable ([`RegionTable::mark_failed`]) |
//! | marking | kept | log worker | the mark is durable, and only a copy needs it ([`RegionTable::keep`]) |
//! | dirty | cleaning | log worker | no write in flight, untouched for a whole interval ([`RegionTable::start_cleaning`]) |
//! | cleaning | dirty | queue, background worker | a write or a copy begins |
//! | cleaning | dirty | log worker | the flush failed or a leg is stale here ([`RegionTable::stop_cleaning`]) |
//! | cleaning | clean | log worker | every leg was flushed and still no write began ([`RegionTable::finish_cleaning`]) |
//! | cleaning | kept | log worker | the same, but a leg that is out, or copied to, needs the bit ([`RegionTable::keep`]) |
//! | kept | renewing | queue | a write begins |
//! | renewing | dirty | log worker | the superblocks say that the region is written to ([`RegionTable::marked`]) |
//! | renewing | kept | log worker | they cannot be made to say so ([`RegionTable::mark_failed`]) |
//! | kept | clean | log worker | no leg needs the bit any more, and every leg was flushed ([`RegionTable::finish_cleaning`]) |
//!
//! A write holds its count from before its mark is asked for until its request is answered, so a
//! region with a write anywhere between the two can be neither cleaned nor forgotten.
//! All operations are sequentially consistent: the return of a leg relies on a total order between
//! these words and the leg states.
//!
//! One bit for each block of regions says where some may be unclean, so that a search for them passes over
//! clean blocks. Any thread sets it after the word of a region; the log worker alone unsets it, before it looks at the
//! words of the block once more: a region that becomes unclean meanwhile is seen there, or sets the bit again.

use crate::geometry::Region;
use crate::sync::{AtomicU32, AtomicU64, Ordering::SeqCst, zeroes};

const STATE: u32 = 0b111;
const TOUCHED: u32 = 0b1000;
const ONE_WRITE: u32 = 0b1_0000;

/// Regions of a block: a cache line of words holds 16.
const BLOCK: u32 = 64;

/// The state of a region in the dirty-region log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RegionState {
    /// Its bit is not set: the legs are equal here.
    Clean,
    /// A write waits for its bit to become durable.
    Marking,
    /// Its bit is durable.
    Dirty,
    /// Its bit is durable; the legs are being flushed in order to clear it.
    Cleaning,
    /// Its bit is durable for the sake of a leg that is out, or copied to. The other legs are equal here ([`crate::Recent`]).
    Kept,
    /// It was kept, and a write waits until the superblocks say that it is written to.
    Renewing,
}

impl RegionState {
    const fn of(word: u32) -> RegionState {
        match word & STATE {
            0 => RegionState::Clean,
            1 => RegionState::Marking,
            2 => RegionState::Dirty,
            3 => RegionState::Cleaning,
            4 => RegionState::Kept,
            _ => RegionState::Renewing,
        }
    }

    const fn code(self) -> u32 {
        match self {
            RegionState::Clean => 0,
            RegionState::Marking => 1,
            RegionState::Dirty => 2,
            RegionState::Cleaning => 3,
            RegionState::Kept => 4,
            RegionState::Renewing => 5,
        }
    }

    /// Whether its bit in the log is durable.
    pub(crate) const fn is_durable(self) -> bool {
        !matches!(self, RegionState::Clean | RegionState::Marking)
    }

    /// Whether the legs in sync may differ here: a write may have reached some of them only.
    pub(crate) const fn is_recent(self) -> bool {
        matches!(self, RegionState::Dirty | RegionState::Cleaning)
    }
}

/// What a write that begins has to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begin {
    /// The region's bit is durable: write.
    Write,
    /// Ask the log worker for the mark and wait for its answer.
    Mark,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct RegionTable {
    words: Box<[AtomicU32]>,
    /// A bit for each block: unset, all of its regions are clean.
    blocks: Box<[AtomicU64]>,
    /// Regions of the volume: the words behind them are 0.
    count: AtomicU32,
    /// Regions that are not clean.
    unclean: AtomicU32,
}

impl RegionTable {
    /// `count` clean regions.
    pub fn new(count: u32) -> RegionTable {
        RegionTable::with_room(count, count)
    }

    /// `count` clean regions, with room for `room` in all.
    pub fn with_room(count: u32, room: u32) -> RegionTable {
        let words = zeroes(room.max(count) as usize);
        let blocks = zeroes(room.max(count).div_ceil(BLOCK).div_ceil(64) as usize);
        RegionTable { words, blocks, count: AtomicU32::new(count), unclean: AtomicU32::new(0) }
    }

    /// How many regions there is room for.
    pub fn room(&self) -> u32 {
        self.words.len() as u32
    }

    /// There are so many regions from now on; the new ones are clean. Log worker only.
    pub(crate) fn grow(&self, count: u32) {
        assert!((self.len()..=self.room()).contains(&count), "no room for so many regions");
        self.count.store(count, SeqCst);
    }

    /// How many regions there are.
    pub fn len(&self) -> u32 {
        self.count.load(SeqCst)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Regions that are not clean.
    pub fn unclean(&self) -> u32 {
        self.unclean.load(SeqCst)
    }

    /// The state of a region.
    pub fn state(&self, region: Region) -> RegionState {
        RegionState::of(self.words[region.index()].load(SeqCst))
    }

    /// Writes in flight in a region.
    pub fn writes(&self, region: Region) -> u32 {
        self.words[region.index()].load(SeqCst) / ONE_WRITE
    }

    /// Adds to `found` regions that are not clean, in order from `from` on. Looks at `most` regions one by one, or a few
    /// more, and gives where it stopped; `None`: at the end. Log worker only.
    pub(crate) fn find_unclean(&self, from: u32, most: u32, found: &mut Vec<Region>) -> Option<u32> {
        let (len, mut looked) = (self.len(), 0);
        let mut block = from / BLOCK;
        while block * BLOCK < len {
            let bits = self.blocks[block as usize / 64].load(SeqCst) >> (block % 64);
            if bits == 0 {
                // None in what is left of this word.
                block = (block / 64 + 1) * 64;
                continue;
            }
            block += bits.trailing_zeros();
            let regions = (block * BLOCK).max(from)..((block + 1) * BLOCK).min(len);
            if regions.is_empty() {
                break;
            }
            if looked >= most {
                return Some(regions.start);
            }
            looked += BLOCK;
            let before = found.len();
            let is_unclean = |&region: &Region| self.state(region) != RegionState::Clean;
            found.extend(regions.map(Region).filter(is_unclean));
            if found.len() == before {
                self.forget_block(block);
            }
            block += 1;
        }
        None
    }

    /// Unsets the bit of a block, unless some region of it is unclean.
    fn forget_block(&self, block: u32) {
        let bit = 1 << (block % 64);
        self.blocks[block as usize / 64].fetch_and(!bit, SeqCst);
        let regions = block * BLOCK..((block + 1) * BLOCK).min(self.room());
        if regions.map(Region).any(|region| self.state(region) != RegionState::Clean) {
            self.blocks[block as usize / 64].fetch_or(bit, SeqCst);
        }
    }

    /// A region was clean and is not any more.
    fn is_unclean_now(&self, region: Region) {
        self.unclean.fetch_add(1, SeqCst);
        let block = region.0 / BLOCK;
        self.blocks[block as usize / 64].fetch_or(1 << (block % 64), SeqCst);
    }

    /// Sets a region dirty before the volume is served: its bit is durable already.
    pub fn assume_dirty(&self, region: Region) {
        self.assume(region, RegionState::Dirty);
    }

    /// Sets a clean region kept before the volume is served: its bit is durable already.
    pub(crate) fn assume_kept(&self, region: Region) {
        if self.state(region) == RegionState::Clean {
            self.assume(region, RegionState::Kept);
        }
    }

    fn assume(&self, region: Region, state: RegionState) {
        let old = self.update(region, |word| Some((word & !STATE) | state.code()));
        if RegionState::of(old) == RegionState::Clean {
            self.is_unclean_now(region);
        }
    }

    /// A write begins: counts it, and says whether the region's mark has to be asked for first.
    pub fn begin_write(&self, region: Region) -> Begin {
        let old = self.update(region, |word| {
            let next = match RegionState::of(word) {
                RegionState::Clean | RegionState::Marking => RegionState::Marking,
                RegionState::Dirty | RegionState::Cleaning => RegionState::Dirty,
                RegionState::Kept | RegionState::Renewing => RegionState::Renewing,
            };
            Some(((word & !STATE) | next.code() | TOUCHED) + ONE_WRITE)
        });
        match RegionState::of(old) {
            RegionState::Clean => {
                self.is_unclean_now(region);
                Begin::Mark
            }
            RegionState::Marking | RegionState::Kept | RegionState::Renewing => Begin::Mark,
            RegionState::Dirty | RegionState::Cleaning => Begin::Write,
        }
    }

    /// A copy to a leg that is stale here begins: counts it like a write. `false`: the region's bit is not durable, so nothing
    /// may be written, and nothing is counted.
    pub(crate) fn begin_copy(&self, region: Region) -> bool {
        let old = self.update(region, |word| {
            let next = match RegionState::of(word) {
                RegionState::Cleaning => RegionState::Dirty,
                state if state.is_durable() => state,
                _ => return None,
            };
            Some(((word & !STATE) | next.code() | TOUCHED) + ONE_WRITE)
        });
        RegionState::of(old).is_durable()
    }

    /// A write is over.
    pub fn end_write(&self, region: Region) {
        let old = self.words[region.index()].fetch_sub(ONE_WRITE, SeqCst);
        assert!(old >= ONE_WRITE, "a write ended that never began");
    }

    /// The log worker is asked for a mark. `true`: it has to commit one (the region is marking now);
    /// `false`: the bit is durable already.
    pub fn want_mark(&self, region: Region) -> bool {
        let old = self.update(region, |word| match RegionState::of(word) {
            RegionState::Clean => Some((word & !STATE) | RegionState::Marking.code()),
            _ => None,
        });
        if RegionState::of(old) == RegionState::Clean {
            self.is_unclean_now(region);
        }
        matches!(RegionState::of(old), RegionState::Clean | RegionState::Marking)
    }

    /// A clean region is to be marked before anybody asks: `true` if it is marking now. It counts as touched, so it is
    /// cleared no sooner than one that was written to.
    pub fn mark_ahead(&self, region: Region) -> bool {
        let old = self.update(region, |word| match RegionState::of(word) {
            RegionState::Clean => Some((word & !STATE) | RegionState::Marking.code() | TOUCHED),
            _ => None,
        });
        let was_clean = RegionState::of(old) == RegionState::Clean;
        if was_clean {
            self.is_unclean_now(region);
        }
        was_clean
    }

    /// The mark is durable, and the superblocks say what they have to. Gives the state before.
    pub fn marked(&self, region: Region) -> RegionState {
        let old = self.update(region, |word| match RegionState::of(word) {
            RegionState::Marking | RegionState::Kept | RegionState::Renewing => {
                Some((word & !STATE) | RegionState::Dirty.code())
            }
            _ => None,
        });
        RegionState::of(old)
    }

    /// The bit stays for a leg that is out, or copied to; the other legs are equal here. Gives the state before; nothing
    /// changes unless that is marking or cleaning.
    pub(crate) fn keep(&self, region: Region) -> RegionState {
        let old = self.update(region, |word| match RegionState::of(word) {
            RegionState::Marking | RegionState::Cleaning => Some((word & !STATE) | RegionState::Kept.code()),
            _ => None,
        });
        RegionState::of(old)
    }

    /// The mark could not be made durable.
    pub fn mark_failed(&self, region: Region) {
        let old = self.update(region, |word| match RegionState::of(word) {
            RegionState::Marking => Some(word & !STATE),
            RegionState::Renewing => Some((word & !STATE) | RegionState::Kept.code()),
            _ => None,
        });
        if RegionState::of(old) == RegionState::Marking {
            self.unclean.fetch_sub(1, SeqCst);
        }
    }

    /// First step of a clear: `true` if the region is now cleaning, or kept and left alone. A region that was touched
    /// since the last call only loses its touched bit, unless `at_once`.
    pub fn start_cleaning(&self, region: Region, at_once: bool) -> bool {
        let may_begin = |word: u32| {
            let state = RegionState::of(word);
            matches!(state, RegionState::Dirty | RegionState::Kept) && word < ONE_WRITE
        };
        let old = self.update(region, |word| match RegionState::of(word) {
            _ if !may_begin(word) => None,
            _ if word & TOUCHED != 0 && !at_once => Some(word & !TOUCHED),
            RegionState::Dirty => Some(RegionState::Cleaning.code()),
            _ => Some(RegionState::Kept.code()),
        });
        may_begin(old) && (at_once || old & TOUCHED == 0)
    }

    /// Gives a clear up: the region is dirty again.
    pub fn stop_cleaning(&self, region: Region) {
        self.update(region, |word| match RegionState::of(word) {
            RegionState::Cleaning => Some((word & !STATE) | RegionState::Dirty.code()),
            _ => None,
        });
    }

    /// Second step of a clear, after the flush: gives the state before, cleaning or kept, if nothing was written meanwhile and
    /// the region is clean.
    pub fn finish_cleaning(&self, region: Region) -> Option<RegionState> {
        let kept = RegionState::Kept.code();
        let old = self.update(region, |word| match RegionState::of(word) {
            RegionState::Cleaning => Some(word & !STATE),
            // Neither touched nor with a write or copy in flight.
            _ if word == kept => Some(0),
            _ => None,
        });
        let state = RegionState::of(old);
        let is_clean = state == RegionState::Cleaning || old == kept;
        if is_clean {
            assert!(old < ONE_WRITE, "a region with a write in flight was cleaned");
            self.unclean.fetch_sub(1, SeqCst);
        }
        is_clean.then_some(state)
    }

    /// Applies `step` atomically; returns the word before it (also where `step` changed nothing).
    fn update(&self, region: Region, step: impl Fn(u32) -> Option<u32>) -> u32 {
        let word = &self.words[region.index()];
        let mut old = word.load(SeqCst);
        while let Some(new) = step(old) {
            match word.compare_exchange_weak(old, new, SeqCst, SeqCst) {
                Ok(_) => return old,
                Err(now) => old = now,
            }
        }
        old
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Puts a region into a state with the public operations.
    fn region_in(state: RegionState) -> RegionTable {
        let table = RegionTable::new(1);
        let r = Region(0);
        match state {
            RegionState::Clean => {}
            RegionState::Marking => assert!(table.want_mark(r)),
            RegionState::Dirty => table.assume_dirty(r),
            RegionState::Cleaning => {
                table.assume_dirty(r);
                assert!(table.start_cleaning(r, true));
            }
            RegionState::Kept => table.assume_kept(r),
            RegionState::Renewing => {
                table.assume_kept(r);
                assert_eq!(table.begin_write(r), Begin::Mark);
                table.end_write(r);
            }
        }
        assert_eq!(table.state(r), state);
        table
    }

    #[test]
    fn every_transition_is_as_the_table_says() {
        use RegionState::*;
        type Step = fn(&RegionTable);
        let begin: Step = |t| {
            let _ = t.begin_write(Region(0));
        };
        let want: Step = |t| {
            let _ = t.want_mark(Region(0));
        };
        let ahead: Step = |t| {
            let _ = t.mark_ahead(Region(0));
        };
        let marked: Step = |t| {
            let _ = t.marked(Region(0));
        };
        let keep: Step = |t| {
            let _ = t.keep(Region(0));
        };
        let copy: Step = |t| {
            let _ = t.begin_copy(Region(0));
        };
        let failed: Step = |t| t.mark_failed(Region(0));
        let start: Step = |t| {
            let _ = t.start_cleaning(Region(0), false);
        };
        let stop: Step = |t| t.stop_cleaning(Region(0));
        let finish: Step = |t| {
            let _ = t.finish_cleaning(Region(0));
        };
        #[rustfmt::skip]
        let rows: [(&str, Step, [RegionState; 6]); 10] = [
            //            from: Clean    Marking  Dirty     Cleaning  Kept      Renewing
            ("begin_write",     begin,  [Marking, Marking, Dirty,    Dirty,    Renewing, Renewing]),
            ("begin_copy",      copy,   [Clean,   Marking, Dirty,    Dirty,    Kept,     Renewing]),
            ("want_mark",       want,   [Marking, Marking, Dirty,    Cleaning, Kept,     Renewing]),
            ("mark_ahead",      ahead,  [Marking, Marking, Dirty,    Cleaning, Kept,     Renewing]),
            ("marked",          marked, [Clean,   Dirty,   Dirty,    Cleaning, Dirty,    Dirty]),
            ("mark_failed",     failed, [Clean,   Clean,   Dirty,    Cleaning, Kept,     Kept]),
            ("keep",            keep,   [Clean,   Kept,    Dirty,    Kept,     Kept,     Renewing]),
            ("start_cleaning",  start,  [Clean,   Marking, Cleaning, Cleaning, Kept,     Renewing]),
            ("stop_cleaning",   stop,   [Clean,   Marking, Dirty,    Dirty,    Kept,     Renewing]),
            ("finish_cleaning", finish, [Clean,   Marking, Dirty,    Clean,    Clean,    Renewing]),
        ];
        for (name, step, to) in rows {
            for (from, to) in [Clean, Marking, Dirty, Cleaning, Kept, Renewing].into_iter().zip(to) {
                let table = region_in(from);
                step(&table);
                assert_eq!(table.state(Region(0)), to, "{name} from {from:?}");
                assert_eq!(table.unclean(), u32::from(to != Clean), "{name} from {from:?}");
            }
        }
    }

    #[test]
    fn unclean_regions_are_found_a_few_at_a_time_and_clean_blocks_passed_over() {
        let table = RegionTable::with_room(100_000, 200_000);
        let unclean = [3, 4, 63, 64, 5_000, 70_000, 99_999].map(Region);
        unclean.iter().for_each(|&region| table.assume_dirty(region));
        let look = |from, most| {
            let mut found = Vec::new();
            let next = table.find_unclean(from, most, &mut found);
            (found, next)
        };
        assert_eq!(look(0, u32::MAX), (unclean.to_vec(), None));
        assert_eq!(look(4, 64), (vec![Region(4), Region(63)], Some(64)));
        assert_eq!(look(64, 128), (vec![Region(64), Region(5_000)], Some(70_000 / BLOCK * BLOCK)));
        assert_eq!(look(5_001, u32::MAX), (unclean[5..].to_vec(), None));
        for region in unclean {
            assert!(table.start_cleaning(region, true) && table.finish_cleaning(region).is_some());
        }
        assert_eq!(look(0, u32::MAX), (vec![], None));
        assert!(table.blocks.iter().all(|bits| bits.load(SeqCst) == 0), "blocks that are clean are known");
        assert_eq!(table.begin_write(Region(64)), Begin::Mark);
        assert!(table.want_mark(Region(200)) && table.mark_ahead(Region(300)));
        assert_eq!(look(0, u32::MAX).0, [64, 200, 300].map(Region));
    }

    #[test]
    fn a_write_in_flight_forbids_cleaning() {
        let table = RegionTable::new(1);
        let r = Region(0);
        assert_eq!(table.begin_write(r), Begin::Mark);
        table.marked(r);
        assert!(!table.start_cleaning(r, true));
        table.end_write(r);
        assert!(!table.start_cleaning(r, false), "touched: only the bit goes");
        assert!(table.start_cleaning(r, false));
        assert_eq!(table.begin_write(r), Begin::Write);
        assert_eq!(table.finish_cleaning(r), None, "a write came between");
        assert_eq!(table.writes(r), 1);
    }

    #[test]
    fn what_is_kept_is_cleared_only_if_nothing_was_written_or_copied_there_since() {
        let table = RegionTable::new(2);
        let [copied, written] = [Region(0), Region(1)];
        [copied, written].into_iter().for_each(|region| table.assume_kept(region));
        assert!(table.start_cleaning(copied, false) && table.start_cleaning(written, false));
        assert!(table.begin_copy(copied));
        assert_eq!((table.begin_write(written), table.state(copied)), (Begin::Mark, RegionState::Kept));
        assert_eq!(table.finish_cleaning(copied), None, "a copy is under way");
        table.end_write(copied);
        assert_eq!(table.finish_cleaning(copied), None, "a copy came between");
        assert!(!table.start_cleaning(copied, false) && table.start_cleaning(copied, false));
        assert_eq!(table.finish_cleaning(copied), Some(RegionState::Kept));
        table.mark_failed(written);
        table.end_write(written);
        assert_eq!(table.finish_cleaning(written), None, "a write came between");
        assert_eq!((table.unclean(), table.state(written)), (1, RegionState::Kept));
        assert!(!table.begin_copy(copied), "its bit is not durable");
        assert_eq!((table.unclean(), table.writes(copied)), (1, 0));
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
