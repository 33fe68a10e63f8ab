//! `mirrord status`.

use std::io::IsTerminal;
use std::thread;
use std::time::Duration;

use anyhow::bail;

use super::Context;
use super::output::{Usage, columns, fail, print, print_json};
use super::serving::log_name;
use crate::control::{Client, ClientError};
use crate::registry::Registry;
use crate::status::{LogServerStatus, VolumeStatus};
use crate::units::{format_seconds, format_size};

/// Between two looks of `--watch`.
const PERIOD: Duration = Duration::from_secs(1);

/// Show how a running volume is
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The volume [default: the only one that runs].
    name: Option<String>,
    /// Go on showing it: on a terminal each second, else a line for each change.
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let name = args.name.clone().map_or_else(|| only_volume(context), Ok)?;
    let doing = format!("cannot show {name}");
    let failed = client_failed(context, &doing);
    let (client, status) = Client::reach(&context.dirs, &name).map_err(failed)?;
    if args.watch {
        return watch(context, client, status, &doing);
    }
    if context.json { print_json(&status) } else { print(&view(&status)) }
}

/// The only volume that runs, legs aside that were split off and are served for reading.
fn only_volume(context: &Context) -> anyhow::Result<String> {
    let is_volume = |name: &String| {
        let reached = Client::reach(&context.dirs, name);
        !matches!(reached, Err(ClientError::NotRunning { .. }))
            && !reached.is_ok_and(|(_, status)| status.read_only)
    };
    let mut names: Vec<String> = context.dirs.sockets().into_iter().filter(is_volume).collect();
    match (names.pop(), names.len()) {
        (None, _) => bail!("no volume is running; see `mirrord list`"),
        (Some(name), 0) => Ok(name),
        (Some(last), _) => {
            Err(Usage(format!("{} and {last} are running: say which one", names.join(", "))).into())
        }
    }
}

fn watch(context: &Context, mut client: Client, mut status: VolumeStatus, doing: &str) -> anyhow::Result<()> {
    let terminal = std::io::stdout().is_terminal() && !context.json;
    let mut shown = String::new();
    loop {
        let text = match (terminal, context.json) {
            (true, _) => view(&status),
            (false, true) => serde_json::to_string(&status)?,
            (false, false) => line(&status),
        };
        if terminal {
            // Home, and clear from there.
            print(&format!("\x1b[H\x1b[J{text}"))?;
        } else if text != shown {
            print(&text)?;
            shown = text;
        }
        thread::sleep(PERIOD);
        status = match client.status() {
            Ok(status) => status,
            Err(ClientError::NotRunning { name }) => return print(&format!("{name} stopped")),
            Err(error) => return Err(fail(doing, &error)),
        };
    }
}

/// What to say when a call to the volume's daemon fails, given what was being done.
pub(super) fn client_failed(context: &Context, doing: &str) -> impl Fn(ClientError) -> anyhow::Error + Copy {
    move |error| match error {
        ClientError::NotRunning { name } => not_running(context, doing, &name),
        error => fail(doing, &error),
    }
}

/// The error for a volume that is not running: whether it is known says what to do.
pub(super) fn not_running(context: &Context, doing: &str, name: &str) -> anyhow::Error {
    match Registry::new(&context.dirs).find(name) {
        Ok(Some(_)) => {
            let killed = context.dirs.socket(name).exists();
            let how = if killed { "it is not running, its daemon was killed" } else { "it is not running" };
            anyhow::anyhow!("{doing}: {how}; start it with `mirrord start {name}`")
        }
        Ok(None) => anyhow::anyhow!("{doing}: there is no volume {name}; see `mirrord list`"),
        Err(error) => fail(doing, &error),
    }
}

/// How far resync is, or nothing.
pub(super) fn progress(status: &VolumeStatus) -> Option<String> {
    let resync = &status.resync;
    if !resync.active {
        return None;
    }
    let percent = resync.done_regions * 100 / resync.total_regions.max(1);
    let paused = if resync.paused { ", paused" } else { "" };
    let eta = resync.eta_seconds.map_or(String::new(), |eta| format!(", {} to go", format_seconds(eta)));
    Some(format!(
        "{percent}% ({} of {} regions), {}/s{eta}{paused}",
        resync.done_regions,
        resync.total_regions,
        format_size(resync.bytes_per_second)
    ))
}

