//! The FUSE kernel protocol, as far as a file system of one regular file needs it.
//!
//! Source: `include/uapi/linux/fuse.h` of Linux, versions 7.31 to 7.45; layouts are in the byte order
//! of the machine. What is not declared here is answered `ENOSYS`, which the kernel takes as "do it
//! without me" and does not ask again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Version spoken. The minor one is the newest whose structures are those below; a kernel that
/// speaks an older one uses that.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 38;

/// Oldest minor version understood: Linux 5.4.
pub(super) const OLDEST_MINOR: u32 = 31;

/// The only inode.
pub(super) const ROOT: u64 = 1;

/// Least room that a read from the device must offer, in bytes.
pub(super) const LEAST_READ: usize = 8192;

/// Opcodes (`enum fuse_opcode`).
pub(super) mod opcode {
    pub(in crate::fuse) const FORGET: u32 = 2;
    pub(in crate::fuse) const GETATTR: u32 = 3;
    pub(in crate::fuse) const SETATTR: u32 = 4;
    pub(in crate::fuse) const OPEN: u32 = 14;
    pub(in crate::fuse) const READ: u32 = 15;
    pub(in crate::fuse) const WRITE: u32 = 16;
    pub(in crate::fuse) const STATFS: u32 = 17;
    pub(in crate::fuse) const RELEASE: u32 = 18;
    pub(in crate::fuse) const FSYNC: u32 = 20;
    pub(in crate::fuse) const INIT: u32 = 26;
    pub(in crate::fuse) const DESTROY: u32 = 38;
    pub(in crate::fuse) const IOCTL: u32 = 39;
    pub(in crate::fuse) const BATCH_FORGET: u32 = 42;
    pub(in crate::fuse) const FALLOCATE: u32 = 43;
}

/// Code of a message to the kernel that an inode changed (`enum fuse_notify_code`).
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;

/// Flags of `INIT`, both words as one.
pub(super) mod init {
    pub(in crate::fuse) const ASYNC_READ: u64 = 1 << 0;
    pub(in crate::fuse) const BIG_WRITES: u64 = 1 << 5;
    pub(in crate::fuse) const ASYNC_DIO: u64 = 1 << 15;
    pub(in crate::fuse) const MAX_PAGES: u64 = 1 << 22;
    /// The second word is there.
    pub(in crate::fuse) const EXT: u64 = 1 << 30;
    pub(in crate::fuse) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// Flags of an answer to `OPEN`.
pub(super) mod open {
    pub(in crate::fuse) const DIRECT_IO: u32 = 1 << 0;
    pub(in crate::fuse) const NOFLUSH: u32 = 1 << 5;
    pub(in crate::fuse) const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// What a `SETATTR` sets.
pub(super) mod set {
    pub(in crate::fuse) const MODE: u32 = 1 << 0;
    pub(in crate::fuse) const UID: u32 = 1 << 1;
    pub(in crate::fuse) const GID: u32 = 1 << 2;
    pub(in crate::fuse) const SIZE: u32 = 1 << 3;
    pub(in crate::fuse) const ATIME: u32 = 1 << 4;
    pub(in crate::fuse) const MTIME: u32 = 1 << 5;
    pub(in crate::fuse) const ATIME_NOW: u32 = 1 << 7;
    pub(in crate::fuse) const MTIME_NOW: u32 = 1 << 8;
}

/// Declares structures that arrive, each with its size in `fuse.h`.
macro_rules! received {
    ($($(#[$doc:meta])* $name:ident ($size:literal) { $($field:ident: $type:ty),+ $(,)? })+) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type),+ }
        const _: () = assert!(size_of::<$name>() == $size);
    )+ };
}

/// Declares structures that are sent, each with its size in `fuse.h`.
macro_rules! sent {
    ($($(#[$doc:meta])* $name:ident ($size:literal) { $($field:ident: $type:ty),+ $(,)? })+) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type),+ }
        const _: () = assert!(size_of::<$name>() == $size);
    )+ };
}

received! {
    /// Begins every request. `len` counts all of it.
    InHeader (40) {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32,
        total_extlen: u16, padding: u16,
    }
    /// The part of `struct fuse_init_in` that every version has.
    InitIn (16) { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    /// What follows it from 7.36 on, before what is unused.
    InitInMore (4) { flags2: u32 }
    OpenIn (8) { flags: u32, open_flags: u32 }
    ReadIn (40) {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// The data follows.
    WriteIn (40) {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    FallocateIn (32) { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    SetattrIn (88) {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32,
        unused5: u32,
    }
}

sent! {
    /// Begins every answer. `error` is an errno negated, or 0.
    OutHeader (16) { len: u32, error: i32, unique: u64 }
    InitOut (64) {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16,
        congestion_threshold: u16, max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16,
        flags2: u32, unused: [u32; 7],
    }
    OpenOut (16) { fh: u64, open_flags: u32, padding: u32 }
    WriteOut (8) { size: u32, padding: u32 }
    Attr (88) {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32,
        mtimensec: u32, ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32,
        blksize: u32, flags: u32,
    }
    /// `valid`: seconds for which the kernel need not ask again.
    AttrOut (104) { valid: u64, valid_nsec: u32, dummy: u32, attr: Attr }
    /// With a negative offset: its attributes, not its contents.
    NotifyInvalInodeOut (24) { ino: u64, off: i64, len: i64 }
    StatfsOut (80) {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32,
        frsize: u32, padding: u32, spare: [u32; 6],
    }
}

/// Bytes before the data of a write.
pub(super) const WRITE_HEAD: usize = size_of::<InHeader>() + size_of::<WriteIn>();

/// Bytes of the longest arguments taken in, beside data.
pub(super) const MOST_ARGS: usize = size_of::<SetattrIn>();

/// A time as the kernel writes it: seconds since 1970, negative ones in two's complement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Time {
    pub(super) seconds: u64,
    pub(super) nanos: u32,
}

impl Time {
    pub(super) fn now() -> Time {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Time { seconds: since.as_secs(), nanos: since.subsec_nanos() }
    }
}
