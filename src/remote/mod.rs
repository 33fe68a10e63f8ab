//! A volume's log that a log server keeps: the connection, and the thread that has it.
//!
//! The thread `mirrord-remote` runs [`Session`], which decides; it connects, sends, receives, and keeps the time.
//! Connecting may wait, for names and hosts, and is done by a thread of its own each time. What comes of it all is
//! [`Told`]: to whoever opens the log at first, then to the log worker.
//!
//! A server that is away is waited for. Whoever would rather go on without (`fallback`) is told after
//! [`FALLBACK_PATIENCE`] that a commit failed, and with [`Told::Back`] that the log holds all of it again.

mod address;
mod driver;
mod link;

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mirrord_log::SyncMode;
use mirrord_log::remote::{Changes, SessionConfig, SessionError};
use mirrord_raid::{Errno, Region};
use rustix::event::{EventfdFlags, eventfd};
use uuid::Uuid;

pub use address::{Address, BadAddress};

use crate::tls::{TlsError, TlsFiles, client_config};
use driver::Driver;
use link::{Link, LinkError};

/// How long a server that is away is waited for at a start.
const START_PATIENCE: Duration = Duration::from_secs(10);

/// How long a commit waits for a server that is away if the volume can go on without.
const FALLBACK_PATIENCE: Duration = Duration::from_secs(5);

/// How long a stop waits for a server that is away.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Seconds for which an answer is waited for before the connection is given up.
const ANSWER_SECONDS: u32 = 15;

/// Seconds for which a log that another has is waited for: a server's lease, if it is not longer than usual, and some.
const BUSY_SECONDS: u32 = 40;

/// Which log, and how it is reached.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where the server is.
    pub address: Address,
    /// Certificates, if the server wants some.
    pub tls: Option<TlsFiles>,
    /// The volume.
    pub volume: Uuid,
    /// Size of the volume, in bytes.
    pub size: u64,
    /// Bytes in a region.
    pub region_size: u64,
    /// The session of the volume that asks: who the log belongs to from now on.
    pub session: u64,
    /// What is known of the legs; with `last`, if the log is not believed.
    pub mode: SyncMode,
    /// The session that had it last: if another one had it since, it is not believed.
    pub last: Option<u64>,
    /// Whoever has the log has it no more.
    pub take_over: bool,
    /// Go on without a server that is away.
    pub fallback: bool,
    /// Told, once, that the log is waited for.
    pub tell: Option<fn(&str)>,
}

/// Why a log on a server cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// What was recorded or given is no address.
    #[error("log server {text}: {source}")]
    Address {
        /// What it is.
        text: String,
        /// What an address is.
        #[source]
        source: BadAddress,
    },
    /// An address with TLS, and no certificates.
    #[error(
        "log server {address}: it is reached with TLS: give --log-tls-cert, --log-tls-key and --log-tls-ca (mirrord log \
         cert makes some), or say insecure:HOST:PORT"
    )]
    NoCertificates {
        /// The server.
        address: Address,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A thread or descriptor could not be had.
    #[error("cannot start a thread for the log")]
    Thread(#[source] std::io::Error),
    /// The server is away.
    #[error("log server {address}: it cannot be reached{}", why(last))]
    Away {
        /// The server.
        address: Address,
        /// What went wrong last.
        last: Option<String>,
    },
    /// The server does not give the log.
    #[error("log server {address}: {source}{}", way_out(source))]
    Refused {
        /// The server.
        address: Address,
        /// Why.
        #[source]
        source: SessionError,
    },
    /// A commit failed.
    #[error("log server {address}: the log could not be written: {errno}")]
    Commit {
        /// The server.
        address: Address,
        /// Why.
        errno: Errno,
    },
}

fn why(last: &Option<String>) -> String {
    last.as_ref().map_or(String::new(), |last| format!(": {last}"))
}

fn way_out(error: &SessionError) -> &'static str {
    match error {
        SessionError::Busy => {
            "; stop that first, or if it is surely gone take the log from it with `mirrord start --log-take-over`"
        }
        _ => "",
    }
}

/// What comes of a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    /// It is had; these regions are dirty.
    Ready(Vec<Region>),
    /// Another has it; it is waited for.
    Busy,
    /// A commit ended.
    Committed(Result<(), Errno>),
    /// The server is away.
    Lost(String),
    /// It is there again, and the log is whole; `failed`: commits were answered with an error meanwhile.
    Back {
        /// See there.
        failed: bool,
    },
    /// It is had no more, and will not be.
    Refused(SessionError),
}

/// How the log is, for status.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct RemoteStatus {
    /// The server is there and has given the log.
    pub(crate) connected: bool,
    /// It lacks something that was marked.
    pub(crate) behind: bool,
    /// How often the log was had again.
    pub(crate) reconnects: u64,
    /// What went wrong last.
    pub(crate) last_error: Option<String>,
    /// How long the last commit took.
    pub(crate) round_trip: Option<Duration>,
}

enum Order {
    Commit(Changes),
    Connected(Result<Box<Link>, LinkError>),
    /// The server was waited for long enough: everything is dirty.
    TakeAllForDirty,
    /// What waits for the server does so no longer than this.
    Hurry(Option<Instant>),
    Stop,
}

type Sink = Box<dyn Fn(Told) + Send>;

/// What the thread shares.
struct Inner {
    orders: Mutex<Vec<Order>>,
    wake: OwnedFd,
    status: Mutex<RemoteStatus>,
    sink: Mutex<Sink>,
}

