//! The control side of ublk: adding, starting, recovering and deleting devices. The only file that knows
//! libublk.
//!
//! What libublk gives out lives on the thread that made it, and a command may never come back from a broken
//! kernel. So a [`Control`] is a thread of its own that runs one command after the other, and whoever asks
//! waits for each only so long. libublk tells `EBUSY` as success; here it is an error like others.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkError, UblkFlags, sys};
use mirrord_raid::Errno;

use super::features::Features;
use crate::Spawn;
use crate::process::{leave_mounts_of, own_mount_namespace};

/// What the driver listens on.
pub(super) const CONTROL: &str = "/dev/ublk-control";

/// Kind of target, as lists of ublk devices show it.
const TARGET: &str = "mirrord";

/// The longest that a command takes on a kernel in order. Adding a device oopses in some: it never returns.
const PATIENCE: Duration = Duration::from_secs(30);

/// A start waits for the queues, then for whatever the kernel reads of partitions.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// What drivers say to a deletion that does not wait for users: those that cannot, and, if the device is that of
/// a user without privilege, any (seen on Linux 6.12).
const CANNOT_LEAVE_USERS: [Errno; 2] = [Errno(libc::EOPNOTSUPP), Errno(libc::EINVAL)];

/// Largest discard or zeroing in one request, in bytes: one that is carried out by writing zeroes is to end
/// within seconds.
const MOST_ZEROED: u64 = 256 << 20;

/// A device to be added, or what it was added as. Sizes in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) size: u64,
    pub(super) block_size: u32,
    pub(super) physical_block_size: u32,
    pub(super) region_size: u64,
    pub(super) read_only: bool,
    pub(super) max_io: u32,
    pub(super) queues: u16,
    pub(super) depth: u16,
}

/// What the driver says of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Info {
    pub(super) id: u32,
    pub(super) queues: u16,
    pub(super) depth: u16,
    /// Largest request in bytes.
    pub(super) max_io: u32,
    /// What was agreed on, which may be less than what was asked for.
    pub(super) flags: Features,
    pub(super) state: State,
    /// Of the daemon that serves or served it.
    pub(super) pid: i32,
    /// What [`Control::add`] was given.
    pub(super) mark: u64,
    pub(super) owner: (u32, u32),
}

/// The life of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Not started yet, or stopped.
    Dead,
    Live,
    /// Its daemon is gone; IO waits for another.
    Quiesced,
    /// Its daemon is gone; IO fails until there is another.
    Failing,
}

/// Why a command was not carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ControlError {
    /// The driver refused.
    #[error("the ublk driver does not {doing}: {errno}")]
    Refused {
        /// What it was to do.
        doing: &'static str,
        /// What it said.
        errno: Errno,
    },
    /// It did not answer.
    #[error(
        "the ublk driver does not answer (it was to {doing}): a kernel with a broken one may need a reboot, see dmesg"
    )]
    Silent {
        /// What it was to do.
        doing: &'static str,
    },
}

impl ControlError {
    /// What the driver said, if it said anything.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            ControlError::Refused { errno, .. } => Some(*errno),
            ControlError::Silent { .. } => None,
        }
    }
}

/// One device's control. Dropped, it leaves the device as it is.
pub(super) struct Control {
    jobs: Sender<Job>,
}

type Job = Box<dyn FnOnce(&mut Held) + Send>;

/// What the thread holds.
struct Held {
    control: Option<UblkCtrl>,
    device: Option<UblkDev>,
    /// It shares its mounts with nobody.
    own_mounts: bool,
}

impl Held {
    fn control(&self) -> Result<&UblkCtrl, Errno> {
        self.control.as_ref().ok_or(Errno(libc::ENODEV))
    }

