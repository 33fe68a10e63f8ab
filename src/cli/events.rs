//! `mirrord events`.

use serde_json::json;

use super::Context;
use super::output::{note, print};
use super::status::client_failed;
use crate::control::{Client, Response};

/// Follow what happens to a running volume
///
/// A line for each event, until the volume is stopped: legs and the volume change their state, resync begins or
/// ends, the log fails, IO on a leg fails, a block is repaired.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume.
    name: String,
    /// First those after the event of this number; 0: all that are remembered. The last 256 are.
    #[arg(long, value_name = "N")]
    since: Option<u64>,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot follow {}", args.name);
    let failed = client_failed(context, &doing);
    let client = Client::connect(&context.dirs, &args.name).map_err(failed)?;
    let mut following = client.follow(args.since).map_err(failed)?;
    while let Some(line) = following.next_line().map_err(failed)? {
        match line {
            Response::Event { event } if context.json => print(&serde_json::to_string(&event)?)?,
            Response::Event { event } => print(&event.to_string())?,
            Response::Missed { events } if context.json => {
                print(&json!({ "event": "missed", "volume": args.name, "events": events }).to_string())?;
            }
            Response::Missed { events: Some(events) } => note(&format!("{events} events are missing here")),
            _ => note("events of an earlier daemon may be missing here"),
        }
    }
    Ok(())
}
