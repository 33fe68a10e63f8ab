//! The FUSE front end: one file that is the volume.
//!
//! Owns the mount and the session. Guarantees: the mount point is a regular file that was empty or
//! absent, so nothing is hidden; nothing is buffered between a client's write and the engine, so a
//! killed daemon loses no acknowledged write; a clean shutdown refuses while the file is in use and
//! then goes on serving. Requests are read by the engine's queue threads, each from a descriptor of its
//! own ([`Source`]), and answered by them; the one thread started here sleeps until the session ends.

mod attributes;
mod device;
mod point;
mod range;
mod source;
#[cfg(test)]
mod tests;
mod volume;
mod wire;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::buffer::BufferPool;
use crate::front::{Engine, FrontEnd, FrontError, FrontKind, Shutdown, Source, TRIES, TRY_AGAIN};
use crate::{Spawn, Task};
use attributes::Attributes;
use device::Device;
pub(crate) use device::Reply;
pub use point::clear_dead_mount;
use point::{How, Point, abort_connection, device_of, unmount_at};
use source::FuseSource;
use volume::Volume;

/// How long an unmounted session may take to end: longer, and another mount name space holds it.
const END: Duration = Duration::from_secs(5);

/// The same where the users were cut off: nothing depends on it any more.
const END_CUT: Duration = Duration::from_millis(500);

/// How to serve a volume.
pub struct FuseOptions {
    /// The file to mount on: empty, or absent and then created (and removed at the end).
    pub mount: PathBuf,
    /// The volume's name, for the list of mounts.
    pub name: String,
    /// Bytes; a multiple of `block_size`.
    pub size: u64,
    /// Bytes; a power of two from 512 to 4096.
    pub block_size: u32,
    /// Largest request in bytes; the kernel's limit is 1 MiB.
    pub max_io: u32,
    /// Let other users reach the file; its mode (0600 at first) still applies to them. Without it
    /// not even root can, so `losetup` by root on a user's volume needs it.
    pub allow_other: bool,
    /// Refuse writes.
    pub read_only: bool,
    /// Starts the thread that waits for the end of the session.
    pub spawn: Spawn,
    /// Called on that thread if the file was unmounted by somebody else.
    pub on_unmounted: Option<Task>,
}

impl fmt::Debug for FuseOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuseOptions")
            .field("mount", &self.mount)
            .field("name", &self.name)
            .field("size", &self.size)
            .field("block_size", &self.block_size)
            .finish_non_exhaustive()
    }
}

