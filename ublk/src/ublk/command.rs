//! What a queue and the driver say to each other, as in the kernel's `include/uapi/linux/ublk_cmd.h`.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

/// Give me the first request of this tag (`UBLK_U_IO_FETCH_REQ`).
pub(super) const FETCH: u32 = number(0x20);
/// Here is the answer, give me the next (`UBLK_U_IO_COMMIT_AND_FETCH_REQ`).
pub(super) const COMMIT_AND_FETCH: u32 = number(0x21);

/// The number of an ioctl that reads and writes an [`IoCommand`]: `_IOWR('u', number, ...)`.
const fn number(number: u32) -> u32 {
    3 << 30 | (size_of::<IoCommand>() as u32) << 16 | (b'u' as u32) << 8 | number
}

/// `struct ublksrv_io_cmd`, the payload of both commands.
#[derive(IntoBytes, zerocopy::Immutable)]
#[repr(C)]
pub(super) struct IoCommand {
    pub(super) queue: u16,
    pub(super) tag: u16,
    /// Bytes, or an errno negated.
    pub(super) result: i32,
    /// Of the tag's buffer, until the next answer.
    pub(super) address: u64,
}

/// `struct ublksrv_io_desc`: a request of the kernel.
#[derive(Clone, Copy, FromBytes, KnownLayout)]
#[repr(C)]
pub(super) struct IoDescriptor {
    /// Operation in the lowest 8 bits, flags above.
    pub(super) operation: u32,
    pub(super) sectors: u32,
    pub(super) start_sector: u64,
    /// Of the tag's buffer.
    pub(super) address: u64,
}

const _: () = assert!(size_of::<IoCommand>() == 16 && size_of::<IoDescriptor>() == 24);
const _: () = assert!(FETCH == 0xc010_7520 && COMMIT_AND_FETCH == 0xc010_7521);

pub(super) const OP_READ: u32 = 0;
pub(super) const OP_WRITE: u32 = 1;
pub(super) const OP_FLUSH: u32 = 2;
pub(super) const OP_DISCARD: u32 = 3;
pub(super) const OP_WRITE_ZEROES: u32 = 5;

/// In [`IoDescriptor::operation`]: durable before it is answered.
pub(super) const FLAG_FUA: u32 = 1 << 13;
/// Likewise: zeroes are to have their space.
pub(super) const FLAG_NOUNMAP: u32 = 1 << 15;

/// Most requests per queue that the driver has descriptors for; the space of each queue is of this size.
pub(super) const MOST_DEPTH: usize = 4096;
