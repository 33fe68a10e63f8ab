//! mirrord: a RAID1 mirror that runs entirely in userspace.

#![forbid(unsafe_code)]

pub mod engine;
pub mod leg;
pub mod start;
pub mod status;
