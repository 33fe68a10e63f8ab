//! mirrord: a RAID1 mirror that runs entirely in userspace.

#![forbid(unsafe_code)]

mod below;
pub mod cli;
pub mod control;
pub mod create;
pub mod daemon;
mod device_name;
pub mod doctor;
pub mod engine;
pub mod events;
mod extents;
pub mod failure;
pub mod inspect;
pub mod leg;
pub mod limits;
pub mod log_file;
pub mod log_place;
pub mod log_server;
pub mod logging;
pub mod map;
pub mod metrics;
pub mod paths;
mod peer;
pub mod registry;
pub mod remote;
pub mod resize;
pub mod rights;
pub mod scrub;
pub mod signature;
mod socket;
pub mod split_leg;
mod stamp;
pub mod start;
pub mod status;
pub mod testing;
pub mod tls;
pub mod units;
