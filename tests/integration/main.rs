//! The real program on real files: each command used well, refused where it has to be, killed, cut off from its log,
//! with full and hung disks under it. In one program, which is built and linked once.

mod cli;
mod crash;
mod events;
mod examples;
mod full_disk;
mod hardening;
mod house;
mod hung_leg;
mod images;
mod leg_below;
mod leg_gone;
mod leg_kinds;
mod leg_touched;
mod legs;
mod log_identity;
mod log_serve;
mod metrics;
mod packaging;
mod process_limits;
mod recent;
mod remote_cuts;
mod remote_log;
mod remote_netns;
mod resize;
mod rig;
mod scrub;
mod snapshot;
mod split;
mod split_serve;
mod stop;
mod unprivileged;
mod unusable_legs;
