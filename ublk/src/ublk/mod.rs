//! The ublk front end: the volume as a block device, `/dev/ublkbN`.
//!
//! [`UblkDevice::prepare`] adds a device to the kernel, or finds the one that an earlier daemon of the volume
//! left behind; that one's queues and depth then hold. [`UblkDevice::serve`] has the engine's queues fetch
//! from it and lets users in. Guarantees: one queue of the engine serves one queue of the device; a device
//! that was added and not served is deleted; a request under way when the daemon dies is given whole to the
//! next one (`UBLK_F_USER_RECOVERY_REISSUE`); users see an error only if the device is taken away.
//!
//! Data is copied between users and daemon by the driver ("copy mode"): the modes without a copy write the
//! user's own pages to the legs one after the other, and a user who changes them meanwhile makes the legs
//! differ for ever.

mod command;
mod control;
mod device;
mod features;
mod front;
mod queue;
mod users;

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use mirrord_raid::Errno;

use crate::Spawn;
pub use control::ControlError;
use control::{CONTROL, Control, Info, State, control_device};
pub use device::UblkDevice;
pub use features::Features;
pub use front::UblkFront;
pub(crate) use queue::Answer;
use users::users_stay;

/// How long the queues may take to fetch: far longer than they do on a machine that is very busy.
const FETCH_PATIENCE: Duration = Duration::from_secs(60);
/// How long a device node may take to be there.
const NODE_PATIENCE: Duration = Duration::from_secs(10);

/// The device to serve a volume as. Sizes in bytes.
pub struct UblkOptions {
    /// Marks the volume's device, so that a later daemon finds it: the volume's UUID.
    pub volume: [u8; 16],
    /// Of the volume; a multiple of `block_size`.
    pub size: u64,
    /// Smallest request: a power of two from 512 to 4096.
    pub block_size: u32,
    /// What the legs like best: a power of two, at least `block_size`.
    pub physical_block_size: u32,
    /// No request but a discard crosses a border of regions.
    pub region_size: u64,
    /// Nobody may write to it. It goes with its daemon.
    pub read_only: bool,
    /// Largest request; a multiple of 4096.
    pub max_io: u32,
    /// Queues.
    pub queues: u16,
    /// Requests in flight per queue.
    pub depth: u16,
    /// Starts the threads of the front end.
    pub spawn: Spawn,
}

impl fmt::Debug for UblkOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UblkOptions")
            .field("size", &self.size)
            .field("block_size", &self.block_size)
            .field("queues", &self.queues)
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

/// Why a volume cannot be served through ublk.
#[derive(Debug, thiserror::Error)]
pub enum UblkError {
    /// No driver.
    #[error("the kernel's ublk driver is not loaded: modprobe ublk_drv (as root)")]
    NoDriver,
    /// A driver that this user may not use.
    #[error(
        "no permission to use {CONTROL}: run as root, or install mirrord's udev rule so that users may have devices"
    )]
    NoPermission,
    /// The driver refused or does not answer.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The driver cannot do what is needed.
    #[error("the kernel's ublk driver cannot {0}")]
    Lacks(&'static str),
    /// The volume's device is served.
    #[error("{} is the volume's device and process {pid} serves it", path.display())]
    Served {
        /// The device.
        path: PathBuf,
        /// Its daemon.
        pid: i32,
    },
    /// The volume's device is in use.
    #[error("{} is in use", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// The volume's device, which waits for a daemon, does not fit the volume.
    #[error(
        "{} is the volume's device and waits for its daemon, but {why}; `mirrord stop --force` takes it away",
        path.display()
    )]
    DoesNotFit {
        /// The device.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// A device node, queue or thread could not be had.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl UblkError {
    fn io(doing: &'static str) -> impl Fn(io::Error) -> UblkError {
        move |source| UblkError::Io { doing, source }
    }
}

/// The block device of number `id`.
fn block_path(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// What the driver is asked to keep beside a device, to know it by.
fn mark_of(volume: [u8; 16]) -> u64 {
    let (front, back) = volume.split_at(8);
    let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("half of 16 bytes"));
    half(front) ^ half(back).rotate_left(1)
}

/// What the driver can do; `None` where it is too old to tell (before Linux 6.5).
///
/// # Errors
/// See [`UblkError`]: there is none, or this process may not talk to it.
pub fn features(spawn: &Spawn) -> Result<Option<Features>, UblkError> {
    Ok(connect(spawn)?.features()?)
}

/// Who may have device `id`: user and group of the unprivileged process that added it, `None` for a device
/// of root's.
///
/// # Errors
/// As for [`features`]; `ENODEV` if there is no such device.
pub fn owner(id: u32, spawn: &Spawn) -> Result<Option<(u32, u32)>, UblkError> {
    let missing = ControlError::Refused { doing: "know that device", errno: Errno(libc::ENODEV) };
    let info = connect(spawn)?.look(id)?.ok_or(missing)?;
    Ok(info.flags.has(Features::UNPRIVILEGED).then_some(info.owner))
}

/// The device that a daemon of this volume left behind, if there is one: its users wait.
///
/// # Errors
/// As for [`features`].
pub fn waiting(volume: [u8; 16], spawn: &Spawn) -> Result<Option<PathBuf>, UblkError> {
    let control = connect(spawn)?;
    Ok(find(&control, volume)?.filter(is_waiting).map(|info| block_path(info.id)))
}

/// Takes the device that a daemon of this volume left behind away from its users, unless there are some and
/// `force` is not given. Its path, if there was one.
///
/// # Errors
/// As for [`features`]; [`UblkError::Busy`] while it is used.
pub fn remove_waiting(volume: [u8; 16], force: bool, spawn: &Spawn) -> Result<Option<PathBuf>, UblkError> {
    let control = connect(spawn)?;
    let Some(info) = find(&control, volume)?.filter(is_waiting) else { return Ok(None) };
    let path = block_path(info.id);
    if !force && users_stay(&path) {
        return Err(UblkError::Busy { path });
    }
    control.remove(info.id)?;
    Ok(Some(path))
}

fn is_waiting(info: &Info) -> bool {
    matches!(info.state, State::Quiesced | State::Failing) || info.state == State::Live && !is_alive(info.pid)
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may hold any byte.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn connect(spawn: &Spawn) -> Result<Control, UblkError> {
    match control_device() {
        Ok(()) => Control::new(spawn).map_err(UblkError::io("start a thread")),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => UblkError::NoDriver,
            io::ErrorKind::PermissionDenied => UblkError::NoPermission,
            _ => UblkError::Io { doing: "open /dev/ublk-control", source: error },
        }),
    }
}

/// The device that bears the volume's mark.
fn find(control: &Control, volume: [u8; 16]) -> Result<Option<Info>, UblkError> {
    let entries = fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
    let id = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok();
    for id in entries.filter_map(id) {
        if let Some(info) = control.look(id)?.filter(|info| info.mark == mark_of(volume)) {
            return Ok(Some(info));
        }
    }
    Ok(None)
}
