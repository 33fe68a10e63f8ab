//! The real binary: what it does when it is used well, and that it refuses bad input with a clear
//! error and touches nothing.

mod adopt;
mod bad_create;
mod bad_legs;
mod bad_start;
mod create;
mod data;
mod doctor;
mod map;
mod or_start;
mod run;

pub(crate) use data::reseal;
