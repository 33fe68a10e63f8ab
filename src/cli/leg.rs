//! `mirrord leg`, `mirrord split` and `mirrord merge`: legs that go and come back.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::output::{Usage, fail, note, print, print_json, say_done};
use super::status::client_failed;
use super::{Context, serve_split};
use crate::below::on_itself;
use crate::control::{Client, Request, Response};
use crate::status::{LegStatus, VolumeStatus};

/// Change the legs of a running volume: fail, add, remove or replace one
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
    /// Give a leg back that had failed or was missing, or add a new one
    ///
    /// What the volume changed meanwhile is copied to a leg that is known. Anything else becomes a new leg: a file that
    /// does not exist is created, and the volume is copied to it.
    Add {
        /// The volume.
        name: String,
        /// Where the leg is.
        path: PathBuf,
        /// Keep it as a spare: nothing is copied to it until it takes the place of a leg that fails.
        #[arg(long)]
        spare: bool,
        #[command(flatten)]
        new: New,
    },
    /// Remove a leg for good: what says that it is one is wiped, its data stays
    Remove {
        /// The volume.
        name: String,
        /// The leg: its path, index or UUID.
        leg: String,
    },
    /// Put a new leg in the place of another, which stays in use until the new one is in sync
    Replace {
        /// The volume.
        name: String,
        /// The leg that is to leave: its path, index or UUID.
        leg: String,
        /// Where the new one is; a file that does not exist is created.
        path: PathBuf,
        #[command(flatten)]
        new: New,
    },
}

/// How a new leg is made.
#[derive(Debug, clap::Args)]
#[group(skip)]
struct New {
    /// Make a new leg although something is there: all of it is overwritten.
    #[arg(long)]
    force: bool,
    /// Allocate a new leg, so that it never runs out of space.
    #[arg(long)]
    preallocate: bool,
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
    #[arg(long, required_unless_present = "new_name", conflicts_with = "new_name")]
    track: bool,
    /// Make the leg, in sync or split off before, a volume of its own of this name, for good.
    #[arg(long = "name", value_name = "NEW")]
    new_name: Option<String>,
    /// Also if that leaves a single leg.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    pub(super) serve: serve_split::Args,
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
        LegVerb::Add { name, path, spare, new } => {
            let doing = format!("cannot add {} to {name}", path.display());
            let before = connect(context, name, &doing)?.status().map_err(|error| fail(&doing, &error))?;
            let &New { force, preallocate } = new;
            let path = std::path::absolute(path)?;
            refuse_itself(context, &path, &before, &doing)?;
            let request = Request::AddLeg { path, spare: *spare, force, preallocate };
            let is_new = |index: usize| before.legs.iter().all(|leg| leg.index != index);
            ask_about(context, name, &doing, &request, |index| match (*spare, is_new(index)) {
                (true, _) => "is a spare: it takes the place of a leg that fails",
                (false, true) => "is new: the volume is copied to it",
                (false, false) => "is back: what changed is copied to it",
            })
        }
        LegVerb::Remove { name, leg } => {
            let doing = format!("cannot remove leg {leg} of {name}");
            let request = Request::RemoveLeg { leg: absolute_if_path(leg) };
            ask(context, name, &doing, &request, "is removed: it is no leg any more")
        }
        LegVerb::Replace { name, leg, path, new } => {
            let doing = format!("cannot put {} in the place of leg {leg} of {name}", path.display());
            let path = std::path::absolute(path)?;
            let status = connect(context, name, &doing)?.status().map_err(|error| fail(&doing, &error))?;
            refuse_itself(context, &path, &status, &doing)?;
            let &New { force, preallocate } = new;
            let request = Request::ReplaceLeg { leg: absolute_if_path(leg), path, force, preallocate };
            let done = format!("is being copied to; leg {leg} leaves when it is in sync");
            ask(context, name, &doing, &request, &done)
        }
    }
}

/// The daemon of a block device does not see what is mounted on it, so it cannot tell.
fn refuse_itself(context: &Context, path: &Path, status: &VolumeStatus, doing: &str) -> anyhow::Result<()> {
    match on_itself(path, &status.device, &context.dirs) {
        Some(why) => anyhow::bail!("{doing}: {why}"),
        None => Ok(()),
    }
}

pub(super) fn split(context: &Context, args: &SplitArgs) -> anyhow::Result<()> {
    let doing = format!("cannot split leg {} off {}", args.leg, args.name);
    let mut client = connect(context, &args.name, &doing)?;
    let status = client.status().map_err(|error| fail(&doing, &error))?;
    if args.serve.is_wanted()
        && let Some(leg) = serve_split::already_split(&status, &absolute_if_path(&args.leg))
    {
        return args.serve.serve(context, &status, leg.index, &leg.path, None);
    }
    let in_sync = status.legs.iter().filter(|leg| leg.state == "in_sync").count();
    let is_split = status.legs.iter().any(|leg| is_called(leg, &args.leg) && leg.state == "tracked");
    if in_sync == 2 && !args.yes && !is_split {
        return Err(Usage(format!(
            "{doing}: a single leg in sync would be left; --yes splits it off all the same"
        ))
        .into());
    }
    let request = Request::SplitLeg { leg: absolute_if_path(&args.leg), name: args.new_name.clone() };
    if !args.serve.is_wanted() {
        let done = match &args.new_name {
            Some(new) => format!("is the volume {new} now (mirrord start {new} serves it)"),
            None => "is split off and tracked".to_owned(),
        };
        return ask(context, &args.name, &doing, &request, &done);
    }
    let Response::Leg { index, path, pause_us, note: told } =
        client.ask(&request).map_err(|error| fail(&doing, &error))?
    else {
        anyhow::bail!("{doing}: the daemon answered something else");
    };
    told.iter().for_each(|text| note(text));
    args.serve.serve(context, &status, index, &path, pause_us)
}

/// Whether the leg is meant by this path, index or UUID.
fn is_called(leg: &LegStatus, name: &str) -> bool {
    absolute_if_path(name) == leg.path.to_string_lossy()
        || name == leg.index.to_string()
        || name == leg.uuid.to_string()
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
    Client::connect(&context.dirs, name).map_err(client_failed(context, doing))
}

fn ask(context: &Context, name: &str, doing: &str, request: &Request, done: &str) -> anyhow::Result<()> {
    ask_about(context, name, doing, request, |_| done)
}

/// `done`: what to say of the leg with this index.
fn ask_about<'a>(
    context: &Context,
    name: &str,
    doing: &str,
    request: &Request,
    done: impl Fn(usize) -> &'a str,
) -> anyhow::Result<()> {
    let mut client = connect(context, name, doing)?;
    let answer = client.ask(request).map_err(|error| fail(doing, &error))?;
    let Response::Leg { index, path, pause_us, note: told } = answer else {
        anyhow::bail!("{doing}: the daemon answered something else");
    };
    if let Some(text) = told {
        note(&text);
    }
    if context.json {
        return say_done(print_json(&Done { name, leg: index, path: &path, pause_us }));
    }
    let pause = pause_us.map_or(String::new(), |us| format!("; writes waited {:.1} ms", us as f64 / 1000.0));
    say_done(print(&format!("{name} leg {index} {} {}{pause}", path.display(), done(index))))
}
