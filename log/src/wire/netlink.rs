//! A message in a datagram of the kernel's connector: `struct nlmsghdr`, `struct cn_msg`, then the message
//! (include/uapi/linux/{netlink,connector}.h).

use std::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Frame, FrameError};

/// `CN_IDX_DM`: also the multicast group.
pub const INDEX: u32 = 7;
/// `CN_VAL_DM_USERSPACE_LOG`.
pub const VALUE: u32 = 1;
/// `NLMSG_DONE`.
const DONE: u16 = 3;

/// Bytes before the message.
pub const WRAPPING: usize = size_of::<RawWrapping>();

/// Longest datagram, in bytes.
pub const MAX_DATAGRAM: usize = 16 + 16384;

#[repr(C)]
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
struct RawWrapping {
    len: U32,
    message_type: U16,
    flags: U16,
    seq: U32,
    pid: U32,
    index: U32,
    value: U32,
    cn_seq: U32,
    ack: U32,
    cn_len: U16,
    cn_flags: U16,
}

const _: () = assert!(size_of::<RawWrapping>() == 36);
const _: () = assert!(offset_of!(RawWrapping, index) == 16);
const _: () = assert!(offset_of!(RawWrapping, cn_len) == 32);

/// The message in a datagram; `None`: it is not for a log. Who sent the datagram is not looked at.
///
/// # Errors
/// When it says that it is for a log and is not whole.
pub fn unwrap(datagram: &[u8]) -> Result<Option<Frame<'_>>, FrameError> {
    let Ok((wrapping, rest)) = RawWrapping::ref_from_prefix(datagram) else {
        return Err(FrameError::Short { have: datagram.len(), need: WRAPPING });
    };
    if (wrapping.index.get(), wrapping.value.get()) != (INDEX, VALUE) {
        return Ok(None);
    }
    let len = usize::from(wrapping.cn_len.get());
    let Some(message) = rest.get(..len) else {
        return Err(FrameError::Short { have: datagram.len(), need: WRAPPING + len });
    };
    Frame::parse(message).map(|(frame, _)| Some(frame))
}

/// Adds a datagram to `to` with the message that `encode` adds; `seq` is the message's.
///
/// # Panics
/// If the message is longer than a datagram can have.
pub fn wrap(seq: u32, to: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
    let from = to.len();
    to.resize(from + WRAPPING, 0);
    encode(to);
    let len = to.len() - from;
    assert!(len <= MAX_DATAGRAM, "too long for a datagram");
    let wrapping = RawWrapping {
        len: (len as u32).into(),
        message_type: DONE.into(),
        flags: 0.into(),
        seq: seq.into(),
        pid: 0.into(),
        index: INDEX.into(),
        value: VALUE.into(),
        cn_seq: seq.into(),
        ack: 0.into(),
        cn_len: ((len - WRAPPING) as u16).into(),
        cn_flags: 0.into(),
    };
    to[from..from + WRAPPING].copy_from_slice(wrapping.as_bytes());
}
