//! A volume that is served as a block device, and how that ends.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::control::{Control, ControlError, Info};
use super::features::Features;
use super::queue::Stopping;
use super::users::users_stay;
use crate::front::{Engine, FrontEnd, FrontError, FrontKind, Shutdown};

/// How long the queues may take to let go of a device that was stopped.
const LET_GO: Duration = Duration::from_secs(10);

/// How long requests under way may take before a device is handed over all the same.
const QUIESCE: Duration = Duration::from_secs(20);

/// A volume served as a block device.
pub struct UblkFront {
    pub(super) control: Control,
    pub(super) info: Info,
    pub(super) path: PathBuf,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) stopping: Stopping,
    /// Set while the end of the queues is our doing.
    pub(super) ours: Arc<AtomicBool>,
    /// Disconnected when every queue has let go of the device.
    pub(super) ended: Receiver<()>,
    pub(super) watcher: Option<JoinHandle<()>>,
}

impl UblkFront {
    fn has_ended(&self, within: Duration) -> bool {
        self.ended.recv_timeout(within) == Err(RecvTimeoutError::Disconnected)
    }

    fn io_error(&self, error: ControlError) -> FrontError {
        FrontError::Io { path: self.path.clone(), source: io::Error::other(error) }
    }

    /// Takes the device away and deletes it.
    fn remove(&self) -> Result<(), FrontError> {
        self.control.stop().map_err(|error| self.io_error(error))?;
        if !self.has_ended(LET_GO) {
            tracing::warn!(path = %self.path.display(), "queues hold on to the device");
        }
        // Stopped it is of no use to anybody: what hinders its deletion is not the caller's trouble.
        if let Err(error) = self.control.delete() {
            tracing::warn!(path = %self.path.display(), %error, "a stopped device stays behind");
        }
        Ok(())
    }

    /// Leaves the device with its users waiting.
    fn hand_over(&self) -> Result<(), FrontError> {
        if !self.info.flags.has(Features::RECOVERY) {
            let why = "the device of a user without privilege goes with its daemon";
            return Err(FrontError::NoHandOver { path: self.path.clone(), why });
        }
        if self.info.flags.has(Features::QUIESCE) {
            match self.control.quiesce(QUIESCE) {
                Ok(()) if self.has_ended(LET_GO) => return Ok(()),
                Ok(()) => {}
                // Too late to turn back: IO waits by now.
                Err(error) => tracing::warn!(%error, "handing over without quiesce"),
            }
        }
        self.stopping.set();
        for queue in 0..self.engine.queues() {
            self.engine.nudge(queue);
        }
        if !self.has_ended(QUIESCE) {
            // The driver gives them to the next daemon, which does them again.
            tracing::warn!("handing over with requests under way");
        }
        Ok(())
    }
}

impl FrontEnd for UblkFront {
    fn kind(&self) -> FrontKind {
        FrontKind::Ublk
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn can_resize(&self) -> Result<(), FrontError> {
        if self.info.flags.has(Features::RESIZE) {
            return Ok(());
        }
        let why = if self.info.flags.has(Features::UNPRIVILEGED) {
            "the device of a user without privilege keeps its size; stop the volume, start it with --front fuse, \
             resize it, stop it and start it with --front ublk"
        } else {
            "the kernel's ublk driver cannot (Linux 6.16 can); stop the volume, start it with --front fuse, resize it, \
             stop it and start it with --front ublk"
        };
        Err(FrontError::NoResize { path: self.path.clone(), why })
    }

    fn resize(&self, size: u64) -> Result<(), FrontError> {
        self.can_resize()?;
        self.control.resize(self.info.id, size).map_err(|error| self.io_error(error))
    }

    fn shutdown(&mut self, how: Shutdown) -> Result<(), FrontError> {
        if self.watcher.is_none() {
            return Ok(());
        }
        if how == Shutdown::Clean && users_stay(&self.path) {
            return Err(FrontError::Busy { path: self.path.clone() });
        }
        self.ours.store(true, Ordering::SeqCst);
        let result = match how {
            Shutdown::HandOver => self.hand_over(),
            Shutdown::Clean | Shutdown::Force => self.remove(),
        };
        if let Err(error) = result {
            self.ours.store(false, Ordering::SeqCst);
            return Err(error);
        }
        if how == Shutdown::HandOver {
            let _ = self.control.release();
        }
        match self.watcher.take() {
            Some(watcher) if self.has_ended(Duration::ZERO) => drop(watcher.join()),
            _ => {}
        }
        Ok(())
    }
}

impl Drop for UblkFront {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown(Shutdown::Force) {
            tracing::error!(%error, "leaving a ublk device behind");
        }
    }
}

impl fmt::Debug for UblkFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UblkFront").field("path", &self.path).finish_non_exhaustive()
    }
}
