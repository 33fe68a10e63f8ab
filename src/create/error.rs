//! Why a volume cannot be created. Each says what is in the way and, where there is one, the way out.

use std::io;
use std::path::PathBuf;

use mirrord_log::{FormatLegError, LayoutError};
use mirrord_raid::{GeometryError, MAX_LEGS};

use crate::leg::LegError;
use crate::limits::FileTooLong;
use crate::log_file::LogFileError;
use crate::paths::{BadName, PathsError};
use crate::registry::RegistryError;
use crate::remote::RemoteError;
use crate::units::format_size;

/// Why a volume cannot be created. Paths are as they were given.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Fewer than two legs, or more than there can be.
    #[error("a volume has 2 to {MAX_LEGS} legs, not {count}")]
    LegCount {
        /// How many were given.
        count: usize,
    },
    /// A leg cannot be opened.
    #[error(transparent)]
    Leg(#[from] LegError),
    /// A leg is not there, and it is not said how large it should be.
    #[error("leg {}: there is no such file; give --size{} to have it created", path.display(), size_hint(*other))]
    MissingLeg {
        /// The leg.
        path: PathBuf,
        /// The size of the smallest leg that is there, in bytes.
        other: Option<u64>,
    },
    /// A leg cannot be created, or a file cannot be looked at or changed.
    #[error("{}: cannot {verb}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What could not be done.
        verb: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nothing says how large the volume should be.
    #[error("leg {}: it is empty; give --size", path.display())]
    EmptyLeg {
        /// The leg.
        path: PathBuf,
    },
    /// A device is too small for the volume and its metadata.
    #[error("leg {}: a volume of {} does not fit: it has room for {}", path.display(), format_size(*size), format_size(*room))]
    TooSmall {
        /// The leg.
        path: PathBuf,
        /// Size of the volume in bytes.
        size: u64,
        /// What it has room for in bytes.
        room: u64,
    },
    /// Something is on a leg or log already.
    #[error("{what} {}: it holds {name} (at byte {offset}), which would be overwritten; {way_out}", path.display())]
    Signature {
        /// Leg or log.
        what: &'static str,
        /// The leg.
        path: PathBuf,
        /// What is on it.
        name: String,
        /// Where its magic is.
        offset: u64,
        /// What to do.
        way_out: String,
    },
    /// What is on it is not known, but it would be gone.
    #[error("leg {}: it holds data, which would be overwritten; {way_out}", path.display())]
    HoldsData {
        /// The leg.
        path: PathBuf,
        /// What to do.
        way_out: String,
    },
    /// Data lies where the metadata goes, or past the volume's end.
    #[error(
        "leg {}: it holds data past byte {size}, where the volume ends and its metadata begins; \
         give a --size that covers it, or --force to lose what is there", path.display()
    )]
    DataInTail {
        /// The leg.
        path: PathBuf,
        /// Size of the volume in bytes.
        size: u64,
    },
    /// A device whose content is to be kept loses its end to the metadata.
    #[error(
        "leg {}: its content is to be kept, but the last {} of the device are needed for metadata; shrink \
         what is on it and give --size (at most {usable}), or --force if nothing is there", path.display(), format_size(*needed)
    )]
    SourceDevice {
        /// The leg.
        path: PathBuf,
        /// Bytes taken from the end.
        needed: u64,
        /// The largest volume that fits, in bytes.
        usable: u64,
    },
    /// Several legs hold data and nothing says which is right.
    #[error(
        "legs {} and {} both hold data: name the one to keep with --source, say --assume-clean if they are \
         equal, or --force to take the first", one.display(), other.display()
    )]
    WhichSource {
        /// One.
        one: PathBuf,
        /// Another.
        other: PathBuf,
    },
    /// `--source` names none of the legs.
    #[error("--source {name}: it is not one of the legs")]
    Source {
        /// What was given.
        name: String,
    },
    /// Size or region size cannot be used.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The size is not a multiple of what a leg can write.
    #[error("volume size {size} is not a multiple of {block} bytes, the block size of leg {}", path.display())]
    BlockSize {
        /// Size of the volume in bytes.
        size: u64,
        /// The leg's unit of IO in bytes.
        block: u32,
        /// The leg.
        path: PathBuf,
    },
    /// Metadata does not fit.
    #[error("leg {}: no room for metadata", path.display())]
    Layout {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// The file system of a leg or log is full.
    #[error(
        "{}: its file system has {} free and {} are needed; free some space or put it elsewhere",
        path.display(), format_size(*free), format_size(*need)
    )]
    NoSpace {
        /// The leg or log.
        path: PathBuf,
        /// Bytes needed on that file system.
        need: u64,
        /// Bytes free there.
        free: u64,
    },
    /// A leg would be longer than this process may make files.
    #[error(transparent)]
    TooLong(#[from] FileTooLong),
    /// The log server does not give a log.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// `--adopt-log` without what a log does not say.
    #[error(
        "--adopt-log: a log says neither how large its regions are nor which leg is right: give \
         --region-size and --source too"
    )]
    AdoptNeeds,
    /// `--adopt-log` for a log that is not on disk.
    #[error("--adopt-log: it takes over a --log disk:PATH that is there already")]
    AdoptWhat,
    /// There is no log that could be adopted.
    #[error("log {}: it is not the log of a mirror like this: {why}; without --adopt-log a new one is made", path.display())]
    NoSuchLog {
        /// The log.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The log is one of the legs.
    #[error("--log disk:{}: it is leg {}; the log needs a file or device of its own", path.display(), leg.display())]
    LogIsLeg {
        /// The log.
        path: PathBuf,
        /// The leg.
        leg: PathBuf,
    },
    /// The log's file or device cannot be used.
    #[error("{0}; name another")]
    LogFile(#[from] LogFileError),
    /// A path that the superblock cannot hold.
    #[error("log {}: its path is longer than {} bytes", path.display(), mirrord_log::MAX_PLACE)]
    LogPathTooLong {
        /// The log.
        path: PathBuf,
    },
    /// The mount point is a leg or the log, or what is there would be hidden.
    #[error("--mount {}: it is {what}; name a new or empty file", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Not a name.
    #[error("--name {name:?}: {source}")]
    BadName {
        /// What was given.
        name: String,
        /// What a name is.
        #[source]
        source: BadName,
    },
    /// A volume of that name is served.
    #[error("volume {name} is running; stop it first, or choose another --name")]
    NameRunning {
        /// The name.
        name: String,
    },
    /// A volume of that name exists.
    #[error(
        "there is a volume {name} already, with leg {}; start it with `mirrord start {name}`, or choose \
         another --name", leg.display()
    )]
    NameKnown {
        /// The name.
        name: String,
        /// One of its legs.
        leg: PathBuf,
    },
    /// A directory of mirrord cannot be used.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// What is known of volumes cannot be read.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Writing metadata failed.
    #[error("leg {}", path.display())]
    Format {
        /// The leg.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatLegError,
    },
}

fn size_hint(other: Option<u64>) -> String {
    other.map_or(String::new(), |bytes| format!(" (the smallest leg that is there has {bytes})"))
}
