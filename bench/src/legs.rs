//! Files to measure on, and volumes on them served inside this process.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use mirrord::engine::{FrontChoice, LogOptions, RemoteOptions, ServeOptions, SparePolicy, Volume};
use mirrord::leg::Patience;
use mirrord::start::{StartOptions, open};
use mirrord_log::{InternalLog, Layout, LegEntry, LogPlace, Superblock, SyncMode, format_leg};
use mirrord_raid::{Geometry, Held, Leg, LegState, Lineage};
use mirrord_ublk::{Buffer, BufferPool, PoolConfig};
use uuid::Uuid;

use crate::random::Random;

/// Most bytes moved at once when a file is filled or copied.
const PIECE: usize = 1 << 20;

/// How a file is filled or copied: bytes at once and threads that do it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    /// Bytes, at most 1 MiB.
    pub(crate) piece: usize,
    /// Threads, each with one piece in flight.
    pub(crate) threads: usize,
}

impl Way {
    /// Few large pieces.
    pub(crate) const LARGE: Way = Way { piece: PIECE, threads: 4 };
    /// Many small ones.
    pub(crate) const SMALL: Way = Way { piece: PIECE / 4, threads: 8 };
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} KiB by {} threads", self.piece >> 10, self.threads)
    }
}

/// A file past the page cache.
///
/// # Errors
/// As `open(2)`; some file systems know no O_DIRECT.
pub(crate) fn open_direct(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path);
    file.with_context(|| format!("cannot open {} with O_DIRECT", path.display()))
}

/// Makes a file of `size` bytes, every block of it allocated and written with bytes that `seed` decides,
/// so that no later write has to allocate or convert anything.
///
/// # Errors
/// When the disk is full or fails.
pub(crate) fn fill(path: &Path, size: u64, seed: u64) -> Result<()> {
    let context = || format!("cannot fill {}", path.display());
    let file = File::options().write(true).create(true).truncate(true).open(path).with_context(context)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).with_context(context)?;
    let file = open_direct(path)?;
    in_pieces(size, Way::LARGE, |at, buffer| {
        let mut random = Random::new(seed ^ at);
        // Unlike anywhere else in the file, and made fast: one word per 64 bytes differs.
        buffer.chunks_mut(64).for_each(|chunk| chunk[..8].copy_from_slice(&random.next().to_le_bytes()));
        file.write_all_at(buffer, at)
    })
    .with_context(context)?;
    file.sync_all().with_context(context)
}

/// Copies `size` bytes as a good copy does: past the page cache, several pieces at once, synced.
///
/// # Errors
/// When the disk fails.
pub(crate) fn copy(from: &Path, to: &Path, size: u64, way: Way) -> Result<()> {
    let context = || format!("cannot copy {} to {}", from.display(), to.display());
    let (from, to) = (open_direct(from)?, open_direct(to)?);
    in_pieces(size, way, |at, buffer| {
        from.read_exact_at(buffer, at)?;
        to.write_all_at(buffer, at)
    })
    .with_context(context)?;
    to.sync_data().with_context(context)
}

/// Whether the first `size` bytes of two files are the same.
///
/// # Errors
/// When the disk fails.
pub(crate) fn are_equal(one: &Path, other: &Path, size: u64) -> Result<bool> {
    let (one, other) = (open_direct(one)?, open_direct(other)?);
    let pool = pool()?;
    let (mut a, mut b) = (pool.take(PIECE), pool.take(PIECE));
    for at in (0..size).step_by(PIECE) {
        let len = piece_len(at, size, PIECE);
        one.read_exact_at(&mut a[..len], at)?;
        other.read_exact_at(&mut b[..len], at)?;
        if a[..len] != b[..len] {
            return Ok(false);
        }
    }
    Ok(true)
}

fn pool() -> Result<Arc<BufferPool>> {
    BufferPool::new(PoolConfig { max_io: PIECE, ..PoolConfig::default() }).context("no memory for buffers")
}

