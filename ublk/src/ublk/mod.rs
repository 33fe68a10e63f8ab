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
mod features;
mod queue;
mod users;

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mirrord_raid::Errno;
use rustix::fs::Access;

use crate::buffer::BufferPool;
use crate::front::{Engine, FrontEnd, FrontError, FrontKind, Shutdown};
use crate::{Spawn, Task};
pub use control::ControlError;
use control::{CONTROL, Control, Info, Shape, State, control_device};
pub use features::Features;
pub(crate) use queue::Answer;
use queue::{Gate, SourceConfig, Stopping, UblkSource};
use users::users_of;

/// How long the queues may take to fetch, and a device node to be there.
const COME_UP: Duration = Duration::from_secs(10);

/// How long the queues may take to let go of a device that was stopped.
const LET_GO: Duration = Duration::from_secs(10);

/// How long requests under way may take before a device is handed over all the same.
const QUIESCE: Duration = Duration::from_secs(20);

/// After so long the kernel looks whether the daemon of a request still lives, in milliseconds. Its default of
/// 30 s is what users would wait after a crash with all tags in use, on kernels that do not notice at once.
/// Requests of a daemon that lives are left alone.
const IO_TIMEOUT_MS: u32 = 3000;

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
    if !force && users_of(&path) {
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

/// A device of the volume's that is not served yet.
pub struct UblkDevice {
    control: Option<Control>,
    info: Info,
    shape: Shape,
    taken_over: bool,
    spawn: Spawn,
}

impl UblkDevice {
    /// Adds a device for the volume, or finds the one that was left behind.
    ///
    /// # Errors
    /// See [`UblkError`].
    ///
    /// # Panics
    /// If sizes are not as [`UblkOptions`] says.
    pub fn prepare(options: UblkOptions) -> Result<UblkDevice, UblkError> {
        let UblkOptions { size, block_size, physical_block_size, region_size, max_io, queues, depth, .. } =
            options;
        assert!(block_size.is_power_of_two() && (512..=4096).contains(&block_size));
        assert!(size > 0 && size.is_multiple_of(u64::from(block_size)) && max_io.is_multiple_of(4096));
        // With one tag a queue has fetched for all as soon as it has for the first: see `UblkSource::fetch`.
        let depth = depth.max(2);
        let shape = Shape { size, block_size, physical_block_size, region_size, max_io, queues, depth };
        let control = connect(&options.spawn)?;
        let features = control.features()?;
        if let Some(earlier) = find(&control, options.volume)? {
            if is_waiting(&earlier) && earlier.flags.has(Features::RECOVERY) {
                return UblkDevice::take_over(control, earlier, shape, options.spawn);
            }
            if earlier.state == State::Live {
                let path = block_path(earlier.id);
                return Err(UblkError::Served { path, pid: earlier.pid });
            }
            // Added by a daemon that died before it served it, or one that cannot be taken over.
            control.remove(earlier.id)?;
        }
        let privileged = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_ADMIN));
        let wanted = Features::wanted(features, privileged);
        let info = control.add(shape, wanted, mark_of(options.volume))?;
        let shape = Shape { queues: info.queues, depth: info.depth, ..shape };
        let device =
            UblkDevice { control: Some(control), info, shape, taken_over: false, spawn: options.spawn };
        if privileged && !info.flags.has(Features(Features::RECOVERY.0 | Features::REISSUE.0)) {
            return Err(UblkError::Lacks("let a device outlive its daemon: Linux 6.1 or newer is needed"));
        }
        if !privileged && !info.flags.has(Features::UNPRIVILEGED) {
            return Err(UblkError::Lacks("give devices to users without privilege"));
        }
        Ok(device)
    }

    fn take_over(
        control: Control,
        earlier: Info,
        shape: Shape,
        spawn: Spawn,
    ) -> Result<UblkDevice, UblkError> {
        let does_not_fit = |why| UblkError::DoesNotFit { path: block_path(earlier.id), why };
        let attribute = |name: &str| -> Option<u64> {
            let path = format!("/sys/block/ublkb{}/{name}", earlier.id);
            fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        if attribute("size").is_some_and(|sectors| sectors << 9 != shape.size) {
            return Err(does_not_fit("its size is not the volume's"));
        }
        if attribute("queue/logical_block_size").is_some_and(|block| block < shape.block_size.into()) {
            return Err(does_not_fit("a leg needs larger blocks than it has"));
        }
        let Info { queues, depth, max_io, .. } = earlier;
        let mut devices = Vec::new();
        made_of(&format!("ublkb{}", earlier.id), &mut devices);
        if let Err(error) = control.leave_mounts_of(devices) {
            tracing::warn!(%error, "file systems on the device may stay in use");
        }
        let shape = Shape { queues, depth, max_io, ..shape };
        Ok(UblkDevice { control: Some(control), info: earlier, shape, taken_over: true, spawn })
    }

    /// Queues that it has: the engine is to have as many.
    pub fn queues(&self) -> u16 {
        self.shape.queues
    }

    /// Requests in flight per queue.
    pub fn depth(&self) -> u16 {
        self.shape.depth
    }

    /// Bytes of the largest request.
    pub fn max_io(&self) -> u32 {
        self.shape.max_io
    }

    /// Whether an earlier daemon left it behind.
    pub fn is_taken_over(&self) -> bool {
        self.taken_over
    }

    /// Major and minor numbers of the block device, if it is there yet, and of every one that is made of it.
    pub fn devices(&self) -> Vec<(u32, u32)> {
        let mut devices = Vec::new();
        made_of(&format!("ublkb{}", self.info.id), &mut devices);
        devices
    }

    /// Serves the volume behind `engine` as this device. `on_gone` is called if somebody else takes the device
    /// away.
    ///
    /// # Errors
    /// See [`UblkError`]. A device that was taken over is left for another try.
    ///
    /// # Panics
    /// If the engine has another number of queues than the device.
    pub fn serve(
        mut self,
        engine: Arc<dyn Engine>,
        pool: &Arc<BufferPool>,
        on_gone: Option<Task>,
    ) -> Result<UblkFront, UblkError> {
        assert_eq!(engine.queues(), usize::from(self.shape.queues));
        let control = self.control.as_ref().expect("a device has its control until it is served");
        // From here until all queues have fetched it must not take long: see `UblkSource::fetch`.
        if self.taken_over {
            control.take_over(self.info)?;
        }
        let device = control.open(self.shape)?;
        let (session, closed) = channel::<()>();
        let (started, starting) = channel();
        let stopping = Stopping::default();
        let gate = Gate::new(self.shape.queues);
        for queue in 0..self.shape.queues {
            let device = device.as_fd().try_clone_to_owned().map_err(UblkError::io("open the device"))?;
            let source = UblkSource::new(SourceConfig {
                device,
                queue,
                depth: self.shape.depth,
                max_io: self.shape.max_io,
                pool,
                stopping: stopping.clone(),
                gate: gate.clone(),
                started: started.clone(),
                session: session.clone(),
            });
            engine.serve(queue.into(), Box::new(source));
        }
        drop((device, session));
        let threads = self.threads(&starting)?;
        let privileged = self.is_privileged();
        let path = block_path(self.info.id);
        control.start(threads, privileged).map_err(|error| match error {
            ControlError::Silent { .. } if self.taken_over => {
                let why = "a daemon died while it took it over, which this kernel cannot mend";
                UblkError::DoesNotFit { path: path.clone(), why }
            }
            error => error.into(),
        })?;
        if privileged {
            look_after_daemon(self.info.id);
        }
        await_node(&path)?;

        let ours = Arc::new(AtomicBool::new(false));
        let (end, ended) = channel::<()>();
        let expected = Arc::clone(&ours);
        let watch = move || {
            // Nobody sends: this returns when the last source is gone.
            let _ = closed.recv();
            drop(end);
            if !expected.load(Ordering::SeqCst)
                && let Some(call) = on_gone
            {
                tracing::warn!("the device was taken away by somebody else");
                call();
            }
        };
        let watcher = (self.spawn)("mirrord-ublk-end".to_owned(), Box::new(watch))
            .map_err(UblkError::io("start a thread"))?;
        let control = self.control.take().expect("it was there above");
        Ok(UblkFront {
            control,
            info: self.info,
            path,
            engine,
            stopping,
            ours,
            ended,
            watcher: Some(watcher),
        })
    }

    /// The ids of the queues' threads, once all of them fetch.
    fn threads(&self, starting: &Receiver<io::Result<i32>>) -> Result<Vec<i32>, UblkError> {
        let mut threads = Vec::new();
        for _ in 0..self.shape.queues {
            let result =
                starting.recv_timeout(COME_UP).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            threads.push(result.map_err(UblkError::io("have a queue fetch"))?);
        }
        Ok(threads)
    }
}

