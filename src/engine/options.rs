//! How to serve a volume, and why it cannot be served or stopped.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirrord_log::LogPlace;
use mirrord_raid::Errno;
use mirrord_ublk::ublk::UblkError;
use mirrord_ublk::{FrontError, FuseError};

use crate::limits::TooFewDescriptors;
use crate::log_file::LogFileError;
use crate::remote::RemoteError;
use crate::tls::TlsFiles;

/// Which front end to serve through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FrontChoice {
    /// The best one there is.
    #[default]
    Auto,
    /// A file through FUSE.
    Fuse,
    /// A block device through ublk.
    Ublk,
    /// None: requests come through [`Volume::engine`] (benchmarks, programs that embed a volume).
    None,
}

/// How to serve a volume.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The file that becomes the volume.
    pub mount: PathBuf,
    /// Which front end.
    pub front: FrontChoice,
    /// Queues, each a thread; `None`: by the number of processors.
    pub queues: Option<u16>,
    /// Requests in flight per queue; `None`: what fits the front end.
    pub depth: Option<u32>,
    /// Do leg IO with a pool of threads instead of io_uring.
    pub threads_engine: bool,
    /// Let other users reach the FUSE file.
    pub allow_other: bool,
    /// With ublk, give this process mounts of its own. For a daemon, which calls [`Volume::serve`] on the
    /// main thread before it starts others.
    pub own_mounts: bool,
    /// Resync at most so many bytes per second.
    pub resync_rate: Option<u64>,
    /// A leg that takes longer over an IO is given up; zero: never. `None`: never, unless the kernel would not wait.
    pub leg_timeout: Option<Duration>,
    /// Take the time of every request, for [`Volume::latencies`].
    pub latencies: bool,
    /// What spares are for.
    pub spares: SparePolicy,
    /// Where the log is, if not where the legs say.
    pub log: LogOptions,
    /// How a log that a server keeps is used.
    pub remote: RemoteOptions,
}

/// Where the log is, if not where the legs say. Paths are absolute.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// It was moved here.
    pub at: Option<LogPlace>,
    /// It begins anew here.
    pub new: Option<LogPlace>,
    /// A log that begins anew may overwrite what is there.
    pub force: bool,
}

/// How a log that a server keeps is used.
#[derive(Clone, Debug, Default)]
pub struct RemoteOptions {
    /// Certificates, if the server wants some.
    pub tls: Option<TlsFiles>,
    /// What happens while the server is away.
    pub fallback: LogFallback,
    /// Take the log from whoever has it.
    pub take_over: bool,
    /// Told if the log has to be waited for.
    pub tell: Option<fn(&str)>,
}

/// What happens while a log server is away.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum LogFallback {
    /// A write to a region that is not dirty waits for it.
    #[default]
    Wait,
    /// The volume goes on as with a log in memory: a crash meanwhile costs a whole resync.
    Core,
}

/// What happens when a leg fails and there is a spare.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum SparePolicy {
    /// The spare takes the leg's place at once.
    #[default]
    Allocate,
    /// Nothing but the event that tells of it.
    Warn,
}

fn first_of(legs: &[(PathBuf, Errno)]) -> (&Path, Errno) {
    legs.first().map_or((Path::new(""), Errno::EIO), |(path, errno)| (path, *errno))
}

/// Why a volume cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A daemon that died left a device behind whose users wait for the next one.
    #[error(
        "{} is this volume's and waits for its daemon: serve it there (--front ublk), or take it away from its \
         users with `mirrord stop NAME --force` first", path.display()
    )]
    DeviceWaits {
        /// The device.
        path: PathBuf,
    },
    /// The ublk front end could not start.
    #[error(transparent)]
    Ublk(#[from] UblkError),
    /// A leg needs larger blocks than the volume has.
    #[error(
        "leg {} needs IO in blocks of {block_size} bytes, and the volume's size or region size is no \
         multiple of that: move the leg to a file system or device with smaller blocks", path.display()
    )]
    BlockSize {
        /// The leg.
        path: PathBuf,
        /// What it needs, in bytes.
        block_size: u32,
    },
    /// A leg was written to behind our back.
    #[error(
        "leg {}: it was written to while it was not served (it was mounted, perhaps): the legs are not equal any more; \
         start with --source naming the leg whose data to take, which is copied to the others", path.display()
    )]
    WrittenTo {
        /// The leg.
        path: PathBuf,
    },
    /// Legs that ought to be equal are not.
    #[error(
        "legs {} and {} differ at byte {offset}, where the log says that they are equal: one of them was written to \
         while it was not served, or lost something; look at both (mount -o loop,ro), then start with --source naming \
         the one to keep, which is copied to the others", one.display(), other.display()
    )]
    Differ {
        /// A leg.
        one: PathBuf,
        /// Another.
        other: PathBuf,
        /// Where, in bytes.
        offset: u64,
    },
    /// The disk log cannot be had, or is none of this volume.
    #[error("{source}{}", log_way_out(name, source, *is_new))]
    Log {
        /// The volume's name.
        name: String,
        /// Why.
        #[source]
        source: LogFileError,
        /// It was to begin anew there.
        is_new: bool,
    },
    /// `--log` names a log of another kind.
    #[error(
        "--log {given}: the volume's log is {kind}, and --log only says where a disk or remote log is by now: \
         --new-log begins another one"
    )]
    LogKind {
        /// What was given.
        given: String,
        /// What the volume has.
        kind: &'static str,
    },
    /// The log server does not give the log.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// This process may have too few files open.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// A thread, ring or buffer could not be had.
    #[error("cannot start the engine")]
    Engine(#[source] io::Error),
    /// Legs do not take the log. The volume can do without, if that is allowed.
    #[error("leg {}: its log cannot be written: {}", first_of(legs).0.display(), first_of(legs).1)]
    Unwritable {
        /// Which, and why; at least one.
        legs: Vec<(PathBuf, Errno)>,
    },
    /// The superblocks could not be written.
    #[error("cannot record on the legs that the volume is in use")]
    Record(#[source] io::Error),
    /// The FUSE front end could not start.
    #[error(transparent)]
    Fuse(#[from] FuseError),
}

fn log_way_out(name: &str, error: &LogFileError, is_new: bool) -> String {
    match (error, is_new) {
        (LogFileError::InUse { .. } | LogFileError::TooSmall { .. } | LogFileError::TooLong(_), _) => {
            String::new()
        }
        (LogFileError::Foreign { .. }, true) => {
            "; name another place, or give --force to overwrite it".to_owned()
        }
        (_, true) => "; name another place".to_owned(),
        (_, false) => format!(
            "; if the log was moved, `mirrord start {name} --log disk:PATH` names it; if it is lost, `mirrord start \
             {name} --new-log disk:PATH` (or internal, or core) begins a new one, and after an unclean stop every \
             region is copied"
        ),
    }
}

/// Why a volume did not stop.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The front end did not stop; the volume is still served.
    #[error(transparent)]
    Front(#[from] FrontError),
}
