//! What the queues, the background worker and the log worker of one volume share, and the notes
//! they leave each other.
//!
//! The tables are atomics. Notes are small values in one box per receiver; a box's mutex is held
//! for a push or a swap. Whoever leaves a note also emits a wake action for the receiver, which the
//! driver turns into an eventfd write (and the simulator into an event).

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};
use std::sync::{Mutex, PoisonError};

use crate::assemble::Assembly;
use crate::background::REGIONS_AT_ONCE;
use crate::durable::{DurableIo, Ticket};
use crate::geometry::{Geometry, Region};
use crate::legs::LegTable;
use crate::ranges::{Owner, RangeLocks};
use crate::region::RegionTable;
use crate::request::Action;
use crate::types::{Errno, Leg, LegMap, LegSet, LegState, MAX_LEGS, QueueId};

/// Stands for the log worker among queues, where it owns durable IO.
pub(crate) const LOG_WORKER: QueueId = QueueId(u16::MAX - 1);

/// Error of each leg that failed, if any.
pub type LegErrors = [Option<Errno>; MAX_LEGS];

/// What the log worker is told or asked.
#[derive(Clone, Copy, Debug)]
pub enum WorkerNote {
    /// Make the region's mark durable, then answer `from`.
    Mark {
        /// The region.
        region: Region,
        /// Who waits.
        from: Owner,
    },
    /// A write or flush did not reach every leg of the volume. Record what has to be recorded, then
    /// answer `from` with the result of the request.
    Missed {
        /// Where it wrote; none for a flush.
        region: Option<Region>,
        /// Legs that carried it out.
        ok: LegSet,
        /// Errors of those that did not.
        errors: LegErrors,
        /// Whether it was a flush, or a write that had to be durable.
        durable: bool,
        /// Who waits.
        from: Owner,
    },
    /// A read failed on a leg and another leg gave the data.
    Unreadable {
        /// The leg it failed on.
        leg: Leg,
        /// Where, in bytes; within one region.
        offset: u64,
        /// How much, in bytes.
        len: u64,
        /// How it failed.
        errno: Errno,
    },
    /// The background worker flushed legs.
    Flushed {
        /// Which it was told to.
        legs: LegSet,
        /// Errors of those that failed.
        errors: LegErrors,
    },
    /// The background worker is done with copying a region.
    Copied {
        /// The region.
        region: Region,
        /// Legs that now hold the source's bytes.
        ok: LegSet,
        /// Errors of those that failed.
        errors: LegErrors,
    },
    /// The background worker is done with the oldest repair it was given.
    Repaired {
        /// The leg, if all of the range was written; neither here nor with an error if it was given up.
        ok: LegSet,
        /// Its error, if a write failed.
        errors: LegErrors,
    },
    /// Every durable IO that the log worker's own one waited for has been handled.
    Joined {
        /// Which of its own.
        io: u32,
    },
    /// A scrub wrote what differed anew on legs in sync, as far as it could.
    Scrubbed {
        /// Where.
        region: Region,
        /// Errors of the legs that failed.
        errors: LegErrors,
    },
}

/// What a queue, or the background worker, is told.
#[derive(Clone, Copy, Debug)]
pub enum QueueNote {
    /// The slot holds its range now.
    Granted {
        /// The slot.
        io: u32,
    },
    /// The mark of the slot's region is durable, or could not be made so.
    Marked {
        /// The slot.
        io: u32,
        /// How it went.
        result: Result<(), Errno>,
    },
    /// Every durable IO that the slot's one waited for has been handled.
    Joined {
        /// The slot.
        io: u32,
    },
    /// The result of the slot's request, after what had to be recorded is durable.
    Settled {
        /// The slot.
        io: u32,
        /// The result.
        result: Result<(), Errno>,
    },
    /// Background worker: copy a region from a leg in sync to these legs.
    Copy {
        /// The region.
        region: Region,
        /// To which legs.
        targets: LegSet,
    },
    /// Background worker: write a range of a leg anew, from another leg in sync.
    Repair {
        /// The leg.
        leg: Leg,
        /// Where, in bytes; within one region.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// Background worker: flush these legs.
    Flush {
        /// Which.
        legs: LegSet,
    },
}

/// Counters of the whole volume, for status.
#[derive(Debug, Default)]
pub struct Counters {
    /// Read requests answered.
    pub reads: AtomicU64,
    /// Write requests answered (zero requests too).
    pub writes: AtomicU64,
    /// Flush requests answered.
    pub flushes: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
    /// Log commits.
    pub commits: AtomicU64,
    /// Regions copied by resync since start.
    pub resynced_regions: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }
}

