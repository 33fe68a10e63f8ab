//! `mirrord stop`.

use serde_json::json;

use super::Context;
use super::output::{fail, print, print_json};
use super::status::not_running;
use crate::control::{Client, ClientError, Request};
use crate::leg::{LOCK_PATIENCE, OpenLeg};

/// Stop serving a volume
///
/// Refused while somebody uses it, unless --force takes it away from them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume.
    name: String,
    /// Stop although somebody uses it: their IO fails from then on.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot stop {}", args.name);
    let failed = |error: ClientError| match error {
        ClientError::NotRunning { name } => not_running(context, &doing, &name),
        error => fail(&doing, &error),
    };
    let mut client = Client::connect(&context.dirs, &args.name).map_err(failed)?;
    let daemon = client.daemon();
    let legs = client.status().map_err(failed)?.legs;
    client.ask(&Request::Stop { force: args.force }).map_err(failed)?;
    if let Some(daemon) = daemon {
        daemon.wait_ended();
    }
    // The kernel may let go of its files a little later: whoever is told that it is stopped can use them.
    for leg in legs {
        let _ = OpenLeg::open_waiting(&leg.path, LOCK_PATIENCE);
    }
    if context.json {
        return print_json(&json!({ "name": args.name, "stopped": true }));
    }
    print(&format!("{} stopped", args.name))
}
