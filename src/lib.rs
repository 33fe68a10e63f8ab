//! mirrord: a RAID1 mirror that runs entirely in userspace.
pub mod status;
