//! `mirrord leg`, `mirrord split` and `mirrord merge`: legs that go and come back.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Context;
use super::output::{Usage, fail, note, print, print_json};
use super::status::not_running;
use crate::control::{Client, ClientError, Request, Response};

/// Take a leg of a running volume out, or give one back
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: LegVerb,
}

#[derive(Debug, clap::Subcommand)]
enum LegVerb {
    /// Take a leg out, as if it had failed; it is unlocked and left alone until it is given back
    Fail {
        /// The volume.
        name: String,
        /// The leg: its path, index or UUID.
        leg: String,
    },
    /// Give a leg back that had failed or was missing; what the volume changed meanwhile is copied to it
    Add {
        /// The volume.
        name: String,
        /// Where the leg is.
        path: PathBuf,
    },
}

/// Split a leg off: it stays as the volume is now, while the volume goes on
///
/// The leg's first bytes are the volume at one moment between two writes, durable: `mount -o loop,ro` reads them,
/// and `mirrord merge` takes the leg back, copying only what the volume changed meanwhile.
#[derive(Debug, clap::Args)]
pub(super) struct SplitArgs {
    /// The volume.
    name: String,
    /// The leg: its path, index or UUID.
    #[arg(long)]
    leg: String,
    /// Keep track of what changes, so that the leg can be merged.
    #[arg(long, required = true)]
    track: bool,
    /// Also if that leaves a single leg.
    #[arg(long)]
    yes: bool,
}

/// Take a leg back that was split off, copying only what the volume changed meanwhile
#[derive(Debug, clap::Args)]
pub(super) struct MergeArgs {
    /// The volume.
    name: String,
    /// The leg: its path (also a new one), index or UUID.
    leg: String,
    /// Copy all of the volume, whatever the leg holds: for one that was written to meanwhile.
    #[arg(long)]
    force_full: bool,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Done<'a> {
    name: &'a str,
    leg: usize,
    path: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_us: Option<u64>,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    match &args.verb {
        LegVerb::Fail { name, leg } => {
            let request = Request::FailLeg { leg: absolute_if_path(leg) };
            ask(context, name, &format!("cannot fail leg {leg} of {name}"), &request, "is out")
        }
        LegVerb::Add { name, path } => {
            let doing = format!("cannot give {} back to {name}", path.display());
            let request = Request::AddLeg { path: std::path::absolute(path)? };
            ask(context, name, &doing, &request, "is back: what changed is copied to it")
        }
    }
}

pub(super) fn split(context: &Context, args: &SplitArgs) -> anyhow::Result<()> {
    let doing = format!("cannot split leg {} off {}", args.leg, args.name);
    let mut client = connect(context, &args.name, &doing)?;
    let status = client.status().map_err(|error| fail(&doing, &error))?;
    let in_sync = status.legs.iter().filter(|leg| leg.state == "in_sync").count();
    if in_sync == 2 && !args.yes {
        return Err(Usage(format!(
            "{doing}: a single leg in sync would be left until it is merged; --yes splits it off all the same"
        ))
        .into());
    }
    let request = Request::SplitLeg { leg: absolute_if_path(&args.leg) };
    ask(context, &args.name, &doing, &request, "is split off and tracked")
}

pub(super) fn merge(context: &Context, args: &MergeArgs) -> anyhow::Result<()> {
    let doing = format!("cannot merge leg {} into {}", args.leg, args.name);
    let request = Request::MergeLeg { leg: absolute_if_path(&args.leg), full: args.force_full };
    let what = if args.force_full {
        "is back: all is copied to it"
    } else {
        "is back: what changed is copied to it"
    };
    ask(context, &args.name, &doing, &request, what)
}

/// The daemon has another working directory. Indices and UUIDs stay as they are.
pub(super) fn absolute_if_path(leg: &str) -> String {
    let path = Path::new(leg);
    let absolute = || std::path::absolute(path).ok()?.to_str().map(str::to_owned);
    if path.exists() || leg.contains('/') {
        absolute().unwrap_or_else(|| leg.to_owned())
    } else {
        leg.to_owned()
    }
}

fn connect(context: &Context, name: &str, doing: &str) -> anyhow::Result<Client> {
    Client::connect(&context.dirs, name).map_err(|error| match error {
        ClientError::NotRunning { name } => not_running(context, doing, &name),
        error => fail(doing, &error),
    })
}

fn ask(context: &Context, name: &str, doing: &str, request: &Request, done: &str) -> anyhow::Result<()> {
    let mut client = connect(context, name, doing)?;
    let answer = client.ask(request).map_err(|error| fail(doing, &error))?;
    let Response::Leg { index, path, pause_us, note: told } = answer else {
        anyhow::bail!("{doing}: the daemon answered something else");
    };
    if let Some(text) = told {
        note(&text);
    }
    if context.json {
        return print_json(&Done { name, leg: index, path: &path, pause_us });
    }
    let pause = pause_us.map_or(String::new(), |us| format!("; writes waited {:.1} ms", us as f64 / 1000.0));
    print(&format!("{name} leg {index} {} {done}{pause}", path.display()))
}
