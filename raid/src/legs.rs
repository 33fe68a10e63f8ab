//! The leg table: the state of every leg, and where each is stale. Written by the log worker alone,
//! read by every queue.
//!
//! All states stand in one atomic word, so a queue sees them as of one moment. Beside its state a
//! leg has a *recorded* bit: the superblocks of the legs in use say the same durably. A write that
//! missed a leg may be answered only when that leg is out and recorded so.
//!
//! A leg that is syncing has one stale bit per region: set, its copy there may be older than the
//! volume. Legs that are in sync are stale nowhere; legs that are failed are stale, at most, where
//! the log is dirty, so they need no bits. A leg that is tracked is stale where the log is dirty, too,
//! and, if it was split off since the volume was started, no more than where its bits are set: queues set
//! them as they write.

use std::sync::atomic::{AtomicU32 as Counter32, AtomicU64 as Counter};

use crate::geometry::Region;
use crate::sync::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst, zeroes};
use crate::types::{FailReason, Leg, LegMap, LegSet, LegState, MAX_LEGS};

/// The planes of a [`LegStates`] word: a byte each, in which leg n has bit n. A leg is in at most one of the
/// first five; none has one that is vacant.
mod plane {
    pub(super) const IN_SYNC: u32 = 0;
    pub(super) const SYNCING: u32 = 8;
    pub(super) const TRACKED: u32 = 16;
    pub(super) const SPARE: u32 = 24;
    pub(super) const FAILED: u32 = 32;
    /// Two bits of why it is failed.
    pub(super) const REASON: [u32; 2] = [40, 48];
    pub(super) const RECORDED: u32 = 56;
}

const REASONS: [FailReason; 4] =
    [FailReason::Io, FailReason::NoSpace, FailReason::Missing, FailReason::Admin];

/// The bits of leg 0 in this state.
fn code(state: LegState) -> u64 {
    match state {
        LegState::InSync => 1 << plane::IN_SYNC,
        LegState::Syncing => 1 << plane::SYNCING,
        LegState::Tracked => 1 << plane::TRACKED,
        LegState::Spare => 1 << plane::SPARE,
        LegState::Vacant => 0,
        LegState::Failed(reason) => {
            let reason = REASONS.iter().position(|&r| r == reason).unwrap_or(0) as u64;
            let [low, high] = plane::REASON;
            1 << plane::FAILED | (reason & 1) << low | (reason >> 1) << high
        }
    }
}

/// All legs' states as of one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LegStates {
    word: u64,
}

impl LegStates {
    fn plane(self, plane: u32) -> LegSet {
        LegSet::from_bits((self.word >> plane) as u8)
    }

    /// The state of one leg.
    pub fn of(self, leg: Leg) -> LegState {
        let is = |plane| self.plane(plane).contains(leg);
        if is(plane::IN_SYNC) {
            LegState::InSync
        } else if is(plane::SYNCING) {
            LegState::Syncing
        } else if is(plane::TRACKED) {
            LegState::Tracked
        } else if is(plane::SPARE) {
            LegState::Spare
        } else if is(plane::FAILED) {
            let [low, high] = plane::REASON.map(|plane| usize::from(is(plane)));
            LegState::Failed(REASONS[low + 2 * high])
        } else {
            LegState::Vacant
        }
    }

    /// Every leg that is a copy of the volume, of whatever age, or of which the superblocks may say so still.
    pub fn all(self) -> LegSet {
        let copies = self.in_use().union(self.tracked()).union(self.plane(plane::FAILED));
        // A spare never was one, and what is vacant now may have been.
        copies.union(LegSet::first(MAX_LEGS).minus(self.plane(plane::RECORDED)).minus(self.spare()))
    }

    /// Whether the superblocks say the same of every leg.
    pub fn all_recorded(self) -> bool {
        self.plane(plane::RECORDED) == LegSet::first(MAX_LEGS)
    }

    /// Legs that are in sync.
    pub fn in_sync(self) -> LegSet {
        self.plane(plane::IN_SYNC)
    }

    /// Legs that are syncing.
    pub fn syncing(self) -> LegSet {
        self.plane(plane::SYNCING)
    }

    /// Legs that every write goes to: in sync or syncing.
    pub fn in_use(self) -> LegSet {
        self.in_sync().union(self.syncing())
    }

    /// Legs that were split off and are tracked.
    pub fn tracked(self) -> LegSet {
        self.plane(plane::TRACKED)
    }

    /// Legs that wait for another to fail.
    pub fn spare(self) -> LegSet {
        self.plane(plane::SPARE)
    }

    /// Indices that no leg has.
    pub fn vacant(self) -> LegSet {
        let copies = self.in_use().union(self.tracked()).union(self.plane(plane::FAILED));
        LegSet::first(MAX_LEGS).minus(copies.union(self.spare()))
    }

