//! `mirrord log status`.

use super::super::Context;
use super::super::output::{columns, print, print_json};
use super::Server;
use super::list::user;
use crate::control::{Request, Response};
use crate::log_server::{LogReport, LogServerReport};
use crate::units::format_size;

/// Show how a log is, or the server itself
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The log's uuid, as `mirrord log list` shows it [default: the server].
    #[arg(value_name = "UUID")]
    uuid: Option<String>,
    /// Which life of the mirror's table, if there are several [default: the one in use].
    #[arg(long, requires = "uuid")]
    luid: Option<String>,
    /// Show the server.
    #[arg(long = "server", id = "the_server", conflicts_with = "uuid")]
    the_server: bool,
    #[command(flatten)]
    server: Server,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = match &args.uuid {
        Some(uuid) => format!("cannot show the log {uuid}"),
        None => "cannot show the log server".to_owned(),
    };
    let mut server = args.server.connect(context, &doing)?;
    let Some(uuid) = &args.uuid else {
        let report = server.server()?;
        return if context.json { print_json(&report) } else { print(&server_view(&report)) };
    };
    let request = Request::DirtyRegions { uuid: uuid.clone(), luid: args.luid.clone(), from: u32::MAX };
    let Response::DirtyRegions { log, .. } = server.ask(&request)? else { return Err(server.unexpected()) };
    if context.json { print_json(&log) } else { print(&view(&log)) }
}

fn pair(key: &str, value: String) -> Vec<String> {
    vec![key.to_owned(), value]
}

fn server_view(server: &LogServerReport) -> String {
    let kernel = match (server.netlink, server.single_host) {
        (false, _) => "not answered (--netlink)",
        (true, true) => "answered, also for clustered logs: one host alone uses its mirrors",
        (true, false) => "answered, but for clustered logs (--single-host)",
    };
    let mut rows = vec![
        pair("server", format!("{}, process {}", server.name, server.pid)),
        pair("kernel", kernel.to_owned()),
    ];
    rows.extend(server.listens.iter().map(|place| pair("listens", place.clone())));
    rows.push(pair(
        "folder",
        server.folder.clone().unwrap_or("none: no logs of volumes on disk (--dir)".to_owned()),
    ));
    rows.push(pair("logs", format!("{}, {} in use", server.logs, server.live)));
    let memory = if server.notes_in_memory { "in memory" } else { "on a disk" };
    rows.push(pair("noted", format!("{} logs of the kernel, {memory}", server.noted)));
    rows.push(pair("lease", format!("{} s", server.lease_seconds)));
    rows.push(pair(
        "connections",
        format!("{}, {} dropped for what they sent", server.clients, server.dropped_connections),
    ));
    rows.push(pair(
        "requests",
        format!("{} of the kernel, {} of volumes", server.kernel_requests, server.stream_requests),
    ));
    columns(&rows)
}

/// Everything about a log, aligned.
pub(super) fn view(log: &LogReport) -> String {
    let size = format_size(log.region_size_bytes);
    let device = log.device.as_ref().map_or(String::new(), |device| format!(" on {device}"));
    let mut rows = vec![
        pair("log", format!("{}, table {}", log.uuid, log.luid)),
        pair("state", log.state.clone()),
        pair("kind", format!("{}{device}", log.kind)),
        pair("arguments", log.arguments.clone()),
        pair("regions", format!("{} of {size}", log.regions)),
        pair("dirty", log.dirty_regions.to_string()),
        pair("in sync", log.sync_regions.to_string()),
        pair("user", user(log)),
    ];
    rows.extend(log.error.iter().map(|error| pair("error", format!("it cannot be written: {error}"))));
    rows.extend(log.note.iter().map(|note| pair("note", note.clone())));
    columns(&rows)
}
