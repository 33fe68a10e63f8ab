//! Error numbers that a log server answers with.

use mirrord_raid::Errno;

/// Not by this server.
pub(crate) const EPERM: Errno = Errno(1);
/// There is no such log here: construct it.
pub(crate) const ESRCH: Errno = Errno(3);
/// A file cannot be read or written.
pub(crate) const EIO: Errno = Errno(5);
/// Never answered: the kernel would ask again without a pause.
pub(crate) const EAGAIN: Errno = Errno(11);
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
