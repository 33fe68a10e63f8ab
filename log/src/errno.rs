//! Error numbers that a log server answers with.

use mirrord_raid::Errno;

/// There is no such log here: construct it.
pub(crate) const ESRCH: Errno = Errno(3);
/// Too many logs or regions.
pub(crate) const ENOMEM: Errno = Errno(12);
/// Somebody else has it.
pub(crate) const EBUSY: Errno = Errno(16);
/// The request makes no sense.
pub(crate) const EINVAL: Errno = Errno(22);
/// There is no such request.
pub(crate) const ENOSYS: Errno = Errno(38);
/// A version that is not known.
pub(crate) const EPROTONOSUPPORT: Errno = Errno(93);
/// Too many requests wait.
pub(crate) const ENOBUFS: Errno = Errno(105);
/// Somebody else has it for good.
pub(crate) const ESTALE: Errno = Errno(116);
