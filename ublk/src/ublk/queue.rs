//! One queue of a ublk device: what its thread gets requests from and answers them with.
//!
//! Commands travel on the queue's own ring, beside the leg IO: a thread has one ring to wait for. Each tag
//! has a buffer, which the driver copies a write's data into and a read's data out of: the one private copy
//! that all legs are written from. A tag is at any time with the driver (a fetch is pending; the driver may
//! write to its buffer), with the engine (the buffer is too), or gone (the driver takes the device away).
//!
//! Requests that come after [`Stopping::set`] are left to the driver, which gives them to the next daemon.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use mirrord_raid::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use zerocopy::IntoBytes;

use super::FETCH_PATIENCE;
use super::command::{
    COMMIT_AND_FETCH, FETCH, FLAG_FUA, FLAG_NOUNMAP, IoCommand, IoDescriptor, MOST_DEPTH, OP_DISCARD,
    OP_FLUSH, OP_READ, OP_WRITE, OP_WRITE_ZEROES,
};
use crate::buffer::{Buffer, BufferPool};
use crate::done::Done;
use crate::front::{Op, Pulled, Request, Source};
use crate::ring::Ring;

/// Set once requests are to be left to the next daemon.
#[derive(Clone, Default)]
pub(super) struct Stopping(Arc<AtomicBool>);

impl Stopping {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Where the queues of a device wait for each other.
#[derive(Clone)]
pub(super) struct Gate {
    arrived: Arc<(Mutex<usize>, Condvar)>,
    queues: usize,
}

impl Gate {
    pub(super) fn new(queues: u16) -> Gate {
        Gate { arrived: Arc::default(), queues: queues.into() }
    }

