//! The seam between a front end and the engine.
//!
//! A front end ([`FrontEnd`]) turns what clients ask into [`Request`]s and gives them to an
//! [`Engine`], which answers each through its [`Done`]. Guarantees of every front end: ranges of
//! reads and writes lie within the volume and are multiples of its block size; the data of a write
//! is one private copy; nothing acknowledged is held back in the front end.
//!
//! Requests come in one of two ways: a front end hands the engine a [`Source`] per queue, which the queue's
//! thread itself pulls requests from (no other thread has to be woken on the way), or somebody calls
//! [`Engine::submit`] from a thread of his own. `submit` and `serve` do not block.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use mirrord_raid::Op;

use crate::buffer::Buffer;
use crate::done::Done;
use crate::ring::Ring;

/// Looks at whether a volume is in use before a clean end is refused, and the time between them, 2 s in all: what looks
/// at new files and devices (udev, a desktop) has it open for moments, as has a process between fork and exec, and on
/// a busy machine a program that has ended closes it a while later.
pub(crate) const TRIES: u32 = 100;
pub(crate) const TRY_AGAIN: Duration = Duration::from_millis(20);

/// One request, with its buffer and the answer it owes. Sizes in bytes.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Where in the volume; a multiple of its block size.
    pub offset: u64,
    /// How much; a multiple of the block size, 0 for a flush. A read or write covers at most the
    /// front end's `max_io` rounded out to whole blocks at both ends; a zero may be as large as the
    /// volume.
    pub len: u64,
    /// Durable before it is answered.
    pub fua: bool,
    /// For reads and writes `len` bytes. A write with a patch gets it with contents of no meaning.
    pub buf: Option<Buffer>,
    /// For a write that does not cover whole blocks: the engine reads the range into `buf`,
    /// applies this and writes the range, all under its overlap lock.
    pub patch: Option<Patch>,
    /// Where the answer goes.
    pub done: Done,
}

/// What a write that does not cover whole blocks changes. Offsets are in the volume.
#[derive(Debug)]
pub struct Patch {
    offset: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Data(Buffer),
    Zeroes(u64),
}

impl Patch {
    /// Writes `data` at `offset`.
    pub fn data(offset: u64, data: Buffer) -> Patch {
        Patch { offset, bytes: Bytes::Data(data) }
    }

    /// Writes `len` zeroes at `offset`.
    pub fn zeroes(offset: u64, len: u64) -> Patch {
        Patch { offset, bytes: Bytes::Zeroes(len) }
    }

    /// Lays what the patch changes in `range_offset..range_offset + range_len` over `buf`, whose
    /// first byte is the volume's byte `buf_offset`.
    ///
    /// # Panics
    /// If `buf` does not hold the part of that range that the patch changes.
    pub fn apply(&self, buf: &mut [u8], buf_offset: u64, range_offset: u64, range_len: u64) {
        let len = match &self.bytes {
            Bytes::Data(data) => data.len() as u64,
            Bytes::Zeroes(len) => *len,
        };
        let start = self.offset.max(range_offset);
        let end = (self.offset + len).min(range_offset + range_len);
        if start >= end {
            return;
        }
        let target = &mut buf[(start - buf_offset) as usize..(end - buf_offset) as usize];
        match &self.bytes {
            Bytes::Data(data) => {
                target.copy_from_slice(&data[(start - self.offset) as usize..(end - self.offset) as usize]);
            }
            Bytes::Zeroes(_) => target.fill(0),
        }
    }
}

/// What a front end gives its requests to.
pub trait Engine: Send + Sync + 'static {
    /// Takes a request in; never blocks. `queue` is below [`queues`](Engine::queues).
    fn submit(&self, queue: usize, request: Request);

    /// Makes `queue` pull requests from `source` until that has ended or the engine stops, and then drop
    /// it. A source that the queue had before is dropped.
    fn serve(&self, queue: usize, source: Box<dyn Source>);

    /// Makes `queue` pull from its source once, although nothing came.
    fn nudge(&self, queue: usize);

    /// How many queues there are. At least one, and always the same.
    fn queues(&self) -> usize;
}

/// What a queue thread pulls requests from. Used by one thread at a time.
pub trait Source: Send {
    /// Has `ring`, the queue's, say when there are requests. Called once, before any `pull`.
    ///
    /// # Errors
    /// When the ring cannot; the source is then dropped.
    fn start(&mut self, ring: &mut Ring) -> io::Result<()>;

