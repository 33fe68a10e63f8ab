//! What `stat` says about the file that is the volume.
//!
//! Owns mode, owner and times; they live as long as the mount. Times of
//! writes are taken when somebody asks, so that a write pays one store. Any thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::wire::{Attr, ROOT, SetattrIn, Time, set};

pub(super) struct Attributes {
    block_size: u32,
    /// Whether there were writes since `mtime`.
    written: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Clone, Copy)]
struct Kept {
    mode: u32,
    uid: u32,
    gid: u32,
    atime: Time,
    mtime: Time,
    ctime: Time,
}

impl Attributes {
    pub(super) fn new(block_size: u32, mode: u32) -> Attributes {
        let now = Time::now();
        let kept = Kept {
            mode,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            atime: now,
            mtime: now,
            ctime: now,
        };
        Attributes { block_size, written: AtomicBool::new(false), kept: Mutex::new(kept) }
    }

    /// Notes that the contents changed.
    pub(super) fn written(&self) {
        if !self.written.load(Ordering::Relaxed) {
            self.written.store(true, Ordering::Relaxed);
        }
    }

    /// Changes what `ask` names, except the size.
    pub(super) fn change(&self, ask: &SetattrIn) {
        let mut kept = self.kept();
        let now = Time::now();
        let has = |flag| ask.valid & flag != 0;
        if has(set::MODE) {
            kept.mode = ask.mode & 0o7777;
        }
        if has(set::UID) {
            kept.uid = ask.uid;
        }
        if has(set::GID) {
            kept.gid = ask.gid;
        }
        if has(set::ATIME | set::ATIME_NOW) {
            let named = Time { seconds: ask.atime, nanos: ask.atimensec };
            kept.atime = if has(set::ATIME_NOW) { now } else { named };
        }
        if has(set::MTIME | set::MTIME_NOW) {
            let named = Time { seconds: ask.mtime, nanos: ask.mtimensec };
            kept.mtime = if has(set::MTIME_NOW) { now } else { named };
            self.written.store(false, Ordering::Relaxed);
        }
        kept.ctime = now;
    }

    /// Of a file of `size` bytes.
    pub(super) fn stat(&self, size: u64) -> Attr {
        let mut kept = self.kept();
        if self.written.swap(false, Ordering::Relaxed) {
            kept.mtime = Time::now();
            kept.ctime = kept.mtime;
        }
        Attr {
            ino: ROOT,
            size,
            blocks: size / 512,
            atime: kept.atime.seconds,
            mtime: kept.mtime.seconds,
            ctime: kept.ctime.seconds,
            atimensec: kept.atime.nanos,
            mtimensec: kept.mtime.nanos,
            ctimensec: kept.ctime.nanos,
            mode: libc::S_IFREG | kept.mode,
            nlink: 1,
            uid: kept.uid,
            gid: kept.gid,
            rdev: 0,
            blksize: self.block_size,
            flags: 0,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
