//! What a queue is asked, what it is told, and what it asks for.

use crate::types::{Errno, Leg, LegIo, QueueId};

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Fill the request's buffer.
    Read,
    /// Write the request's buffer.
    Write,
    /// Make the range read as zeroes.
    Zero {
        /// See [`crate::LegOp::Zero`].
        keep: bool,
    },
    /// Make every completed write durable.
    Flush,
}

/// A request of the front end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Names the request and its buffer until it is completed; small numbers, reused.
    pub tag: u32,
    /// What.
    pub op: Op,
    /// Where, in bytes; a multiple of the volume's block size for reads and writes.
    pub offset: u64,
    /// How much, in bytes; likewise.
    pub len: u64,
    /// The write is to be durable when it completes.
    pub fua: bool,
    /// The write is unaligned at heart: its blocks are read first and [`Action::Overlay`] lays the
    /// caller's bytes over them.
    pub patch: bool,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The front end has a request.
    Request(Request),
    /// A leg IO is done.
    LegDone {
        /// As in [`LegIo::io`].
        io: u32,
        /// Which leg.
        leg: Leg,
        /// How it went.
        result: Result<(), Errno>,
    },
    /// Somebody emitted a wake for this queue.
    Woken,
}

/// What to do, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Start a leg IO; its completion comes back as [`Event::LegDone`].
    Submit(LegIo),
    /// Lay the caller's bytes over the request's buffer, as far as they lie in this range of the volume.
    Overlay {
        /// The request.
        tag: u32,
        /// Start of the range, in bytes.
        offset: u64,
        /// Its length, in bytes.
        len: u64,
    },
    /// The request is done.
    Complete {
        /// The request.
        tag: u32,
        /// How it went.
        result: Result<(), Errno>,
    },
    /// Give the log worker a `Woken`.
    WakeWorker,
    /// Give another queue, or the background worker, a `Woken`.
    Wake(QueueId),
}
