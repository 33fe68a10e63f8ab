//! What the system lets this process have: descriptors, and how long a file may become.
//!
//! Both are checked before a volume is served or a leg is made, so that no limit of the process is met later, where it
//! would look like a fault of a leg.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mirrord_log::Backing;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::SIGXFSZ;

/// A file would be longer than this process may make files.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} {}: it ends at byte {end}, and this process may write up to byte {limit} of a file: raise the limit \
     (`ulimit -f unlimited`, or LimitFSIZE=infinity in a unit)", path.display()
)]
pub struct FileTooLong {
    /// Leg or log.
    what: &'static str,
    path: PathBuf,
    end: u64,
    limit: u64,
}

/// Too few descriptors for a volume.
#[derive(Debug, thiserror::Error)]
#[error(
    "this process may have {limit} files open, and the volume needs {need} with {queues} queues: raise the limit \
     (`ulimit -n {need}`, or LimitNOFILE={need} in a unit), or give fewer --queues"
)]
pub struct TooFewDescriptors {
    limit: u64,
    need: u64,
    queues: u64,
}

/// Refuses a `leg` or `log` that is a file and ends behind what this process may write.
///
/// # Errors
/// [`FileTooLong`].
pub fn check_file_size(
    what: &'static str,
    path: &Path,
    backing: Backing,
    end: u64,
) -> Result<(), FileTooLong> {
    match (backing, getrlimit(Resource::Fsize).current) {
        (Backing::File, Some(limit)) if end > limit => {
            Err(FileTooLong { what, path: path.to_owned(), end, limit })
        }
        _ => Ok(()),
    }
}

/// A write beyond the limit of file sizes is an error from now on, and does not end this process.
pub fn survive_long_files() {
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::<AtomicBool>::default());
}

/// As many descriptors as this process may have.
pub fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(errno) = setrlimit(Resource::Nofile, most) {
        tracing::debug!(%errno, "the limit of open files stays as it is");
    }
}

/// Descriptors of a daemon beside its legs, rings and front end: standard streams, signals, the control socket and all of
/// its connections with two each, metrics, the hook, the log and its server, locks, and what is open for a moment.
const OWN: u64 = 96;

/// Each queue: its ring, its wake-up, its part of the front end.
const PER_QUEUE: u64 = 8;

/// Each leg: for data, for metadata, for metadata under way; and for each ring.
const PER_LEG: u64 = 4;

/// Refuses to serve with fewer descriptors than may be needed. `legs`: as many as the volume has room for.
///
/// # Errors
/// [`TooFewDescriptors`].
pub fn check_descriptors(legs: usize, queues: usize) -> Result<(), TooFewDescriptors> {
    let (legs, queues) = (legs as u64, queues as u64);
    // The background worker has a ring, too.
    let rings = queues + 1;
    let need = OWN + rings * PER_QUEUE + legs * (PER_LEG + rings);
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < need => Err(TooFewDescriptors { limit, need, queues }),
        _ => Ok(()),
    }
}

/// Says something on standard error. That it cannot be said is no reason to end.
pub fn aside(text: &str) {
    let _ = writeln!(io::stderr(), "mirrord: {text}");
}