    /// How many requests are best pulled, and completions handled, before leg IO goes out: the fewer, the less
    /// time the legs have nothing to do; the more, the fewer system calls a request takes.
    fn batch(&self) -> usize;

    /// Takes in at most `most` requests without blocking, and appends to `out` what they ask of the engine:
    /// nothing where the front end answers itself, up to three where a request has edges. Called whenever
    /// the ring was readable and whenever a request was answered.
    fn pull(&mut self, ring: &mut Ring, most: usize, out: &mut VecDeque<Request>) -> Pulled;
}

/// What [`Source::pull`] left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pulled {
    /// Nothing: wait until the ring is readable.
    All,
    /// There may be more.
    More,
    /// There will be no more.
    Ended,
}

/// Kinds of front end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrontKind {
    /// A block device `/dev/ublkbN`.
    Ublk,
    /// A file served through FUSE.
    Fuse,
}

/// How to end a front end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// Refuse while somebody uses the volume.
    Clean,
    /// Take it away from whoever uses it: their IO fails from now on.
    Force,
    /// Leave it in place for a daemon to come: IO waits until that serves it.
    HandOver,
}

/// A volume being served.
pub trait FrontEnd: Send {
    /// Which kind.
    fn kind(&self) -> FrontKind;

    /// The device or file that clients open.
    fn path(&self) -> &Path;

    /// Whether [`FrontEnd::resize`] can work here.
    ///
    /// # Errors
    /// [`FrontError::NoResize`] says why it cannot, and the way out.
    fn can_resize(&self) -> Result<(), FrontError>;

    /// The volume is `size` bytes long from now on: tells users so. The engine takes requests up to there already.
    ///
    /// # Errors
    /// [`FrontError::NoResize`], or [`FrontError::Io`]: users see the old size.
    fn resize(&self, size: u64) -> Result<(), FrontError>;

    /// Stops serving. Afterwards nothing is submitted to the engine any more; after a clean one every
    /// request was answered.
    ///
    /// # Errors
    /// [`FrontError::Busy`] while clients have it open: the front end goes on serving.
    fn shutdown(&mut self, how: Shutdown) -> Result<(), FrontError>;
}

/// Why a front end did not stop.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// Somebody uses the volume.
    #[error("{} is in use: close it (`fuser -vm` shows who has it open) or stop with --force", path.display())]
    Busy {
        /// The device or file.
        path: PathBuf,
    },
    /// It cannot outlive its daemon.
    #[error("{} cannot be handed over: {why}; stop the volume and start it", path.display())]
    NoHandOver {
        /// The device or file.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// Its size is for good.
    #[error("{} cannot change its size: {why}", path.display())]
    NoResize {
        /// The device or file.
        path: PathBuf,
        /// Why not, and the way out.
        why: &'static str,
    },
    /// The system said no.
    #[error("cannot change how {} is served, or that it is", path.display())]
    Io {
        /// The device or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::{BufferPool, PoolConfig};

    #[test]
    fn a_patch_changes_its_bytes_and_no_other() {
        let pool = BufferPool::new(PoolConfig::default()).unwrap();
        let mut data = pool.take(600);
        data.fill(7);
        let patch = Patch::data(1000, data);
        for (range, changed) in [
            (512..1536, 1000..1536),
            (1536..2048, 1536..1600),
            (1024..1536, 1024..1536),
            (2048..2560, 0..0),
            (0..512, 0..0),
        ] {
            let mut buf = vec![1u8; 2560];
            patch.apply(&mut buf, 0, range.start, range.end - range.start);
            for (at, byte) in buf.iter().enumerate() {
                assert_eq!(*byte == 7, changed.contains(&at), "{range:?} at {at}");
            }
        }
        let mut buf = vec![1u8; 1024];
        patch.apply(&mut buf, 1024, 1024, 1024);
        assert!(buf[..576].iter().all(|&b| b == 7) && buf[576..].iter().all(|&b| b == 1));
        Patch::zeroes(1030, 4).apply(&mut buf, 1024, 1024, 512);
        assert_eq!(buf[5..11], [7, 0, 0, 0, 0, 7]);
    }
}
