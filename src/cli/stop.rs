//! `mirrord stop`.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use mirrord_ublk::plain_spawn;
use mirrord_ublk::ublk::{self, UblkError};
use serde_json::json;

use super::Context;
use super::output::{fail, note, print, print_json, say_done};
use super::status::client_failed;
use crate::control::{Client, ClientError, Request, Response};
use crate::leg::{OpenLeg, Patience};
use crate::registry::Registry;

/// How long a daemon that leaves a leg behind may take to let go of the volume's name, and between two looks.
const NAME_PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// Stop serving a volume
///
/// Refused while somebody uses it, unless --force takes it away from them. A stop waits for a leg that hangs (see
/// --leg-timeout of `mirrord start`). With --force it gives up an IO on a leg after 30 seconds, and ends within 90
/// seconds: a leg that hangs is named and stays locked until the kernel has done what it was given.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume.
    name: String,
    /// Stop although somebody uses it, whose IO fails from then on, or a leg hangs.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot stop {}", args.name);
    let failed = client_failed(context, &doing);
    let (mut client, status) = match Client::reach(&context.dirs, &args.name) {
        Err(ClientError::NotRunning { .. }) if remove_waiting(context, args, &doing)? => {
            return stopped(context, &args.name, &[], &[]);
        }
        reached => reached.map_err(failed)?,
    };
    let daemon = client.daemon();
    let (left_behind, notes) = match client.ask(&Request::Stop { force: args.force }).map_err(failed)? {
        Response::Done { left_behind, notes } => (left_behind, notes),
        _ => (Vec::new(), Vec::new()),
    };
    if !left_behind.is_empty() {
        // The end of its process may be a long time coming, and touching these legs may hang, too. Its name is free soon.
        let begun = Instant::now();
        while begun.elapsed() < NAME_PATIENCE && matches!(context.dirs.lock(&args.name), Ok(None)) {
            thread::sleep(LOOK);
        }
        return stopped(context, &args.name, &left_behind, &notes);
    }
    if let Some(daemon) = daemon.filter(|daemon| !daemon.wait_ended()) {
        notes.iter().for_each(|text| note(text));
        bail!(
            "{doing}: it is not served any more, but its process {} has not ended and may keep its legs locked: \
             something that it was asked to do hangs; it ends when that does",
            daemon.pid
        );
    }
    // The kernel may let go of its files a little later: whoever is told that it is stopped can use them.
    for leg in status.legs {
        let _ = OpenLeg::open_waiting(&leg.path, Patience::SHORT);
    }
    stopped(context, &args.name, &[], &notes)
}

fn stopped(context: &Context, name: &str, left_behind: &[PathBuf], notes: &[String]) -> anyhow::Result<()> {
    for text in notes {
        note(text);
    }
    if context.json {
        return say_done(print_json(
            &json!({ "name": name, "stopped": true, "left_behind": left_behind, "notes": notes }),
        ));
    }
    for leg in left_behind {
        note(&format!(
            "leg {} hangs: it stays locked, and the daemon's process is there, until the kernel has done what it \
             was given",
            leg.display()
        ));
    }
    say_done(print(&format!("{name} stopped")))
}

/// Takes away the device whose daemon died. Whether there was one.
fn remove_waiting(context: &Context, args: &Args, doing: &str) -> anyhow::Result<bool> {
    let name = &args.name;
    let Some(known) = Registry::new(&context.dirs).find(name).map_err(|error| fail(doing, &error))? else {
        return Ok(false);
    };
    let volume = known.uuid.into_bytes();
    if !matches!(ublk::waiting(volume, &plain_spawn()), Ok(Some(_))) {
        return Ok(false);
    }
    match ublk::remove_waiting(volume, args.force, &plain_spawn()) {
        Ok(removed) => Ok(removed.is_some()),
        Err(UblkError::Busy { path }) => bail!(
            "{doing}: its daemon died and the users of {} wait for the next one: `mirrord start {name}` serves \
             them, --force takes it away from them",
            path.display()
        ),
        Err(error) => Err(fail(doing, &error)),
    }
}
