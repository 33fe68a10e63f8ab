//! What a log server answers on its control socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use mirrord_log::server::{Life, LogServer, LogSummary};

use super::report::{LogReport, LogServerReport, ranges};
use super::shared::{Hands, Shared};
use crate::control::{Answer, Failure, Request, Response};

/// Logs in an answer: with the longest names they fit a line.
const MOST_LOGS: usize = 128;

/// Ranges in an answer.
const MOST_RANGES: usize = 16_384;

/// What does not change.
#[derive(Clone, Debug)]
pub(super) struct Fixed {
    pub(super) name: String,
    pub(super) listens: Vec<String>,
    pub(super) folder: Option<String>,
    pub(super) lease_seconds: u64,
    pub(super) single_host: bool,
}

/// Answers a request; `stopped` hears of the end.
pub(super) fn answer(shared: &Arc<Shared>, fixed: &Fixed, stopped: &Sender<()>, request: &Request) -> Answer {
    let response = match request {
        Request::Ping => Response::Pong { name: fixed.name.clone(), pid: std::process::id() },
        Request::LogServer => Response::LogServer { server: Box::new(report(shared, fixed)) },
        Request::Logs { from } => shared.look(|server, _| {
            let mut left = server.logs().skip(*from);
            let logs: Vec<LogReport> = left.by_ref().take(MOST_LOGS).map(|log| LogReport::of(&log)).collect();
            let next = left.next().map(|_| from + logs.len());
            Response::Logs { logs, next }
        }),
        Request::DirtyRegions { uuid, luid, from } => dirty(shared, uuid, luid.as_deref(), *from),
        Request::ForgetLog { uuid, luid, force } => forget(shared, uuid, luid.as_deref(), *force),
        Request::Stop { force } => match shared.close(*force) {
            Ok(()) => {
                // Nobody listens only when it is ending already.
                let _ = stopped.send(());
                Response::done()
            }
            Err(used) => Response::Failed { reason: Failure::Busy, message: used.to_string() },
        },
        _ => {
            let message = "it is a log server and no volume".to_owned();
            Response::Failed { reason: Failure::BadRequest, message }
        }
    };
    response.into()
}

fn report(shared: &Shared, fixed: &Fixed) -> LogServerReport {
    let counters = &shared.counters;
    shared.look(|server, sessions| LogServerReport {
        name: fixed.name.clone(),
        pid: std::process::id(),
        netlink: shared.netlink().is_some(),
        listens: fixed.listens.clone(),
        folder: fixed.folder.clone(),
        lease_seconds: fixed.lease_seconds,
        single_host: fixed.single_host,
        logs: server.logs().count(),
        live: server.live(),
        noted: sessions.count(),
        notes_in_memory: sessions.in_memory(),
        clients: counters.connections.load(Ordering::Relaxed),
        dropped_connections: counters.dropped.load(Ordering::Relaxed),
        kernel_requests: counters.kernel_requests.load(Ordering::Relaxed),
        stream_requests: counters.stream_requests.load(Ordering::Relaxed),
    })
}

/// The log of this name; of several lives the one in use, if none is named.
fn find<'a>(server: &'a LogServer, uuid: &str, luid: Option<&str>) -> Result<LogSummary<'a>, Response> {
    let is_it = |log: &LogSummary<'_>| {
        log.name.uuid.escape_ascii().to_string() == uuid
            && luid.is_none_or(|luid| format!("{:x}", log.name.luid) == luid)
    };
    server.logs().filter(is_it).max_by_key(|log| usefulness(log.life)).ok_or_else(|| {
        let message = format!("there is no log {uuid}; see `mirrord log list`");
        Response::Failed { reason: Failure::BadRequest, message }
    })
}

fn forget(shared: &Arc<Shared>, uuid: &str, luid: Option<&str>, force: bool) -> Response {
    let mut response = Response::done();
    shared.act(&mut Hands::default(), |server, out| match find(server, uuid, luid) {
        Ok(log) if log.life != Life::Suspended && log.life != Life::Pending && !force => {
            let message = format!("it is {}: stop its mirror, or say --force", log.life.name());
            response = Response::Failed { reason: Failure::Busy, message };
        }
        Ok(log) => {
            let id = log.id;
            server.forget(id, out);
        }
        Err(failed) => response = failed,
    });
    response
}

fn dirty(shared: &Shared, uuid: &str, luid: Option<&str>, from: u32) -> Response {
    shared.look(|server, _| {
        let log = match find(server, uuid, luid) {
            Ok(log) => log,
            Err(failed) => return failed,
        };
        let (mut dirty, mut next) = (Vec::new(), None);
        if from < log.status.regions {
            let regions = server.dirty(log.id).map(|region| region.0);
            (dirty, next) = ranges(regions.skip_while(|&region| region < from), MOST_RANGES);
        }
        Response::DirtyRegions { log: Box::new(LogReport::of(&log)), dirty, next }
    })
}

/// Of several lives of one mirror's tables, the one that is meant if it is not said.
fn usefulness(life: Life) -> u8 {
    match life {
        Life::Live | Life::Suspending => 3,
        Life::Resuming | Life::Closing => 2,
        Life::Suspended => 1,
        Life::Opening | Life::Pending | Life::Returned => 0,
    }
}