fn piece_len(at: u64, size: u64, piece: usize) -> usize {
    (size - at).min(piece as u64) as usize
}

fn in_pieces(
    size: u64,
    way: Way,
    work: impl Fn(u64, &mut [u8]) -> std::io::Result<()> + Sync,
) -> std::io::Result<()> {
    let pool = pool().map_err(std::io::Error::other)?;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..way.threads)
            .map(|thread| {
                let (pool, work) = (&pool, &work);
                scope.spawn(move || {
                    let mut buffer: Buffer = pool.take(way.piece);
                    let first = (thread * way.piece) as u64;
                    (first..size)
                        .step_by(way.threads * way.piece)
                        .try_for_each(|at| work(at, &mut buffer[..piece_len(at, size, way.piece)]))
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("a copy thread panicked"));
        joined.collect()
    })
}

/// A volume to be made.
#[derive(Clone, Debug)]
pub(crate) struct VolumeSpec {
    /// Its legs; the files exist and keep their contents.
    pub(crate) legs: Vec<PathBuf>,
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes; `None` is the default.
    pub(crate) region_size: Option<u64>,
    /// Its log.
    pub(crate) log: LogPlace,
    /// Every region is dirty: all legs but the first are to be resynced.
    pub(crate) dirty: bool,
}

impl VolumeSpec {
    /// A volume with the internal log whose legs are equal.
    pub(crate) fn new(legs: &[PathBuf], size: u64) -> VolumeSpec {
        VolumeSpec { legs: legs.to_vec(), size, region_size: None, log: LogPlace::Internal, dirty: false }
    }

    /// Makes legs of the files.
    ///
    /// # Errors
    /// When sizes do not fit or the disk fails.
    pub(crate) fn format(&self) -> Result<()> {
        let region_size = self.region_size.unwrap_or_else(|| Geometry::default_region_size(self.size));
        let regions = Geometry::new(self.size, region_size)?.regions();
        let layout = Layout::for_file(self.size, regions)?;
        let entry = |_: &PathBuf| LegEntry::new(Uuid::new_v4(), LegState::InSync);
        let mut superblock = Superblock {
            volume: Uuid::new_v4(),
            name: "bench".to_owned(),
            leg: Leg::new(0),
            legs: self.legs.iter().map(entry).collect(),
            size: self.size,
            region_size,
            log: self.log.clone(),
            log_identity: None,
            event_count: 1,
            lineage: Lineage::new(1, self.legs.len()),
            held: Held::default(),
            recent: None,
            leg_file: None,
            clean: true,
            equal: true,
            log_failed: false,
            created: 0,
            updated: 0,
        };
        let mode = if self.dirty { SyncMode::Sync } else { SyncMode::NoSync };
        let log = InternalLog::new(superblock.volume, region_size, regions, mode);
        for (index, path) in self.legs.iter().enumerate() {
            let context = || format!("cannot make a leg of {}", path.display());
            let file = File::options().read(true).write(true).open(path).with_context(context)?;
            // A leg from an earlier round may have had another layout.
            file.set_len(self.size).with_context(context)?;
            superblock.leg = Leg::new(index);
            format_leg(&file, &layout, &superblock, &log).with_context(context)?;
        }
        Ok(())
    }
}

/// Serves the volume on `legs` in this process, without a front end.
///
/// # Errors
/// As [`open`] and [`Volume::serve`].
pub(crate) fn serve(legs: &[PathBuf]) -> Result<Volume> {
    let opened = open(legs, &StartOptions { patience: Patience::SHORT, ..StartOptions::default() })?;
    let options = ServeOptions {
        mount: PathBuf::new(),
        front: FrontChoice::None,
        queues: None,
        depth: Some(64),
        own_mounts: false,
        threads_engine: false,
        allow_other: false,
        resync_rate: None,
        leg_timeout: None,
        latencies: false,
        spares: SparePolicy::Warn,
        log: LogOptions::default(),
        remote: RemoteOptions::default(),
    };
    Ok(Volume::serve(opened, options)?)
}