/// One line that changes when something worth a line does.
fn line(status: &VolumeStatus) -> String {
    let legs: Vec<String> = status.legs.iter().map(|leg| format!("{}:{}", leg.index, leg.state)).collect();
    let resync = progress(status).map_or(String::new(), |progress| format!("  resync {progress}"));
    format!(
        "{}  {}  legs {}  dirty {}{resync}",
        status.name,
        status.state.name(),
        legs.join(" "),
        status.log.dirty_regions
    )
}

fn device(status: &VolumeStatus) -> String {
    let how = if status.read_only { ", read-only" } else { "" };
    format!("{} ({}{how}, pid {})", status.device.display(), status.front, status.pid)
}

/// Everything, aligned.
fn view(status: &VolumeStatus) -> String {
    let pair = |key: &str, value: String| vec![key.to_owned(), value];
    let note = status.engine_note.as_ref().map_or(String::new(), |note| format!(" ({note})"));
    let timeout = status.leg_timeout_seconds;
    let timeout =
        timeout.map_or(String::new(), |limit| format!(", a leg that hangs is given up after {limit} s"));
    let mut head = vec![
        pair("volume", format!("{} ({})", status.name, status.uuid)),
        pair("state", status.state.name().to_owned()),
        pair("device", device(status)),
        pair(
            "size",
            format!(
                "{} in {} regions of {}, blocks of {}",
                format_size(status.size_bytes),
                status.regions,
                format_size(status.region_size_bytes),
                format_size(status.block_size_bytes.into())
            ),
        ),
        pair("engine", format!("{}{note}, {} queues{timeout}", status.engine, status.queues)),
        pair(
            "log",
            format!(
                "{}, {} dirty, {} commits",
                log_name(status),
                status.log.dirty_regions,
                status.log.commits
            ),
        ),
    ];
    if let Some(server) = &status.log.server
        && let Some(text) = log_server(server)
    {
        head.push(pair("", text));
    }
    if let Some(note) = &status.log.note {
        head.push(pair("", note.clone()));
    }
    head.push(pair(
        "resync",
        progress(status).unwrap_or_else(|| format!("idle, {} regions copied", status.resync.copied_regions)),
    ));
    head.push(pair("scrub", super::scrub::summary(&status.scrub)));
    let io = &status.io;
    head.push(pair(
        "requests",
        format!("{} reads, {} writes, {} flushes, {} failed", io.reads, io.writes, io.flushes, io.errors),
    ));
    if let Some(metrics) = &status.metrics {
        head.push(pair("metrics", metrics.clone()));
    }
    let mut legs = vec![
        ["LEG", "STATE", "STALE", "READS", "WRITES", "ERRORS", "REPAIRED", "PATH"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for leg in &status.legs {
        let reason = leg.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        let file = leg.file.as_ref().map_or(String::new(), |file| format!(", {file}"));
        legs.push(vec![
            leg.index.to_string(),
            format!("{}{reason}{}{file}", leg.state, if leg.hung > 0 { ", hangs" } else { "" }),
            leg.stale_regions.to_string(),
            leg.reads.to_string(),
            leg.writes.to_string(),
            (leg.read_errors + leg.write_errors + leg.flush_errors).to_string(),
            leg.repaired_reads.to_string(),
            leg.path.display().to_string(),
        ]);
    }
    format!("{}\n{}", columns(&head), columns(&legs))
}

/// What is wrong with the server of the log.
fn log_server(server: &LogServerStatus) -> Option<String> {
    if server.taken_over {
        return Some(
            "the log was taken over by another daemon: every request fails; stop this volume".to_owned(),
        );
    }
    let why = server.last_error.as_ref().map_or(String::new(), |error| format!(": {error}"));
    let waits = if server.behind { ", and writes wait for it" } else { "" };
    (!server.connected).then(|| format!("the log server is away{waits}{why}"))
}
