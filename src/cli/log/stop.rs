//! `mirrord log stop`.

use serde_json::json;

use super::super::Context;
use super::super::output::{print, print_json, say_done};
use super::Server;
use crate::control::Request;

/// Stop a log server
///
/// Refused while logs are in use: mirrors whose server is gone wait for the next one, and their users with them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Stop although logs are in use; the next server goes on with them.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    server: Server,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let name = &args.server.name;
    let mut server = args.server.connect(context, &format!("cannot stop the log server {name}"))?;
    let daemon = server.client.daemon();
    server.ask(&Request::Stop { force: args.force }).map_err(|error| {
        if args.force { error } else { anyhow::anyhow!("{error}; --force stops it all the same") }
    })?;
    if let Some(daemon) = daemon {
        daemon.wait_ended();
    }
    if context.json {
        return say_done(print_json(&json!({ "name": name, "stopped": true })));
    }
    say_done(print(&format!("log server {name} stopped")))
}
