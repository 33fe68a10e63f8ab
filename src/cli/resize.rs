//! `mirrord resize`.

use anyhow::bail;
use serde::Serialize;

use super::Context;
use super::output::{fail, print, print_json, say_done};
use super::status::not_running;
use crate::control::{Client, ClientError, Request};
use crate::registry::Registry;
use crate::resize::Shrink;
use crate::units::{format_size, parse_size};

/// Make a volume larger while it runs, or smaller while it does not
///
/// Legs that are devices have to be larger first; files grow with the volume. What is new reads as zeroes. A file
/// system, partition table or loop device on the volume has to be told afterwards (resize2fs, losetup -c). Before it is
/// made smaller, so has whatever is on it: what is behind the new end is cut off.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume.
    name: String,
    /// The size that it is to have.
    #[arg(long, value_parser = parse_size)]
    size: u64,
    /// Cut off what is behind a smaller size.
    #[arg(long)]
    force: bool,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Done<'a> {
    name: &'a str,
    size_bytes: u64,
    was_bytes: u64,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot resize {}", args.name);
    let was = match Client::reach(&context.dirs, &args.name) {
        Ok((mut client, status)) => {
            client.ask(&Request::Resize { size: args.size }).map_err(|error| fail(&doing, &error))?;
            status.size_bytes
        }
        Err(ClientError::NotRunning { .. }) => shrink(context, args, &doing)?,
        Err(error) => return Err(fail(&doing, &error)),
    };
    if context.json {
        return say_done(print_json(&Done { name: &args.name, size_bytes: args.size, was_bytes: was }));
    }
    say_done(print(&format!("{}  {}  was {}", args.name, format_size(args.size), format_size(was))))
}

/// Gives the size that it had.
fn shrink(context: &Context, args: &Args, doing: &str) -> anyhow::Result<u64> {
    let registry = Registry::new(&context.dirs);
    let Some(mut known) = registry.find(&args.name).map_err(|error| fail(doing, &error))? else {
        return Err(not_running(context, doing, &args.name));
    };
    let Some(_held) = context.dirs.lock(&args.name).map_err(|error| fail(doing, &error))? else {
        bail!("{doing}: it is being started or stopped just now: try again");
    };
    let shrink = Shrink::prepare(&known.legs, args.size).map_err(|error| fail(doing, &error))?;
    if shrink.uuid() != known.uuid {
        bail!("{doing}: its legs hold another volume by now: start that by its legs first");
    }
    let was = shrink.old_size();
    if !args.force {
        bail!(
            "{doing}: it is {} long, and what is behind {} would be cut off: make whatever is on it smaller first, then \
             say --force",
            format_size(was),
            format_size(args.size)
        );
    }
    shrink.carry_out().map_err(|error| fail(doing, &error))?;
    known.size_bytes = args.size;
    registry.remember(&known).map_err(|error| fail("the size that lists show is out of date", &error))?;
    Ok(was)
}
