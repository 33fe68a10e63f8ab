//! The process that serves a volume: everything around [`Volume`] that makes it a daemon.
//!
//! Takes the volume's name, opens its legs (so the locks are this process'), binds the control
//! socket, serves, remembers the volume, and stops it cleanly on SIGTERM or SIGINT (see [`signals`]): forced if
//! somebody uses it, for whoever sends a signal means it. Runs in the foreground or, by way of
//! [`spawn`], as a process of its own.

mod background;
pub(crate) mod harden;
mod legs;
mod log_check;
pub(crate) mod notify;
mod resize;
mod scrub;
pub(crate) mod signals;
mod stop;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use mirrord_ublk::Shutdown;
use serde::{Deserialize, Serialize};
use signal_hook::iterator::Signals;
use uuid::Uuid;

pub use background::{Ready, SpawnError, serve_behind, spawn};
pub use log_check::{LogRefused, LogSpec};

use crate::control::{Answer, BindError, ControlServer, Failure, Request, Response};
use crate::engine::{FrontChoice, LogOptions, Purpose, RemoteOptions, ServeError, ServeOptions, Volume};
use crate::events::{Hook, check_hook};
use crate::failure::describe;
use crate::leg::{LATE_PATIENCE, LegError, Patience};
use crate::limits::{aside, raise_descriptors};
use crate::log_place::BadLog;
use crate::logging::{self, Level, LogTo};
use crate::metrics::{Address, Listener, Metrics};
use crate::paths::{BadName, Dirs, NameLock, PathsError, check_name};
use crate::registry::{Front, Known, Registry, ServeChoice};
use crate::split_leg::{SplitLeg, SplitLegError};
use crate::start::{self, Opened, StartError, StartOptions};
use crate::status::{Hardening, VolumeStatus};
use legs::NewLeg;
use notify::Manager;
use scrub::Keeper;
use stop::{Crash, STOP_PATIENCE};

/// What to serve and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServeSpec {
    /// Its legs, absolute.
    pub legs: Vec<PathBuf>,
    /// Its only leg is one that was split off: serve that for reading, as a volume of this name.
    #[serde(default)]
    pub read_only: Option<String>,
    /// They are where this volume was last known to have legs: what is none of its any more is left out.
    #[serde(default)]
    pub known: Option<Uuid>,
    /// Without legs that were in use.
    pub degraded: bool,
    /// Take this leg's data: path, index or UUID.
    pub source: Option<String>,
    /// Front end and engine.
    pub serve: ServeChoice,
    /// Where the log is.
    #[serde(default)]
    pub log: LogSpec,
    /// Take the log from whoever has it, if a server keeps it.
    #[serde(default)]
    pub log_take_over: bool,
    /// Limit of resync in bytes per second.
    pub resync_rate: Option<u64>,
    /// Where messages go; `None`: the log file of the volume, or standard error in the foreground.
    pub log_to: Option<LogTo>,
    /// How much is said.
    pub log_level: Level,
}

