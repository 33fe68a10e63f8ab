//! `mirrord log list`.

use super::super::Context;
use super::super::output::{columns, print, print_json};
use super::{Asking, Server};
use crate::control::{Request, Response};
use crate::log_server::LogReport;

/// List the logs that a server keeps
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    server: Server,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let logs = logs(&mut args.server.connect(context, "cannot list the logs")?)?;
    if context.json { print_json(&logs) } else { print(&view(&logs)) }
}

/// All logs of a server.
pub(super) fn logs(server: &mut Asking) -> anyhow::Result<Vec<LogReport>> {
    let (mut all, mut from) = (Vec::new(), Some(0));
    while let Some(at) = from {
        let Response::Logs { logs, next } = server.ask(&Request::Logs { from: at })? else {
            return Err(server.unexpected());
        };
        all.extend(logs);
        from = next;
    }
    Ok(all)
}

fn view(logs: &[LogReport]) -> String {
    if logs.is_empty() {
        return "no logs".to_owned();
    }
    let head = ["UUID", "LUID", "STATE", "KIND", "REGIONS", "DIRTY", "IN SYNC", "USER"];
    let row = |log: &LogReport| {
        vec![
            log.uuid.clone(),
            log.luid.clone(),
            log.state.clone(),
            log.kind.clone(),
            log.regions.to_string(),
            log.dirty_regions.to_string(),
            log.sync_regions.to_string(),
            user(log),
        ]
    };
    let head = head.map(str::to_owned).to_vec();
    columns(&std::iter::once(head).chain(logs.iter().map(row)).collect::<Vec<_>>())
}

/// Who uses it, or did.
pub(super) fn user(log: &LogReport) -> String {
    if log.connected { log.client.clone() } else { format!("{} (gone)", log.client) }
}
