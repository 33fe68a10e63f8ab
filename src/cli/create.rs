//! `mirrord create`.

use std::path::PathBuf;

use anyhow::bail;
use mirrord_log::LogPlace;

use super::output::{Usage, fail, note};
use super::start::Stopped;
use super::{Context, serving};
use crate::create::{CreateError, CreateOptions, create};
use crate::daemon::LogSpec;
use crate::failure::describe;
use crate::log_place::{absolute, parse_log, place_text};
use crate::registry::{Registry, ServeChoice, superblock_on};
use crate::units::parse_size;

/// Make a volume of two or more legs and serve it
///
/// Legs are files or block devices. Legs that do not exist are created sparse if --size is given; legs
/// that hold nothing start in sync without a copy. If one leg holds data it is kept and the others are
/// resynced from it. Metadata goes to the end of each leg: appended to a file, taken from a device.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The legs: 2 to 8 files or block devices.
    #[arg(long, required = true, num_args = 1.., value_name = "LEG")]
    legs: Vec<PathBuf>,
    /// Size of the volume [default: as the smallest leg].
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Name of the volume [default: mirror0, mirror1, ...].
    #[arg(long)]
    name: Option<String>,
    /// The dirty-region log: internal (on every leg), core (in memory), disk:PATH, or remote:ADDRESS for one that a log
    /// server keeps (mirrord log serve), at unix:PATH, HOST:PORT (with TLS) or insecure:HOST:PORT.
    #[arg(long, default_value = "internal", value_name = "LOG", value_parser = parse_log)]
    log: LogPlace,
    /// Take over the log of a mirror that was served by the kernel (dm-mirror): what it says is dirty is
    /// resynced from the --source, and no more.
    #[arg(long, conflicts_with = "assume_clean")]
    adopt_log: bool,
    /// Region size, a power of two of at least 4KiB [default: by the volume's size, at least 1MiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    region_size: Option<u64>,
    /// Allocate the legs, so that the volume never meets a full file system.
    #[arg(long)]
    preallocate: bool,
    /// The legs are equal: begin in sync.
    #[arg(long, conflicts_with = "source")]
    assume_clean: bool,
    /// Keep the content of this leg (path or index) and resync the others from it.
    #[arg(long, value_name = "LEG")]
    source: Option<String>,
    /// Overwrite what is on the legs.
    #[arg(long)]
    force: bool,
    /// If the legs are a volume's already, or the volume --name is known, start that: how to make it is for a new
    /// one. For services and containers, which say the same each time. Of a volume that this host does not know, --log
    /// has to say where its disk or remote log is.
    #[arg(long, conflicts_with_all = ["force", "adopt_log"])]
    or_start: bool,
    #[command(flatten)]
    serving: serving::Args,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    if args.or_start
        && let Some(stopped) = made_before(context, args.name.as_deref(), &args.legs)?
    {
        let doing = format!("cannot start {}", stopped.name);
        let mut choice = stopped.choice(&args.serving)?;
        choice.log.confirmed = Some(place_text(&absolute(args.log)?));
        return args.serving.serve(context, choice, &doing);
    }
    let doing = match &args.name {
        Some(name) => format!("cannot create {name}"),
        None => "cannot create a volume".to_owned(),
    };
    let serve = args.serving.choice(ServeChoice::default(), false)?;
    let options = CreateOptions {
        legs: args.legs,
        size: args.size,
        name: args.name,
        log: args.log,
        region_size: args.region_size,
        preallocate: args.preallocate,
        assume_clean: args.assume_clean,
        source: args.source,
        adopt_log: args.adopt_log,
        force: args.force,
        serve: serve.clone(),
    };
    let created = create(&context.dirs, &options).map_err(|error| {
        let text = format!("{doing}: {}", describe(&error));
        if is_usage(&error) { Usage(text).into() } else { anyhow::Error::msg(text) }
    })?;
    for notice in &created.notices {
        note(notice);
    }
    let name = created.name;
    // The daemon takes the name itself; the registry keeps it from others meanwhile.
    drop(created.lock);
    let doing = format!("{name} is created but cannot be served (try `mirrord start {name}`)");
    let choice = serving::Choice {
        name,
        legs: created.legs,
        known: None,
        degraded: false,
        log: LogSpec { confirmed: Some(created.log), ..LogSpec::default() },
        log_take_over: false,
        source: None,
        serve,
    };
    args.serving.serve(context, choice, &doing)
}

/// The volume that is to be started instead of made. One that is known is never made anew, also when nothing of it is
/// there: what its legs are on may not be mounted yet.
fn made_before(context: &Context, name: Option<&str>, legs: &[PathBuf]) -> anyhow::Result<Option<Stopped>> {
    let registry = Registry::new(&context.dirs);
    let on_legs = legs.iter().find_map(|leg| Some((leg, superblock_on(leg)?)));
    let known = match (name, &on_legs) {
        (Some(name), _) => {
            registry.find(name).map_err(|error| fail(&format!("cannot start {name}"), &error))?
        }
        (None, Some((_, found))) => registry.all().into_iter().find(|known| known.uuid == found.volume),
        (None, None) => None,
    };
    let stopped = match (on_legs, known) {
        (None, None) => return Ok(None),
        (None, Some(known)) if known.legs_here().is_empty() => bail!(
            "cannot start {}: it is known, but neither its legs nor those given hold it: mount what they are on, or \
             make a new volume without --or-start",
            known.name
        ),
        (None, Some(known)) => Stopped::known(context, known)?,
        (Some((leg, found)), known) => {
            let called = found.name;
            if let Some(name) = name.filter(|name| *name != called) {
                bail!(
                    "cannot start {name}: {} is a leg of the volume {called}; give --name {called}, or other legs",
                    leg.display()
                );
            }
            match known {
                Some(known) if known.uuid == found.volume && !known.legs_here().is_empty() => {
                    Stopped::known(context, known)?
                }
                _ => Stopped::of_legs(&registry, legs)?,
            }
        }
    };
    for leg in legs {
        let absolute = std::path::absolute(leg)?;
        if !stopped.legs.contains(&absolute) {
            note(&format!(
                "{} is no leg of {} and left alone: `mirrord leg add` makes it one",
                leg.display(),
                stopped.name
            ));
        }
    }
    Ok(Some(stopped))
}

/// Whether it is the flags that are wrong, not the legs.
fn is_usage(error: &CreateError) -> bool {
    matches!(
        error,
        CreateError::LegCount { .. }
            | CreateError::BadName { .. }
            | CreateError::Source { .. }
            | CreateError::AdoptNeeds
            | CreateError::AdoptWhat
            | CreateError::Geometry(_)
    )
}
