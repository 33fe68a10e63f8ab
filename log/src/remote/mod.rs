//! The remote log: a volume's dirty-region log that a log server keeps ([`crate::server`]), seen from the volume.
//!
//! [`RemoteLog`] is the log worker's bookkeeping: what was marked and cleared since the last commit ([`Changes`]).
//! [`Session`] speaks with the server, and decides without doing: no fd, clock or thread is in it, and the
//! simulator runs it against the real server. [`Event`]s go in, [`Action`]s come out.
//!
//! What holds:
//! - A commit is answered `Ok` only when the server has answered, on one connection, that every region which is dirty is
//!   marked durably.
//! - The session's bits are exact for as long as the volume is served: whatever a lost connection or a restarted
//!   server forgot is said again before anything else.
//! - Once another life of the volume has the log ([`SessionError::TakenOver`]) nothing is sent any more, and no commit is
//!   ever answered `Ok` again.

mod log;
mod session;
mod talk;

use mirrord_raid::{Assembly, Errno, Region};

use crate::log::SyncMode;
use crate::wire::{Frame, RequestType};

pub use log::RemoteLog;
pub use session::Session;

/// What a log changed since its last commit, each region once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Regions whose dirty bit is set now.
    pub marks: Vec<Region>,
    /// Regions whose dirty bit is unset now.
    pub clears: Vec<Region>,
}

impl Changes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.clears.is_empty()
    }
}

/// Which log, and how it is asked for.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The volume's name for it: what the server calls the log, too.
    pub uuid: String,
    /// Of this life of the volume: the session that its records will name.
    pub luid: u64,
    /// Size of the volume, in bytes.
    pub size: u64,
    /// Bytes in a region.
    pub region_size: u64,
    /// What is known of the legs; with `last`, if the log is not believed.
    pub mode: SyncMode,
    /// The life of the volume that had the log last: if another one had it since, it is not believed.
    pub last: Option<u64>,
    /// Whoever has the log has it no more.
    pub take_over: bool,
    /// Ticks for which an answer is waited for before the connection is given up.
    pub patience: u32,
    /// Ticks for which a log that another has is waited for.
    pub busy_patience: u32,
}

/// How a start that comes to this asks for its log: what is known of the legs, and the session that had the log last. The
/// log counts only if the server says that this one had it, and if the legs do not say that it lost a mark.
pub fn asked_for(assembly: &Assembly) -> (SyncMode, Option<u64>) {
    match SyncMode::at_start(assembly) {
        SyncMode::Default if assembly.session != 0 => {
            (SyncMode::without_log(assembly), Some(assembly.session))
        }
        mode => (mode, None),
    }
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The connection that was asked for is there.
    Connected,
    /// A message came on it.
    Received(Frame<'a>),
    /// It is gone, or could not be had.
    Lost,
    /// Make these changes durable. One commit at a time, and none before [`Action::Ready`].
    Commit(&'a Changes),
    /// A second went by. Only needed while [`Session::wants_tick`].
    Tick,
    /// The volume stops: say goodbye. No commit is under way.
    Stop,
}

/// What to do, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Have a connection, at once or after some time.
    Connect,
    /// Give the connection up; there is no [`Event::Lost`] for it.
    Disconnect,
    /// Send these bytes.
    Send(Vec<u8>),
    /// The log is had for the first time: [`Session::dirty`] is what it said.
    Ready,
    /// It is had again, and holds all that it should.
    Back,
    /// Another has the log: it is asked for again.
    Busy,
    /// The commit is durable.
    Committed,
    /// The log cannot be had, or not any more: the session is over.
    Refused(SessionError),
    /// Goodbye was said and heard: the session is over.
    Stopped,
}

/// Why the log cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SessionError {
    /// Another life of the volume has it.
    #[error("the log is in use by another daemon that serves this volume, or did until a moment ago")]
    Busy,
    /// It was given to another life of the volume.
    #[error("the log was taken over by another daemon that serves this volume")]
    TakenOver,
    /// The server's log has another shape.
    #[error("the server's log is one of another volume: {what} is {theirs} there and {ours} here")]
    Geometry {
        /// What differs.
        what: &'static str,
        /// The server's.
        theirs: u64,
        /// The volume's.
        ours: u64,
    },
    /// The server refuses a request.
    #[error("the server refuses request {:?}: {errno}", request)]
    Refused {
        /// Which.
        request: RequestType,
        /// Why.
        errno: Errno,
    },
    /// An answer makes no sense.
    #[error("the server's answer to request {:?} makes no sense", request)]
    Nonsense {
        /// To which.
        request: RequestType,
    },
    /// No answer came.
    #[error("the server does not answer request {:?}", request)]
    Silent {
        /// Which.
        request: RequestType,
    },
}
