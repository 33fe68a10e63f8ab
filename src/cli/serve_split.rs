//! `mirrord split --serve`: a leg that was split off becomes a volume that can be read.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Context;
use super::output::{Usage, fail, note, print, print_json, say_done};
use crate::daemon::{LogSpec, ServeSpec, spawn};
use crate::failure::describe;
use crate::logging::Level;
use crate::paths::check_name;
use crate::registry::{Front, ServeChoice};
use crate::status::{LegStatus, VolumeStatus};
use crate::units::format_size;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Serve the leg as a volume that can only be read, called NAME-INDEX; also one that was split off before. `mirrord
    /// stop` ends that, and so does nothing else.
    #[arg(long)]
    serve: bool,
    /// The same, by this name.
    #[arg(long, value_name = "NAME")]
    serve_as: Option<String>,
    /// Serve it as this file: new, or an empty one [default: as a block device where the volume is one, else NAME.img in
    /// the runtime directory].
    #[arg(long, value_name = "PATH")]
    mount: Option<PathBuf>,
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Done<'a> {
    name: &'a str,
    leg: usize,
    path: &'a Path,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_us: Option<u64>,
    served_as: &'a str,
    device: &'a Path,
}

/// The leg of this path, index or UUID, if it is split off.
pub(super) fn already_split<'a>(status: &'a VolumeStatus, name: &str) -> Option<&'a LegStatus> {
    let is_it = |leg: &&LegStatus| {
        leg.path == Path::new(name) || leg.index.to_string() == name || leg.uuid.to_string() == name
    };
    status.legs.iter().find(is_it).filter(|leg| leg.state == "tracked")
}

impl Args {
    pub(super) fn is_wanted(&self) -> bool {
        self.serve || self.serve_as.is_some()
    }

    /// Serves the leg of the volume that `status` is of. `pause_us`: how long writes waited for the split.
    pub(super) fn serve(
        &self,
        context: &Context,
        status: &VolumeStatus,
        leg: usize,
        path: &Path,
        pause_us: Option<u64>,
    ) -> anyhow::Result<()> {
        let name = self.serve_as.clone().unwrap_or_else(|| format!("{}-{leg}", status.name));
        let doing = format!("{} is split off; cannot serve it as {name}", path.display());
        check_name(&name).map_err(|error| Usage(format!("{doing}: {}", describe(&error))))?;
        let front = if status.front == "ublk" && self.mount.is_none() { Front::Auto } else { Front::Fuse };
        let mount = self.mount.as_ref().map(std::path::absolute).transpose()?;
        let spec = ServeSpec {
            legs: vec![path.to_owned()],
            read_only: Some(name.clone()),
            known: None,
            log: LogSpec::default(),
            log_take_over: false,
            degraded: false,
            source: None,
            serve: ServeChoice { front, mount, ..ServeChoice::default() },
            resync_rate: None,
            log_to: None,
            log_level: Level::Info,
        };
        let ready = spawn(&spec, &name).map_err(|error| fail(&doing, &error))?;
        ready.notices.iter().for_each(|text| note(text));
        let device = &ready.status.device;
        if context.json {
            let served_as = &name;
            return say_done(print_json(&Done {
                name: &status.name,
                leg,
                path,
                pause_us,
                served_as,
                device,
            }));
        }
        let pause =
            pause_us.map_or(String::new(), |us| format!("; writes waited {:.1} ms", us as f64 / 1000.0));
        say_done(print(&format!(
            "{name}  {}  {}  read-only  leg {leg} {}{pause}",
            device.display(),
            format_size(ready.status.size_bytes),
            path.display()
        )))
    }
}
