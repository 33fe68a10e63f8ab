//! The io_uring engine: calls become SQEs, one `io_uring_enter` submits and waits.
//!
//! Owns the io_uring, its table of legs (fixed files) and the registered small buffers. Guarantees
//! that a file is resolved by the kernel before the table entry changes. A read of the wake's
//! eventfd is always pending; a poll of the watched descriptor whenever the ring sleeps. Runs on the ring's thread only.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use mirrord_raid::{Leg, MAX_LEGS};

use super::step::Call;
use crate::buffer::BufferPool;
use crate::wake::Wake;

/// `user_data` of the eventfd read. Below 2^32 it is a slot index.
const WAKE: u64 = u64::MAX;
/// Of the end of a watch.
const UNWATCH: u64 = u64::MAX - 1;
/// Of a watch: this and its number.
const WATCH: u64 = 1 << 32;
/// Of a device command: this and its id.
const COMMAND: u64 = 2 << 32;

/// What is watched for. Exclusive, and for once: of several rings that watch one source only one that
/// sleeps is woken, and one that is busy with it not at all.
const WATCHED: u32 = (libc::EPOLLIN | libc::EPOLLEXCLUSIVE) as u32;

/// Files in the table: one for the IO of each leg, and some that are only held.
const FILES: usize = 4 * MAX_LEGS;

/// Largest SQ asked for. More in flight costs more enters, nothing else.
const MAX_ENTRIES: u32 = 4096;

pub(super) struct Uring {
    ring: IoUring,
    /// SQEs that found the SQ full and the kernel busy. All but always empty.
    backlog: VecDeque<squeue::Entry>,
    /// What the kernel reads the eventfd into. Leaked: a read may be pending when the ring goes.
    wake_value: *mut u64,
    wake_fd: RawFd,
    wake_armed: bool,
    /// The pool's small buffers are registered, as number 0.
    small_buffers: bool,
    /// The next number of a registered buffer.
    next_buffer: u16,
    watch: Watch,
    /// Numbers in the table of files that are only held, as bits.
    held: u64,
    /// Device commands that ended: id and result.
    commands: Vec<(u16, i32)>,
}

/// The descriptor that is watched.
#[derive(Default)]
struct Watch {
    fd: Option<OwnedFd>,
    /// Counts watches, so that what an earlier one has to say is told apart.
    number: u32,
    /// The kernel watches.
    armed: bool,
    /// It said so, and was not asked yet.
    readable: bool,
}

/// Memory of a call: address, and the number of the registered buffer that it lies in.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) ptr: *mut u8,
    pub(super) registered: Option<u16>,
}

/// The number of the pool's small buffers, all as one.
pub(super) const SMALL: u16 = 0;

impl Uring {
    /// # Errors
    /// What `io_uring_setup` says, `ENOSYS` for a kernel without what is needed here.
    pub(super) fn new(depth: u32, tags: u32, pool: &Arc<BufferPool>, wake: &Wake) -> io::Result<Uring> {
        let entries = (depth + 1).next_power_of_two().clamp(8, MAX_ENTRIES);
        let ring = build(entries)?;
        let params = ring.params();
        if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        let submitter = ring.submitter();
        submitter.register_files_sparse(FILES as u32).or_else(|_| submitter.register_files(&[-1; FILES]))?;
        if let Err(error) = submitter.register_buffers_sparse(tags.min(u16::MAX.into()) + 1) {
            tracing::debug!(%error, "io_uring without registered buffers");
        }
        let mut uring = Uring {
            ring,
            backlog: VecDeque::new(),
            wake_value: Box::leak(Box::new(0u64)),
            wake_fd: wake.raw_fd(),
            wake_armed: false,
            small_buffers: false,
            next_buffer: SMALL,
            watch: Watch::default(),
            held: 0,
            commands: Vec::new(),
        };
        let (base, len) = pool.small_region();
        // SAFETY: the region is mapped as long as the pool lives, and the `Ring` that owns this
        // engine holds the pool (and leaks it if it must go with IO in flight).
        uring.small_buffers = unsafe { uring.register(base, len) }.is_some();
        uring.arm_wake();
        Ok(uring)
    }

