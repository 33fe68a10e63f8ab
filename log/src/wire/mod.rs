//! The wire format of the kernel's dm-log-userspace (include/uapi/linux/dm-log-userspace.h, versions 1 to 3): what a
//! mirror asks of its log, and what it is answered.
//!
//! A message is a header of 160 bytes ([`Frame`]) and `data_size` bytes of data, the same in both directions. The
//! kernel wraps it in a netlink datagram of its connector ([`netlink`]); on a stream messages follow one another.
//! Nothing is copied to decode one: a [`Frame`] borrows the bytes it was found in, and a [`Request`] the regions.
//!
//! The kernel uses its own byte order and 64-bit regions; here they are little-endian, as on every machine that
//! mirrord runs on.

pub mod netlink;
mod reply;
mod request;
mod table;

use std::fmt;
use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{I32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::errno::ESRCH;

pub use reply::{Reply, ReplyError, Work};
pub use request::{Regions, Request, RequestError, RequestType};
pub use table::{MAX_LOG_REGIONS, TableArgs, TableError, TableKind};

/// Bytes of a message's header.
pub const HEADER: usize = 160;

/// The version of what is sent. Since 2 the answer to [`Request::Ctr`] may name the log's device, since 3 a
/// [`Request::Flush`] may have marks with it (integrated flush).
pub const VERSION: u32 = 3;

/// Longest uuid, in bytes: the field has a NUL behind it.
pub const MAX_UUID: usize = 128;

/// Most bytes of data in a message: what the kernel's connector takes, less the header.
pub const MAX_DATA: usize = 16384 - HEADER;

/// Most regions in a message.
pub const MAX_REGIONS: usize = MAX_DATA / 8;

/// `struct dm_ulog_request`.
#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone)]
struct RawHeader {
    luid: U64,
    uuid: [u8; MAX_UUID + 1],
    padding: [u8; 3],
    version: U32,
    error: I32,
    seq: U32,
    request_type: U32,
    data_size: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER);
const _: () = assert!(offset_of!(RawHeader, uuid) == 8);
const _: () = assert!(offset_of!(RawHeader, version) == 140);
const _: () = assert!(offset_of!(RawHeader, error) == 144);
const _: () = assert!(offset_of!(RawHeader, seq) == 148);
const _: () = assert!(offset_of!(RawHeader, request_type) == 152);
const _: () = assert!(offset_of!(RawHeader, data_size) == 156);

/// Why bytes are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Not all of it is there.
    #[error("{have} of {need} bytes are there")]
    Short {
        /// Bytes there.
        have: usize,
        /// Bytes that the message has, as far as that is known.
        need: usize,
    },
    /// It has more data than any message.
    #[error("{data_size} bytes of data, and no message has more than {MAX_DATA}")]
    TooLong {
        /// Bytes of data that it says it has.
        data_size: u32,
    },
    /// Its uuid does not end.
    #[error("the uuid has no end")]
    Uuid,
}

/// Which log of which mirror: the name that its users gave it, and the one life of a table that asks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LogName<'a> {
    /// Up to [`MAX_UUID`] bytes, none of them 0. Often, but not always, a UUID in text.
    pub uuid: &'a [u8],
    /// Told apart from other tables with the same uuid by this number (local unique identifier).
    pub luid: u64,
}

impl fmt::Debug for LogName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:x}", self.uuid.escape_ascii(), self.luid)
    }
}

/// A message, whole, in the bytes that it was found in.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    header: &'a RawHeader,
    data: &'a [u8],
}

impl fmt::Debug for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Frame");
        shown.field("log", &self.name()).field("version", &self.version()).field("seq", &self.seq());
        shown.field("type", &self.request_type()).field("error", &self.error());
        shown.field("data_size", &self.data.len()).finish()
    }
}

impl<'a> Frame<'a> {
    /// The message that `bytes` begin with, and its length in bytes.
    ///
    /// # Errors
    /// [`FrameError::Short`]: more bytes are needed; the others: there is no message here and what follows cannot be
    /// told either.
    pub fn parse(bytes: &'a [u8]) -> Result<(Frame<'a>, usize), FrameError> {
        let Ok((header, rest)) = RawHeader::ref_from_prefix(bytes) else {
            return Err(FrameError::Short { have: bytes.len(), need: HEADER });
        };
        let data_size = header.data_size.get();
        if data_size as usize > MAX_DATA {
            return Err(FrameError::TooLong { data_size });
        }
        if !header.uuid.contains(&0) {
            return Err(FrameError::Uuid);
        }
        let len = HEADER + data_size as usize;
        let Some(data) = rest.get(..data_size as usize) else {
            return Err(FrameError::Short { have: bytes.len(), need: len });
        };
        Ok((Frame { header, data }, len))
    }

