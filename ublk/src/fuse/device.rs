//! A descriptor of a FUSE connection, and the answers that go out through it.
//!
//! Guarantees: an answer goes out through the descriptor that its request came from, as the kernel
//! demands, also when everything else of the session is gone; an answer that nobody waits for any more
//! is dropped silently. Reading belongs to one thread, answering to any.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use mirrord_raid::Errno;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno as Code;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::point::DEVICE;
use super::wire::{self, InHeader, InitIn, InitInMore, InitOut, OutHeader, init};

/// `FUSE_DEV_IOC_CLONE`.
const CLONE: Opcode = opcode::read::<u32>(229, 0);

/// Requests that the kernel may have under way at once beside synchronous ones.
const MAX_BACKGROUND: u16 = 512;

/// What is asked of the kernel, each where it is known.
const WANTED: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::ASYNC_DIO
    | init::MAX_PAGES
    | init::EXT
    | init::DIRECT_IO_ALLOW_MMAP;

/// Largest errno that an answer may carry; the kernel refuses the whole answer beyond.
const MOST_ERRNO: i32 = 511;

/// What a read from the device gave.
pub(super) enum Received {
    /// A request of so many bytes.
    Request(usize),
    /// There is none at the moment.
    Nothing,
    /// The connection is gone.
    Ended,
}

/// An open `/dev/fuse` that belongs to a connection.
pub(crate) struct Device(OwnedFd);

impl Device {
    /// Takes over the descriptor that a mount came with, and agrees with the kernel on the protocol:
    /// requests of at most `max_io` bytes. Afterwards reading does not block.
    ///
    /// # Errors
    /// `EPROTO` for a kernel that is too old, and what reading and writing say.
    pub(super) fn start(fd: OwnedFd, max_io: u32) -> io::Result<Device> {
        let device = Device(fd);
        device.agree(max_io)?;
        fcntl_setfl(&device.0, fcntl_getfl(&device.0)? | OFlags::NONBLOCK)?;
        Ok(device)
    }

    /// A further descriptor of the same connection, with its own list of requests.
    ///
    /// # Errors
    /// When this process may not open the device itself.
    pub(super) fn another(&self) -> io::Result<Device> {
        let file: File =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
        // SAFETY: the call reads the 4 bytes of its argument, a descriptor that is open.
        unsafe { ioctl(&file, Setter::<CLONE, u32>::new(self.0.as_raw_fd() as u32)) }?;
        Ok(Device(file.into()))
    }

    fn agree(&self, max_io: u32) -> io::Result<()> {
        let mut request = [0u8; wire::LEAST_READ];
        let len = rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut request))?;
        let protocol = || io::Error::from(Code::PROTO);
        let (header, args) = InHeader::read_from_prefix(&request[..len]).map_err(|_| protocol())?;
        let (ask, more) = InitIn::read_from_prefix(args).map_err(|_| protocol())?;
        let known = ask.major == wire::MAJOR && ask.minor >= wire::OLDEST_MINOR;
        if header.opcode != wire::opcode::INIT || !known {
            tracing::error!(opcode = header.opcode, major = ask.major, minor = ask.minor, "FUSE is too old");
            self.answer(header.unique, Code::PROTO.raw_os_error(), &[])?;
            return Err(protocol());
        }
        let flags2 = InitInMore::read_from_prefix(more).map_or(0, |(more, _)| more.flags2);
        let extended = u64::from(ask.flags) & init::EXT != 0;
        let offered = u64::from(ask.flags) | if extended { u64::from(flags2) << 32 } else { 0 };
        let flags = offered & WANTED;
        let page = rustix::param::page_size() as u32;
        let out = InitOut {
            major: wire::MAJOR,
            minor: ask.minor.min(wire::MINOR),
            max_readahead: ask.max_readahead.min(max_io),
            flags: flags as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: MAX_BACKGROUND,
            max_write: max_io,
            time_gran: 1,
            max_pages: max_io.div_ceil(page).clamp(1, u16::MAX.into()) as u16,
            flags2: (flags >> 32) as u32,
            ..InitOut::default()
        };
        self.answer(header.unique, 0, out.as_bytes())
    }

    /// Reads the next request.
    pub(super) fn receive(&self, into: &mut [IoSliceMut<'_>]) -> Received {
        loop {
            match rustix::io::readv(&self.0, into) {
                Ok(len) => return Received::Request(len),
                // A request that was taken back while it was being read.
                Err(Code::INTR | Code::NOENT) => {}
                Err(Code::AGAIN) => return Received::Nothing,
                Err(Code::NODEV | Code::CONNABORTED) => return Received::Ended,
                Err(errno) => {
                    tracing::error!(%errno, "reading from the FUSE device");
                    return Received::Ended;
                }
            }
        }
    }

    /// Tells the kernel that what it knows of the file's attributes is out of date.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(super) fn attributes_changed(&self) -> io::Result<()> {
        let out = wire::NotifyInvalInodeOut { ino: wire::ROOT, off: -1, len: 0 };
        // A message is an answer to nothing, with its code where errors are, not negated.
        self.answer(0, -wire::NOTIFY_INVAL_INODE, out.as_bytes())
    }

    /// Sends an answer.
    fn answer(&self, unique: u64, error: i32, data: &[u8]) -> io::Result<()> {
        let len = size_of::<OutHeader>() + data.len();
        let header = OutHeader { len: len as u32, error: -error, unique };
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(data)];
        let parts = if data.is_empty() { &parts[..1] } else { &parts };
        rustix::io::writev(&self.0, parts)?;
        Ok(())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The answer that a FUSE request owes.
pub(crate) struct Reply {
    device: Arc<Device>,
    unique: u64,
}

impl Reply {
    pub(super) fn new(device: &Arc<Device>, unique: u64) -> Reply {
        Reply { device: Arc::clone(device), unique }
    }

    /// Answers that all went well.
    pub(crate) fn ok(self) {
        self.send(0, &[]);
    }

    /// Answers with an error.
    pub(crate) fn error(self, errno: Errno) {
        self.refuse(errno.0);
    }

    /// Answers with an error code.
    pub(super) fn refuse(self, code: i32) {
        let code = if (1..=MOST_ERRNO).contains(&code) { code } else { libc::EIO };
        self.send(code, &[]);
    }

    /// Answers a read.
    pub(crate) fn data(self, data: &[u8]) {
        self.send(0, data);
    }

    /// Answers a write.
    pub(crate) fn written(self, size: u32) {
        self.with(&wire::WriteOut { size, padding: 0 });
    }

    /// Answers with one of the structures of the protocol.
    pub(super) fn with<T: IntoBytes + Immutable>(self, out: &T) {
        self.send(0, out.as_bytes());
    }

    fn send(&self, error: i32, data: &[u8]) {
        if let Err(error) = self.device.answer(self.unique, error, data) {
            // ENOENT: its client was killed; ENODEV, EPERM: unmounted.
            tracing::debug!(%error, unique = self.unique, "an answer was not taken");
        }
    }
}