    /// Legs that are out and durably recorded so.
    pub fn out_and_recorded(self) -> LegSet {
        self.plane(plane::RECORDED).minus(self.in_use())
    }

    /// Whether the superblocks say the same of this leg.
    pub fn recorded(self, leg: Leg) -> bool {
        self.plane(plane::RECORDED).contains(leg)
    }
}

impl std::fmt::Debug for LegStates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let there = LegSet::first(MAX_LEGS).minus(self.vacant().intersect(self.out_and_recorded()));
        let state = |leg| (leg, (self.of(leg), if self.recorded(leg) { "recorded" } else { "" }));
        f.debug_map().entries(there.iter().map(state)).finish()
    }
}

/// One leg's counters, for status.
#[derive(Debug, Default)]
pub struct LegCounters {
    /// Reads answered by this leg now.
    pub reads_in_flight: Counter32,
    /// Reads answered.
    pub reads: Counter,
    /// Writes carried out.
    pub writes: Counter,
    /// Bytes written for the front end, resync not counted.
    pub written_bytes: Counter,
    /// Bytes copied to this leg by resync.
    pub resynced_bytes: Counter,
    /// Failed reads.
    pub read_errors: Counter,
    /// Ranges that could not be read and were written anew from another leg.
    pub repaired: Counter,
    /// Failed writes.
    pub write_errors: Counter,
    /// Failed flushes.
    pub flush_errors: Counter,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct LegTable {
    word: AtomicU64,
    /// Regions of the volume: bits behind them are not set.
    regions: AtomicU32,
    /// A bit for each region. They are not counted as they change: queues set some while the log worker sets them all.
    stale: LegMap<Box<[AtomicU64]>>,
    /// Per leg counters.
    pub counters: LegMap<LegCounters>,
    unflushed: AtomicU8,
    /// Failed flushes, by leg.
    failed_flushes: [AtomicU32; MAX_LEGS],
    exact: AtomicU8,
    flush_broken: AtomicBool,
}

impl LegTable {
    /// Legs in these states, all recorded, stale nowhere. Indices beyond are vacant, for good.
    pub fn new(states: &LegMap<LegState>, regions: u32) -> LegTable {
        LegTable::with_room(states, regions, regions)
    }

    /// The same, with room for `room` regions in all.
    pub fn with_room(states: &LegMap<LegState>, regions: u32, room: u32) -> LegTable {
        let recorded = 0xff << plane::RECORDED;
        let word = states.iter().fold(recorded, |word, (leg, &state)| word | code(state) << leg.index());
        let words = room.max(regions).div_ceil(64) as usize;
        LegTable {
            word: AtomicU64::new(word),
            regions: AtomicU32::new(regions),
            stale: LegMap::from_fn(states.len(), |_| zeroes(words)),
            counters: LegMap::from_fn(states.len(), |_| LegCounters::default()),
            unflushed: AtomicU8::new(0),
            failed_flushes: Default::default(),
            exact: AtomicU8::new(0),
            flush_broken: AtomicBool::new(false),
        }
    }

    /// There are so many regions from now on; no leg is stale in the new ones. Log worker only.
    pub(crate) fn grow(&self, regions: u32) {
        self.regions.store(regions, SeqCst);
    }

    /// All states as of now.
    pub fn states(&self) -> LegStates {
        LegStates { word: self.word.load(SeqCst) }
    }

    /// Moves a leg to a state that is not recorded yet. Log worker only.
    pub(crate) fn set(&self, leg: Leg, to: LegState) {
        self.put(leg, code(to));
    }

    /// The superblocks say `to` of this leg; nothing if it moved on meanwhile. Log worker only.
    pub(crate) fn set_recorded(&self, leg: Leg, to: LegState) {
        if self.states().of(leg) == to {
            self.put(leg, code(to) | 1 << plane::RECORDED);
        }
    }

    fn put(&self, leg: Leg, bits: u64) {
        // Bit 0 of every byte.
        let every_plane = 0x0101_0101_0101_0101;
        let word = self.word.load(SeqCst) & !(every_plane << leg.index());
        self.word.store(word | bits << leg.index(), SeqCst);
    }

    /// Whether `leg` is stale in `region` (meant for legs that are syncing).
    pub fn is_stale(&self, leg: Leg, region: Region) -> bool {
        let word = self.stale[leg][region.index() / 64].load(SeqCst);
        word & (1 << (region.index() % 64)) != 0
    }

    /// In how many regions `leg` is stale: looks at every bit.
    pub fn stale_count(&self, leg: Leg) -> u32 {
        let words = &self.stale[leg][..self.regions.load(SeqCst).div_ceil(64) as usize];
        words.iter().map(|word| word.load(SeqCst).count_ones()).sum()
    }

