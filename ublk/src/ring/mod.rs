//! The [`Ring`]: all leg IO of one queue.
//!
//! Owns the buffer of every tag and the slot of every leg IO in flight. Guarantees: a buffer is
//! never freed, and never borrowed for writing, while the kernel may touch it; every submitted IO
//! gets exactly one completion, also on a leg that is not there, and in time on one that hangs, if there is a
//! time-out; short transfers are finished here.
//! No allocation after start-up unless more IOs than `depth` are in flight. A ring belongs to the
//! thread that made it; only its [`Wake`] goes to others.

mod own;
mod patience;
mod step;
mod threads;
mod uring;
mod zeroes;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use mirrord_raid::{Errno, Leg, LegIo, LegMap, LegOp};

use crate::Spawn;
use crate::buffer::{Buffer, BufferPool};
use crate::leg_file::LegFile;
use crate::wake::Wake;
use own::{Leaving, LegSlot};
use patience::{Fate, Parked, Patience, uses_buffer};
use step::{Call, Step};
use threads::{Threads, perform};
use uring::{Memory, SMALL, Uring};

/// How long a dropped ring waits for IO in flight before it leaks its buffers.
const DRAIN: Duration = Duration::from_secs(5);

/// How a change ends that the fence keeps from its leg.
const FENCED: Errno = Errno::EIO;

/// Between two looks whether what was given up has ended meanwhile.
const DRAIN_LOOK: Duration = Duration::from_millis(100);

/// How a ring does its IO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineKind {
    /// io_uring.
    IoUring,
    /// A pool of threads with `pread` and `pwrite`, where io_uring is forbidden.
    Threads,
}

/// What a [`Ring`] is made from.
#[derive(Clone)]
pub struct RingConfig {
    /// Prefix of thread names.
    pub name: String,
    /// Leg IOs in flight that are provided for; more work, but allocate.
    pub depth: u32,
    /// Tags are `0..tags`.
    pub tags: u32,
    /// Where the buffers come from. Its small buffers are registered with the kernel.
    pub pool: Arc<BufferPool>,
    /// Starts the workers of [`EngineKind::Threads`].
    pub spawn: Spawn,
    /// The wake to use, when it was given out before the ring; else the ring makes one.
    pub wake: Option<Wake>,
    /// Use this engine and no other. `None`: io_uring, or threads where it cannot be set up.
    pub force: Option<EngineKind>,
    /// A leg IO that takes longer is given up with `ETIMEDOUT`. `None`: never.
    pub leg_timeout: Option<Duration>,
    /// Once it is set nothing that changes a leg is sent to one any more; it fails with `EIO`. `None`: never.
    pub fence: Option<Arc<AtomicBool>>,
}

impl fmt::Debug for RingConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingConfig")
            .field("name", &self.name)
            .field("depth", &self.depth)
            .field("tags", &self.tags)
            .field("force", &self.force)
            .field("leg_timeout", &self.leg_timeout)
            .finish_non_exhaustive()
    }
}

/// A leg IO that ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LegDone {
    /// [`LegIo::io`] of what was submitted.
    pub io: u32,
    /// The leg.
    pub leg: Leg,
    /// Whether all of it was done.
    pub result: Result<(), Errno>,
}

/// Why [`Ring::wait`] returned, beside completions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Wakeup {
    /// Somebody woke the ring.
    pub woken: bool,
    /// The watched descriptor became readable or has failed, or device commands have ended. Said once: read
    /// until there is nothing.
    pub readable: bool,
}

/// All leg IO of one queue thread. See the crate's documentation.
pub struct Ring {
    engine: Engine,
    slots: Vec<Slot>,
    free: Vec<u32>,
    tags: Vec<Tag>,
    legs: LegMap<LegSlot>,
    /// Files that were replaced and have IO under way.
    leaving: Vec<Leaving>,
    /// Completions to give out at the next `wait`.
    ready: Vec<LegDone>,
    patience: Option<Patience>,
    fence: Option<Arc<AtomicBool>>,
    /// Slots whose IO was given up and is still under way.
    hung: usize,
    /// Buffers that tags had to let go of for it.
    parked: Vec<Parked>,
    last_parked: u32,
    /// Results of calls that were made at once, by slot.
    instant: VecDeque<(u32, i32)>,
    pool: Arc<BufferPool>,
    wake: Wake,
    /// DEFER_TASKRUN and SINGLE_ISSUER bind the ring to its thread.
    _not_send: PhantomData<*const ()>,
}

