//! A volume for the tests of other programs: made in a folder of its own, served as a file by this process, gone when
//! it is dropped. Needs FUSE as `mirrord create` does, no daemon and no directory of mirrord's.
//!
//! Whoever opens the file must close it before the fixture is dropped, or gets errors from then on.

use std::path::{Path, PathBuf};

use mirrord_log::LogPlace;
use mirrord_ublk::Shutdown;
use tempfile::TempDir;

use crate::create::{CreateError, CreateOptions, create};
use crate::engine::{
    FrontChoice, LogOptions, RemoteOptions, ServeError, ServeOptions, SparePolicy, StopError, Volume,
};
use crate::paths::Dirs;
use crate::registry::ServeChoice;
use crate::start::{StartError, StartOptions, open};

/// Name of the volume.
const NAME: &str = "test";

/// A volume of a test.
pub struct TestVolume {
    volume: Volume,
    path: PathBuf,
    legs: Vec<PathBuf>,
    /// Removed when this is dropped, after the volume was stopped.
    _folder: TempDir,
}

/// Why there is no volume.
#[derive(Debug, thiserror::Error)]
pub enum TestVolumeError {
    /// No folder for it.
    #[error("cannot make a folder for a test's volume")]
    Folder(#[source] std::io::Error),
    /// It cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// Its legs make no volume.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It cannot be served: there is no FUSE, most often, of which `mirrord doctor` says more.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl TestVolume {
    /// A volume of `size` bytes, a multiple of 4096, with so many legs (2 to 8), sparse and in sync, in a new folder in
    /// the directory for temporary files.
    ///
    /// # Errors
    /// See [`TestVolumeError`].
    pub fn create(size: u64, legs: usize) -> Result<TestVolume, TestVolumeError> {
        let folder =
            tempfile::Builder::new().prefix("mirrord-").tempdir().map_err(TestVolumeError::Folder)?;
        let dirs = Dirs::new(folder.path().join("run"), folder.path().join("state"));
        let created = create(
            &dirs,
            &CreateOptions {
                legs: (0..legs).map(|index| folder.path().join(format!("leg-{index}.img"))).collect(),
                size: Some(size),
                name: Some(NAME.to_owned()),
                log: LogPlace::Internal,
                region_size: None,
                preallocate: false,
                assume_clean: false,
                source: None,
                adopt_log: false,
                force: false,
                serve: ServeChoice::default(),
            },
        )?;
        let options = ServeOptions {
            mount: folder.path().join("volume"),
            front: FrontChoice::Fuse,
            queues: None,
            depth: None,
            threads_engine: false,
            allow_other: false,
            own_mounts: false,
            resync_rate: None,
            leg_timeout: None,
            latencies: false,
            spares: SparePolicy::default(),
            log: LogOptions::default(),
            remote: RemoteOptions::default(),
        };
        let volume = Volume::serve(open(&created.legs, &StartOptions::default())?, options)?;
        let path = volume.status().device;
        Ok(TestVolume { volume, path, legs: created.legs, _folder: folder })
    }

    /// The file that is the volume.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its legs by index: plain files whose first bytes are the volume, to be looked at once it is stopped.
    pub fn legs(&self) -> &[PathBuf] {
        &self.legs
    }

    /// The volume itself: how it is, legs that fail, are split off, come back.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Stops it with everything flushed and recorded. The legs stay until this is dropped.
    ///
    /// # Errors
    /// [`StopError::Front`] while the file is in use: it is still served.
    pub fn stop(&self) -> Result<(), StopError> {
        self.volume.stop(Shutdown::Clean)
    }
}

impl Drop for TestVolume {
    fn drop(&mut self) {
        if let Err(error) = self.volume.stop(Shutdown::Force) {
            tracing::error!(%error, path = %self.path.display(), "a test's volume does not stop");
        }
    }
}
