//! `mirrord wait`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Context;
use super::output::{print, print_json, say_done};
use super::status::{client_failed, progress};
use crate::control::{Client, ClientError};
use crate::status::{VolumeState, VolumeStatus};
use crate::units::format_seconds;

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(200);

/// Between two looks for one that is not there yet.
const STARTUP_PERIOD: Duration = Duration::from_millis(20);

/// A bar is shown for what takes longer.
const BAR_AFTER: Duration = Duration::from_secs(1);

/// Wait until a volume is in sync
///
/// Fails at once if it cannot get there by itself because a leg is out.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume.
    name: String,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// How long to wait for a volume that does not run yet, for instance because its daemon is still starting.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    startup: u64,
    /// Be content when nothing is left to resync, even if a leg is out.
    #[arg(long)]
    degraded_ok: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot wait for {}", args.name);
    let failed = client_failed(context, &doing);
    let begun = Instant::now();
    let (mut client, mut status) = loop {
        match Client::reach(&context.dirs, &args.name) {
            Err(ClientError::NotRunning { .. }) if begun.elapsed() < Duration::from_secs(args.startup) => {
                thread::sleep(STARTUP_PERIOD);
            }
            reached => break reached.map_err(failed)?,
        }
    };
    let mut bar: Option<ProgressBar> = None;
    while !is_over(&status, args.degraded_ok)? {
        if args.timeout.is_some_and(|seconds| begun.elapsed() >= Duration::from_secs(seconds)) {
            let seconds = format_seconds(begun.elapsed().as_secs());
            let left = progress(&status).map_or(String::new(), |progress| format!("; resync {progress}"));
            bail!("{} is {} after {seconds}{left}", args.name, status.state.name());
        }
        if begun.elapsed() >= BAR_AFTER {
            show(bar.get_or_insert_with(new_bar), &status);
        }
        thread::sleep(PERIOD);
        status = client.status().map_err(failed)?;
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    say_done(match context.json {
        true => print_json(&status),
        false => print(&format!("{} {}", args.name, status.state.name())),
    })
}

/// Whether it is as good as it gets, and whether that is good enough.
fn is_over(status: &VolumeStatus, degraded_ok: bool) -> anyhow::Result<bool> {
    match status.state {
        VolumeState::InSync => Ok(true),
        VolumeState::Failed => {
            bail!(
                "{} has failed: a flush failed on its last leg; stop it, see to the leg, start it",
                status.name
            )
        }
        VolumeState::Resyncing => Ok(false),
        VolumeState::Degraded if status.resync.active => Ok(false),
        VolumeState::Degraded if !degraded_ok && comes_back(status) => Ok(false),
        VolumeState::Degraded if degraded_ok => Ok(true),
        VolumeState::Degraded => {
            let out = |state: &str| !matches!(state, "in_sync" | "syncing");
            let legs = status.legs.iter().filter(|leg| out(&leg.state)).map(|leg| {
                format!("{} ({})", leg.path.display(), leg.reason.as_deref().unwrap_or(&leg.state))
            });
            let legs: Vec<String> = legs.collect();
            bail!(
                "{} is degraded and stays so: out {}; see `mirrord status {}`, or wait with --degraded-ok",
                status.name,
                legs.join(", "),
                status.name
            )
        }
    }
}

/// Whether every leg that is out returns by itself: those for which there was no space do.
fn comes_back(status: &VolumeStatus) -> bool {
    let mut out = status.legs.iter().filter(|leg| !matches!(&leg.state[..], "in_sync" | "syncing"));
    out.all(|leg| leg.reason.as_deref() == Some("no_space"))
}

/// On a terminal only: indicatif draws nothing elsewhere.
fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn show(bar: &ProgressBar, status: &VolumeStatus) {
    bar.set_prefix(status.name.clone());
    bar.set_length(status.resync.total_regions.max(1));
    bar.set_position(status.resync.done_regions);
    bar.set_message(progress(status).unwrap_or_else(|| status.state.name().to_owned()));
}
