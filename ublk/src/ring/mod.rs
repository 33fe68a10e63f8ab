//! The [`Ring`]: all leg IO of one queue.
//!
//! Owns the buffer of every tag and the slot of every leg IO in flight. Guarantees: a buffer is
//! never freed, and never borrowed for writing, while the kernel may touch it; every submitted IO
//! gets exactly one completion, also on a leg that is not there, and in time on one that hangs, if there is a
//! time-out; short transfers are finished here.
//! No allocation after start-up unless more IOs than `depth` are in flight. A ring belongs to the
//! thread that made it; only its [`Wake`] goes to others.

mod flight;
mod own;
mod patience;
mod step;
mod tags;
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
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use mirrord_raid::{Errno, Leg, LegMap};

use crate::Spawn;
use crate::buffer::{Buffer, BufferPool};
use crate::leg_file::LegFile;
use crate::wake::Wake;
use flight::Slot;
use own::{Leaving, LegSlot};
use patience::{Parked, Patience};
use tags::Tag;
use threads::Threads;
use uring::Uring;

/// How long a dropped ring waits for IO in flight before it leaks its buffers.
const DRAIN: Duration = Duration::from_secs(5);

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
