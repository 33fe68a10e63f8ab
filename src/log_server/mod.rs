//! A daemon that keeps dirty-region logs for others: for the kernel's dm-mirror, which asks over netlink, and for
//! volumes of mirrord elsewhere, which ask over sockets.
//!
//! [`mirrord_log::server`] decides everything; here is what carries that out:
//!
//! | thread | waits for | in |
//! |---|---|---|
//! | netlink | the kernel's requests | `netlink` |
//! | streams | connections, and the clock | `streams` |
//! | disk, as many as needed | files and devices with logs in them | `pool`, `store`, `folder` |
//! | control | `mirrord log status` and the like | `control` |
//! | main | signals | here |
//!
//! What is known of the kernel's logs outlives the process (`sessions`), so that the next server goes on as if nothing had
//! been. Volumes keep their own books and say everything again.
//!
//! It ends when it is told to: not while logs are in use, unless forced (`mirrord log stop --force`, or a second
//! signal). A mirror whose server is gone waits for the next one; nothing of it is lost.

mod control;
mod dump;
mod folder;
mod netlink;
mod outlets;
mod pool;
mod report;
mod sessions;
mod shared;
mod store;
mod streams;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use mirrord_log::server::{LogServer, Refused, RestoreError, ServerConfig};
use rustls::ServerConfig as TlsConfig;
use signal_hook::iterator::Signals;

use self::control::Fixed;
use self::folder::{Folder, FolderError};
use self::netlink::Netlink;
use self::outlets::Outlets;
use self::sessions::Sessions;
use self::shared::{Hands, Shared};
use self::store::Stores;
use self::streams::{Listener, Streams};
use crate::control::{BindError, ControlServer};
use crate::daemon::harden::harden;
use crate::daemon::notify::Manager;
use crate::daemon::signals;
use crate::failure::describe;
use crate::limits::raise_descriptors;
use crate::logging::{self, Level, LogTo};
use crate::paths::{Dirs, NameLock, PathsError};
use crate::tls::{TlsError, TlsFiles, server_config};

pub use self::dump::{DumpError, dump};
pub use self::netlink::NetlinkError;
pub use self::report::{DiskLogDump, LogReport, LogServerReport, RegionRange, ranges};
pub use self::sessions::SessionsError;
pub use self::streams::ListenError;

/// How a log server is called that was given no name.
pub const DEFAULT_NAME: &str = "default";

/// Whom to serve and how.
#[derive(Clone, Debug)]
pub struct LogServeSpec {
    /// Its name.
    pub name: String,
    /// The kernel of this machine.
    pub netlink: bool,
    /// Whoever may use these sockets.
    pub unix: Vec<PathBuf>,
    /// The group that may use them.
    pub unix_group: Option<String>,
    /// Whoever can reach these addresses.
    pub tcp: Vec<String>,
    /// And has a certificate.
    pub tls: Option<TlsFiles>,
    /// Or has none.
    pub insecure: bool,
    /// Where volumes' logs are; `None`: in the state directory.
    pub folder: Option<PathBuf>,
    /// Limits.
    pub config: ServerConfig,
    /// Where messages go.
    pub log_to: LogTo,
    /// How much is said.
    pub log_level: Level,
}

