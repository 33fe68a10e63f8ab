//! The file system of one file: the root is the volume.
//!
//! Turns FUSE requests into [`Request`]s. Guarantees: nothing here waits for IO; data is where all
//! legs are written from; ranges are checked against the volume before anything is submitted; its
//! size never changes but by its owner's word. Runs on the queue threads.
//!
//! What is not a block device's business is refused: changing the size (also by opening with
//! O_TRUNC: `dd` needs `conv=notrunc`, and nothing is lost if it is forgotten) with `EPERM`, writing
//! past the end with `ENOSPC`. Mode, owner and times are kept as long as the mount. `close` flushes
//! nothing, since nothing is held back here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mirrord_raid::Errno;

use super::attributes::Attributes;
use super::device::Reply;
use super::range::{Piece, cover, zero_pieces};
use super::source::Arrived;
use super::wire::{
    AttrOut, FallocateIn, OpenIn, OpenOut, ReadIn, SetattrIn, StatfsOut, WriteIn, opcode, open, set,
};
use crate::buffer::BufferPool;
use crate::done::{Done, Group};
use crate::front::{Op, Patch, Request};

/// How long the kernel may keep attributes, in seconds. Of a new size it is told.
const ATTR_TTL: u64 = 1;

pub(super) struct Volume {
    pub(super) pool: Arc<BufferPool>,
    /// In bytes.
    pub(super) size: AtomicU64,
    pub(super) block: u64,
    pub(super) max_io: u32,
    pub(super) read_only: bool,
    pub(super) attributes: Attributes,
    /// Users were cut off: all IO fails.
    pub(super) cut: Arc<AtomicBool>,
}

impl Volume {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Answers a request, or puts what it asks of the engine into `out`.
    pub(super) fn handle(&self, code: u32, arrived: Arrived<'_>, reply: Reply, out: &mut VecDeque<Request>) {
        match code {
            opcode::READ => self.read(&arrived, reply, out),
            opcode::WRITE => self.write(arrived, reply, out),
            // Nothing was written.
            opcode::FSYNC if self.read_only => reply.ok(),
            opcode::FSYNC => self.put(out, Op::Flush, 0, 0, Done::empty(reply)),
            opcode::FALLOCATE => self.fallocate(&arrived, reply, out),
            opcode::OPEN => self.open(&arrived, reply),
            opcode::GETATTR => self.answer_attributes(reply),
            opcode::SETATTR => self.set_attributes(&arrived, reply),
            opcode::STATFS => self.statfs(reply),
            opcode::RELEASE | opcode::DESTROY => reply.ok(),
            // These want no answer.
            opcode::FORGET | opcode::BATCH_FORGET => {}
            opcode::IOCTL => reply.refuse(libc::ENOTTY),
            _ => reply.refuse(libc::ENOSYS),
        }
    }

    fn submit(&self, out: &mut VecDeque<Request>, request: Request) {
        if self.cut.load(Ordering::SeqCst) {
            return request.done.complete(Err(Errno::EIO), None);
        }
        out.push_back(request);
    }

    /// A request without data.
    fn put(&self, out: &mut VecDeque<Request>, op: Op, offset: u64, len: u64, done: Done) {
        self.submit(out, Request { op, offset, len, fua: false, buf: None, patch: None, done });
    }

    /// A write of less than whole blocks.
    fn put_patch(
        &self,
        out: &mut VecDeque<Request>,
        patch: Patch,
        offset: u64,
        len: u64,
        fua: bool,
        done: Done,
    ) {
        let (offset, len) = cover(offset, len, self.block);
        let buf = Some(self.pool.take(len as usize));
        self.submit(out, Request { op: Op::Write, offset, len, fua, buf, patch: Some(patch), done });
    }

    fn put_zero(&self, out: &mut VecDeque<Request>, keep: bool, offset: u64, len: u64, done: Done) {
        let pieces = zero_pieces(offset, len, self.block);
        let count = pieces.iter().flatten().count() as u32;
        for (piece, done) in pieces.into_iter().flatten().zip(Group::split(done, count)) {
            match piece {
                Piece::Whole { offset, len } => self.put(out, Op::Zero { keep }, offset, len, done),
                Piece::Edge { offset, len } => {
                    self.put_patch(out, Patch::zeroes(offset, len), offset, len, false, done);
                }
            }
        }
    }

