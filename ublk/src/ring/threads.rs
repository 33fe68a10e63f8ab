//! The thread-pool engine, for systems that forbid io_uring.
//!
//! Owns a queue of calls for each leg and the workers that make them: a leg that hangs has no others wait.
//! Guarantees the semantics of the io_uring engine: results are byte counts or negated errnos, nothing is
//! retried here. The queues and the list of results are behind locks held for a push or pop; `issue`, `reap`
//! and `block` run on the ring's thread, `work` on the workers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mirrord_raid::{Leg, LegSet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::own::OwnLeg;
use super::step::Call;
use super::uring::Memory;
use crate::wake::Wake;
use crate::{Spawn, Task};

/// Most workers of one ring, unless it has more legs. A queue depth of 8 keeps two SSDs busy; this engine is a
/// fallback.
const WORKERS: u32 = 8;

pub(super) struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Workers that a leg has.
    each: u32,
    /// Legs that have them.
    staffed: LegSet,
    spawn: Spawn,
    /// Of the ring.
    name: String,
    watched: Option<OwnedFd>,
    readable: bool,
}

struct Shared {
    legs: Box<[Desk]>,
    results: Mutex<VecDeque<(u32, i32)>>,
    wake: Wake,
}

/// What the workers of one leg share.
struct Desk {
    jobs: Mutex<Jobs>,
    more: Condvar,
}

struct Jobs {
    queue: VecDeque<Job>,
    closed: bool,
}

struct Job {
    slot: u32,
    call: Call,
    ptr: *mut u8,
    own: Arc<OwnLeg>,
}

// SAFETY: `ptr` points into a buffer that the ring leaves alone until this job's result was reaped;
// the one worker that takes the job is the only one to use it.
unsafe impl Send for Job {}

impl Threads {
    /// `present`: legs that there are to begin with.
    pub(super) fn new(
        depth: u32,
        legs: usize,
        present: LegSet,
        spawn: &Spawn,
        name: &str,
        wake: &Wake,
    ) -> io::Result<Threads> {
        let desk = |_| Desk {
            jobs: Mutex::new(Jobs { queue: VecDeque::with_capacity(depth as usize), closed: false }),
            more: Condvar::new(),
        };
        let shared = Arc::new(Shared {
            legs: (0..legs).map(desk).collect(),
            results: Mutex::new(VecDeque::with_capacity(depth as usize)),
            wake: wake.clone(),
        });
        let each = (depth.min(WORKERS) / (present.len() as u32).max(1)).max(1);
        let (spawn, name) = (Arc::clone(spawn), name.to_owned());
        let (workers, staffed) = (Vec::new(), LegSet::EMPTY);
        let mut threads =
            Threads { shared, workers, each, staffed, spawn, name, watched: None, readable: false };
        for leg in present.iter() {
            threads.staff(leg)?;
        }
        Ok(threads)
    }

    /// Starts a leg's workers, if it has none yet.
    pub(super) fn staff(&mut self, leg: Leg) -> io::Result<()> {
        if self.staffed.contains(leg) {
            return Ok(());
        }
        for _ in 0..self.each {
            let shared = Arc::clone(&self.shared);
            let task: Task = Box::new(move || shared.work(leg.index()));
            self.workers.push((self.spawn)(format!("{}-io{}", self.name, self.workers.len()), task)?);
            // With one worker it can be used.
            self.staffed.insert(leg);
        }
        Ok(())
    }

    /// Queues a call. `memory` must stay valid, and not be borrowed against it, until the slot's
    /// result was reaped.
    pub(super) fn issue(&mut self, slot: u32, leg: Leg, own: &Arc<OwnLeg>, call: Call, memory: Memory) {
        let job = Job { slot, call, ptr: memory.ptr, own: Arc::clone(own) };
        let desk = &self.shared.legs[leg.index()];
        desk.jobs().queue.push_back(job);
        desk.more.notify_one();
    }

    pub(super) fn reap(&mut self) -> Option<(u32, i32)> {
        self.shared.results().pop_front()
    }