/// Why logs cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LogServeError {
    /// A server of that name runs.
    #[error(
        "a log server called {name} runs already: stop it with `mirrord log stop`, or give this one another --name"
    )]
    Running {
        /// The name.
        name: String,
    },
    /// A directory of mirrord cannot be used.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// Messages cannot be written.
    #[error("cannot begin the log of messages")]
    Logging(#[source] io::Error),
    /// No control socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The folder for logs cannot be used.
    #[error("cannot use the folder {} for logs", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No notes can be kept.
    #[error(transparent)]
    Sessions(#[from] SessionsError),
    /// A server that was here before kept a log that this one may not.
    #[error("a mirror of the kernel waits for this server")]
    Refused(#[source] Refused),
    /// The kernel cannot be answered.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody can connect.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// No thread or signal handler.
    #[error("cannot start a thread or handle signals")]
    Threads(#[source] io::Error),
}

/// A log server in this process.
#[derive(Debug)]
pub struct LogServing {
    control: ControlServer,
    stopped: Receiver<()>,
    listens: Vec<String>,
    sockets: Vec<PathBuf>,
    manager: Option<Manager>,
    _lock: NameLock,
}

impl LogServing {
    /// Begins to serve; the service manager, if there is one, is told.
    ///
    /// # Errors
    /// See [`LogServeError`].
    pub fn begin(dirs: &Dirs, spec: &LogServeSpec) -> Result<LogServing, LogServeError> {
        // Of volumes' directories, too: this one is in theirs.
        dirs.prepare(&spec.name)?;
        let dirs = dirs.log_servers();
        let lock = dirs.lock(&spec.name)?;
        let lock = lock.ok_or_else(|| LogServeError::Running { name: spec.name.clone() })?;
        logging::begin(&spec.log_to, spec.log_level).map_err(LogServeError::Logging)?;
        let signals = signals::take(true).map_err(LogServeError::Threads)?;
        let manager = Manager::from_env();
        harden();
        raise_descriptors();

        let tls = spec.tls.as_ref().map(server_config).transpose()?;
        let default = || dirs.state().join("log-serve").join(&spec.name);
        let has_streams = !spec.unix.is_empty() || !spec.tcp.is_empty();
        let place = spec.folder.clone().or_else(|| has_streams.then(default));
        let folder = place.as_deref().map(Folder::open_at).transpose().map_err(folder_error)?;
        let fixed_folder = folder.as_ref().map(|folder| folder.path().display().to_string());
        let sessions = Sessions::open(&dirs.runtime().join(&spec.name).join("sessions"))?;
        if spec.netlink && !sessions.in_memory() {
            tracing::warn!(
                "{} is not in memory: what is noted there of each request may go to a disk; set MIRRORD_RUNTIME_DIR",
                dirs.runtime().display()
            );
        }
        let listeners = listen(spec, tls.as_ref())?;
        let mut control = ControlServer::bind(&dirs, &spec.name)?;
        // Last of what may fail: from here on the kernel's requests wait for this server. It has the right to answer before
        // it has the logs.
        let netlink = spec.netlink.then(Netlink::open).transpose()?;
        let outlets = Outlets::new().map_err(LogServeError::Threads)?;
        let (server, stores) = (LogServer::new(spec.config), Stores::new(folder));
        let shared = Shared::new(server, sessions, stores, outlets, netlink);
        shared.start_disks().map_err(LogServeError::Threads)?;
        restore(&shared)?;
        if !spec.netlink && shared.look(|server, _| server.logs().next().is_some()) {
            tracing::warn!(
                "the server has notes of the kernel's logs, but without --netlink it does not answer the kernel"
            );
        }

        let kernel = spec.netlink.then(|| "netlink".to_owned());
        let places: Vec<String> = kernel.into_iter().chain(listeners.iter().map(Listener::place)).collect();
        let (stop, stopped) = channel();
        let fixed = Fixed {
            name: spec.name.clone(),
            listens: places.clone(),
            folder: fixed_folder,
            lease_seconds: spec.config.lease,
            single_host: spec.config.single_host,
        };
        start_threads(&shared, listeners, &mut control, fixed, signals, stop)
            .map_err(LogServeError::Threads)?;
        let status = format!("keeping logs at {}", places.join(" "));
        tracing::info!(name = spec.name, "{status}");
        if let Some(manager) = &manager {
            manager.ready(&status);
        }
        Ok(LogServing { control, stopped, listens: places, sockets: spec.unix.clone(), manager, _lock: lock })
    }

    /// What it listens to: `netlink`, `unix:PATH`, `tls:ADDRESS`, `tcp:ADDRESS`.
    pub fn listens(&self) -> &[String] {
        &self.listens
    }

    /// Serves until it is stopped.
    pub fn wait(self) {
        // The senders live as long as the threads do, which is as long as the process.
        let _ = self.stopped.recv();
        if let Some(manager) = &self.manager {
            manager.stopping();
        }
        tracing::info!("stopped");
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
        self.control.close();
    }
}

/// Brings back what a server that was here before knew of the kernel's logs.
fn restore(shared: &Arc<Shared>) -> Result<(), LogServeError> {
    let mut hands = Hands::default();
    for (session, notes) in shared.left()? {
        let mut result = Ok(());
        shared.act(&mut hands, |server, out| result = server.restore(session, &notes, out));
        if let Err(RestoreError::Refused(refused)) = result {
            // The notes stay: a server that is told more goes on with them.
            return Err(LogServeError::Refused(refused));
        }
        if let Err(error) = result {
            tracing::warn!(%error, "what was noted of a log cannot be used: its mirror resyncs more than it needs to");
            shared.forget(session);
        }
    }
    Ok(())
}

fn listen(spec: &LogServeSpec, tls: Option<&Arc<TlsConfig>>) -> Result<Vec<Listener>, ListenError> {
    let mut listeners = Vec::new();
    for path in &spec.unix {
        listeners.push(Listener::unix(path, spec.unix_group.as_deref())?);
    }
    for address in &spec.tcp {
        listeners.extend(Listener::tcp(address, tls, spec.insecure)?);
    }
    Ok(listeners)
}

fn start_threads(
    shared: &Arc<Shared>,
    listeners: Vec<Listener>,
    control: &mut ControlServer,
    fixed: Fixed,
    signals: Signals,
    stop: Sender<()>,
) -> io::Result<()> {
    let (answering, stopping) = (Arc::clone(shared), stop.clone());
    control.serve(Arc::new(move |request| control::answer(&answering, &fixed, &stopping, &request)))?;
    let signalled = Arc::clone(shared);
    let body = move || await_signals(&signalled, signals, &stop);
    thread::Builder::new().name("mirrord-signals".to_owned()).spawn(body)?;
    Streams::new(shared, listeners)?.start()?;
    if shared.netlink().is_some() {
        netlink::serve(shared)?;
    }
    Ok(())
}

/// The first signal asks, the second one means it.
fn await_signals(shared: &Shared, mut signals: Signals, stop: &Sender<()>) {
    let mut is_second = false;
    for signal in signals.forever() {
        match shared.close(is_second) {
            Ok(()) => {
                tracing::info!(signal, "stopping");
                let _ = stop.send(());
                return;
            }
            Err(used) => tracing::warn!(signal, "going on: {used}; a second signal stops all the same"),
        }
        is_second = true;
    }
}

fn folder_error(error: FolderError) -> LogServeError {
    match error {
        FolderError::Io { path, source } => LogServeError::Folder { path, source },
        error => LogServeError::Folder { path: PathBuf::new(), source: io::Error::other(describe(&error)) },
    }
}
