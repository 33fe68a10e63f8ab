//! A leg that was split off, opened to be read and for nothing else: not even its metadata is written.
//!
//! It is locked like any leg in use, so a merge meanwhile is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mirrord_log::{ReadLegError, Superblock, measure, read_leg};
use mirrord_raid::LegState;
use mirrord_ublk::{ForeignError, LegFile};

use crate::leg::{Holder, LOCK_PATIENCE, LegError, lock_waiting, open_to_read};

/// Why it cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SplitLegError {
    /// It cannot be opened, or somebody has it.
    #[error(transparent)]
    Leg(#[from] LegError),
    /// Its metadata cannot be used.
    #[error("leg {}: {source}", path.display())]
    Metadata {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: ReadLegError,
    },
    /// It is a leg like others.
    #[error("leg {}: it is not split off: only such a leg stays as it is", path.display())]
    NotSplit {
        /// The leg.
        path: PathBuf,
    },
}

/// See the module's documentation.
#[derive(Debug)]
pub struct SplitLeg {
    pub(crate) path: PathBuf,
    pub(crate) data: Arc<LegFile>,
    pub(crate) superblock: Superblock,
}

impl SplitLeg {
    /// Opens and locks the leg at `path`.
    ///
    /// # Errors
    /// See [`SplitLegError`].
    pub fn open(path: &Path) -> Result<SplitLeg, SplitLegError> {
        let failed = |source| LegError::Io { path: path.to_owned(), source };
        let data = LegFile::open_read_only(path).map_err(|error| match error {
            ForeignError::Kind(kind) => LegError::Kind { path: path.to_owned(), kind },
            ForeignError::Io(source) if source.kind() == std::io::ErrorKind::ResourceBusy => {
                LegError::InUse { path: path.to_owned(), holder: Holder::Unknown }
            }
            ForeignError::Io(source) => failed(source),
        })?;
        if let Some(holder) = lock_waiting(data.file(), LOCK_PATIENCE).map_err(failed)? {
            return Err(LegError::InUse { path: path.to_owned(), holder }.into());
        }
        let meta = open_to_read(path)?;
        let (backing, len) = measure(&meta).map_err(failed)?;
        let metadata = read_leg(&meta, backing, len)
            .map_err(|source| SplitLegError::Metadata { path: path.to_owned(), source })?;
        let superblock = metadata.superblock;
        if superblock.legs[superblock.leg.index()].state != LegState::Tracked {
            return Err(SplitLegError::NotSplit { path: path.to_owned() });
        }
        let path = std::path::absolute(path).map_err(failed)?;
        Ok(SplitLeg { path, data: Arc::new(data), superblock })
    }

    /// Size of the volume as it was, in bytes.
    pub fn size(&self) -> u64 {
        self.superblock.size
    }
}
