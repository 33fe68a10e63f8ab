//! `mirrord log serve`: the log server's threads, sockets and files around [`LogServer`], which decides.
//!
//! ```text
//! kernel --netlink--> one thread  \                        / answers, by whoever has them
//! volumes --streams-> one thread   > LogServer (a mutex) <
//! files  <---jobs---- a pool      /                        \ notes in the runtime directory
//! ```
//!
//! The mutex is held while the server decides and while notes are kept, which are in memory; never over the IO of a
//! log. Nobody waits for another's log: a disk that hangs has a thread of its own ([`disks`]), a client that does not
//! read has its own buffer, and is not read from while that is full ([`streams`]).

mod connection;
mod control;
mod disks;
mod listeners;
mod netlink;
mod sessions;
mod store;
mod streams;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use mirrord_log::server::{ClientId, LogServer, Output, ServerConfig};
use mirrord_log::wire::Frame;

use crate::control::{BindError, ControlServer};
use crate::paths::{Dirs, NameLock, PathsError};
use connection::Outbox;
pub use control::{LogInfo, ServerInfo};
use disks::Disks;
pub use listeners::{Listen, ListenError, TcpListen, UnixListen};
use netlink::Netlink;
pub use netlink::NetlinkError;
use sessions::Sessions;
use store::Stores;
use streams::Streams;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folders in which log servers keep what volumes keep in `dirs`.
pub fn server_dirs(dirs: &Dirs) -> Dirs {
    Dirs::new(dirs.runtime().join("log"), dirs.state().join("log"))
}

