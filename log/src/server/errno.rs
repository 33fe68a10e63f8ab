//! Error numbers that requests are answered with.

use mirrord_raid::Errno;

/// There is no such log here: construct it.
pub(super) const ESRCH: Errno = Errno(3);
/// Too many logs or regions.
pub(super) const ENOMEM: Errno = Errno(12);
/// Somebody else has it.
pub(super) const EBUSY: Errno = Errno(16);
/// The request makes no sense.
pub(super) const EINVAL: Errno = Errno(22);
/// There is no such request.
pub(super) const ENOSYS: Errno = Errno(38);
/// A version that is not known.
pub(super) const EPROTONOSUPPORT: Errno = Errno(93);
/// Too many requests wait.
pub(super) const ENOBUFS: Errno = Errno(105);
/// Somebody else has it for good.
pub(super) const ESTALE: Errno = Errno(116);