/// On a cache line of its own: queues count at each write.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Writing(AtomicU32);

type NoteBox<T> = Mutex<Vec<T>>;

fn swap_out<T>(notes: &NoteBox<T>, into: &mut Vec<T>) {
    into.clear();
    std::mem::swap(&mut *notes.lock().unwrap_or_else(PoisonError::into_inner), into);
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Mirror {
    /// Sizes, when the volume was started; its size now is in `size`.
    geometry: Geometry,
    size: AtomicU64,
    /// What the volume is growing to, in bytes; 0: nothing.
    growing_to: AtomicU64,
    /// Region states.
    pub regions: RegionTable,
    /// Leg states and stale regions.
    pub legs: LegTable,
    /// Ranges held by requests and resync.
    pub ranges: RangeLocks,
    pub(crate) durable: DurableIo,
    /// Counters.
    pub counters: Counters,
    /// The regions that are being copied, one more than their numbers; zero where none is.
    copying: [AtomicU32; REGIONS_AT_ONCE as usize],
    undone_writes: AtomicU32,
    frozen: AtomicBool,
    /// Writes of each queue, and last of the background worker, from before they lock their range until they are answered.
    writing: Box<[Writing]>,
    worker_notes: NoteBox<WorkerNote>,
    queue_notes: Box<[NoteBox<QueueNote>]>,
}

impl Mirror {
    /// A volume with `queues` queues and one background worker. `dirty` are the regions whose bits are
    /// durable; `states` are the legs' states as recorded; every leg that is syncing is stale in
    /// all of `dirty`.
    pub fn new(
        geometry: Geometry,
        states: &LegMap<LegState>,
        dirty: impl IntoIterator<Item = Region>,
        queues: u16,
    ) -> Mirror {
        let mirror = Mirror::clean(geometry, states, queues);
        for region in dirty {
            mirror.regions.assume_dirty(region);
            for leg in mirror.legs.states().syncing().iter() {
                mirror.legs.set_stale(leg, region);
            }
        }
        mirror
    }

    /// A volume that was assembled. `dirty`: regions whose bits are durable, not only because of legs that are to be copied
    /// whole; if there are any of those, every region's is before the volume is served.
    pub fn assembled(
        assembly: &Assembly,
        geometry: Geometry,
        states: &LegMap<LegState>,
        dirty: &[Region],
        queues: u16,
    ) -> Mirror {
        let mirror = Mirror::clean(geometry, states, queues);
        let syncing = mirror.legs.states().syncing();
        for &region in dirty {
            match assembly.is_recent(region) {
                true => mirror.regions.assume_dirty(region),
                false => mirror.regions.assume_kept(region),
            }
            for leg in syncing.iter().filter(|&leg| assembly.may_be_stale(leg, region)) {
                mirror.legs.set_stale(leg, region);
            }
        }
        if !assembly.copy_whole.is_empty() {
            // The others are equal where nothing was dirty.
            (0..mirror.regions.len()).for_each(|region| mirror.regions.assume_kept(Region(region)));
            assembly.copy_whole.iter().for_each(|leg| mirror.legs.set_all_stale(leg, true));
        }
        mirror
    }

    /// The same, where nothing is dirty.
    fn clean(geometry: Geometry, states: &LegMap<LegState>, queues: u16) -> Mirror {
        let (regions, room) = (geometry.regions(), geometry.room_in_tables());
        Mirror {
            geometry,
            size: AtomicU64::new(geometry.size()),
            growing_to: AtomicU64::new(0),
            regions: RegionTable::with_room(regions, room),
            legs: LegTable::with_room(states, regions, room),
            ranges: RangeLocks::default(),
            durable: DurableIo::default(),
            counters: Counters::default(),
            copying: Default::default(),
            undone_writes: AtomicU32::new(0),
            frozen: AtomicBool::new(false),
            writing: (0..=queues).map(|_| Writing::default()).collect(),
            worker_notes: NoteBox::default(),
            queue_notes: (0..=queues).map(|_| NoteBox::default()).collect(),
        }
    }

    /// Sizes.
    pub fn geometry(&self) -> Geometry {
        // Whoever sees the size sees tables that have room for it.
        self.geometry.with_size(self.size.load(Acquire))
    }

    /// What the volume is growing to, in bytes, until it is there or that comes to nothing.
    pub fn growing_to(&self) -> Option<u64> {
        Some(self.growing_to.load(SeqCst)).filter(|&size| size > 0)
    }

    pub(crate) fn set_growing_to(&self, size: Option<u64>) {
        self.growing_to.store(size.unwrap_or(0), SeqCst);
    }

    /// The volume is larger from now on: all that says so durably does. Log worker only.
    pub(crate) fn grow(&self, size: u64) {
        let regions = self.geometry.with_size(size).regions();
        self.regions.grow(regions);
        self.legs.grow(regions);
        self.size.store(size, Release);
    }

    /// The queue number of the background worker: one past the front end's queues.
    pub fn background(&self) -> QueueId {
        QueueId(self.queue_notes.len() as u16 - 1)
    }

    /// Legs of the volume, all states.
    pub fn all_legs(&self) -> impl Iterator<Item = Leg> {
        self.legs.states().all().iter()
    }

    /// Whether new writes wait: for the moment of a split.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(SeqCst)
    }

    /// Has new writes wait, or lets them go on; queues that hold some are to be woken then.
    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, SeqCst);
    }

    /// A part of a write begins on `queue`; `false`: it has to wait, and the log worker is to be woken.
    pub(crate) fn write_begins(&self, queue: QueueId) -> bool {
        // Counted before it looks: either it sees that it has to wait, or the log worker sees it.
        self.writing[queue.0 as usize].0.fetch_add(1, SeqCst);
        let may_begin = !self.is_frozen();
        if !may_begin {
            self.write_ends(queue);
        }
        may_begin
    }

    /// A part of a write has ended on `queue`; `true`: the log worker waits for that.
    pub(crate) fn write_ends(&self, queue: QueueId) -> bool {
        self.writing[queue.0 as usize].0.fetch_sub(1, SeqCst);
        self.is_frozen()
    }

    /// Whether any queue has a write under way.
    pub(crate) fn writes_are_under_way(&self) -> bool {
        self.writing.iter().any(|writing| writing.0.load(SeqCst) > 0)
    }

    /// Regions that are being copied to legs that are stale there, for status.
    pub fn copying(&self) -> impl Iterator<Item = Region> {
        self.copying.iter().filter_map(|slot| slot.load(Relaxed).checked_sub(1)).map(Region)
    }

    /// What the background worker copies in a slot now.
    pub(crate) fn set_copying(&self, slot: usize, region: Option<Region>) {
        self.copying[slot].store(region.map_or(0, |region| region.0 + 1), Relaxed);
    }

    /// Grows with every write that some leg may hold and the volume does not, before that write is
    /// answered: what a read beside it saw of it must not be returned.
    pub(crate) fn undone_writes(&self) -> u32 {
        self.undone_writes.load(SeqCst)
    }

    pub(crate) fn undo_write(&self) {
        self.undone_writes.fetch_add(1, SeqCst);
    }

    /// The completion of a durable IO on `leg` has been handled by `by`. Tells those that wait no longer; `by`'s own are
    /// added to `own` instead.
    pub(crate) fn durable_handled(
        &self,
        by: QueueId,
        ticket: Ticket,
        leg: Leg,
        own: &mut Vec<u32>,
        mut act: impl FnMut(Action),
    ) {
        let mut released = Vec::new();
        self.durable.end(ticket, leg, &mut released);
        for Owner { queue, io } in released {
            if queue == by {
                own.push(io);
            } else if queue == LOG_WORKER {
                self.tell_worker(WorkerNote::Joined { io });
                act(Action::WakeWorker);
            } else {
                self.tell_queue(queue, QueueNote::Joined { io });
                act(Action::Wake(queue));
            }
        }
    }

    pub(crate) fn tell_worker(&self, note: WorkerNote) {
        self.worker_notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    /// The driver found that a leg lost what was on it: tells the log worker, which fails it as if a read had found its
    /// device gone.
    pub fn tell_gone(&self, leg: Leg) {
        self.tell_worker(WorkerNote::Unreadable { leg, offset: 0, len: 0, errno: Errno::ENXIO });
    }

    /// Another leg gave what these could not: tells the log worker. Whether there is any.
    pub(crate) fn tell_unreadable(&self, errors: &LegErrors, offset: u64, len: u64) -> bool {
        let mut any = false;
        for (at, errno) in errors.iter().enumerate() {
            if let &Some(errno) = errno {
                self.tell_worker(WorkerNote::Unreadable { leg: Leg::new(at), offset, len, errno });
                any = true;
            }
        }
        any
    }

    pub(crate) fn take_worker_notes(&self, into: &mut Vec<WorkerNote>) {
        swap_out(&self.worker_notes, into);
    }

    pub(crate) fn tell_queue(&self, queue: QueueId, note: QueueNote) {
        self.queue_notes[queue.0 as usize].lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    pub(crate) fn take_queue_notes(&self, queue: QueueId, into: &mut Vec<QueueNote>) {
        swap_out(&self.queue_notes[queue.0 as usize], into);
    }
}
