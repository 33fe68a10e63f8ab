//! `mirrord upgrade`.

use anyhow::{Context as _, bail};

use super::output::fail;
use super::status::client_failed;
use super::{Context, serving};
use crate::control::{Client, Request};
use crate::daemon::LogSpec;
use crate::registry::{Front, Registry, volume_on};

/// Have this program serve a running volume in place of the one that does
///
/// For a new version, or to change flags of serving. The device stays and its users wait for the moment that
/// it takes: no IO fails. Only block devices (ublk) can be handed over, a file served through FUSE cannot.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume.
    name: String,
    #[command(flatten)]
    serving: serving::Args,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let name = &args.name;
    let doing = format!("cannot upgrade {name}");
    let failed = client_failed(context, &doing);
    let mut client = Client::connect(&context.dirs, name).map_err(failed)?;
    let status = client.status().map_err(failed)?;
    let known = Registry::new(&context.dirs).find(name).map_err(|error| fail(&doing, &error))?;
    let Some(known) = known.filter(|known| known.uuid == status.uuid) else {
        bail!("{doing}: it is not known here by its name; stop it and start it by its legs");
    };
    // What this program cannot read it must not take.
    for leg in status.legs.iter().filter(|leg| leg.state == "in_sync") {
        if volume_on(&leg.path) != Some(status.uuid) {
            bail!("{doing}: this program cannot read leg {} (mirrord inspect says why)", leg.path.display());
        }
    }
    let (legs, uuid) = (known.leg_paths(), Some(known.uuid));
    let mut serve = args.serving.choice(known.serve, true)?;
    serve.front = Front::Ublk;
    let daemon = client.daemon();
    client.ask(&Request::HandOver).map_err(failed)?;
    if daemon.is_some_and(|daemon| !daemon.wait_ended()) {
        bail!(
            "{doing}: process {} has handed it over but does not end, a leg may hang: kill -9 {}, then mirrord \
             start {name}; its users wait meanwhile",
            status.pid,
            status.pid
        );
    }
    let choice = serving::Choice {
        name: name.clone(),
        legs,
        known: uuid,
        degraded: false,
        log: LogSpec::default(),
        log_take_over: false,
        source: None,
        serve,
    };
    args.serving.serve(context, choice, &format!("cannot serve {name}")).with_context(|| {
        format!("{name} is handed over and its users wait: `mirrord start {name}` when this is mended")
    })
}