    /// The first region at or after `from` where `leg` is stale.
    pub fn next_stale(&self, leg: Leg, from: u32) -> Option<Region> {
        let words = &self.stale[leg][..self.regions.load(SeqCst).div_ceil(64) as usize];
        let mut mask = !0 << (from % 64);
        for (i, word) in words.iter().enumerate().skip(from as usize / 64) {
            let bits = word.load(SeqCst) & mask;
            if bits != 0 {
                return Some(Region(i as u32 * 64 + bits.trailing_zeros()));
            }
            mask = !0;
        }
        None
    }

    /// Log worker only (and assembly, before the volume is served), but for legs that are tracked.
    pub(crate) fn set_stale(&self, leg: Leg, region: Region) {
        let bit = 1 << (region.index() % 64);
        self.stale[leg][region.index() / 64].fetch_or(bit, SeqCst);
    }

    /// Log worker only.
    pub(crate) fn clear_stale(&self, leg: Leg, region: Region) {
        let bit = 1 << (region.index() % 64);
        self.stale[leg][region.index() / 64].fetch_and(!bit, SeqCst);
    }

    /// Sets or clears every stale bit of a leg. Log worker only.
    pub(crate) fn set_all_stale(&self, leg: Leg, stale: bool) {
        let regions = self.regions.load(SeqCst);
        let words = regions.div_ceil(64) as usize;
        for (i, word) in self.stale[leg][..words].iter().enumerate() {
            let valid = regions as usize - i * 64;
            let full = if valid >= 64 { !0 } else { (1u64 << valid) - 1 };
            word.store(if stale { full } else { 0 }, SeqCst);
        }
    }

    /// Legs that a read of `region` may be served from.
    pub fn readable(&self, region: Region) -> LegSet {
        let states = self.states();
        let syncing = states.syncing().iter().filter(|&leg| !self.is_stale(leg, region)).collect();
        states.in_sync().union(syncing)
    }

    /// Tracked legs whose stale bits tell all: not those that were tracked when the volume was started.
    pub fn tracked_exactly(&self) -> LegSet {
        LegSet::from_bits(self.exact.load(SeqCst)).intersect(self.states().tracked())
    }

    /// From now on, or no longer, the bits of a tracked leg tell all. Log worker only.
    pub(crate) fn track_exactly(&self, leg: Leg, exact: bool) {
        let bit = LegSet::one(leg).bits();
        if exact {
            self.exact.fetch_or(bit, SeqCst);
        } else {
            self.exact.fetch_and(!bit, SeqCst);
        }
    }

    /// Legs on which a flush failed: the operating system reports that once and forgets what it could
    /// not write, so no later flush of them counts, not even before the log worker has failed them.
    pub(crate) fn unflushed(&self) -> LegSet {
        LegSet::from_bits(self.unflushed.load(SeqCst))
    }

    pub(crate) fn flush_failed(&self, leg: Leg) {
        self.failed_flushes[leg.index()].fetch_add(1, SeqCst);
        self.unflushed.fetch_or(LegSet::one(leg).bits(), SeqCst);
    }

    /// Flushes that have failed on each leg so far.
    pub(crate) fn failed_flushes(&self) -> [u32; MAX_LEGS] {
        self.failed_flushes.each_ref().map(|failed| failed.load(SeqCst))
    }

    /// The leg is stale in whatever it lost. Log worker only.
    pub(crate) fn forget_failed_flush(&self, leg: Leg) {
        self.unflushed.fetch_and(!LegSet::one(leg).bits(), SeqCst);
    }

    /// Whether a flush failed on the last leg in sync: data may be lost below, so no flush of this
    /// volume may ever be said to have worked until it is started anew.
    pub fn flush_broken(&self) -> bool {
        self.flush_broken.load(SeqCst)
    }