    fn read(&self, arrived: &Arrived<'_>, reply: Reply, out: &mut VecDeque<Request>) {
        let Some(ask) = arrived.args::<ReadIn>() else { return reply.refuse(libc::EINVAL) };
        let len = u64::from(ask.size).min(self.size().saturating_sub(ask.offset));
        if len == 0 {
            return reply.data(&[]);
        }
        let (offset, covered) = cover(ask.offset, len, self.block);
        let done = Done::read(reply, (ask.offset - offset) as u32, len as u32);
        let buf = Some(self.pool.take(covered as usize));
        self.submit(out, Request { op: Op::Read, offset, len: covered, fua: false, buf, patch: None, done });
    }

    fn write(&self, arrived: Arrived<'_>, reply: Reply, out: &mut VecDeque<Request>) {
        let Some(ask) = arrived.args::<WriteIn>() else { return reply.refuse(libc::EINVAL) };
        let (offset, len) = (ask.offset, u64::from(ask.size));
        if self.read_only {
            return reply.refuse(libc::EROFS);
        }
        if offset.checked_add(len).is_none_or(|end| end > self.size()) {
            return reply.refuse(libc::ENOSPC);
        }
        if len == 0 {
            return reply.written(0);
        }
        let Some(data) = arrived.data(len as usize) else { return reply.refuse(libc::EINVAL) };
        self.attributes.written();
        // O_SYNC contains the bit of O_DSYNC.
        let fua = ask.flags & libc::O_DSYNC as u32 != 0;
        let done = Done::write(reply, ask.size);
        if (offset | len) & (self.block - 1) == 0 {
            let buf = Some(data);
            self.submit(out, Request { op: Op::Write, offset, len, fua, buf, patch: None, done });
        } else {
            self.put_patch(out, Patch::data(offset, data), offset, len, fua, done);
        }
    }

    fn fallocate(&self, arrived: &Arrived<'_>, reply: Reply, out: &mut VecDeque<Request>) {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = ZERO | libc::FALLOC_FL_KEEP_SIZE;
        let Some(ask) = arrived.args::<FallocateIn>() else { return reply.refuse(libc::EINVAL) };
        if self.read_only {
            return reply.refuse(libc::EROFS);
        }
        let Some(end) = ask.offset.checked_add(ask.length) else { return reply.refuse(libc::EFBIG) };
        match ask.mode as i32 {
            // Nothing to allocate: the volume always has its size.
            0 | libc::FALLOC_FL_KEEP_SIZE if end <= self.size() => reply.ok(),
            0 | libc::FALLOC_FL_KEEP_SIZE => reply.refuse(libc::ENOSPC),
            ZERO if end > self.size() => reply.refuse(libc::ENOSPC),
            PUNCH | ZERO | ZERO_KEEP => {
                let len = end.min(self.size()).saturating_sub(ask.offset);
                if len == 0 {
                    reply.ok();
                } else {
                    self.attributes.written();
                    let keep = ask.mode as i32 != PUNCH;
                    self.put_zero(out, keep, ask.offset, len, Done::empty(reply));
                }
            }
            _ => reply.refuse(libc::EOPNOTSUPP),
        }
    }

    fn open(&self, arrived: &Arrived<'_>, reply: Reply) {
        let Some(ask) = arrived.args::<OpenIn>() else { return reply.refuse(libc::EINVAL) };
        if self.read_only && ask.flags as i32 & libc::O_ACCMODE != libc::O_RDONLY {
            return reply.refuse(libc::EROFS);
        }
        let open_flags = open::DIRECT_IO | open::PARALLEL_DIRECT_WRITES | open::NOFLUSH;
        reply.with(&OpenOut { fh: 0, open_flags, padding: 0 });
    }

    fn set_attributes(&self, arrived: &Arrived<'_>, reply: Reply) {
        let Some(ask) = arrived.args::<SetattrIn>() else { return reply.refuse(libc::EINVAL) };
        if ask.valid & set::SIZE != 0 && ask.size != self.size() {
            return reply.refuse(libc::EPERM);
        }
        self.attributes.change(&ask);
        self.answer_attributes(reply);
    }

    fn answer_attributes(&self, reply: Reply) {
        reply.with(&AttrOut {
            valid: ATTR_TTL,
            valid_nsec: 0,
            dummy: 0,
            attr: self.attributes.stat(self.size()),
        });
    }

    fn statfs(&self, reply: Reply) {
        let block = self.block as u32;
        reply.with(&StatfsOut {
            blocks: self.size() / self.block,
            files: 1,
            bsize: block,
            namelen: 255,
            frsize: block,
            ..StatfsOut::default()
        });
    }
}