/// What is to be served.
#[derive(Debug)]
pub struct Options {
    /// The server's name, of which there is one at a time.
    pub name: String,
    /// The kernel's mirrors.
    pub netlink: bool,
    /// Sockets for volumes.
    pub listen: Vec<Listen>,
    /// Where logs of volumes are; without it they can only be in memory.
    pub folder: Option<PathBuf>,
    /// Seconds for which the log of a volume that is gone is kept for it.
    pub lease: Duration,
}

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is one of this name.
    #[error(
        "a log server named {name} runs already: stop it with `mirrord log stop`, or choose another --name"
    )]
    Running {
        /// Its name.
        name: String,
    },
    /// Its directories cannot be used.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// Its control socket cannot be made.
    #[error(transparent)]
    Control(#[from] BindError),
    /// The folder of logs cannot be used.
    #[error("cannot keep logs in {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What an earlier server left cannot be read.
    #[error("cannot read what an earlier server left in {}", path.display())]
    Sessions {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot be served.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Volumes cannot connect.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system has no thread or descriptor left.
    #[error("cannot start the server's threads")]
    Threads(#[source] io::Error),
}

/// The decisions, and what of them outlives the process.
struct Core {
    server: LogServer,
    sessions: Sessions,
}

/// What every thread has.
struct Shared {
    core: Mutex<Core>,
    netlink: Option<Netlink>,
    outboxes: Mutex<HashMap<ClientId, Arc<Outbox>>>,
    disks: OnceLock<Disks>,
    /// Clients with new answers, for the streams' thread, which is woken.
    answered: Mutex<Vec<ClientId>>,
    wake: rustix::fd::OwnedFd,
    end: End,
}

/// Buffers of one thread, used again.
#[derive(Default)]
struct Scratch {
    out: Output,
    datagram: Vec<u8>,
}

impl Shared {
    /// Has the server decide, and carries out what it says.
    fn decide(&self, scratch: &mut Scratch, call: impl FnOnce(&mut LogServer, &mut Output)) {
        let Scratch { out, datagram } = scratch;
        out.clear();
        {
            let Core { server, sessions } = &mut *lock(&self.core);
            call(server, out);
            // Under the lock: notes of one log come from several threads.
            out.saves.iter().for_each(|save| sessions.keep(save));
        }
        let mut to_streams = false;
        for (client, seq, message) in out.answers() {
            if client.is_kernel() {
                if let Some(netlink) = &self.netlink {
                    netlink.send(seq, message, datagram);
                }
            } else if let Some(outbox) = lock(&self.outboxes).get(&client) {
                outbox.add(message);
                lock(&self.answered).push(client);
                to_streams = true;
            }
        }
        if to_streams {
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
        if let Some(disks) = self.disks.get() {
            out.jobs.drain(..).for_each(|job| disks.begin(job));
        }
    }

    fn live(&self) -> usize {
        lock(&self.core).server.live()
    }
}

/// Whether the server is to end, and who waits for that.
#[derive(Default)]
struct End {
    asked: AtomicBool,
    state: Mutex<bool>,
    changed: Condvar,
}

impl End {
    fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        *lock(&self.state) = true;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut ended = lock(&self.state);
        while !*ended {
            ended = self.changed.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A log server at work.
pub struct Serving {
    shared: Arc<Shared>,
    control: Option<ControlServer>,
    /// What it listens to, for people.
    pub places: Vec<String>,
    _name: NameLock,
}

impl Serving {
    /// Takes over what an earlier server left, and serves.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn begin(dirs: &Dirs, options: Options) -> Result<Serving, ServeError> {
        let dirs = server_dirs(dirs);
        let name = options.name;
        let Some(name_lock) = dirs.lock(&name)? else { return Err(ServeError::Running { name }) };
        if let Some(folder) = &options.folder {
            let failed = |source| ServeError::Folder { path: folder.clone(), source };
            let made = std::fs::DirBuilder::new().recursive(true).create(folder);
            made.and_then(|()| std::fs::read_dir(folder).map(drop)).map_err(failed)?;
        }
        let path = dirs.runtime().join(format!("{name}.sessions"));
        let failed = |source| ServeError::Sessions { path: path.clone(), source };
        let mut sessions = Sessions::open(&path).map_err(failed)?;
        let left = sessions.read().map_err(failed)?;
        let netlink = options.netlink.then(Netlink::open).transpose()?;
        let listeners = listeners::bind(&options.listen)?;
        let mut control = ControlServer::bind(&dirs, &name)?;
        let wake = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC,
        );
        let config = ServerConfig { lease: options.lease.as_secs(), ..ServerConfig::default() };
        let shared = Arc::new(Shared {
            core: Mutex::new(Core { server: LogServer::new(config), sessions }),
            netlink,
            outboxes: Mutex::default(),
            disks: OnceLock::new(),
            answered: Mutex::default(),
            wake: wake.map_err(|errno| ServeError::Threads(errno.into()))?,
            end: End::default(),
        });
        let told = Arc::downgrade(&shared);
        let when_done = move |store, done| {
            if let Some(shared) = told.upgrade() {
                shared.decide(&mut Scratch::default(), |server, out| server.job_done(store, done, out));
            }
        };
        let _ = shared.disks.set(Disks::new(Stores::new(options.folder), Box::new(when_done)));
        let mut scratch = Scratch::default();
        for (session, notes) in left {
            shared.decide(&mut scratch, |server, out| {
                if let Err(error) = server.restore(session, &notes, out) {
                    tracing::warn!(session = session.0, %error, "what an earlier server left is not used");
                    out.saves.push(mirrord_log::server::Save::Remove { session });
                }
            });
        }
        let restored = lock(&shared.core).server.logs().count();
        if restored > 0 {
            tracing::info!(logs = restored, "an earlier server's logs go on");
        }
        let mut places: Vec<String> = listeners.iter().map(listeners::Listener::place).collect();
        if shared.netlink.is_some() {
            places.insert(0, "netlink".to_owned());
        }
        let info = control::About { name, places: places.clone() };
        control.serve(control::handler(&shared, info)).map_err(ServeError::Threads)?;
        let streams = Streams::new(Arc::clone(&shared), listeners).map_err(ServeError::Threads)?;
        spawn("mirrord-log-streams", move || streams.run())?;
        if shared.netlink.is_some() {
            let shared = Arc::clone(&shared);
            spawn("mirrord-log-kernel", move || serve_kernel(&shared))?;
        }
        Ok(Serving { shared, control: Some(control), places, _name: name_lock })
    }

    /// Tells how many logs are in use: their mirrors would be left without one.
    pub fn counter(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.live()
    }

    /// A way to end it from elsewhere.
    pub fn ender(&self) -> impl Fn() + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.end.ask()
    }

    /// Returns once somebody ended it. Logs of the kernel are left as they are, for a server to come.
    pub fn wait(mut self) {
        self.shared.end.wait();
        if let Some(control) = self.control.take() {
            control.close();
        }
        if let Some(disks) = self.shared.disks.get() {
            disks.close();
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), ServeError> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop).map_err(ServeError::Threads)
}

fn serve_kernel(shared: &Shared) {
    let Some(netlink) = &shared.netlink else { return };
    let mut scratch = Scratch::default();
    let received = netlink.receive(|frame: &Frame<'_>| {
        shared.decide(&mut scratch, |server, out| server.request(ClientId::KERNEL, frame, out));
    });
    if let Err(error) = received {
        tracing::error!(%error, "the kernel cannot be heard any more: the server ends");
        shared.end.ask();
    }
}