    pub(crate) fn break_flush(&self) {
        self.flush_broken.store(true, SeqCst);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn states_and_recorded_bits() {
        let states = LegMap::from(vec![LegState::InSync, LegState::InSync, LegState::Syncing]);
        let table = LegTable::new(&states, 100);
        let (a, b, c) = (Leg::new(0), Leg::new(1), Leg::new(2));
        assert_eq!(table.states().in_sync(), LegSet::first(2));
        assert_eq!(table.states().in_use(), LegSet::first(3));
        table.set(b, LegState::Failed(FailReason::Io));
        assert!(!table.states().out_and_recorded().contains(b));
        table.set_recorded(b, LegState::InSync);
        assert!(!table.states().recorded(b), "recorded as something else");
        table.set_recorded(b, LegState::Failed(FailReason::Io));
        assert!(table.states().out_and_recorded().contains(b));
        assert_eq!(table.states().in_sync(), LegSet::one(a));
        assert_eq!(table.states().of(c), LegState::Syncing);
    }

    #[test]
    fn every_state_of_every_leg_is_told_from_the_others() {
        let failed = REASONS.map(LegState::Failed);
        let others =
            [LegState::InSync, LegState::Syncing, LegState::Tracked, LegState::Spare, LegState::Vacant];
        for state in others.into_iter().chain(failed) {
            for leg in LegSet::first(MAX_LEGS).iter() {
                let table = LegTable::new(&LegMap::from_fn(MAX_LEGS, |_| LegState::Vacant), 1);
                assert_eq!((table.states().all(), table.states().vacant().len()), (LegSet::EMPTY, MAX_LEGS));
                table.set(leg, LegState::Failed(FailReason::Admin));
                table.set(leg, state);
                let states = table.states();
                assert_eq!((states.of(leg), states.recorded(leg)), (state, false));
                let may_be_copy = if state == LegState::Spare { LegSet::EMPTY } else { LegSet::one(leg) };
                assert_eq!((states.all(), states.all_recorded()), (may_be_copy, false));
                table.set_recorded(leg, state);
                let states = table.states();
                assert_eq!(
                    (states.of(leg), states.recorded(leg), states.all_recorded()),
                    (state, true, true)
                );
                assert_eq!(states.all().contains(leg), state.is_copy(), "{state:?}");
                assert_eq!(states.in_use().contains(leg), state.is_in_use(), "{state:?}");
                assert_eq!(states.vacant().contains(leg), state == LegState::Vacant, "{state:?}");
                assert_eq!(states.vacant().len(), MAX_LEGS - usize::from(state != LegState::Vacant));
            }
        }
    }

    #[test]
    fn stale_bits_count_and_search() {
        let table = LegTable::new(&LegMap::from(vec![LegState::Syncing]), 130);
        let leg = Leg::new(0);
        table.set_all_stale(leg, true);
        assert_eq!(table.stale_count(leg), 130);
        for region in 0..129 {
            table.clear_stale(leg, Region(region));
        }
        table.clear_stale(leg, Region(5));
        assert_eq!(table.stale_count(leg), 1);
        assert_eq!(table.next_stale(leg, 0), Some(Region(129)));
        assert_eq!(table.next_stale(leg, 129), Some(Region(129)));
        assert_eq!(table.readable(Region(129)), LegSet::EMPTY);
        assert_eq!(table.readable(Region(7)), LegSet::one(leg));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    //! The pair on which returns rely: the word of a region and the word of the leg states.
    use super::*;
    use crate::region::{RegionState, RegionTable};
    use loom::sync::Arc;
    use loom::sync::atomic::fence;

    const LEG: Leg = Leg::new(0);
    const REGION: Region = Region(0);

    /// A write begins in a region that is dirty, or clean and then marked, while a leg comes back: it is sent to the leg,
    /// or the leg is stale there. Loom has no total order of sequentially consistent operations, on which that relies,
    /// but for fences: they stand for it.
    fn write_beside_a_return(out: LegState, dirty: bool) {
        loom::model(move || {
            let regions = Arc::new(RegionTable::new(1));
            let legs = Arc::new(LegTable::new(&LegMap::from(vec![out]), 1));
            if dirty {
                regions.assume_dirty(REGION);
            }
            let writer = {
                let (regions, legs) = (regions.clone(), legs.clone());
                loom::thread::spawn(move || {
                    let _ = regions.begin_write(REGION);
                    fence(SeqCst);
                    let states = legs.states();
                    states.tracked().iter().for_each(|leg| legs.set_stale(leg, REGION));
                    states.in_use().contains(LEG)
                })
            };
            legs.set_all_stale(LEG, true);
            legs.set(LEG, LegState::Syncing);
            fence(SeqCst);
            if regions.state(REGION) == RegionState::Clean {
                legs.clear_stale(LEG, REGION);
            }
            let is_sent = writer.join().unwrap();
            assert!(is_sent || legs.is_stale(LEG, REGION));
            assert_eq!(legs.stale_count(LEG) == 0, legs.next_stale(LEG, 0).is_none());
        });
    }

    #[test]
    fn loom_write_beside_the_return_of_a_failed_leg() {
        [false, true]
            .into_iter()
            .for_each(|dirty| write_beside_a_return(LegState::Failed(FailReason::Io), dirty));
    }

    #[test]
    fn loom_write_beside_the_merge_of_a_tracked_leg() {
        [false, true].into_iter().for_each(|dirty| write_beside_a_return(LegState::Tracked, dirty));
    }
}