    pub(super) fn watch(&mut self, fd: Option<OwnedFd>) {
        self.watched = fd;
        self.readable = false;
    }

    pub(super) fn take_readable(&mut self) -> bool {
        std::mem::take(&mut self.readable)
    }

    /// Looks at the watched descriptor without waiting.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        match self.watched.is_some() {
            true => self.block(Some(Duration::ZERO)).map(drop),
            false => Ok(()),
        }
    }

    /// Waits for a result, a wake or the watched descriptor. False: the time-out passed.
    pub(super) fn block(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout =
            timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
        let wake = self.shared.wake.fd();
        let watched = self.watched.as_ref().map_or(wake, |fd| fd.as_fd());
        let mut fds = [wake, watched].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let count = 1 + usize::from(self.watched.is_some());
        match poll(&mut fds[..count], timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Err(rustix::io::Errno::INTR) => return Ok(true),
            Err(errno) => return Err(errno.into()),
            Ok(_) => {}
        }
        let [woken, readable] = fds.map(|fd| !fd.revents().is_empty());
        if woken {
            rustix::io::read(wake, &mut [0u8; 8])?;
        }
        self.readable |= readable;
        Ok(true)
    }

    /// Lets the workers end after what is queued.
    fn close(&self) {
        for desk in &self.shared.legs {
            desk.jobs().closed = true;
            desk.more.notify_all();
        }
    }

    /// Leaves workers that hang in a call to themselves.
    pub(super) fn abandon(&mut self) {
        self.close();
        self.workers.clear();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.close();
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a leg IO worker panicked");
            }
        }
    }
}

impl Desk {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn results(&self) -> MutexGuard<'_, VecDeque<(u32, i32)>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, leg: usize) {
        let desk = &self.legs[leg];
        loop {
            let mut jobs = desk.jobs();
            let job = loop {
                match jobs.queue.pop_front() {
                    Some(job) => break job,
                    None if jobs.closed => return,
                    None => jobs = desk.more.wait(jobs).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(jobs);
            // SAFETY: whoever issued it keeps the memory in place until the result is reaped.
            let result = unsafe { perform(&job.own, job.call, job.ptr) };
            self.results().push_back((job.slot, result));
            self.wake.done();
        }
    }
}

/// Makes a call on the calling thread. Bytes or 0, or an errno negated.
///
/// # Safety
/// The memory at `ptr` is as long as the call says, valid, and this call's alone.
pub(super) unsafe fn perform(own: &OwnLeg, call: Call, ptr: *mut u8) -> i32 {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    let fd = own.raw_fd();
    let write = |offset: u64, len: u32, flags| {
        let (offset, len) = (offset as i64, len as usize);
        if flags == 0 {
            // SAFETY: `len` bytes at `ptr` are valid and nobody writes to them meanwhile.
            return unsafe { libc::pwrite(fd, ptr.cast(), len, offset) };
        }
        let iovec = libc::iovec { iov_base: ptr.cast(), iov_len: len };
        // SAFETY: as above; the iovec lives until the call is back.
        unsafe { libc::pwritev2(fd, &iovec, 1, offset, flags) }
    };
    // SAFETY: no pointer; the descriptor is open as long as `own`.
    let fallocate =
        |mode, offset, len| unsafe { libc::fallocate(fd, mode, offset as i64, len as i64) as isize };
    let result = match call {
        // SAFETY: `len` bytes at `ptr` are valid and the kernel's alone meanwhile.
        Call::Read { offset, len, .. } => unsafe { libc::pread(fd, ptr.cast(), len as usize, offset as i64) },
        Call::Write { offset, len, dsync, .. } => write(offset, len, if dsync { libc::RWF_DSYNC } else { 0 }),
        Call::WriteZeroes { offset, len } => write(offset, len, 0),
        Call::Punch { offset, len } => fallocate(PUNCH, offset, len),
        Call::ZeroRange { offset, len } => fallocate(ZERO, offset, len),
        // SAFETY: no pointer; the descriptor is open as long as `own`.
        Call::Sync => unsafe { libc::fdatasync(fd) as isize },
    };
    match result {
        -1 => -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        result => result as i32,
    }
}