    fn let_go(&mut self) {
        self.device = None;
        if let Some(control) = self.control.take() {
            control.disown();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Control {
    pub(super) fn new(spawn: &Spawn) -> io::Result<Control> {
        let (jobs, inbox) = channel::<Job>();
        let run = move || {
            // A command that a signal interrupts would be lost track of.
            block_signals();
            // Nor may it be the one that keeps a mount on its own device; without the right to, it may.
            let own_mounts = own_mount_namespace().is_ok();
            let mut held = Held { control: None, device: None, own_mounts };
            for job in inbox {
                job(&mut held);
            }
        };
        spawn("mirrord-ublk".to_owned(), Box::new(run))?;
        Ok(Control { jobs })
    }

    /// What the driver can do; `None` before Linux 6.5, which does not tell.
    pub(super) fn features(&self) -> Result<Option<Features>, ControlError> {
        self.call("tell its features", PATIENCE, |_| Ok(UblkCtrl::get_features().map(Features)))
    }

    /// Adds a device, which is then neither started nor seen by users. `mark` is kept by the driver.
    pub(super) fn add(&self, shape: Shape, flags: Features, mark: u64) -> Result<Info, ControlError> {
        self.call("add a device", PATIENCE, move |held| {
            let control = UblkCtrlBuilder::default()
                .name(TARGET)
                .id(-1)
                .nr_queues(shape.queues)
                .depth(shape.depth)
                .io_buf_bytes(shape.max_io)
                .ctrl_flags(flags.0)
                .ctrl_target_flags(mark)
                .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
                .build()
                .map_err(errno)?;
            let info = info(control.dev_info());
            held.control = Some(control);
            Ok(info)
        })
    }

    /// What the driver says of device `id`; `None` if there is no such device.
    pub(super) fn look(&self, id: u32) -> Result<Option<Info>, ControlError> {
        self.call("tell of a device", PATIENCE, move |_| match look(id) {
            Ok(found) => Ok(Some(info(found))),
            Err(Errno(libc::ENODEV | libc::ENOENT | libc::EINVAL)) => Ok(None),
            Err(errno) => Err(errno),
        })
    }

    /// Begins to take over `earlier`, whose daemon is gone. Waits until the driver noticed that. Some drivers
    /// refuse, as invalid, what a daemon that died had begun already.
    pub(super) fn take_over(&self, earlier: Info) -> Result<(), ControlError> {
        self.call("let a device be taken over", START_PATIENCE, move |held| {
            match begin_recovery(earlier.id) {
                Ok(()) | Err(Errno(libc::EINVAL)) => {}
                Err(errno) => return Err(errno),
            }
            let control = UblkCtrlBuilder::default()
                .name(TARGET)
                .id(earlier.id as i32)
                .nr_queues(earlier.queues)
                .depth(earlier.depth)
                .io_buf_bytes(earlier.max_io)
                .ctrl_flags(earlier.flags.0 & Features::ASKED_FOR)
                .ctrl_target_flags(earlier.mark)
                .dev_flags(UblkFlags::UBLK_DEV_F_RECOVER_DEV)
                .build()
                .map_err(errno)?;
            held.control = Some(control);
            Ok(())
        })
    }

    /// Lets go of file systems on these block devices, if its mounts are its own: where mounts are private,
    /// others could not unmount them for good.
    pub(super) fn leave_mounts_of(&self, devices: Vec<(u32, u32)>) -> Result<(), ControlError> {
        self.call("leave the mounts on a device", PATIENCE, move |held| {
            if held.own_mounts {
                devices
                    .into_iter()
                    .try_for_each(|device| leave_mounts_of(device).map(drop))
                    .map_err(io_errno)?;
            }
            Ok(())
        })
    }

    /// Opens the device that its daemon speaks to the driver through.
    pub(super) fn open(&self, shape: Shape) -> Result<OwnedFd, ControlError> {
        self.call("give a device to its daemon", PATIENCE, move |held| {
            let fill = move |device: &mut UblkDev| {
                device.tgt.dev_size = shape.size;
                device.tgt.params = params(shape);
                Ok(())
            };
            let device = UblkDev::new(TARGET.to_owned(), fill, held.control()?).map_err(errno)?;
            // SAFETY: libublk keeps the file of this descriptor open as long as `device` lives.
            let fd = unsafe { BorrowedFd::borrow_raw(device.tgt.fds[0]) };
            let fd = fd.try_clone_to_owned().map_err(io_errno)?;
            held.device = Some(device);
            Ok(fd)
        })
    }

    /// Starts the device, or ends its recovery, once every queue fetches; `threads` are their ids. With
    /// `export` other tools see it in their list of ublk devices.
    pub(super) fn start(&self, threads: Vec<i32>, export: bool) -> Result<(), ControlError> {
        self.call("start the device", START_PATIENCE, move |held| {
            let (Some(control), Some(device)) = (&held.control, &held.device) else {
                return Err(Errno(libc::ENODEV));
            };
            let export = export && own_list().is_ok();
            for (queue, thread) in threads.into_iter().enumerate() {
                device.notify_buffer_registration_complete(false);
                if export {
                    control.configure_queue(device, queue as u16, thread).map_err(errno)?;
                }
            }
            control.start_dev(device).map_err(errno).and_then(done)
        })
    }

    /// Takes the device away from its users: their IO fails.
    pub(super) fn stop(&self) -> Result<(), ControlError> {
        self.call("stop the device", START_PATIENCE, |held| {
            held.control()?.stop_dev().map_err(errno).and_then(done)
        })
    }

    /// Makes IO wait, lets what is under way end, and has the queues go.
    pub(super) fn quiesce(&self, timeout: Duration) -> Result<(), ControlError> {
        self.call("quiesce the device", timeout + PATIENCE, move |held| {
            held.control()?.quiesce_dev(timeout.as_millis() as u64).map_err(errno).and_then(done)
        })
    }

    /// Device `id`, which is live, has `size` bytes from now on.
    pub(super) fn resize(&self, id: u32, size: u64) -> Result<(), ControlError> {
        self.call("change the device's size", PATIENCE, move |_| {
            command_with(sys::UBLK_U_CMD_UPDATE_SIZE, id, size >> 9, 0).map(drop)
        })
    }

    /// Lets go of the device: another daemon may take it over.
    pub(super) fn release(&self) -> Result<(), ControlError> {
        self.call("let the device go", PATIENCE, |held| {
            held.let_go();
            Ok(())
        })
    }

    /// Deletes the device, stopped before. Users that do not close it, as a file system that stays mounted, hold
    /// it up only where [`CANNOT_LEAVE_USERS`] says.
    pub(super) fn delete(&self) -> Result<(), ControlError> {
        self.call("delete the device", PATIENCE, |held| {
            held.device = None;
            let control = held.control.take().ok_or(Errno(libc::ENODEV))?;
            let deleted = match control.del_dev_async().map_err(errno).and_then(done) {
                Err(said) if CANNOT_LEAVE_USERS.contains(&said) => {
                    control.del_dev().map_err(errno).and_then(done)
                }
                deleted => deleted,
            };
            control.disown();
            deleted
        })
    }

    /// Takes device `id`, that no daemon serves, away from its users and deletes it, as [`Control::delete`] does.
    pub(super) fn remove(&self, id: u32) -> Result<(), ControlError> {
        self.call("remove a device", START_PATIENCE, move |_| {
            command(sys::UBLK_U_CMD_STOP_DEV, id, 0)?;
            match command(sys::UBLK_U_CMD_DEL_DEV_ASYNC, id, 0) {
                Err(said) if CANNOT_LEAVE_USERS.contains(&said) => {
                    command(sys::UBLK_U_CMD_DEL_DEV, id, 0).map(drop)
                }
                result => result.map(drop),
            }
        })
    }

    fn call<T: Send + 'static>(
        &self,
        doing: &'static str,
        patience: Duration,
        job: impl FnOnce(&mut Held) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, ControlError> {
        let (tell, told) = sync_channel(1);
        let job = move |held: &mut Held| drop(tell.send(job(held)));
        if self.jobs.send(Box::new(job)).is_err() {
            return Err(ControlError::Silent { doing });
        }
        match told.recv_timeout(patience) {
            Ok(result) => result.map_err(|errno| ControlError::Refused { doing, errno }),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                Err(ControlError::Silent { doing })
            }
        }
    }
}

/// Keeps signals from the calling thread.
fn block_signals() {
    // SAFETY: `sigfillset` initialises the set, which lives on this stack; both calls read or write no
    // other memory.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

fn look(id: u32) -> Result<sys::ublksrv_ctrl_dev_info, Errno> {
    let answer = command(sys::UBLK_U_CMD_GET_DEV_INFO2, id, size_of::<sys::ublksrv_ctrl_dev_info>())?;
    // SAFETY: as many bytes as were asked for, and any bytes are an info.
    Ok(unsafe { answer.as_ptr().cast::<sys::ublksrv_ctrl_dev_info>().read_unaligned() })
}

/// Waits until the driver noticed that the daemon is gone.
fn begin_recovery(id: u32) -> Result<(), Errno> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match command(sys::UBLK_U_CMD_START_USER_RECOVERY, id, 0) {
            Err(Errno(libc::EBUSY)) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            result => return result.map(drop),
        }
    }
}

/// Asks the driver about a device that somebody else added, for an answer of so many bytes. Not by libublk,
/// which wants a file of its own for every device and complains on standard error where there is none. The
/// buffer begins with the path of the device, by whose permissions a user without privilege may ask.
fn command(op: u32, id: u32, answer: usize) -> Result<Vec<u8>, Errno> {
    command_with(op, id, 0, answer)
}

/// The same with a number that the command is about.
fn command_with(op: u32, id: u32, data: u64, answer: usize) -> Result<Vec<u8>, Errno> {
    let file = File::options().read(true).write(true).open(CONTROL).map_err(io_errno)?;
    let mut buffer = format!("/dev/ublkc{id}\0").into_bytes();
    let path_len = buffer.len();
    buffer.resize(path_len + answer, 0);
    let command = sys::ublksrv_ctrl_cmd {
        dev_id: id,
        queue_id: u16::MAX,
        len: buffer.len() as u16,
        addr: buffer.as_mut_ptr() as u64,
        data: [data],
        dev_path_len: path_len as u16,
        ..Default::default()
    };
    let mut payload = [0u8; 80];
    // SAFETY: a command is `size_of_val` bytes of plain integers, fewer than the payload has.
    unsafe {
        let bytes = std::ptr::from_ref(&command).cast::<u8>();
        payload.as_mut_ptr().copy_from_nonoverlapping(bytes, size_of_val(&command));
    }
    let mut ring = IoUring::<squeue::Entry128>::builder().build(2).map_err(io_errno)?;
    let entry = opcode::UringCmd80::new(Fd(file.as_raw_fd()), op).cmd(payload).build();
    // SAFETY: the buffer outlives the command, whose end is waited for below (signals are blocked).
    unsafe { ring.submission().push(&entry) }.map_err(|_| Errno(libc::EBUSY))?;
    ring.submit_and_wait(1).map_err(io_errno)?;
    done(ring.completion().next().map_or(-libc::EAGAIN, |done| done.result()))?;
    Ok(buffer.split_off(path_len))
}

fn info(info: sys::ublksrv_ctrl_dev_info) -> Info {
    Info {
        id: info.dev_id,
        queues: info.nr_hw_queues,
        depth: info.queue_depth,
        max_io: info.max_io_buf_bytes,
        flags: Features(info.flags),
        state: match u32::from(info.state) {
            sys::UBLK_S_DEV_LIVE => State::Live,
            sys::UBLK_S_DEV_QUIESCED => State::Quiesced,
            sys::UBLK_S_DEV_FAIL_IO => State::Failing,
            _ => State::Dead,
        },
        pid: info.ublksrv_pid,
        mark: info.ublksrv_flags,
        owner: (info.owner_uid, info.owner_gid),
    }
}

/// A device that tells the truth about a mirror: it has a cache, which flushes and FUA writes pass, and no
/// request but a discard crosses a region.
fn params(shape: Shape) -> sys::ublk_params {
    let sectors = |bytes: u64| u32::try_from(bytes >> 9).unwrap_or(u32::MAX);
    let shift = shape.block_size.trailing_zeros() as u8;
    let physical = shape.physical_block_size.trailing_zeros() as u8;
    sys::ublk_params {
        types: sys::UBLK_PARAM_TYPE_BASIC | if shape.read_only { 0 } else { sys::UBLK_PARAM_TYPE_DISCARD },
        basic: sys::ublk_param_basic {
            attrs: match shape.read_only {
                true => sys::UBLK_ATTR_READ_ONLY,
                false => sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA,
            },
            logical_bs_shift: shift,
            physical_bs_shift: physical,
            io_opt_shift: 0,
            io_min_shift: physical,
            max_sectors: sectors(shape.max_io.into()),
            chunk_sectors: sectors(shape.region_size),
            dev_sectors: shape.size >> 9,
            ..Default::default()
        },
        discard: sys::ublk_param_discard {
            discard_granularity: shape.block_size.max(4096),
            max_discard_sectors: sectors(MOST_ZEROED),
            max_write_zeroes_sectors: sectors(MOST_ZEROED),
            max_discard_segments: 1,
            ..Default::default()
        },
        ..Default::default()
    }
}

/// Makes the folder of libublk's list, which libublk itself would let everybody write to.
fn own_list() -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let path = PathBuf::from(UblkCtrl::run_dir());
    match std::fs::DirBuilder::new().mode(0o755).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => File::open(&path).map(drop),
    }
}

/// Whether there is a driver to talk to, and may we.
pub(super) fn control_device() -> io::Result<()> {
    File::options().read(true).write(true).open(Path::new(CONTROL)).map(drop)
}

/// What libublk tells as success may be a refusal.
fn done(result: i32) -> Result<(), Errno> {
    if result < 0 { Err(Errno(-result)) } else { Ok(()) }
}

fn errno(error: UblkError) -> Errno {
    match error {
        UblkError::UringIOError(code) | UblkError::OtherError(code) => Errno(code.abs()),
        UblkError::IOError(error) => io_errno(error),
        _ => Errno(libc::EINVAL),
    }
}

fn io_errno(error: io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(libc::EIO))
}