/// Why a volume cannot be served through FUSE.
#[derive(Debug, thiserror::Error)]
pub enum FuseError {
    /// What is at the mount point would be hidden by the volume.
    #[error("{} is not an empty regular file: mounting there would hide it; name a new or empty file", path.display())]
    NotEmptyFile {
        /// The mount point.
        path: PathBuf,
    },
    /// The mount point cannot be looked at or made.
    #[error("cannot use {} as a mount point", path.display())]
    Point {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// FUSE is not there.
    #[error("cannot use {}: load the module fuse, install fuse3, or pass /dev/fuse to the container", path.display())]
    Device {
        /// The device or helper program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// This process may not mount, and nobody does it for it.
    #[error(
        "cannot mount on {}: that needs CAP_SYS_ADMIN (--cap-add SYS_ADMIN for a container) or the program {helper} \
         (package fuse3), and there is neither", path.display()
    )]
    MayNotMount {
        /// The mount point.
        path: PathBuf,
        /// The setuid program that was looked for.
        helper: &'static str,
    },
    /// Mounting was refused.
    #[error("cannot mount on {}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel and this daemon do not agree on the protocol, or no thread could be started.
    #[error("cannot start the FUSE session")]
    Session(#[source] io::Error),
}

/// A volume served as a file.
pub struct FuseFront {
    point: Point,
    /// Device number of the mount.
    device: (u32, u32),
    volume: Arc<Volume>,
    /// Gone with the session: were it held here, users could not be cut off.
    connection: Weak<Device>,
    /// Set while the end of the session is our doing.
    stopping: Arc<AtomicBool>,
    /// Set for good when the users are cut off.
    cut: Arc<AtomicBool>,
    /// Disconnected when the session has ended.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl FuseFront {
    /// Serves the volume behind `engine` as the file `options.mount`. A mount left there by a
    /// daemon that was killed is cleared first.
    ///
    /// # Errors
    /// See [`FuseError`].
    ///
    /// # Panics
    /// If sizes are not as [`FuseOptions`] says.
    pub fn mount(
        options: FuseOptions,
        engine: Arc<dyn Engine>,
        pool: Arc<BufferPool>,
    ) -> Result<FuseFront, FuseError> {
        let block = options.block_size;
        assert!(block.is_power_of_two() && (512..=4096).contains(&block));
        assert!(options.size > 0 && options.size.is_multiple_of(u64::from(block)) && options.max_io >= block);
        let point = Point::prepare(&options.mount)?;
        let volume = Volume {
            pool,
            size: options.size.into(),
            block: block.into(),
            max_io: options.max_io,
            read_only: options.read_only,
            attributes: Attributes::new(block, if options.read_only { 0o444 } else { 0o600 }),
            cut: Arc::default(),
        };
        let device = match point.mount(&options.name, options.allow_other, options.read_only) {
            Ok(device) => device,
            Err(error) => {
                point.remove();
                return Err(error);
            }
        };
        FuseFront::start(point, device, volume, options, engine.as_ref())
    }

    fn start(
        point: Point,
        device: std::os::fd::OwnedFd,
        volume: Volume,
        options: FuseOptions,
        engine: &dyn Engine,
    ) -> Result<FuseFront, FuseError> {
        // Dropping the device kills the connection; what is left of the mount goes with this.
        let undo = |point: &Point, error: io::Error| {
            let _ = unmount_at(&point.path, How::Lazy);
            point.remove();
            FuseError::Session(error)
        };
        let first = Device::start(device, options.max_io).map_err(|error| undo(&point, error))?;
        let device = device_of(&point.path).map_err(|error| undo(&point, error))?;
        let (cut, volume, first) = (Arc::clone(&volume.cut), Arc::new(volume), Arc::new(first));
        let (session, closed) = channel::<()>();
        let connection = Arc::downgrade(&first);
        let sources = sources(first, Arc::clone(&volume), engine.queues(), session);

        let stopping = Arc::new(AtomicBool::new(false));
        let (end, ended) = channel::<()>();
        let path = point.path.clone();
        let stopped = Arc::clone(&stopping);
        let on_unmounted = options.on_unmounted;
        let body = move || {
            // Nobody sends: this returns when the last source is gone.
            let _ = closed.recv();
            drop(end);
            if stopped.load(Ordering::SeqCst) {
                return;
            }
            // The connection may have been aborted rather than unmounted.
            if let Err(error) = clear_dead_mount(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot clear the dead mount");
            }
            if let Some(call) = on_unmounted {
                call();
            }
        };
        let thread = (options.spawn)("mirrord-fuse".to_owned(), Box::new(body))
            .map_err(|error| undo(&point, error))?;
        for (queue, source) in sources.into_iter().enumerate() {
            engine.serve(queue, source);
        }
        Ok(FuseFront { point, device, volume, connection, stopping, cut, ended, thread: Some(thread) })
    }

    /// Whether our mount is what `path` leads to.
    fn is_mounted(&self) -> bool {
        device_of(&self.point.path).is_ok_and(|device| device == self.device)
    }

    fn has_ended(&self, within: Duration) -> bool {
        self.ended.recv_timeout(within) == Err(RecvTimeoutError::Disconnected)
    }