impl Inner {
    fn order(&self, order: Order) {
        lock(&self.orders).push(order);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A log on a server, in use. Dropped without [`Remote::stop`] nobody waits for its goodbye to be heard.
pub(crate) struct Remote {
    inner: Arc<Inner>,
    address: Address,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Until somebody else is told.
    told: Mutex<Option<Receiver<Told>>>,
    /// The server was away at the start, and everything is taken for dirty.
    pub(crate) is_without: bool,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Remote {
    /// Has the log, and tells what is dirty.
    pub(crate) fn open(setup: Setup) -> Result<(Remote, Vec<Region>), RemoteError> {
        let address = setup.address.clone();
        let tls = match (&setup.tls, address.has_tls()) {
            (_, false) => None,
            (Some(files), true) => Some(client_config(files)?),
            (None, true) => return Err(RemoteError::NoCertificates { address }),
        };
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| RemoteError::Thread(errno.into()))?;
        let (tell, told) = channel();
        let inner = Arc::new(Inner {
            orders: Mutex::default(),
            wake,
            status: Mutex::default(),
            sink: Mutex::new(Box::new(move |what| drop(tell.send(what)))),
        });
        let config = SessionConfig {
            uuid: setup.volume.to_string(),
            luid: setup.session,
            size: setup.size,
            region_size: setup.region_size,
            mode: setup.mode,
            last: setup.last,
            take_over: setup.take_over,
            patience: ANSWER_SECONDS,
            busy_patience: BUSY_SECONDS,
        };
        let driver = Driver::new(Arc::clone(&inner), address.clone(), tls, config, setup.fallback);
        let thread = std::thread::Builder::new().name("mirrord-remote".to_owned()).spawn(|| driver.run());
        let thread = Mutex::new(Some(thread.map_err(RemoteError::Thread)?));
        let mut remote = Remote { inner, address, thread, told: Mutex::new(Some(told)), is_without: false };
        let dirty = remote.await_ready(&setup)?;
        Ok((remote, dirty))
    }

    fn await_ready(&mut self, setup: &Setup) -> Result<Vec<Region>, RemoteError> {
        let mut deadline = Some(Instant::now() + START_PATIENCE);
        loop {
            match self.next(deadline) {
                Some(Told::Ready(dirty)) => return Ok(dirty),
                Some(Told::Busy) => {
                    let busy = Duration::from_secs(BUSY_SECONDS.into());
                    deadline = Some(Instant::now() + busy + START_PATIENCE);
                    if let Some(tell) = setup.tell {
                        tell(&format!(
                            "log server {}: another daemon has the log, or had it until a moment ago: waiting for it, up to \
                             {BUSY_SECONDS} seconds",
                            self.address
                        ));
                    }
                }
                Some(Told::Refused(source)) => {
                    return Err(RemoteError::Refused { address: self.address.clone(), source });
                }
                Some(_) => {}
                None if setup.fallback => {
                    self.inner.order(Order::TakeAllForDirty);
                    self.is_without = true;
                    deadline = None;
                }
                None => {
                    let last = lock(&self.inner.status).last_error.clone();
                    return Err(RemoteError::Away { address: self.address.clone(), last });
                }
            }
        }
    }

    fn next(&self, deadline: Option<Instant>) -> Option<Told> {
        let told = lock(&self.told);
        let told = told.as_ref()?;
        match deadline {
            None => told.recv().ok(),
            Some(deadline) => told.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok(),
        }
    }

    /// Has changes made durable and waits for that: while nobody else is told.
    pub(crate) fn commit_and_wait(&self, changes: Changes) -> Result<(), RemoteError> {
        if changes.is_empty() {
            return Ok(());
        }
        let failed = |errno| RemoteError::Commit { address: self.address.clone(), errno };
        self.inner.order(Order::Hurry(Some(Instant::now() + START_PATIENCE)));
        self.inner.order(Order::Commit(changes));
        let result = loop {
            match self.next(Some(Instant::now() + 3 * START_PATIENCE)) {
                Some(Told::Committed(result)) => break result.map_err(failed),
                Some(Told::Refused(source)) => {
                    break Err(RemoteError::Refused { address: self.address.clone(), source });
                }
                Some(_) => {}
                None => break Err(failed(Errno::EIO)),
            }
        };
        self.inner.order(Order::Hurry(None));
        result
    }

    /// Tells somebody else from now on, and first what came meanwhile.
    pub(crate) fn tell(&self, sink: impl Fn(Told) + Send + 'static) {
        let mut current = lock(&self.inner.sink);
        if let Some(told) = lock(&self.told).take() {
            told.try_iter().for_each(&sink);
        }
        *current = Box::new(sink);
    }

    /// Has changes made durable; [`Told::Committed`] comes once. One at a time.
    pub(crate) fn commit(&self, changes: Changes) {
        self.inner.order(Order::Commit(changes));
    }

    /// The volume is about to be stopped: a server that is away is not waited for for long.
    pub(crate) fn hurry(&self) {
        self.inner.order(Order::Hurry(Some(Instant::now() + STOP_PATIENCE)));
    }

    /// The volume is not stopped after all.
    pub(crate) fn take_time(&self) {
        self.inner.order(Order::Hurry(None));
    }

    pub(crate) fn status(&self) -> RemoteStatus {
        lock(&self.inner.status).clone()
    }

    /// Says goodbye, if the server is there.
    pub(crate) fn stop(&self) {
        match self.status().connected {
            true => self.hurry(),
            false => self.inner.order(Order::Hurry(Some(Instant::now()))),
        }
        self.end();
    }

    fn end(&self) {
        self.inner.order(Order::Stop);
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.inner.order(Order::Hurry(Some(Instant::now())));
        self.end();
    }
}
