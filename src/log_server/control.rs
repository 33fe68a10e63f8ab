//! What `mirrord log list`, `status`, `dump` and `stop` ask of a server.

use std::sync::Arc;

use mirrord_log::server::{LogServer, LogSummary, Output};
use serde::{Deserialize, Serialize};

use super::{Scratch, Shared, lock};
use crate::control::{Failure, Handler, Request, Response};

/// A log of a server, as in JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogInfo {
    /// The name that its mirror gave it.
    pub uuid: String,
    /// Which table, or which life of a volume, in hexadecimal.
    pub luid: String,
    /// `kernel`, or who is connected; empty if nobody is.
    pub client: String,
    /// `opening`, `pending`, `resuming`, `live`, `suspending`, `closing` or `suspended`.
    pub state: String,
    /// `core` or `disk`.
    pub kind: String,
    /// Length in sectors, kind, device, region size in sectors, as the mirror said.
    pub arguments: String,
    /// `MAJOR:MINOR` of a log on a block device.
    pub device: Option<String>,
    /// Regions of the mirror.
    pub regions: u32,
    /// Their size in bytes.
    pub region_size_bytes: u64,
    /// Those that may differ between the legs.
    pub dirty_regions: u64,
    /// Those that are in sync.
    pub sync_regions: u64,
    /// How the last write to it failed.
    pub error: Option<String>,
}

impl LogInfo {
    fn of(log: &LogSummary<'_>) -> LogInfo {
        LogInfo {
            uuid: String::from_utf8_lossy(log.name.uuid).into_owned(),
            luid: format!("{:x}", log.name.luid),
            client: if log.client.is_kernel() { "kernel".to_owned() } else { log.peer.to_owned() },
            state: log.life.name().to_owned(),
            kind: log.status.kind.name().to_owned(),
            arguments: log.text.to_owned(),
            device: log.number.map(str::to_owned),
            regions: log.status.regions,
            region_size_bytes: log.status.region_size,
            dirty_regions: log.status.dirty_regions,
            sync_regions: log.status.sync_count,
            error: log.failed.map(|errno| errno.to_string()),
        }
    }
}

/// A server, as in JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServerInfo {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// What it listens to: `netlink`, `unix:PATH`, `tls:ADDRESS`, `tcp:ADDRESS`.
    pub listens: Vec<String>,
    /// Its logs.
    pub logs: usize,
    /// Those in use.
    pub live: usize,
    /// Connections.
    pub clients: usize,
}

/// What a server knows of itself.
pub(super) struct About {
    pub(super) name: String,
    pub(super) places: Vec<String>,
}

/// Answers clients of the control socket.
pub(super) fn handler(shared: &Arc<Shared>, about: About) -> Handler {
    let shared = Arc::downgrade(shared);
    Arc::new(move |request| {
        let Some(shared) = shared.upgrade() else { return failed(Failure::Error, "it is ending").into() };
        answer(&shared, &about, request).into()
    })
}

fn failed(reason: Failure, message: &str) -> Response {
    Response::Failed { reason, message: message.to_owned() }
}

fn answer(shared: &Shared, about: &About, request: Request) -> Response {
    match request {
        Request::Ping => Response::Pong { name: about.name.clone(), pid: std::process::id() },
        Request::LogServer => {
            let clients = lock(&shared.outboxes).len();
            let server = &lock(&shared.core).server;
            Response::LogServer {
                server: ServerInfo {
                    name: about.name.clone(),
                    pid: std::process::id(),
                    listens: about.places.clone(),
                    logs: server.logs().count(),
                    live: server.live(),
                    clients,
                },
            }
        }
        Request::Logs { from } => {
            let core = lock(&shared.core);
            let mut logs = core.server.logs().skip(from).map(|log| LogInfo::of(&log));
            let page: Vec<_> = logs.by_ref().take(MOST_LOGS).collect();
            let next = logs.next().is_some().then_some(from + page.len());
            Response::Logs { logs: page, next }
        }
        Request::LogRegions { uuid, luid, from } => {
            let core = lock(&shared.core);
            match find(&core.server, &uuid, luid.as_deref()) {
                Ok(log) => {
                    let mut dirty = core.server.dirty(log.id).map(|region| region.0).filter(|&r| r >= from);
                    let regions: Vec<u32> = dirty.by_ref().take(MOST_REGIONS).collect();
                    Response::LogRegions {
                        log: Box::new(LogInfo::of(&log)),
                        next: dirty.next(),
                        dirty: regions,
                    }
                }
                Err(message) => failed(Failure::BadRequest, &message),
            }
        }
        Request::ForgetLog { uuid, luid } => {
            let mut result = Ok(());
            shared.decide(&mut Scratch::default(), |server, out: &mut Output| {
                let found = find(server, &uuid, luid.as_deref()).map(|log| log.id);
                result = found.map(|id| {
                    server.forget(id, out);
                });
            });
            match result {
                Ok(()) => Response::done(),
                Err(message) => failed(Failure::BadRequest, &message),
            }
        }
        Request::Stop { force } => {
            let live = shared.live();
            if live > 0 && !force {
                let message = format!("{live} of its logs are in use");
                return failed(Failure::Busy, &message);
            }
            shared.end.ask();
            Response::done()
        }
        _ => failed(Failure::BadRequest, "it is a log server, not a volume"),
    }
}

/// Most logs in an answer.
const MOST_LOGS: usize = 256;

/// Most regions in an answer.
const MOST_REGIONS: usize = 16384;

/// The log of this name; the one in use, if there are several and none is named.
fn find<'a>(server: &'a LogServer, uuid: &str, luid: Option<&str>) -> Result<LogSummary<'a>, String> {
    let named: Vec<LogSummary<'a>> = server
        .logs()
        .filter(|log| log.name.uuid == uuid.as_bytes())
        .filter(|log| luid.is_none_or(|luid| format!("{:x}", log.name.luid) == luid))
        .collect();
    let is_live = |log: &&LogSummary<'_>| matches!(log.life.name(), "live" | "suspending");
    let found = named.iter().find(is_live).or(named.first()).cloned();
    found.ok_or_else(|| format!("there is no log {uuid}"))
}