/// Why a volume cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Whoever started this did not say what to serve.
    #[error("what to serve cannot be read")]
    Spec(#[source] std::io::Error),
    /// A leg that is not there.
    #[error("{0}; name it where it is now, or leave it out and say --degraded")]
    LegMissing(#[source] LegError),
    /// Its legs do not make it.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A leg that was split off cannot be served.
    #[error(transparent)]
    SplitLeg(#[from] SplitLegError),
    /// A volume of that name is served.
    #[error("a volume called {name} is running already; stop that first")]
    Running {
        /// The name.
        name: String,
    },
    /// What the legs call the volume is no name.
    #[error("the legs' volume is called {name:?}: {source}")]
    BadName {
        /// The name.
        name: String,
        /// What a name is.
        #[source]
        source: BadName,
    },
    /// The legs name a log that this host is not told to use.
    #[error("{name}: {source}")]
    LogRefused {
        /// The volume's name.
        name: String,
        /// Why.
        #[source]
        source: LogRefused,
    },
    /// What the command line says of the log is none.
    #[error(transparent)]
    BadLog(#[from] BadLog),
    /// A directory of mirrord cannot be used.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// Messages cannot be written.
    #[error("cannot begin the log of messages")]
    Logging(#[source] std::io::Error),
    /// No control socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// No signal handler or thread.
    #[error("cannot start a thread or handle signals")]
    Threads(#[source] std::io::Error),
    /// The engine or front end did not start.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// What its daemon adds to the status of a volume.
#[derive(Clone, Debug)]
struct Own {
    hardening: Hardening,
    metrics: Option<String>,
}

/// How long the end of a volume may wait for its event hook.
const HOOK_PATIENCE: Duration = Duration::from_secs(5);

/// A volume that this process serves.
pub struct Served {
    volume: Arc<Volume>,
    control: ControlServer,
    hook: Option<Hook>,
    metrics: Option<Metrics>,
    /// None where there is nothing to scrub.
    keeper: Option<Keeper>,
    notices: Vec<String>,
    log_to: LogTo,
    own: Own,
    manager: Option<Manager>,
    lock: Arc<NameLock>,
}

impl Served {
    /// Begins to serve. In the `foreground` messages go to standard error if nothing else is said, else to
    /// the volume's log file; and the service manager, if there is one, is told. No thread was started yet.
    ///
    /// # Errors
    /// See [`DaemonError`]; the legs are as they were.
    pub fn begin(dirs: &Dirs, spec: &ServeSpec, foreground: bool) -> Result<Served, DaemonError> {
        raise_descriptors();
        let mut opening = StartOptions {
            degraded: spec.degraded,
            source: spec.source.clone(),
            known: spec.known,
            unwritable: Vec::new(),
            // Messages have no place yet but where the command's go.
            patience: Patience {
                late: LATE_PATIENCE,
                tell: Some(|what| aside(&format!("note: {what}"))),
                ..Patience::SHORT
            },
        };
        let mut what = What::open(spec, &opening)?;
        let name = what.name().to_owned();
        // The name makes file names, and whoever wrote the leg chose it.
        check_name(&name).map_err(|source| DaemonError::BadName { name: name.clone(), source })?;
        what.check_log(dirs, spec)?;
        let log = spec.log.options()?;
        let lock = dirs.lock(&name)?.ok_or_else(|| DaemonError::Running { name: name.clone() })?;
        let lock = Arc::new(lock);
        let default = || if foreground { LogTo::Stderr } else { LogTo::File(dirs.log_file(&name)) };
        let log_to = spec.log_to.clone().unwrap_or_else(default);
        logging::begin(&log_to, spec.log_level).map_err(DaemonError::Logging)?;
        // From here on a signal waits until it can be answered with a clean stop.
        let signals = signals::take(foreground).map_err(DaemonError::Threads)?;
        let manager = foreground.then(Manager::from_env).flatten();
        let hardening = harden::harden();
        let mut control = ControlServer::bind(dirs, &name)?;
        let mut notices = Vec::new();
        let listener = spec.serve.metrics.as_deref().and_then(|address| listen(address, &mut notices));
        let metrics = listener.as_ref().map(|listener| listener.address().to_string());
        let own = Own { hardening, metrics };

        let mut options = serve_options(dirs, &name, spec);
        options.log = log;
        options.latencies = listener.is_some();
        let volume = loop {
            let of_legs = what.notices().to_vec();
            let served = match what {
                What::Volume(opened) => Volume::serve(*opened, options.clone()),
                What::SplitLeg(leg, name) => Volume::serve_read_only(*leg, &name, options.clone()),
            };
            match served {
                // Each time there is one leg less.
                Err(ServeError::Unwritable { legs }) => opening.unwritable.extend(legs),
                served => {
                    notices.extend(of_legs);
                    break Arc::new(served?);
                }
            }
            what = What::open(spec, &opening)?;
            what.check_log(dirs, spec)?;
        };
        let status = volume.status();
        notices.extend_from_slice(volume.notices());
        if !status.read_only {
            notices.extend(remember(dirs, &status, &spec.serve));
        }
        let crash = Crash { name: Arc::clone(&lock), clients: control.cutter() };
        let started = start_threads(dirs, &volume, &mut control, signals, &own, manager.clone(), crash)
            .and_then(|()| {
                let hook = start_hook(&volume, &status, &spec.serve, &mut notices)?;
                let metrics = listener.map(|listener| {
                    let own = own.clone();
                    listener.serve(Arc::clone(&volume), move |volume| self::status(volume, &own))
                });
                let keeper = (!status.read_only).then(|| Keeper::start(dirs, &volume)).transpose()?;
                Ok((hook, metrics.transpose()?, keeper))
            });
        let (hook, metrics, keeper) = match started {
            Ok(started) => started,
            Err(error) => {
                // Nobody could stop it any more.
                let _ = volume.stop(Shutdown::Force);
                return Err(DaemonError::Threads(error));
            }
        };
        tracing::info!(name, device = %status.device.display(), size = status.size_bytes, "serving");
        for notice in &notices {
            tracing::warn!("{notice}");
        }
        if let Some(manager) = &manager {
            manager.ready(&format!("serving {}", status.device.display()));
        }
        Ok(Served { volume, control, hook, metrics, keeper, notices, log_to, own, manager, lock })
    }

    /// How the volume is.
    pub fn status(&self) -> VolumeStatus {
        status(&self.volume, &self.own)
    }

    /// What the user should know.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Where messages go.
    pub fn log_to(&self) -> &LogTo {
        &self.log_to
    }

    /// Serves until it is stopped.
    pub fn wait(self) {
        self.volume.wait_closed();
        if let Some(manager) = &self.manager {
            manager.stopping();
        }
        tracing::info!("stopped");
        self.control.close();
        if let Some(keeper) = self.keeper {
            keeper.finish();
        }
        drop(self.metrics);
        // Who waits for the next daemon does not wait for a hook.
        let hook = self.hook.filter(|_| !self.volume.is_handed_over());
        drop(self.volume);
        self.lock.release();
        if let Some(hook) = hook {
            hook.finish(HOOK_PATIENCE);
        }
    }
}

/// What is served.
enum What {
    Volume(Box<Opened>),
    /// By this name.
    SplitLeg(Box<SplitLeg>, String),
}

impl What {
    fn open(spec: &ServeSpec, options: &StartOptions) -> Result<What, DaemonError> {
        if let (Some(name), Some(leg)) = (&spec.read_only, spec.legs.first()) {
            return Ok(What::SplitLeg(Box::new(SplitLeg::open(leg)?), name.clone()));
        }
        let opened = start::open(&spec.legs, options).map_err(|error| match error {
            StartError::Leg(missing @ LegError::NotFound { .. }) => DaemonError::LegMissing(missing),
            error => error.into(),
        })?;
        Ok(What::Volume(Box::new(opened)))
    }

    /// Refuses a log that neither this host nor the command line knows as the volume's.
    fn check_log(&self, dirs: &Dirs, spec: &ServeSpec) -> Result<(), DaemonError> {
        let What::Volume(opened) = self else { return Ok(()) };
        let checked = log_check::check(opened, &spec.log, &Registry::new(dirs));
        checked.map_err(|source| DaemonError::LogRefused { name: self.name().to_owned(), source })
    }

    fn name(&self) -> &str {
        match self {
            What::Volume(opened) => opened.name(),
            What::SplitLeg(_, name) => name,
        }
    }

    fn notices(&self) -> &[String] {
        match self {
            What::Volume(opened) => opened.notices(),
            What::SplitLeg(..) => &[],
        }
    }
}

fn serve_options(dirs: &Dirs, name: &str, spec: &ServeSpec) -> ServeOptions {
    let serve = &spec.serve;
    ServeOptions {
        mount: serve.mount.clone().unwrap_or_else(|| dirs.mount(name)),
        front: match serve.front {
            // Who names a file wants one.
            Front::Auto if serve.mount.is_some() => FrontChoice::Fuse,
            Front::Auto => FrontChoice::Auto,
            Front::Ublk => FrontChoice::Ublk,
            Front::Fuse => FrontChoice::Fuse,
        },
        queues: serve.queues,
        depth: serve.depth,
        threads_engine: serve.threads_engine,
        allow_other: serve.allow_other,
        own_mounts: true,
        resync_rate: spec.resync_rate,
        leg_timeout: serve.leg_timeout.map(|seconds| Duration::from_secs(seconds.into())),
        latencies: false,
        spares: serve.spares,
        log: LogOptions::default(),
        remote: RemoteOptions {
            tls: serve.log_tls.clone(),
            fallback: serve.log_fallback,
            take_over: spec.log_take_over,
            tell: Some(|what| aside(&format!("note: {what}"))),
        },
    }
}

/// Where metrics will be answered. That they cannot be is no reason not to serve: whoever asked for them just
/// now was told before.
fn listen(address: &str, notices: &mut Vec<String>) -> Option<Listener> {
    let listener = address.parse::<Address>().map_err(|error| format!("--metrics {address}: {error}"));
    let listener = listener.and_then(|address| Listener::bind(&address).map_err(|error| describe(&error)));
    listener.map_err(|text| notices.push(text)).ok()
}

fn start_threads(
    dirs: &Dirs,
    volume: &Arc<Volume>,
    control: &mut ControlServer,
    mut signals: Signals,
    own: &Own,
    manager: Option<Manager>,
    crash: Crash,
) -> std::io::Result<()> {
    let (answering, own, of_answers) = (Arc::clone(volume), own.clone(), dirs.clone());
    let of_stops = crash.clone();
    control.serve(Arc::new(move |request| match request {
        Request::Stop { force: true } => stop::by_force(&answering, &of_stops),
        request => answer(&answering, &of_answers, &own, request),
    }))?;
    legs::follow(volume, dirs)?;
    // Weak: this thread waits for ever and must not keep the volume.
    let stopping = Arc::downgrade(volume);
    let on_signal = move || {
        for signal in signals.forever() {
            let Some(volume) = stopping.upgrade() else { return };
            tracing::info!(signal, "stopping");
            if let Some(manager) = &manager {
                manager.stopping();
            }
            if let Err(error) = crash.clone().after(STOP_PATIENCE) {
                tracing::warn!(%error, "the time that the stop may take is not limited");
            }
            stop::on_signal(&volume);
        }
    };
    thread::Builder::new().name("mirrord-signals".to_owned()).spawn(on_signal).map(drop)
}

/// The event hook, if there is one. That it cannot be run is no reason not to serve.
fn start_hook(
    volume: &Volume,
    status: &VolumeStatus,
    serve: &ServeChoice,
    notices: &mut Vec<String>,
) -> std::io::Result<Option<Hook>> {
    let Some(program) = &serve.event_hook else { return Ok(None) };
    if let Err(error) = check_hook(program) {
        notices.push(describe(&error));
    }
    Hook::start(program, volume.journal(), &status.device).map(Some)
}

fn status(volume: &Volume, own: &Own) -> VolumeStatus {
    VolumeStatus { hardening: Some(own.hardening), metrics: own.metrics.clone(), ..volume.status() }
}

fn answer(volume: &Volume, dirs: &Dirs, own: &Own, request: Request) -> Answer {
    // A leg that was split off has nobody who could record anything.
    let is_for_all =
        matches!(request, Request::Ping | Request::Status | Request::Events { .. } | Request::Stop { .. });
    if volume.is_read_only() && !is_for_all {
        let message = "it is a leg that was split off: it can be read, and stopped".to_owned();
        return Response::Failed { reason: Failure::Error, message }.into();
    }
    let response = match request {
        Request::Ping => Response::Pong { name: volume.status().name, pid: std::process::id() },
        Request::Status => Response::Status { status: Box::new(status(volume, own)) },
        Request::LogServer
        | Request::Logs { .. }
        | Request::DirtyRegions { .. }
        | Request::ForgetLog { .. } => {
            let message = "it is a volume and no log server".to_owned();
            Response::Failed { reason: Failure::BadRequest, message }
        }
        Request::Map { cells, from } => Response::Map { map: Box::new(volume.map(cells, from)) },
        Request::Resync { rate, pause } => {
            if let Some(rate) = rate {
                volume.set_resync_rate((rate > 0).then_some(rate));
            }
            if let Some(paused) = pause {
                volume.pause_resync(paused);
            }
            Response::done()
        }
        Request::Resize { size } => resize::resize(volume, dirs, size),
        Request::Scrub { order } => scrub::answer(volume, &order),
        Request::Events { since } => match volume.journal().reader(since) {
            Ok(reader) => return Answer::Events(reader),
            Err(error) => Response::Failed { reason: Failure::Error, message: describe(&error) },
        },
        Request::Stop { .. } => stop::stop(volume, Shutdown::Clean),
        Request::HandOver => stop::stop(volume, Shutdown::HandOver),
        Request::FailLeg { leg } => legs::fail(volume, &leg),
        Request::AddLeg { path, spare, force, preallocate } => {
            let purpose = if spare { Purpose::Spare } else { Purpose::Copy };
            legs::add(volume, dirs, &path, &NewLeg { purpose, force, preallocate })
        }
        Request::RemoveLeg { leg } => legs::remove(volume, dirs, &leg),
        Request::ReplaceLeg { leg, path, force, preallocate } => {
            legs::replace(volume, dirs, &leg, &path, NewLeg { purpose: Purpose::Copy, force, preallocate })
        }
        Request::SplitLeg { leg, name: None } => legs::split(volume, dirs, &leg),
        Request::SplitLeg { leg, name: Some(name) } => legs::split_as(volume, dirs, &leg, &name),
        Request::MergeLeg { leg, full } => legs::merge(volume, dirs, &leg, full),
    };
    response.into()
}

/// Kind and place of the log, as the command line has it.
fn log_text(status: &VolumeStatus) -> String {
    match &status.log.place {
        Some(place) => format!("{}:{place}", status.log.kind),
        None => status.log.kind.clone(),
    }
}

/// Remembers the volume as it is served now; what is in the way of that is a notice, not a failure.
fn remember(dirs: &Dirs, status: &VolumeStatus, serve: &ServeChoice) -> Option<String> {
    let registry = Registry::new(dirs);
    let earlier = registry.find(&status.name).ok().flatten();
    if earlier.as_ref().is_some_and(|known| known.uuid != status.uuid && !known.legs_here().is_empty()) {
        return Some(format!(
            "another volume is known as {}: this one must be started by its legs",
            status.name
        ));
    }
    let earlier = earlier.filter(|known| known.uuid == status.uuid);
    let place = |index: usize, path: &PathBuf| match &earlier {
        Some(known) if path.as_os_str().is_empty() => known.legs.get(index).unwrap_or(path).clone(),
        _ => path.clone(),
    };
    let mut legs = vec![PathBuf::new(); status.legs.iter().map(|leg| leg.index + 1).max().unwrap_or(0)];
    for leg in &status.legs {
        legs[leg.index] = place(leg.index, &leg.path);
    }
    let known = Known {
        name: status.name.clone(),
        uuid: status.uuid,
        size_bytes: status.size_bytes,
        legs,
        serve: serve.clone(),
        log: Some(log_text(status)),
        split: earlier.as_ref().map(|known| known.split.clone()).unwrap_or_default(),
    };
    let failed = registry.remember(&known).err()?;
    Some(format!("the volume must be started by its legs next time: {}", describe(&failed)))
}
