//! `mirrord log status`.

use super::super::Context;
use super::super::output::{columns, print, print_json};
use super::{Server, Which};
use crate::control::{Request, Response};
use crate::log_server::LogInfo;
use crate::units::format_size;

/// Show how a server is, or one of its logs
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The log, by the uuid in its mirror's table; none: the server.
    uuid: Option<String>,
    /// Which of several logs with this uuid [default: the one in use].
    #[arg(long, requires = "uuid")]
    luid: Option<String>,
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let mut server = Server::connect(context, &args.which, "cannot show a log server")?;
    let Some(uuid) = &args.uuid else {
        let Response::LogServer { server: info } = server.ask(&Request::LogServer)? else {
            return server.unexpected();
        };
        if context.json {
            return print_json(&info);
        }
        let rows = [
            ("server", format!("{} (pid {})", info.name, info.pid)),
            ("listens to", info.listens.join(" ")),
            ("logs", format!("{}, {} in use", info.logs, info.live)),
            ("connections", info.clients.to_string()),
        ];
        return print(&columns(&rows.map(|(name, value)| vec![name.to_owned(), value])));
    };
    let request = Request::LogRegions { uuid: uuid.clone(), luid: args.luid.clone(), from: u32::MAX };
    let Response::LogRegions { log, .. } = server.ask(&request)? else { return server.unexpected() };
    if context.json { print_json(&log) } else { print(&view(&log)) }
}

/// A log, line by line.
pub(super) fn view(log: &LogInfo) -> String {
    let nobody = if log.client.is_empty() { "nobody is connected" } else { &log.client };
    let mut rows = vec![
        ("log", format!("{} (luid {})", log.uuid, log.luid)),
        ("state", log.state.clone()),
        ("client", nobody.to_owned()),
        ("arguments", log.arguments.clone()),
        ("regions", format!("{} of {}", log.regions, format_size(log.region_size_bytes))),
        ("dirty", log.dirty_regions.to_string()),
        ("in sync", log.sync_regions.to_string()),
    ];
    if let Some(device) = &log.device {
        rows.push(("device", device.clone()));
    }
    if let Some(error) = &log.error {
        rows.push(("last write", error.clone()));
    }
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    columns(&rows)
}
