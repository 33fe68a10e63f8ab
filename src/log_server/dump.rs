//! What a disk log in a file or on a device says. Only reads, takes no lock: what a server writes meanwhile may be
//! seen half done.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use mirrord_log::wire::MAX_LOG_REGIONS;
use mirrord_log::{DirtyLog, DiskLog, SyncMode};
use mirrord_raid::SECTOR;
use mirrord_ublk::{ForeignError, open_foreign};

use super::report::{DiskLogDump, owner, ranges};

/// Bytes before the bits.
const HEAD: usize = 1024;

/// Regions in the header of a log that LVM has just made: whatever mirror uses it first has no more, and takes its bits as they
/// are.
const UNUSED: u64 = u64::MAX;

/// Why nothing can be said of a file.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is no disk log; `mirrord inspect` says what it is", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// It is longer than any log of a mirror.
    #[error("{} says that it has {regions} regions: no log has more than {MAX_LOG_REGIONS}", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// Regions in its header.
        regions: u64,
    },
}

/// Reads a disk log.
///
/// # Errors
/// See [`DumpError`].
pub fn dump(path: &Path) -> Result<DiskLogDump, DumpError> {
    let failed = |source| DumpError::Io { path: path.to_owned(), source };
    let file = open_foreign(path, false, 0).map_err(|error| match error {
        ForeignError::Kind(_) => DumpError::NotALog { path: path.to_owned() },
        ForeignError::Io(source) => failed(source),
    })?;
    let mut head = [0; HEAD];
    let have = read(&file, &mut head).map_err(failed)?;
    let regions = DiskLog::regions_of(&head[..have]);
    let regions = regions.ok_or_else(|| DumpError::NotALog { path: path.to_owned() })?;
    let is_unused = regions == UNUSED;
    let regions = if is_unused { 0 } else { regions };
    if regions > MAX_LOG_REGIONS {
        return Err(DumpError::TooMany { path: path.to_owned(), regions });
    }
    let mut log = DiskLog::new(SECTOR, regions as u32, SECTOR as u32, SyncMode::Default);
    let mut image = vec![0; log.io_size() as usize];
    if read(&file, &mut image).map_err(failed)? < image.len() {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    }
    let _ = log.resume(&[Some(&image)]);
    let (dirty, _) = ranges(log.dirty().map(|region| region.0), usize::MAX);
    let (owner, released) = owner(&image);
    let version = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let dirty_regions = log.dirty_count();
    Ok(DiskLogDump {
        path: path.to_owned(),
        version,
        regions: (!is_unused).then_some(regions as u32),
        dirty_regions,
        owner,
        released,
        dirty,
    })
}

/// As much as is there.
fn read(file: &File, into: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < into.len() {
        match file.read_at(&mut into[have..], have as u64)? {
            0 => break,
            len => have += len,
        }
    }
    Ok(have)
}