    /// Waits until every queue has come here for the `time`th time.
    fn pass(&self, time: usize) -> io::Result<()> {
        let (arrived, changed) = &*self.arrived;
        let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        *arrived += 1;
        changed.notify_all();
        let missing = |arrived: &mut usize| *arrived < self.queues * time;
        let waited = changed.wait_timeout_while(arrived, FETCH_PATIENCE, missing);
        let (_arrived, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// Where a queue gets its requests from.
pub(super) struct UblkSource {
    device: OwnedFd,
    queue: u16,
    /// There once all tags were fetched for.
    descriptors: Option<Descriptors>,
    /// By tag; `None` while the engine has it.
    buffers: Vec<Option<Buffer>>,
    max_io: usize,
    pool: Arc<BufferPool>,
    /// Commands that the driver has.
    pending: u32,
    /// Tags that the driver will give no request for any more.
    gone: u32,
    /// Requests that the engine has.
    taken: u32,
    ended: Vec<(u16, i32)>,
    arrived: VecDeque<u16>,
    answers: Arc<Answers>,
    answered: Vec<Answered>,
    stopping: Stopping,
    gate: Gate,
    /// Told the thread's id once all tags were fetched for, or why they were not.
    started: Option<Sender<io::Result<i32>>>,
    /// Dropped last of all, it says that this source has ended.
    _session: Sender<()>,
}

/// What a source is made with.
pub(super) struct SourceConfig<'a> {
    /// `/dev/ublkcN`, for this source alone.
    pub(super) device: OwnedFd,
    pub(super) queue: u16,
    pub(super) depth: u16,
    /// Bytes of the largest request.
    pub(super) max_io: u32,
    pub(super) pool: &'a Arc<BufferPool>,
    pub(super) stopping: Stopping,
    pub(super) gate: Gate,
    pub(super) started: Sender<io::Result<i32>>,
    pub(super) session: Sender<()>,
}

impl UblkSource {
    pub(super) fn new(config: SourceConfig<'_>) -> UblkSource {
        let buffer = |_| Some(config.pool.take(config.max_io as usize));
        UblkSource {
            device: config.device,
            queue: config.queue,
            descriptors: None,
            buffers: (0..config.depth).map(buffer).collect(),
            max_io: config.max_io as usize,
            pool: Arc::clone(config.pool),
            pending: 0,
            gone: 0,
            taken: 0,
            ended: Vec::with_capacity(config.depth.into()),
            arrived: VecDeque::with_capacity(config.depth.into()),
            answers: Arc::default(),
            answered: Vec::with_capacity(config.depth.into()),
            stopping: config.stopping,
            gate: config.gate,
            started: Some(config.started),
            _session: config.session,
        }
    }

    /// Fetches for all tags, quickly. A daemon that dies in the middle of this has a device that no other can
    /// take over on kernels before 6.15, which even crash if it had fetched for all tags of one queue and none
    /// of another. So the queues wait for each other before they begin, and once more when each has fetched
    /// for a tag; the rest is one call. Requests come later: only then their descriptors are mapped, for
    /// that too is undone for a queue only that has fetched for all tags.
    fn fetch(&mut self, ring: &mut Ring) -> io::Result<()> {
        for buffer in self.buffers.iter_mut().flatten() {
            ring.register(buffer);
        }
        self.gate.pass(1)?;
        for tag in 0..self.buffers.len() as u16 {
            if !self.command(ring, FETCH, tag, 0) {
                return Err(io::Error::from_raw_os_error(libc::ENOSYS));
            }
            if tag == 0 && self.gate.queues > 1 {
                ring.send_commands()?;
                self.gate.pass(2)?;
            }
        }
        ring.send_commands()?;
        self.descriptors = Some(Descriptors::map(&self.device, self.queue, self.buffers.len() as u16)?);
        Ok(())
    }

    /// Gives `tag` to the driver, its buffer along.
    fn command(&mut self, ring: &mut Ring, op: u32, tag: u16, result: i32) -> bool {
        let buffer = self.buffers[usize::from(tag)].as_ref().expect("the tag has its buffer");
        let address = buffer.as_raw() as u64;
        let command = IoCommand { queue: self.queue, tag, result, address };
        let mut data = [0; size_of::<IoCommand>()];
        data.copy_from_slice(command.as_bytes());
        // SAFETY: the buffer stays here, and nobody borrows it, until the command has ended: `take_in` gives
        // it to the engine only then, and `drop` leaks it before. `device` is open as long as `self` lives,
        // which a queue drops only when it waits no more or has waited since.
        let sent = unsafe { ring.command(self.device.as_fd(), op, data, tag) };
        self.pending += u32::from(sent);
        sent
    }

    /// Takes note of commands that have ended.
    fn take_in(&mut self, ring: &mut Ring) {
        ring.take_commands(&mut self.ended);
        for (tag, result) in self.ended.drain(..) {
            self.pending -= 1;
            if result == 0 && !self.stopping.is_set() {
                self.arrived.push_back(tag);
                continue;
            }
            self.gone += 1;
            if result != 0 && result != -libc::ENODEV {
                tracing::error!(
                    queue = self.queue,
                    tag,
                    errno = -result,
                    "the ublk driver refused a command"
                );
            }
        }
    }

    /// Hands finished requests back and asks for the next.
    fn commit(&mut self, ring: &mut Ring) {
        mem::swap(&mut *self.answers.lock(), &mut self.answered);
        let mut answered = mem::take(&mut self.answered);
        for Answered { tag, result, buffer } in answered.drain(..) {
            self.taken -= 1;
            let own = &mut self.buffers[usize::from(tag)];
            if own.is_none() {
                *own = Some(buffer.unwrap_or_else(|| self.pool.take(self.max_io)));
            }
            self.command(ring, COMMIT_AND_FETCH, tag, result);
        }
        self.answered = answered;
    }

    /// What the driver wants with `tag`; `None` if that is nothing it was offered.
    fn request(&mut self, tag: u16) -> Option<Request> {
        let descriptors = self.descriptors.as_ref().expect("they are mapped before requests come");
        let IoDescriptor { operation, sectors, start_sector, .. } = descriptors.read(tag);
        let (offset, len) = (start_sector << 9, u64::from(sectors) << 9);
        // A flush comes with any place.
        let (op, offset, len, answer) = match operation & 0xff {
            OP_READ => (Op::Read, offset, len, len),
            OP_WRITE => (Op::Write, offset, len, len),
            OP_FLUSH => (Op::Flush, 0, 0, 0),
            OP_DISCARD => (Op::Zero { keep: false }, offset, len, 0),
            OP_WRITE_ZEROES => (Op::Zero { keep: operation & FLAG_NOUNMAP != 0 }, offset, len, 0),
            _ => return None,
        };
        self.taken += 1;
        let buf = (answer > 0).then(|| {
            let mut buffer = self.buffers[usize::from(tag)].take().expect("the tag has its buffer");
            buffer.set_len(len as usize);
            buffer
        });
        let done = Done::ublk(Answer { answers: Arc::clone(&self.answers), tag, bytes: answer as u32 });
        Some(Request { op, offset, len, fua: operation & FLAG_FUA != 0, buf, patch: None, done })
    }
}

impl Source for UblkSource {
    fn start(&mut self, ring: &mut Ring) -> io::Result<()> {
        let result = self.fetch(ring);
        let told = match &result {
            Ok(()) => Ok(rustix::thread::gettid().as_raw_nonzero().get()),
            Err(error) => Err(error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error)),
        };
        if let Some(started) = self.started.take() {
            let _ = started.send(told);
        }
        result
    }

    /// A request is here already, copied: to take it in costs next to nothing.
    fn batch(&self) -> usize {
        16
    }

    fn pull(&mut self, ring: &mut Ring, most: usize, out: &mut VecDeque<Request>) -> Pulled {
        // Commands must have reached the driver before this source goes: those of the last pull have.
        let stopping = self.stopping.is_set();
        let all_left = stopping && self.taken == 0;
        self.commit(ring);
        self.take_in(ring);
        if stopping {
            self.gone += self.arrived.drain(..).len() as u32;
        }
        for _ in 0..most {
            let Some(tag) = self.arrived.pop_front() else { break };
            match self.request(tag) {
                Some(request) => out.push_back(request),
                None => {
                    tracing::error!(
                        queue = self.queue,
                        tag,
                        "the ublk driver asked for what it was not offered"
                    );
                    self.command(ring, COMMIT_AND_FETCH, tag, -libc::EOPNOTSUPP);
                }
            }
        }
        let more = if stopping { self.taken == 0 } else { !self.arrived.is_empty() };
        match self.gone as usize == self.buffers.len() || all_left {
            true => Pulled::Ended,
            false if more => Pulled::More,
            false => Pulled::All,
        }
    }
}

impl Drop for UblkSource {
    fn drop(&mut self) {
        if self.pending > 0 {
            // The driver may still write to them. It ends with the ring, and so, soon, does the process.
            mem::forget(mem::take(&mut self.buffers));
        }
    }
}

/// Answers on their way back to the source.
#[derive(Default)]
struct Answers(Mutex<Vec<Answered>>);

impl Answers {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Answered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Answered {
    tag: u16,
    result: i32,
    buffer: Option<Buffer>,
}

/// The answer that a request of a ublk device owes. Given on the queue's thread, it reaches the driver at the
/// next pull.
pub(crate) struct Answer {
    answers: Arc<Answers>,
    tag: u16,
    /// What a success is told as.
    bytes: u32,
}

impl Answer {
    /// Answers, and gives the buffer back. One that is lost is replaced by another.
    pub(crate) fn give(self, result: Result<(), Errno>, buffer: Option<Buffer>) {
        let result = match result {
            Ok(()) => self.bytes as i32,
            Err(Errno(errno)) => -errno,
        };
        self.answers.lock().push(Answered { tag: self.tag, result, buffer });
    }
}

/// The driver's descriptors of one queue's requests, by tag.
struct Descriptors {
    memory: NonNull<IoDescriptor>,
    bytes: usize,
    depth: u16,
}

// SAFETY: the mapping belongs to this value alone, and is only read.
unsafe impl Send for Descriptors {}

impl Descriptors {
    fn map(device: &OwnedFd, queue: u16, depth: u16) -> io::Result<Descriptors> {
        let page = rustix::param::page_size();
        let size = |depth: usize| (depth * size_of::<IoDescriptor>()).next_multiple_of(page);
        let (bytes, offset) = (size(depth.into()), usize::from(queue) * size(MOST_DEPTH));
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let memory =
            unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, flags, device, offset as u64) }?;
        let memory = NonNull::new(memory.cast()).expect("the kernel maps nothing at address 0 unasked");
        Ok(Descriptors { memory, bytes, depth })
    }

    fn read(&self, tag: u16) -> IoDescriptor {
        assert!(tag < self.depth);
        // SAFETY: the mapping holds `depth` descriptors and any bytes are one. The driver wrote this one before
        // it ended the command by which the tag came, and leaves it alone until the answer.
        unsafe { self.memory.add(tag.into()).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped, and nothing refers to it any more.
        if let Err(errno) = unsafe { munmap(self.memory.as_ptr().cast(), self.bytes) } {
            tracing::warn!(%errno, "unmapping the descriptors of a queue");
        }
    }
}
