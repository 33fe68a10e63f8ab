//! `mirrord resync`.

use super::Context;
use super::output::{print, print_json, say_done};
use super::status::{client_failed, progress};
use crate::control::{Client, Request};
use crate::units::parse_size;

/// Change how a running volume is resynced, or show it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume.
    name: String,
    /// Copy at most so many bytes per second; 0 for no limit.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    rate: Option<u64>,
    /// Hold it.
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Go on.
    #[arg(long)]
    resume: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot resync {}", args.name);
    let failed = client_failed(context, &doing);
    let mut client = Client::connect(&context.dirs, &args.name).map_err(failed)?;
    let pause = (args.pause || args.resume).then_some(args.pause);
    if args.rate.is_some() || pause.is_some() {
        client.ask(&Request::Resync { rate: args.rate, pause }).map_err(failed)?;
    }
    let status = client.status().map_err(failed)?;
    if context.json {
        return say_done(print_json(&status.resync));
    }
    let idle = || if status.resync.paused { "idle, paused" } else { "idle" }.to_owned();
    say_done(print(&format!("{} resync {}", args.name, progress(&status).unwrap_or_else(idle))))
}
