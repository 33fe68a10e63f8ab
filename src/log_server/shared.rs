//! The log server and everything that carries out what it decides: shared by the netlink thread, the stream thread,
//! the disk threads and the control socket.
//!
//! One lock is held while the server decides and while notes are kept, which is a write to memory: never over a disk,
//! a socket or a client. Whoever called the server then carries out what came of it, unlocked: answers are sent or
//! left for the stream thread, jobs are given to disk threads. Each thread has [`Hands`] of its own, so that nothing is
//! allocated for a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mirrord_log::server::{Job, JobDone, JobKind, LogServer, Output, Save, SessionId, StoreId};

use super::netlink::Netlink;
use super::outlets::Outlets;
use super::pool::{Pool, Work};
use super::sessions::{Sessions, SessionsError};
use super::store::{Stores, errno};
use crate::failure::describe;

/// Buffers of a thread that calls the server.
#[derive(Debug, Default)]
pub(super) struct Hands {
    out: Output,
    datagram: Vec<u8>,
    /// This is the stream thread, which looks for answers by itself.
    sends_streams: bool,
}

impl Hands {
    /// Of the stream thread.
    pub(super) fn of_streams() -> Hands {
        Hands { sends_streams: true, ..Hands::default() }
    }
}

/// What the lock guards.
#[derive(Debug)]
struct State {
    server: LogServer,
    sessions: Sessions,
    /// Nothing is answered any more: the process is about to end.
    is_closed: bool,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Requests of the kernel.
    pub(super) kernel_requests: AtomicU64,
    /// Requests over connections.
    pub(super) stream_requests: AtomicU64,
    /// Connections that were turned away or dropped for what they sent.
    pub(super) dropped: AtomicU64,
    /// Connections now.
    pub(super) connections: AtomicU64,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    stores: Stores,
    pool: Arc<Pool<Job>>,
    /// Answers for connections.
    pub(super) outlets: Outlets,
    netlink: Option<Netlink>,
    /// Counts since the start.
    pub(super) counters: Counters,
}

/// Why the server goes on: logs are in use.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{live} of its logs are in use: their mirrors would wait for a server to come")]
pub(super) struct StillUsed {
    /// How many.
    pub(super) live: usize,
}

impl Shared {
    /// Around a server that was restored from `sessions`.
    pub(super) fn new(
        server: LogServer,
        sessions: Sessions,
        stores: Stores,
        outlets: Outlets,
        netlink: Option<Netlink>,
    ) -> Arc<Shared> {
        let state = Mutex::new(State { server, sessions, is_closed: false });
        let pool = Arc::new(Pool::new());
        Arc::new(Shared { state, stores, pool, outlets, netlink, counters: Counters::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the first disk thread.
    pub(super) fn start_disks(self: &Arc<Shared>) -> std::io::Result<()> {
        self.pool.start(self)
    }

    /// The kernel's socket.
    pub(super) fn netlink(&self) -> Option<&Netlink> {
        self.netlink.as_ref()
    }

    /// Calls the server and carries out what comes of it.
    pub(super) fn act(self: &Arc<Shared>, hands: &mut Hands, call: impl FnOnce(&mut LogServer, &mut Output)) {
        hands.out.clear();
        {
            let mut state = self.state();
            if state.is_closed {
                return;
            }
            let State { server, sessions, .. } = &mut *state;
            call(server, &mut hands.out);
            sessions.keep(&hands.out.saves);
        }
        self.carry_out(hands);
    }

    fn carry_out(self: &Arc<Shared>, hands: &mut Hands) {
        let mut rings = false;
        for (client, seq, message) in hands.out.answers() {
            if !client.is_kernel() {
                rings |= self.outlets.leave(client, message);
            } else if let Some(netlink) = &self.netlink {
                netlink.answer(seq, message, &mut hands.datagram);
            }
        }
        if rings && !hands.sends_streams {
            self.outlets.ring();
        }
        for refused in hands.out.refused.drain(..) {
            tracing::error!("{refused}");
        }
        for job in hands.out.jobs.drain(..) {
            self.pool.submit(self, job);
        }
    }

    /// What a server that was here before left.
    pub(super) fn left(&self) -> Result<Vec<(SessionId, Vec<u8>)>, SessionsError> {
        self.state().sessions.left()
    }

    /// Removes notes that cannot be used.
    pub(super) fn forget(&self, session: SessionId) {
        self.state().sessions.keep(&[Save::Remove { session }]);
    }

    /// Looks at the server and its notes.
    pub(super) fn look<T>(&self, look: impl FnOnce(&LogServer, &Sessions) -> T) -> T {
        let state = self.state();
        look(&state.server, &state.sessions)
    }

    /// Takes no request any more, if no log is in use or that does not matter.
    pub(super) fn close(&self, although_used: bool) -> Result<(), StillUsed> {
        let mut state = self.state();
        match state.server.live() {
            live if live > 0 && !although_used => Err(StillUsed { live }),
            _ => {
                state.is_closed = true;
                Ok(())
            }
        }
    }

    fn do_job(&self, store: StoreId, what: JobKind) -> JobDone {
        let told = |doing: &str, error: std::io::Error| {
            tracing::error!("cannot {doing} a log: {}", describe(&error));
            errno(&error)
        };
        match what {
            JobKind::Open { device, by_kernel, regions, again } => {
                let opened = self.stores.open(store, &device, by_kernel, regions, again);
                JobDone::Opened(opened.map_err(|error| {
                    tracing::error!("{}", describe(&error));
                    error.errno()
                }))
            }
            JobKind::Read { len } => {
                JobDone::Read(self.stores.read(store, len).map_err(|error| told("read", error)))
            }
            JobKind::Write { writes } => {
                JobDone::Written(self.stores.write(store, &writes).map_err(|error| told("write", error)))
            }
            JobKind::Close => {
                self.stores.close(store);
                JobDone::Closed
            }
        }
    }
}

impl Work<Job> for Shared {
    type Kept = Hands;

    fn work(self: &Arc<Shared>, job: Job, hands: &mut Hands) {
        let done = self.do_job(job.store, job.what);
        self.act(hands, |server, out| server.job_done(job.store, done, out));
    }
}

/// Counts one more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
