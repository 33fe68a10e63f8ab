//! `mirrord log list`.

use super::super::Context;
use super::super::output::{columns, print, print_json};
use super::{Server, Which};
use crate::control::{Request, Response};
use crate::log_server::LogInfo;
use crate::units::format_size;

/// List the logs of a server
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let mut server = Server::connect(context, &args.which, "cannot list logs")?;
    let mut logs: Vec<LogInfo> = Vec::new();
    let mut from = Some(0);
    while let Some(skip) = from {
        let Response::Logs { logs: page, next } = server.ask(&Request::Logs { from: skip })? else {
            return server.unexpected();
        };
        logs.extend(page);
        from = next;
    }
    if context.json {
        return print_json(&logs);
    }
    if logs.is_empty() {
        return print("no logs");
    }
    let head = ["UUID", "LUID", "STATE", "KIND", "REGIONS", "SIZE", "DIRTY", "CLIENT"];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    table.extend(logs.into_iter().map(|log| {
        let state = if log.error.is_some() { format!("{}, failed", log.state) } else { log.state };
        vec![
            log.uuid,
            log.luid,
            state,
            log.kind,
            log.regions.to_string(),
            format_size(log.region_size_bytes),
            log.dirty_regions.to_string(),
            log.client,
        ]
    }));
    print(&columns(&table))
}
