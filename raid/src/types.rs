//! Index types, leg states and the descriptor of one leg IO: plain values, used by every crate.

use std::fmt;
use std::ops::{Index, IndexMut};

/// Most legs a volume can have. Chosen so that a set of legs is one byte; more than four copies
/// is rare, and each leg costs a full write.
pub const MAX_LEGS: usize = 8;

/// A leg by its index in the volume, `0..MAX_LEGS`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leg(u8);

impl Leg {
    /// The leg with this index.
    ///
    /// # Panics
    /// If `index` is not below [`MAX_LEGS`].
    pub const fn new(index: usize) -> Leg {
        assert!(index < MAX_LEGS);
        Leg(index as u8)
    }

    /// Its index in the volume.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Debug for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leg{}", self.0)
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A set of legs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct LegSet(u8);

impl LegSet {
    /// No leg.
    pub const EMPTY: LegSet = LegSet(0);

    /// The first `count` legs.
    pub const fn first(count: usize) -> LegSet {
        assert!(count <= MAX_LEGS);
        LegSet(((1u16 << count) - 1) as u8)
    }

    /// Just this leg.
    pub const fn one(leg: Leg) -> LegSet {
        LegSet(1 << leg.0)
    }

    /// Whether `leg` is in the set.
    pub const fn contains(self, leg: Leg) -> bool {
        self.0 & (1 << leg.0) != 0
    }

    /// Adds `leg`.
    pub fn insert(&mut self, leg: Leg) {
        self.0 |= 1 << leg.0;
    }

    /// Takes `leg` out.
    pub fn remove(&mut self, leg: Leg) {
        self.0 &= !(1 << leg.0);
    }

    /// Legs in either set.
    pub const fn union(self, other: LegSet) -> LegSet {
        LegSet(self.0 | other.0)
    }

    /// Legs in both sets.
    pub const fn intersect(self, other: LegSet) -> LegSet {
        LegSet(self.0 & other.0)
    }

    /// Legs in this set and not in `other`.
    pub const fn minus(self, other: LegSet) -> LegSet {
        LegSet(self.0 & !other.0)
    }

    /// How many.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The one with the lowest index.
    pub fn lowest(self) -> Option<Leg> {
        (self.0 != 0).then(|| Leg(self.0.trailing_zeros() as u8))
    }

    /// In index order.
    pub fn iter(self) -> impl Iterator<Item = Leg> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let leg = LegSet(rest).lowest()?;
            rest &= rest - 1;
            Some(leg)
        })
    }

    /// As a bit mask, bit = leg index.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// From a bit mask, bit = leg index.
    pub const fn from_bits(bits: u8) -> LegSet {
        LegSet(bits)
    }
}

impl FromIterator<Leg> for LegSet {
    fn from_iter<I: IntoIterator<Item = Leg>>(legs: I) -> LegSet {
        let mut set = LegSet::EMPTY;
        for leg in legs {
            set.insert(leg);
        }
        set
    }
}

impl fmt::Debug for LegSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Leg::index)).finish()
    }
}

/// One `T` for each leg of a volume, indexed by [`Leg`].
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LegMap<T>(Vec<T>);

impl<T> LegMap<T> {
    /// `count` values made from their leg.
    pub fn from_fn(count: usize, mut make: impl FnMut(Leg) -> T) -> LegMap<T> {
        LegMap((0..count).map(|i| make(Leg::new(i))).collect())
    }

    /// With `value` for every index that a leg can have and this has none for.
    pub fn filled(mut self, mut value: impl FnMut() -> T) -> LegMap<T> {
        self.0.resize_with(MAX_LEGS, &mut value);
        self
    }

    /// The value of a leg that may be beyond the last.
    pub fn get(&self, leg: Leg) -> Option<&T> {
        self.0.get(leg.index())
    }

    /// How many indices it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every leg, in index order.
    pub fn legs(&self) -> impl Iterator<Item = Leg> + use<T> {
        (0..self.0.len()).map(Leg::new)
    }

    /// Every leg with its value, in index order.
    pub fn iter(&self) -> impl Iterator<Item = (Leg, &T)> {
        self.0.iter().enumerate().map(|(i, value)| (Leg::new(i), value))
    }

    /// Every leg with its value, in index order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Leg, &mut T)> {
        self.0.iter_mut().enumerate().map(|(i, value)| (Leg::new(i), value))
    }
}

impl<T> From<Vec<T>> for LegMap<T> {
    fn from(values: Vec<T>) -> LegMap<T> {
        assert!(values.len() <= MAX_LEGS);
        LegMap(values)
    }
}