enum Engine {
    Uring(Box<Uring>),
    Threads(Threads),
}

struct Slot {
    step: Step,
    /// [`LegSlot::generation`] at submission.
    generation: u32,
    /// [`Patience::now`] at submission.
    born: u32,
    /// Where its buffer is: 0 with the tag, else the number of a parked one.
    parked: u32,
    fate: Fate,
}

#[derive(Default)]
struct Tag {
    buffer: Option<Buffer>,
    /// IOs in flight, and not given up, that read the buffer (leg writes) or write it (leg reads).
    using: u32,
    /// Those of them that write it.
    filling: u32,
}

impl Tag {
    /// An IO that used the buffer has ended.
    fn let_go(&mut self, op: LegOp) {
        self.using -= 1;
        self.filling -= u32::from(op == LegOp::Read);
    }
}

impl LegSlot {
    /// Whether a call is made at once: a leg in memory has nothing to wait for, and io_uring, which does not
    /// know that, would hand the call to another thread. That costs more than the copy.
    fn is_instant(&self, call: Call) -> bool {
        let moves = matches!(call, Call::Read { .. } | Call::Write { .. } | Call::Sync);
        moves && self.own.as_ref().is_some_and(|own| own.leg_file().is_in_memory())
    }
}

impl Ring {
    /// A ring for these legs, on the calling thread.
    ///
    /// # Errors
    /// When neither engine can be set up (descriptors, memory, threads).
    pub fn new(config: RingConfig, legs: LegMap<Option<Arc<LegFile>>>) -> io::Result<Ring> {
        let wake = config.wake.map_or_else(Wake::new, Ok)?;
        let threads = |wake: &Wake| {
            let present = legs.iter().filter(|(_, file)| file.is_some()).map(|(leg, _)| leg).collect();
            Threads::new(config.depth, legs.len(), present, &config.spawn, &config.name, wake)
                .map(Engine::Threads)
        };
        let uring = |wake: &Wake| -> io::Result<Engine> {
            let uring = Uring::new(config.depth, config.tags, &config.pool, wake)?;
            if config.leg_timeout.is_some() {
                uring.let_legs_block(config.depth);
            }
            Ok(Engine::Uring(Box::new(uring)))
        };
        let engine = match config.force {
            Some(EngineKind::IoUring) => uring(&wake)?,
            Some(EngineKind::Threads) => threads(&wake)?,
            None => uring(&wake).or_else(|error| {
                tracing::info!(%error, "no io_uring: leg IO goes through threads");
                threads(&wake)
            })?,
        };
        let mut ring = Ring {
            engine,
            slots: Vec::with_capacity(config.depth as usize),
            free: Vec::with_capacity(config.depth as usize),
            tags: (0..config.tags).map(|_| Tag::default()).collect(),
            legs: LegMap::from_fn(legs.len(), |_| LegSlot::default()),
            leaving: Vec::new(),
            ready: Vec::new(),
            patience: config.leg_timeout.map(Patience::new),
            fence: config.fence,
            hung: 0,
            parked: Vec::new(),
            last_parked: 0,
            instant: VecDeque::new(),
            pool: config.pool,
            wake,
            _not_send: PhantomData,
        };
        for (leg, file) in legs.iter() {
            if let Some(file) = file {
                ring.replace_leg(leg, Some(Arc::clone(file)))?;
            }
        }
        Ok(ring)
    }

    /// How this ring does its IO.
    pub fn kind(&self) -> EngineKind {
        match self.engine {
            Engine::Uring(_) => EngineKind::IoUring,
            Engine::Threads(_) => EngineKind::Threads,
        }
    }

    /// Wakes this ring from any thread.
    pub fn wake_handle(&self) -> Wake {
        self.wake.clone()
    }

    /// Leg IOs submitted whose completion was not given out yet.
    pub fn inflight(&self) -> usize {
        self.slots.len() - self.free.len() - self.hung + self.ready.len()
    }

    /// Gives `tag` its buffer.
    ///
    /// # Panics
    /// If it has one.
    pub fn attach(&mut self, tag: u32, buffer: Buffer) {
        let old = self.tags[tag as usize].buffer.replace(buffer);
        assert!(old.is_none(), "tag {tag} has a buffer already");
    }