    fn unmount_clean(&self) -> Result<(), FrontError> {
        let path = || self.point.path.clone();
        for _ in 0..TRIES {
            match self.is_mounted().then(|| unmount_at(&self.point.path, How::Clean)) {
                Some(Err(error)) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(TRY_AGAIN);
                }
                Some(Err(source)) => return Err(FrontError::Io { path: path(), source }),
                Some(Ok(())) | None if self.has_ended(END) => return Ok(()),
                Some(Ok(())) | None => break,
            }
        }
        Err(FrontError::Busy { path: path() })
    }

    /// Never leaves a user in touch with the engine, whatever else goes wrong.
    fn unmount_by_force(&self) -> Result<(), FrontError> {
        self.cut.store(true, Ordering::SeqCst);
        if self.is_mounted() {
            unmount_at(&self.point.path, How::Force)
                .map_err(|source| FrontError::Io { path: self.point.path.clone(), source })?;
        }
        // Whoever has it still, for instance through another name space.
        let _ = abort_connection(self.device.1);
        Ok(())
    }
}

/// A source for each queue: with a descriptor of its own or, where this process may not open the device
/// (the helper that mounted may), sharing the first.
fn sources(
    first: Arc<Device>,
    volume: Arc<Volume>,
    queues: usize,
    session: Sender<()>,
) -> Vec<Box<dyn Source>> {
    let mut sources: Vec<Box<dyn Source>> = Vec::with_capacity(queues);
    for queue in 0..queues {
        let own = if queue == 0 { None } else { first.another().ok().map(Arc::new) };
        let device = own.unwrap_or_else(|| Arc::clone(&first));
        sources.push(Box::new(FuseSource::new(device, Arc::clone(&volume), session.clone())));
    }
    sources
}

impl FrontEnd for FuseFront {
    fn kind(&self) -> FrontKind {
        FrontKind::Fuse
    }

    fn path(&self) -> &Path {
        &self.point.path
    }

    fn can_resize(&self) -> Result<(), FrontError> {
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<(), FrontError> {
        self.volume.size.store(size, Ordering::Release);
        let failed = |source| FrontError::Io { path: self.point.path.clone(), source };
        let Some(connection) = self.connection.upgrade() else { return Ok(()) };
        connection.attributes_changed().map_err(failed)?;
        // Loop devices go by what the kernel was last told, so it is made to ask.
        statx(CWD, &self.point.path, AtFlags::STATX_FORCE_SYNC, StatxFlags::SIZE)
            .map_err(|e| failed(e.into()))?;
        Ok(())
    }

    fn shutdown(&mut self, how: Shutdown) -> Result<(), FrontError> {
        if self.thread.is_none() {
            return Ok(());
        }
        self.stopping.store(true, Ordering::SeqCst);
        let result = match (self.has_ended(Duration::ZERO), how) {
            (true, _) => Ok(()),
            (false, Shutdown::Clean) => self.unmount_clean(),
            (false, Shutdown::Force) => self.unmount_by_force(),
            (false, Shutdown::HandOver) => Err(FrontError::NoHandOver {
                path: self.point.path.clone(),
                why: "a file served through FUSE goes with its daemon",
            }),
        };
        if let Err(error) = result {
            self.stopping.store(false, Ordering::SeqCst);
            return Err(error);
        }
        match self.thread.take() {
            Some(thread) if self.has_ended(END_CUT) => {
                if thread.join().is_err() {
                    tracing::error!("the FUSE session thread panicked");
                }
            }
            // Without privilege users cannot be made to let go; they only get errors.
            _ => tracing::warn!(path = %self.point.path.display(), "still held open by those cut off"),
        }
        self.point.remove();
        Ok(())
    }
}

impl Drop for FuseFront {
    fn drop(&mut self) {
        if let Err(error) = self.shutdown(Shutdown::Force) {
            tracing::error!(%error, "leaving a FUSE mount behind");
        }
    }
}

impl fmt::Debug for FuseFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FuseFront").field("path", &self.point.path).finish_non_exhaustive()
    }
}