impl<T> Index<Leg> for LegMap<T> {
    type Output = T;
    fn index(&self, leg: Leg) -> &T {
        &self.0[leg.index()]
    }
}

impl<T> IndexMut<Leg> for LegMap<T> {
    fn index_mut(&mut self, leg: Leg) -> &mut T {
        &mut self.0[leg.index()]
    }
}

/// A queue of the front end: one thread, one ring, one [`crate::MirrorQueue`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QueueId(pub u16);

/// An operating system error number (positive, as in `errno`). Small and `Copy`: the error of the
/// hot path.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    /// Input/output error.
    pub const EIO: Errno = Errno(5);
    /// No such device or address.
    pub const ENXIO: Errno = Errno(6);
    /// No such device.
    pub const ENODEV: Errno = Errno(19);
    /// No space left on device.
    pub const ENOSPC: Errno = Errno(28);
    /// The transport was shut down.
    pub const ESHUTDOWN: Errno = Errno(108);
    /// Disk quota exceeded: for a leg the same as no space.
    pub const EDQUOT: Errno = Errno(122);

    /// The leg did not answer in time: the IO was given up, or not even begun because of such a one. It may still be
    /// carried out, before the leg is given anything else. No leg that answers says this: drivers see to it.
    pub const GIVEN_UP: Errno = Errno(110);

    /// Whether it is not known how the IO ends. A flush of which that is said has lost nothing yet: should it end
    /// badly, the next one on the leg says so.
    pub fn is_given_up(self) -> bool {
        self == Errno::GIVEN_UP
    }

    /// Whether the leg is out of space rather than broken.
    pub fn is_no_space(self) -> bool {
        self == Errno::ENOSPC || self == Errno::EDQUOT
    }

    /// Whether the whole leg is gone, not a block of it bad.
    pub fn is_gone(self) -> bool {
        matches!(self, Errno::ENXIO | Errno::ENODEV | Errno::ESHUTDOWN)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "errno {}", self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl std::error::Error for Errno {}

/// The state of a leg, as recorded in every superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum LegState {
    /// Holds the volume: read from, written to.
    InSync,
    /// Written to; stale in some of the regions that the log has set.
    Syncing,
    /// Not written to since the event that recorded this; stale in the regions that the log has set.
    Failed(FailReason),
    /// Split off: not written to since then, and what the volume changed is kept track of.
    Tracked,
    /// Holds nothing of the volume, and takes the place of a leg that fails.
    Spare,
    /// No leg has this index: it was removed, or there never was one.
    Vacant,
}

impl LegState {
    /// Whether every write goes to the leg.
    pub const fn is_in_use(self) -> bool {
        matches!(self, LegState::InSync | LegState::Syncing)
    }

    /// Whether it is a copy of the volume, of whatever age.
    pub const fn is_copy(self) -> bool {
        !matches!(self, LegState::Spare | LegState::Vacant)
    }
}

/// Why a leg was failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum FailReason {
    /// A write, flush or log commit on it failed.
    Io,
    /// It ran out of space; it comes back by itself when there is room.
    NoSpace,
    /// It was not there when the volume was started.
    Missing,
    /// Failed by hand.
    Admin,
}

/// What is asked of a leg.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LegOp {
    /// Read into the buffer.
    Read,
    /// Write from the buffer; durable on completion if `fua`.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Make the range read as zeroes; durable on completion if `fua`.
    Zero {
        /// Force unit access.
        fua: bool,
        /// The leg is to keep the space, or have some for it; else it is given back where that is possible.
        keep: bool,
    },
    /// Make everything completed before durable (fdatasync).
    Flush,
}

impl LegOp {
    /// Whether its success says that something is durable.
    pub fn is_durable(self) -> bool {
        matches!(self, LegOp::Flush | LegOp::Write { fua: true } | LegOp::Zero { fua: true, .. })
    }
}

/// One IO on one leg, the output of the engine and the input of the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LegIo {
    /// Given back with the completion.
    pub io: u32,
    /// Which request's buffer: the `tag` of the request.
    pub tag: u32,
    /// Which leg.
    pub leg: Leg,
    /// What to do.
    pub op: LegOp,
    /// Where, in bytes from the start of the leg (equal to the offset in the volume).
    pub offset: u64,
    /// How much, in bytes. 0 for a flush.
    pub len: u64,
    /// Where in the request's buffer the data starts, in bytes.
    pub buf_offset: u32,
}
