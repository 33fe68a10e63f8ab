//! The real binary: what it does when it is used well, and that it refuses bad input with a clear
//! error and touches nothing.

#[path = "cli/adopt.rs"]
mod adopt;
#[path = "cli/bad_create.rs"]
mod bad_create;
#[path = "cli/bad_legs.rs"]
mod bad_legs;
#[path = "cli/bad_start.rs"]
mod bad_start;
#[path = "cli/create.rs"]
mod create;
#[path = "cli/data.rs"]
mod data;
#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/map.rs"]
mod map;
#[path = "cli/or_start.rs"]
mod or_start;
#[path = "cli/run.rs"]
mod run;
#[path = "cli/snapshot.rs"]
mod snapshot;

mod rig;
