//! The file system of one file: the root is the volume.
//!
//! Turns FUSE requests into [`Request`]s. Guarantees: handlers never wait for IO; data is copied
//! once, into the buffer that all legs are written from; ranges are checked against the volume
//! before anything is submitted; its size never changes. Runs on the session threads; each gives
//! its requests to one queue, so that a queue has few wakers.
//!
//! What is not a block device's business is refused: changing the size (also by opening with
//! O_TRUNC: `dd` needs `conv=notrunc`, and nothing is lost if it is forgotten) with `EPERM`, writing
//! past the end with `ENOSPC`. Mode, owner and times are kept as long as the mount.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};

use super::attributes::{Attributes, Change};
use super::range::{Piece, cover, zero_pieces};
use crate::buffer::BufferPool;
use crate::done::{Done, Group};
use crate::front::{Engine, Op, Patch, Request};

/// How long the kernel may keep attributes. Only mode, owner and times can change.
const ATTR_TTL: Duration = Duration::from_secs(1);

/// Requests that the kernel may have under way at once beside synchronous ones.
const MAX_BACKGROUND: u16 = 512;

/// What is asked of the kernel beyond fuser's defaults, each where it is known.
const CAPABILITIES: [InitFlags; 4] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_MAX_PAGES,
];

pub(super) struct Volume {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) pool: Arc<BufferPool>,
    pub(super) size: u64,
    pub(super) block: u64,
    pub(super) max_io: u32,
    pub(super) read_only: bool,
    pub(super) attributes: Attributes,
    /// Users were cut off: all IO fails.
    pub(super) cut: Arc<AtomicBool>,
}

/// Numbers the session threads as they come.
static THREADS: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    static THREAD: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed));
}

impl Volume {
    fn submit(&self, request: Request) {
        if self.cut.load(Ordering::Relaxed) {
            return request.done.complete(Err(mirrord_raid::Errno::EIO), None);
        }
        let queue = THREAD.get() % self.engine.queues();
        self.engine.submit(queue, request);
    }

    fn is_aligned(&self, offset: u64, len: u64) -> bool {
        (offset | len) & (self.block - 1) == 0
    }

    /// A write of less than whole blocks.
    fn submit_patch(&self, patch: Patch, offset: u64, len: u64, fua: bool, done: Done) {
        let (offset, len) = cover(offset, len, self.block);
        let buf = Some(self.pool.take(len as usize));
        self.submit(Request { op: Op::Write, offset, len, fua, buf, patch: Some(patch), done });
    }

    fn submit_zero(&self, offset: u64, len: u64, done: Done) {
        let pieces = zero_pieces(offset, len, self.block);
        let count = pieces.iter().flatten().count() as u32;
        for (piece, done) in pieces.into_iter().flatten().zip(Group::split(done, count)) {
            match piece {
                Piece::Whole { offset, len } => self.submit(Request {
                    op: Op::Zero,
                    offset,
                    len,
                    fua: false,
                    buf: None,
                    patch: None,
                    done,
                }),
                Piece::Edge { offset, len } => {
                    self.submit_patch(Patch::zeroes(offset, len), offset, len, false, done);
                }
            }
        }
    }
}

impl Filesystem for Volume {
    fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            let _ = config.add_capabilities(capability);
        }
        // Each answers with the nearest value it takes.
        let _ = config.set_max_write(self.max_io).or_else(|nearest| config.set_max_write(nearest));
        let _ = config.set_max_readahead(self.max_io);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn read(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.size.saturating_sub(offset));
        if len == 0 {
            return reply.data(&[]);
        }
        let (start, covered) = cover(offset, len, self.block);
        let done = Done::read(reply, (offset - start) as u32, len as u32);
        let buf = Some(self.pool.take(covered as usize));
        self.submit(Request {
            op: Op::Read,
            offset: start,
            len: covered,
            fua: false,
            buf,
            patch: None,
            done,
        });
    }

    fn write(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len() as u64;
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return reply.error(Errno::ENOSPC);
        }
        if len == 0 {
            return reply.written(0);
        }
        self.attributes.written();
        // O_SYNC contains the bit of O_DSYNC.
        let fua = flags.0 & libc::O_DSYNC != 0;
        let mut buf = self.pool.take(data.len());
        buf.copy_from_slice(data);
        let done = Done::write(reply, data.len() as u32);
        if self.is_aligned(offset, len) {
            self.submit(Request { op: Op::Write, offset, len, fua, buf: Some(buf), patch: None, done });
        } else {
            self.submit_patch(Patch::data(offset, buf), offset, len, fua, done);
        }
    }

    fn fallocate(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | libc::FALLOC_FL_KEEP_SIZE;
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        let Some(end) = offset.checked_add(length) else { return reply.error(Errno::EFBIG) };
        match mode {
            // Nothing to allocate: the volume always has its size.
            0 | libc::FALLOC_FL_KEEP_SIZE if end <= self.size => reply.ok(),
            0 | libc::FALLOC_FL_KEEP_SIZE => reply.error(Errno::ENOSPC),
            ZERO if end > self.size => reply.error(Errno::ENOSPC),
            PUNCH | ZERO | ZERO_KEEP => {
                let len = end.min(self.size).saturating_sub(offset);
                if len == 0 {
                    return reply.ok();
                }
                self.attributes.written();
                self.submit_zero(offset, len, Done::empty(reply));
            }
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    fn fsync(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let done = Done::empty(reply);
        self.submit(Request { op: Op::Flush, offset: 0, len: 0, fua: false, buf: None, patch: None, done });
    }

    fn open(&self, _: &fuser::Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let how = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), how);
    }

    /// `close`: nothing is held back here that it would have to flush.
    fn flush(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getattr(&self, _: &fuser::Request, _: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&ATTR_TTL, &self.attributes.stat());
    }

    fn setattr(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if size.is_some_and(|size| size != self.size) {
            return reply.error(Errno::EPERM);
        }
        self.attributes.change(Change { mode, uid, gid, atime, mtime });
        reply.attr(&ATTR_TTL, &self.attributes.stat());
    }

    fn statfs(&self, _: &fuser::Request, _: INodeNo, reply: ReplyStatfs) {
        let block = self.block as u32;
        reply.statfs(self.size / self.block, 0, 0, 1, 0, block, 255, block);
    }

    // The kernel takes ENOSYS as "do it without me" and does not ask again.

    fn lseek(&self, _: &fuser::Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &fuser::Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &fuser::Request, _: INodeNo, _: &std::ffi::OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &fuser::Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &fuser::Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