    /// Takes the buffer of `tag` back.
    ///
    /// # Panics
    /// If it has none, or IO on it is in flight.
    pub fn detach(&mut self, tag: u32) -> Buffer {
        let slot = &mut self.tags[tag as usize];
        assert_eq!(slot.using, 0, "tag {tag} has IO in flight");
        slot.buffer.take().expect("the tag has a buffer")
    }

    /// The buffer of `tag`, to write to.
    ///
    /// # Panics
    /// If it has none, or IO on it is in flight.
    pub fn buffer_mut(&mut self, tag: u32) -> &mut [u8] {
        let slot = &mut self.tags[tag as usize];
        assert_eq!(slot.using, 0, "tag {tag} has IO in flight");
        slot.buffer.as_mut().expect("the tag has a buffer")
    }

    /// The buffer of `tag`.
    ///
    /// # Panics
    /// If it has none, or a leg read into it is in flight.
    pub fn buffer(&self, tag: u32) -> &[u8] {
        let slot = &self.tags[tag as usize];
        assert_eq!(slot.filling, 0, "tag {tag} is being read into");
        slot.buffer.as_ref().expect("the tag has a buffer")
    }

    /// Queues a leg IO; the next [`wait`](Ring::wait) hands it to the kernel. On a leg that is not
    /// there it completes with `ENODEV`, on one with IO that was given up and has not ended with `ETIMEDOUT`.
    ///
    /// # Panics
    /// If a read or write does not lie inside the buffer of its tag, or the leg is not the volume's.
    pub fn submit(&mut self, io: &LegIo) {
        let leg = &self.legs[io.leg];
        let Some(own) = &leg.own else {
            self.ready.push(LegDone { io: io.io, leg: io.leg, result: Err(Errno(libc::ENODEV)) });
            return;
        };
        let step = Step::new(*io, own.leg_file().direct());
        let generation = leg.generation;
        if let Some(errno) = self.refusal(io) {
            self.ready.push(LegDone { io: io.io, leg: io.leg, result: Err(errno) });
            return;
        }
        if uses_buffer(io.op) {
            let tag = &mut self.tags[io.tag as usize];
            let room = tag.buffer.as_ref().map_or(0, |b| b.len() as u64);
            let end = u64::from(io.buf_offset).checked_add(io.len);
            assert!(io.len > 0 && end.is_some_and(|end| end <= room), "{io:?} outside {room} bytes");
            tag.using += 1;
            tag.filling += u32::from(io.op == LegOp::Read);
        }
        let born = self.patience.as_ref().map_or(0, Patience::now);
        let slot = Slot { step, generation, born, parked: 0, fate: Fate::Told };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        self.start(index);
    }

    /// Has the kernel know a large buffer's beginning, as much as a small one has, from now on. It is to be used
    /// with this ring only. Without lockable memory for it, it works all the same.
    pub(crate) fn register(&mut self, buffer: &mut Buffer) {
        let len = self.pool.small_len();
        if let Engine::Uring(uring) = &mut self.engine
            && buffer.room() >= len
        {
            // SAFETY: `len` bytes from there are the buffer's, which has the number as long as it lives.
            if let Some(number) = unsafe { uring.register(buffer.as_raw(), len) } {
                buffer.set_head(number);
            }
        }
    }

    /// Watches `fd` from now on, in place of an earlier one: `wait` returns when it becomes readable. The
    /// ring keeps the descriptor open until it watches another or none.
    pub fn watch(&mut self, fd: Option<OwnedFd>) {
        match &mut self.engine {
            Engine::Uring(uring) => uring.watch(fd),
            Engine::Threads(threads) => threads.watch(fd),
        }
    }

    /// Queues a command for the driver behind `device`; the next [`wait`](Ring::wait) hands it to the kernel.
    /// When it has ended the ring says that it is readable, and [`take_commands`](Ring::take_commands) gives
    /// `id` and the result. False: this ring has no io_uring, so no commands.
    ///
    /// # Safety
    /// What `data` points to must stay valid, and not be borrowed against the driver's use of it, until the
    /// command has ended; `device` must stay open until the next `wait` or `poll`.
    pub(crate) unsafe fn command(
        &mut self,
        device: BorrowedFd<'_>,
        op: u32,
        data: [u8; 16],
        id: u16,
    ) -> bool {
        match &mut self.engine {
            Engine::Uring(uring) => uring.command(device.as_raw_fd(), op, data, id),
            Engine::Threads(_) => return false,
        }
        true
    }