    /// The log it is about.
    pub fn name(&self) -> LogName<'a> {
        let end = self.header.uuid.iter().position(|&byte| byte == 0).unwrap_or(MAX_UUID);
        LogName { uuid: &self.header.uuid[..end], luid: self.header.luid.get() }
    }

    /// The version that its sender speaks.
    pub fn version(&self) -> u32 {
        self.header.version.get()
    }

    /// Of an answer: 0, or a negative error number.
    pub fn error(&self) -> i32 {
        self.header.error.get()
    }

    /// Which request it is, or answers.
    pub fn seq(&self) -> u32 {
        self.header.seq.get()
    }

    /// What is asked, as the number that was sent; its upper 24 bits mean nothing.
    pub fn request_type(&self) -> u32 {
        self.header.request_type.get() & 0xff
    }

    /// Its header, as it came.
    pub fn header_bytes(&self) -> &'a [u8] {
        self.header.as_bytes()
    }

    /// Its data.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// What is asked.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn request(&self) -> Result<Request<'a>, RequestError> {
        Request::decode(self.request_type(), self.data)
    }

    /// What is answered, to a request of type `to`.
    ///
    /// # Errors
    /// See [`ReplyError`].
    pub fn reply(&self, to: RequestType) -> Result<Reply<'a>, ReplyError> {
        Reply::decode(to, self.error(), self.data)
    }
}

/// Adds a request to `to`.
///
/// # Panics
/// If the uuid or the data is longer than a message can have.
pub fn encode_request(name: LogName<'_>, seq: u32, request: &Request<'_>, to: &mut Vec<u8>) {
    let from = to.len();
    encode_header(name, VERSION, seq, request.request_type() as u32, to);
    request.encode_data(to);
    set_data_size(to, from);
}

/// Adds the answer to a request to `to`. The version is the asker's, its identity is given back as it came.
///
/// # Panics
/// If the data is longer than a message can have.
pub fn encode_reply(request: &Frame<'_>, reply: &Reply<'_>, to: &mut Vec<u8>) {
    let (name, version) = (request.name(), request.version());
    encode_answer(name, version, request.seq(), request.request_type(), reply, to);
}

/// As [`encode_reply`], for a request that is not at hand any more.
///
/// With `ESRCH` go as many zero bytes as the real answer would have. The kernel constructs the log anew, then asks the
/// same again, and takes the size of this answer for the room that the next one may have: without these bytes it refuses
/// the good answer, and takes a region for one that is not in sync.
///
/// # Panics
/// As [`encode_reply`].
pub fn encode_answer(
    name: LogName<'_>,
    version: u32,
    seq: u32,
    request_type: u32,
    reply: &Reply<'_>,
    to: &mut Vec<u8>,
) {
    let from = to.len();
    encode_header(name, version, seq, request_type, to);
    to[from + offset_of!(RawHeader, error)..][..4].copy_from_slice(&reply.error().to_le_bytes());
    reply.encode_data(to);
    if *reply == Reply::Failed(ESRCH) {
        to.resize(to.len() + request::answer_room(request_type), 0);
    }
    set_data_size(to, from);
}

fn encode_header(name: LogName<'_>, version: u32, seq: u32, request_type: u32, to: &mut Vec<u8>) {
    let mut header = RawHeader {
        luid: name.luid.into(),
        uuid: [0; MAX_UUID + 1],
        padding: [0; 3],
        version: version.into(),
        error: 0.into(),
        seq: seq.into(),
        request_type: request_type.into(),
        data_size: 0.into(),
    };
    header.uuid[..name.uuid.len()].copy_from_slice(name.uuid);
    assert_eq!(header.uuid[MAX_UUID], 0, "the uuid is too long");
    to.extend_from_slice(header.as_bytes());
}

fn set_data_size(to: &mut [u8], from: usize) {
    let size = to.len() - from - HEADER;
    assert!(size <= MAX_DATA, "too much data for a message");
    to[from + offset_of!(RawHeader, data_size)..][..4].copy_from_slice(&(size as u32).to_le_bytes());
}
