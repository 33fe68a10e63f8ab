//! `mirrord start`.

use std::path::{Path, PathBuf};

use anyhow::bail;
use mirrord_log::LogPlace;
use uuid::Uuid;

use super::output::fail;
use super::{Context, serving};
use crate::control::{Client, Request};
use crate::daemon::LogSpec;
use crate::log_place::{absolute, parse_log, place_text};
use crate::paths::check_name;
use crate::registry::{Known, Registry, ServeChoice, volume_on};

/// Serve a volume that was made before
///
/// By its name, or by its legs wherever they are now (a leg called like a volume is written ./NAME). It
/// is served as it was the last time; flags given here change that.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume's name, or its legs.
    #[arg(required = true, value_name = "NAME|LEG")]
    what: Vec<PathBuf>,
    /// Start without legs that were in use and are missing or cannot be used (opened, read, written): what only they
    /// hold is lost once this volume is written.
    #[arg(long)]
    degraded: bool,
    /// Take this leg's data, whatever the others say (path, index or UUID).
    #[arg(long, value_name = "LEG")]
    source: Option<String>,
    /// The log is disk:PATH or remote:ADDRESS, whatever the legs say: because it was moved, or to confirm what they say of
    /// a volume that this host does not know.
    #[arg(long, value_name = "LOG", value_parser = parse_log, conflicts_with = "new_log")]
    log: Option<LogPlace>,
    /// Begin a new log: internal, core, disk:PATH or remote:ADDRESS. The one that the volume has is not looked at: after an
    /// unclean stop every region is dirty. What is at PATH has to be empty, or an earlier log of this volume.
    #[arg(long, value_name = "LOG", value_parser = parse_log)]
    new_log: Option<LogPlace>,
    /// With --new-log disk:PATH: overwrite what is there.
    #[arg(long, requires = "new_log")]
    force: bool,
    /// Take the log from the daemon that has it, which stops writing, if a log server keeps it. For one that is surely
    /// gone, or shall be.
    #[arg(long)]
    log_take_over: bool,
    #[command(flatten)]
    serving: serving::Args,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let registry = Registry::new(&context.dirs);
    let stopped = match known(&registry, &args.what)? {
        Some(known) => Stopped::known(context, known)?,
        None => Stopped::of_legs(&registry, &args.what)?,
    };
    let doing = format!("cannot start {}", stopped.name);
    let place = |place: Option<LogPlace>| {
        place.map(|place| absolute(place).map(|place| place_text(&place))).transpose()
    };
    let log = LogSpec { confirmed: None, at: place(args.log)?, new: place(args.new_log)?, force: args.force };
    let choice = serving::Choice {
        log,
        degraded: args.degraded,
        log_take_over: args.log_take_over,
        source: args.source.clone(),
        ..stopped.choice(&args.serving)?
    };
    args.serving.serve(context, choice, &doing)
}

/// A volume that can be started.
#[derive(Debug)]
pub(super) struct Stopped {
    /// Its name, or what to call it until its legs are open.
    pub(super) name: String,
    pub(super) legs: Vec<PathBuf>,
    /// The volume, if the legs are where it was last known to have some.
    known: Option<Uuid>,
    /// How it was served the last time.
    before: ServeChoice,
}

impl Stopped {
    /// One that is known, refused if it is running.
    pub(super) fn known(context: &Context, known: Known) -> anyhow::Result<Stopped> {
        if is_running(context, &known.name) {
            bail!("cannot start {}: it is running already", known.name);
        }
        let legs = known.leg_paths();
        Ok(Stopped { name: known.name, legs, known: Some(known.uuid), before: known.serve })
    }

    /// The one that these are legs of.
    pub(super) fn of_legs(registry: &Registry, legs: &[PathBuf]) -> anyhow::Result<Stopped> {
        let legs: Vec<PathBuf> = legs.iter().map(std::path::absolute).collect::<Result<_, _>>()?;
        let uuid = legs.iter().find_map(|leg| volume_on(leg));
        let known = registry.all().into_iter().find(|known| Some(known.uuid) == uuid);
        let first = legs.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
        let (name, before) = match known {
            Some(known) => (known.name, known.serve),
            None => (format!("the volume of {}", first.display()), ServeChoice::default()),
        };
        Ok(Stopped { name, legs, known: None, before })
    }

    /// To be served as flags say, as before for the rest.
    pub(super) fn choice(self, flags: &serving::Args) -> anyhow::Result<serving::Choice> {
        Ok(serving::Choice {
            serve: flags.choice(self.before, false)?,
            name: self.name,
            legs: self.legs,
            known: self.known,
            degraded: false,
            log: LogSpec::default(),
            log_take_over: false,
            source: None,
        })
    }
}

/// The known volume that is meant, if it is not legs.
fn known(registry: &Registry, what: &[PathBuf]) -> anyhow::Result<Option<Known>> {
    let [path] = what else { return Ok(None) };
    let Some(name) = path.to_str().filter(|name| check_name(name).is_ok()) else { return Ok(None) };
    let found = registry.find(name).map_err(|error| fail(&format!("cannot start {name}"), &error))?;
    if found.is_none() && !path.exists() {
        bail!("cannot start {name}: there is neither a volume nor a leg of that name; see `mirrord list`");
    }
    Ok(found)
}

fn is_running(context: &Context, name: &str) -> bool {
    Client::connect(&context.dirs, name).is_ok_and(|mut client| client.ask(&Request::Ping).is_ok())
}