    /// Hands queued commands to the kernel at once: those that fit into the ring in one call.
    pub(crate) fn send_commands(&mut self) -> io::Result<()> {
        match &mut self.engine {
            Engine::Uring(uring) => uring.flush().map(drop),
            Engine::Threads(_) => Ok(()),
        }
    }

    /// Moves the commands that have ended to `out`: id and result.
    pub(crate) fn take_commands(&mut self, out: &mut Vec<(u16, i32)>) {
        if let Engine::Uring(uring) = &mut self.engine {
            uring.take_commands(out);
        }
    }

    /// Hands what is queued to the kernel and blocks until something completed, somebody woke the
    /// ring, the watched descriptor became readable or `timeout` passed. Completions are appended to
    /// `out`.
    ///
    /// # Errors
    /// When the kernel refuses to go on with this ring; IO in flight is then lost track of, and the
    /// ring is to be dropped.
    pub fn wait(&mut self, out: &mut Vec<LegDone>, timeout: Option<Duration>) -> io::Result<Wakeup> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut left = timeout;
        let before = out.len();
        loop {
            self.collect(out);
            if out.len() > before || self.is_readable() || !self.wake.sleep() {
                let wakeup = self.finish(out)?;
                if wakeup != Wakeup::default() || out.len() > before {
                    return Ok(wakeup);
                }
                continue;
            }
            let sleep = self.sleep_at_most(left);
            let in_time = match &mut self.engine {
                Engine::Uring(uring) => uring.block(sleep),
                Engine::Threads(threads) => threads.block(sleep),
            };
            let wakeup = self.wakeup(out);
            if wakeup != Wakeup::default() || out.len() > before {
                return Ok(wakeup);
            }
            left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !in_time? && left.is_some_and(|left| left.is_zero()) {
                return Ok(wakeup);
            }
        }
    }

    /// As [`wait`](Ring::wait), without blocking.
    ///
    /// # Errors
    /// As for `wait`.
    pub fn poll(&mut self, out: &mut Vec<LegDone>) -> io::Result<Wakeup> {
        self.finish(out)
    }

    /// Replaces the file of `leg`. IO in flight ends on the old file; what of it would need another
    /// system call there completes with `ENODEV`.
    ///
    /// # Errors
    /// When the kernel does not take the new file.
    pub fn replace_leg(&mut self, leg: Leg, file: Option<Arc<LegFile>>) -> io::Result<()> {
        while let Engine::Uring(uring) = &mut self.engine
            && uring.flush()?
        {
            let mut ready = mem::take(&mut self.ready);
            self.collect(&mut ready);
            self.ready = ready;
        }
        if let (Engine::Threads(threads), Some(_)) = (&mut self.engine, &file) {
            threads.staff(leg)?;
        }
        if let Some(file) = &file {
            file.drop_cached();
        }
        self.put_leg(leg, file)
    }

    fn is_readable(&self) -> bool {
        match &self.engine {
            Engine::Uring(uring) => uring.is_readable(),
            Engine::Threads(_) => false,
        }
    }

    /// Submits, collects, and says what else happened.
    fn finish(&mut self, out: &mut Vec<LegDone>) -> io::Result<Wakeup> {
        match &mut self.engine {
            Engine::Uring(uring) => uring.turn()?,
            Engine::Threads(threads) => threads.turn()?,
        }
        Ok(self.wakeup(out))
    }

    /// Collects, and says what else happened.
    fn wakeup(&mut self, out: &mut Vec<LegDone>) -> Wakeup {
        let woken = self.wake.awake();
        self.collect(out);
        let readable = match &mut self.engine {
            Engine::Uring(uring) => uring.take_readable(),
            Engine::Threads(threads) => threads.take_readable(),
        };
        self.give_up_old(out);
        Wakeup { woken, readable }
    }

    /// Moves every completion that is there to `out`.
    fn collect(&mut self, out: &mut Vec<LegDone>) {
        out.append(&mut self.ready);
        loop {
            let next = self.instant.pop_front().or_else(|| match &mut self.engine {
                Engine::Uring(uring) => uring.reap(),
                Engine::Threads(threads) => threads.reap(),
            });
            let Some((index, result)) = next else { return };
            out.extend(self.complete(index, result));
        }
    }

    /// Takes in the result of a call; makes the next one, if there is one.
    fn complete(&mut self, index: u32, result: i32) -> Option<LegDone> {
        let slot = &mut self.slots[index as usize];
        if let Fate::Swallowed(_) = slot.fate {
            self.swallow(index, result);
            return None;
        }
        let io = slot.step.io;
        let result = match slot.step.advance(result) {
            Some(result) => result,
            None if slot.generation != self.legs[io.leg].generation => Err(Errno(libc::ENODEV)),
            // Of a leg that is not to be changed any more the rest is left as it is.
            None if self.is_fenced(io.op) => Err(FENCED),
            None => {
                self.issue(index);
                return None;
            }
        };
        let result = result.and_then(|()| self.believe(&io));
        let slot = &mut self.slots[index as usize];
        slot.fate = Fate::Free;
        let generation = slot.generation;
        self.leave(io.leg, generation);
        if uses_buffer(io.op) {
            if self.slots[index as usize].parked != 0 {
                self.unpark(index, result.is_ok());
            }
            self.tags[io.tag as usize].let_go(io.op);
        }
        self.free.push(index);
        self.start_next(io.leg, io.op, generation);
        Some(LegDone { io: io.io, leg: io.leg, result })
    }

    /// Whether an IO would change a leg that is not to be changed any more.
    fn is_fenced(&self, op: LegOp) -> bool {
        let changes = matches!(op, LegOp::Write { .. } | LegOp::Zero { .. });
        changes && self.fence.as_ref().is_some_and(|fence| fence.load(SeqCst))
    }

    fn issue(&mut self, index: u32) {
        let slot = &self.slots[index as usize];
        let step = &slot.step;
        let (leg, call) = (step.io.leg, step.call());
        let memory = match call {
            Call::Read { buf_offset, len, .. } | Call::Write { buf_offset, len, .. } => {
                let own = self.tags[step.io.tag as usize].buffer.as_ref();
                let buffer = if slot.parked == 0 { own } else { self.parked_buffer(slot) };
                let buffer = buffer.expect("a buffer in use stays attached");
                // The offset lies inside the buffer: `submit` checked the whole range.
                let ptr = buffer.as_raw().wrapping_add(buf_offset as usize);
                let small = (buffer.is_small() && buffer.is_of(&self.pool)).then_some(SMALL);
                let in_head = buf_offset as usize + len as usize <= self.pool.small_len();
                Memory { ptr, registered: small.or(buffer.head().filter(|_| in_head)) }
            }
            Call::WriteZeroes { .. } => Memory { ptr: self.pool.zeroes().cast_mut(), registered: None },
            _ => Memory { ptr: std::ptr::null_mut(), registered: None },
        };
        match &mut self.engine {
            Engine::Uring(_) if self.legs[leg].is_instant(call) => {
                let own = self.legs[leg].own.as_ref().expect("an IO is issued on a leg that is there");
                // SAFETY: `submit` checked that the memory is as long as the call says; as for any IO in flight
                // nobody else may touch it until the completion is given out.
                let result = unsafe { perform(own, call, memory.ptr) };
                self.instant.push_back((index, result));
            }
            Engine::Uring(uring) => uring.issue(index, leg, call, memory),
            Engine::Threads(threads) => {
                let own = self.legs[leg].own.as_ref().expect("an IO is issued on a leg that is there");
                threads.issue(index, leg, own, call, memory);
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut out = Vec::new();
        let deadline = Instant::now() + DRAIN;
        while self.inflight() + self.hung > 0 && Instant::now() < deadline {
            out.clear();
            if self.wait(&mut out, Some(DRAIN_LOOK)).is_err() {
                break;
            }
        }
        let inflight = self.inflight() + self.hung;
        if inflight > 0 {
            // The kernel may still write to them.
            tracing::error!(inflight, "a ring ends with IO in flight: leaking its buffers");
            mem::forget(mem::take(&mut self.tags));
            mem::forget(mem::take(&mut self.parked));
            mem::forget(Arc::clone(&self.pool));
            if let Engine::Threads(threads) = &mut self.engine {
                threads.abandon();
            }
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("kind", &self.kind())
            .field("inflight", &self.inflight())
            .finish_non_exhaustive()
    }
}