impl Drop for UblkDevice {
    fn drop(&mut self) {
        let Some(control) = self.control.take() else { return };
        if self.taken_over {
            return;
        }
        let _ = control.stop();
        if let Err(error) = control.delete() {
            tracing::warn!(%error, id = self.info.id, "leaving a ublk device behind");
        }
    }
}

impl fmt::Debug for UblkDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UblkDevice")
            .field("info", &self.info)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// Numbers of the block device called `name`, its partitions and whatever lies on them.
fn made_of(name: &str, devices: &mut Vec<(u32, u32)>) {
    let dir = Path::new("/sys/class/block").join(name);
    let number = fs::read_to_string(dir.join("dev")).ok().and_then(|text| {
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    let Some(number) = number.filter(|number| !devices.contains(number)) else { return };
    devices.push(number);
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let partitions = names(&dir).into_iter().filter(|entry| entry.starts_with(name));
    for name in partitions.chain(names(&dir.join("holders"))) {
        made_of(&name, devices);
    }
}

/// Has the kernel notice soon when this daemon dies with all tags in hand.
fn look_after_daemon(id: u32) {
    let path = format!("/sys/block/ublkb{id}/queue/io_timeout");
    let wanted = IO_TIMEOUT_MS.to_string();
    // Setting it waits until no request is under way: not for nothing, on a device that was taken over.
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == wanted) {
        return;
    }
    if let Err(error) = fs::write(&path, wanted) {
        tracing::warn!(path, %error, "after a crash under full load users wait for up to 30 s");
    }
}

/// udev makes nodes, and gives them to users without privilege, in its own time.
fn await_node(path: &Path) -> Result<(), UblkError> {
    let deadline = Instant::now() + COME_UP;
    loop {
        match rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::ACCESS) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(rustix::io::Errno::ACCESS) => {
                tracing::warn!(path = %path.display(), "this user may not use the device: is the udev rule there?");
                return Ok(());
            }
            Err(errno) => return Err(UblkError::io("find the node of the device in /dev")(errno.into())),
        }
    }
}

/// A volume served as a block device.
pub struct UblkFront {
    control: Control,
    info: Info,
    path: PathBuf,
    engine: Arc<dyn Engine>,
    stopping: Stopping,
    /// Set while the end of the queues is our doing.
    ours: Arc<AtomicBool>,
    /// Disconnected when every queue has let go of the device.
    ended: Receiver<()>,
    watcher: Option<JoinHandle<()>>,
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

    fn shutdown(&mut self, how: Shutdown) -> Result<(), FrontError> {
        if self.watcher.is_none() {
            return Ok(());
        }
        if how == Shutdown::Clean && users_of(&self.path) {
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
