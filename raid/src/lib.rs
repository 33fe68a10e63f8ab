//! `mirrord-raid` decides what a RAID1 mirror does and never does it.
//!
//! No file descriptor, thread, clock or `unsafe` is in this crate. Events go in, actions come
//! out; the driver (crate `mirrord`) carries actions out on real files, the simulator (tests/)
//! on disks it invents. Both run this very code.
//!
//! - [`MirrorQueue`]: one per queue of the front end; requests become leg IO.
//! - [`LogWorker`]: marks, clears, leg states: all that is durable.
//! - [`Background`]: copies stale regions and flushes legs for the log worker.
//! - [`Mirror`]: the tables they share.
//! - [`assemble`]: what a set of legs found on disk amounts to.

#![forbid(unsafe_code)]

mod assemble;
mod background;
mod durable;
mod geometry;
mod held;
mod legs;
mod lineage;
mod mirror;
mod queue;
mod ranges;
mod recent;
mod region;
mod request;
mod scrub;
mod sync;
mod types;
mod worker;

pub use assemble::{AssembleError, AssembleOptions, Assembly, LegRecord, Replaces, assemble, authority};
pub use background::{Background, BackgroundAction, BackgroundEvent, COPY_SLOTS, WINDOW};
pub use geometry::{Geometry, GeometryError, MAX_REGIONS, Parts, Region, Regions, SECTOR};
pub use held::Held;
pub use legs::{LegCounters, LegStates, LegTable};
pub use lineage::{Lineage, MAX_PAST, Past};
pub use mirror::{Counters, LegErrors, Mirror, QueueNote, WorkerNote};
pub use queue::MirrorQueue;
pub use ranges::{Hold, Owner, RangeLocks};
pub use recent::{RECENT_GROUPS, Recent};
pub use region::{Begin, RegionState, RegionTable};
pub use request::{Action, Event, Op, Request};
pub use scrub::{
    Difference, Groups, SCRUB_IO, SCRUB_TAGS, ScrubCommand, ScrubRepair, ScrubReport, ScrubWait, differences,
};
pub use types::{Errno, FailReason, Leg, LegIo, LegMap, LegOp, LegSet, LegState, MAX_LEGS, QueueId};
pub use worker::{LogWorker, Record, WorkerAction, WorkerEvent};