    /// Lets so many calls block at a time. The kernel has no more than four threads per processor for calls that
    /// block, and those of a leg that hangs would soon have all of them: the other legs would seem to hang, too.
    pub(super) fn let_legs_block(&self, depth: u32) {
        if let Err(error) = self.ring.submitter().register_iowq_max_workers(&mut [depth.max(64), 0]) {
            tracing::info!(%error, "a leg that hangs may hold up the others");
        }
    }

    /// Registers memory: the kernel then need not look for its pages at each call. The number to use it by;
    /// `None`: calls on it work as they are.
    ///
    /// # Safety
    /// The memory must stay mapped as long as calls by that number are made.
    pub(super) unsafe fn register(&mut self, ptr: *mut u8, len: usize) -> Option<u16> {
        let number = self.next_buffer;
        let region = libc::iovec { iov_base: ptr.cast(), iov_len: len };
        // SAFETY: the kernel keeps the pages themselves; that they stay mapped there is the caller's promise.
        match unsafe { self.ring.submitter().register_buffers_update(number.into(), &[region], None) } {
            Ok(()) => {
                self.next_buffer = number.checked_add(1)?;
                Some(number)
            }
            Err(error) => {
                tracing::debug!(%error, bytes = len, "a buffer is not registered");
                None
            }
        }
    }

    /// Puts `fd`, or none (-1), in the table for `leg`. The kernel looks a file up when it takes the call: all
    /// calls for the old file must have been flushed.
    pub(super) fn set_leg(&mut self, leg: Leg, fd: RawFd) -> io::Result<()> {
        self.ring.submitter().register_files_update(leg.index() as u32, &[fd]).map(drop)
    }

    /// Keeps the file of `fd` open until [`Uring::let_go`] of the number, or until this ring and all its IO have ended:
    /// also if the process is killed.
    pub(super) fn hold(&mut self, fd: RawFd) -> io::Result<u32> {
        let free = (MAX_LEGS as u32..FILES as u32).find(|number| self.held & 1 << number == 0);
        let number = free.ok_or(io::ErrorKind::QuotaExceeded)?;
        self.ring.submitter().register_files_update(number, &[fd])?;
        self.held |= 1 << number;
        Ok(number)
    }

    pub(super) fn let_go(&mut self, number: u32) -> io::Result<()> {
        self.held &= !(1 << number);
        self.ring.submitter().register_files_update(number, &[-1]).map(drop)
    }

    /// Queues a call. `memory` must stay valid, and not be borrowed against it, until the slot's
    /// completion was reaped.
    pub(super) fn issue(&mut self, slot: u32, leg: Leg, call: Call, memory: Memory) {
        let entry = self.entry(Fixed(leg.index() as u32), call, memory);
        self.push(entry.user_data(u64::from(slot)));
    }

    fn entry(&self, fd: Fixed, call: Call, Memory { ptr, registered }: Memory) -> squeue::Entry {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let registered = registered.filter(|&number| number != SMALL || self.small_buffers);
        match call {
            Call::Read { offset, len, .. } => match registered {
                Some(number) => opcode::ReadFixed::new(fd, ptr, len, number).offset(offset).build(),
                None => opcode::Read::new(fd, ptr, len).offset(offset).build(),
            },
            Call::Write { offset, len, dsync, .. } => {
                let flags = if dsync { libc::RWF_DSYNC } else { 0 };
                match registered {
                    Some(number) => {
                        let write = opcode::WriteFixed::new(fd, ptr, len, number);
                        write.offset(offset).rw_flags(flags).build()
                    }
                    None => opcode::Write::new(fd, ptr, len).offset(offset).rw_flags(flags).build(),
                }
            }
            Call::WriteZeroes { offset, len } => opcode::Write::new(fd, ptr, len).offset(offset).build(),
            Call::Punch { offset, len } => opcode::Fallocate::new(fd, len).offset(offset).mode(PUNCH).build(),
            Call::ZeroRange { offset, len } => {
                opcode::Fallocate::new(fd, len).offset(offset).mode(ZERO).build()
            }
            Call::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        }
    }

    /// Hands queued calls to the kernel. True while some are left that it did not take yet.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        self.refill();
        if !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Err(error) if !is_transient(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(!self.backlog.is_empty() || !self.ring.submission().is_empty())
    }

