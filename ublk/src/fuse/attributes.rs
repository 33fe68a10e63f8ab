//! What `stat` says about the file that is the volume.
//!
//! Owns mode, owner and times; they live as long as the mount. The size never changes. Times of
//! writes are taken when somebody asks, so that a write pays one store. Any thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

pub(super) struct Attributes {
    size: u64,
    block_size: u32,
    /// Whether there were writes since `mtime`.
    written: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Clone, Copy)]
struct Kept {
    mode: u16,
    uid: u32,
    gid: u32,
    atime: SystemTime,
    mtime: SystemTime,
    ctime: SystemTime,
}

/// A change somebody asks for; `None` leaves as is.
pub(super) struct Change {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
}

impl Attributes {
    pub(super) fn new(size: u64, block_size: u32) -> Attributes {
        let now = SystemTime::now();
        let kept = Kept {
            mode: 0o600,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            atime: now,
            mtime: now,
            ctime: now,
        };
        Attributes { size, block_size, written: AtomicBool::new(false), kept: Mutex::new(kept) }
    }

    /// Notes that the contents changed.
    pub(super) fn written(&self) {
        if !self.written.load(Ordering::Relaxed) {
            self.written.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn change(&self, change: Change) {
        let mut kept = self.kept();
        let now = SystemTime::now();
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => now,
        };
        kept.mode = change.mode.map_or(kept.mode, |mode| (mode & 0o7777) as u16);
        kept.uid = change.uid.unwrap_or(kept.uid);
        kept.gid = change.gid.unwrap_or(kept.gid);
        kept.atime = change.atime.map_or(kept.atime, time);
        if let Some(mtime) = change.mtime {
            self.written.store(false, Ordering::Relaxed);
            kept.mtime = time(mtime);
        }
        kept.ctime = now;
    }

    pub(super) fn stat(&self) -> FileAttr {
        let mut kept = self.kept();
        if self.written.swap(false, Ordering::Relaxed) {
            kept.mtime = SystemTime::now();
            kept.ctime = kept.mtime;
        }
        FileAttr {
            ino: INodeNo::ROOT,
            size: self.size,
            blocks: self.size / 512,
            atime: kept.atime,
            mtime: kept.mtime,
            ctime: kept.ctime,
            crtime: kept.ctime,
            kind: FileType::RegularFile,
            perm: kept.mode,
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