    /// Submits and runs what the kernel deferred, without waiting.
    pub(super) fn turn(&mut self) -> io::Result<()> {
        self.refill();
        let submission = self.ring.submission();
        let needed = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        match needed.then(|| self.ring.submit()) {
            Some(Err(error)) if !is_transient(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Submits and waits for a completion (or wake). False: the time-out passed.
    pub(super) fn block(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        self.refill();
        self.arm_watch();
        let result = match timeout {
            None => self.ring.submitter().submit_and_wait(1),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        match result {
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => Ok(false),
            Err(error) if !is_transient(&error) => Err(error),
            _ => Ok(true),
        }
    }

    /// The next completion: slot and result.
    pub(super) fn reap(&mut self) -> Option<(u32, i32)> {
        loop {
            let cqe = self.ring.completion().next()?;
            match cqe.user_data() {
                WAKE => {
                    self.wake_armed = false;
                    self.arm_wake();
                }
                UNWATCH => {}
                data if data >= COMMAND => {
                    self.commands.push((data as u16, cqe.result()));
                    self.watch.readable = true;
                }
                data if data >= WATCH => {
                    if data == WATCH | u64::from(self.watch.number) {
                        self.watch.readable = true;
                        self.watch.armed = false;
                    }
                }
                data => return Some((data as u32, cqe.result())),
            }
        }
    }

    /// Queues a command for the driver behind `fd`, which is named by `id` until it has ended.
    pub(super) fn command(&mut self, fd: RawFd, op: u32, data: [u8; 16], id: u16) {
        let entry = opcode::UringCmd16::new(Fd(fd), op).cmd(data).build();
        self.push(entry.user_data(COMMAND | u64::from(id)));
    }

    /// Moves the commands that ended to `out`.
    pub(super) fn take_commands(&mut self, out: &mut Vec<(u16, i32)>) {
        out.append(&mut self.commands);
    }

    pub(super) fn is_readable(&self) -> bool {
        self.watch.readable
    }

    /// Watches `fd` in place of an earlier one.
    pub(super) fn watch(&mut self, fd: Option<OwnedFd>) {
        let old = u64::from(self.watch.number);
        if mem::take(&mut self.watch.armed) {
            self.push(opcode::PollRemove::new(WATCH | old).build().user_data(UNWATCH));
        }
        let readable = !self.commands.is_empty();
        self.watch = Watch { fd, number: self.watch.number.wrapping_add(1), armed: false, readable };
    }

    pub(super) fn take_readable(&mut self) -> bool {
        mem::take(&mut self.watch.readable)
    }

    /// Has the kernel watch, before the ring sleeps: it says at once what is readable already.
    fn arm_watch(&mut self) {
        let Watch { fd: Some(fd), number, armed: false, .. } = &self.watch else { return };
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), WATCHED).build();
        let entry = entry.user_data(WATCH | u64::from(*number));
        self.watch.armed = true;
        self.push(entry);
    }

    fn arm_wake(&mut self) {
        if !self.wake_armed {
            self.wake_armed = true;
            let read = opcode::Read::new(Fd(self.wake_fd), self.wake_value.cast(), 8);
            self.push(read.build().user_data(WAKE));
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.try_push(&entry) {
            return;
        }
        // Whatever is wrong shows up again at the next wait, which can say so.
        let _ = self.ring.submit();
        self.backlog.push_back(entry);
        self.refill();
    }

    fn refill(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the memory of the entry stays valid until its completion: `Ring` keeps attached
        // buffers in place while IO is in flight and leaks them rather than free them under it;
        // the zeroes belong to the pool it holds; `wake_value` is leaked; what a device command points to
        // is kept by whoever issued it (see `Ring::command`).
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }
}

/// The best set-up this kernel has.
fn build(entries: u32) -> io::Result<IoUring> {
    let mut best = IoUring::builder();
    best.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_coop_taskrun();
    let newest = best.clone().setup_no_sqarray().build(entries);
    newest
        .or_else(|_| best.build(entries))
        .or_else(|_| IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(entries))
        .or_else(|_| IoUring::new(entries))
}

/// Errors of `io_uring_enter` that pass: interrupted, or completions must be reaped first.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}
