//! Flags of `create` and `start` that say how a volume is served, and the serving itself.

use std::path::PathBuf;

use anyhow::bail;
use clap::ValueEnum;
use mirrord_ublk::{plain_spawn, ublk};
use uuid::Uuid;

use super::Context;
use super::output::{Usage, note, print, print_json, say_done};
use crate::daemon::{LogSpec, ServeSpec, Served, spawn};
use crate::engine::{LogFallback, SparePolicy};
use crate::events::check_hook;
use crate::failure::describe;
use crate::logging::{Level, LogTo};
use crate::metrics::{Address, BadAddress, Listener};
use crate::registry::{Front, ServeChoice};
use crate::status::VolumeStatus;
use crate::tls::{TlsFiles, client_config};
use crate::units::{format_size, parse_size};

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Serve as a block device or as a file [default: as before, or auto].
    #[arg(long)]
    front: Option<Front>,
    /// Serve as this file: new, or an empty one [default with FUSE: NAME.img in the runtime directory].
    #[arg(long, value_name = "PATH")]
    mount: Option<PathBuf>,
    /// Queues, each a thread [default: one for two processors, at most 4].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: Option<u16>,
    /// Requests in flight per queue [default: 128 with ublk, 64 with FUSE].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    depth: Option<u32>,
    /// Who does the IO on the legs.
    #[arg(long)]
    engine: Option<Engine>,
    /// Give up a leg that takes longer than so many seconds over an IO; 0 or none: wait for ever [default: none; 15
    /// with the ublk device of a user without privilege, where it is 20 at most].
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    leg_timeout: Option<u32>,
    /// Run this program for each event of the volume (mirrord events), with the event's name and the volume's as
    /// arguments and the event as JSON on standard input; none: no program [default: as before].
    #[arg(long, value_name = "PROGRAM")]
    event_hook: Option<PathBuf>,
    /// Answer with figures for Prometheus (GET /metrics) at unix:PATH, IP:PORT or localhost:PORT; none: nowhere
    /// [default: as before].
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<String>,
    /// Let other machines fetch them: --metrics is not an address of this machine alone.
    #[arg(long, requires = "metrics")]
    metrics_anywhere: bool,
    /// What happens when a leg fails and there is a spare (mirrord leg add --spare): it takes the leg's place at once
    /// (allocate), or there is an event and no more (warn) [default: as before, or allocate].
    #[arg(long, value_name = "POLICY")]
    spares: Option<SparePolicy>,
    /// With --log remote: the certificate that this host shows the log server [default: as before].
    #[arg(long, value_name = "FILE", requires_all = ["log_tls_key", "log_tls_ca"])]
    log_tls_cert: Option<PathBuf>,
    /// The key of that certificate.
    #[arg(long, value_name = "FILE", requires = "log_tls_cert")]
    log_tls_key: Option<PathBuf>,
    /// The CA that signed the log server's certificate.
    #[arg(long, value_name = "FILE", requires = "log_tls_cert")]
    log_tls_ca: Option<PathBuf>,
    /// While the log server is away, writes to regions that are not dirty wait for it (wait), or the volume goes on as
    /// with a log in memory (core): a crash meanwhile costs a whole resync [default: as before, or wait].
    #[arg(long, value_name = "WHAT")]
    log_fallback: Option<LogFallback>,
    /// Let other users reach the file that is the volume (its mode still applies).
    #[arg(long)]
    allow_other: bool,
    /// Resync at most so many bytes per second.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    resync_rate: Option<u64>,
    /// Serve in this process instead of in the background.
    #[arg(long)]
    foreground: bool,
    /// Where messages go: stderr, journald or file:PATH [default: NAME.log in the runtime directory].
    #[arg(long, value_name = "WHERE")]
    log_to: Option<LogTo>,
    /// How much is said there.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: Level,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Engine {
    /// io_uring where it is permitted, else threads.
    Auto,
    /// Threads.
    Threads,
}

/// Which volume to serve.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) name: String,
    pub(super) legs: Vec<PathBuf>,
    /// The volume, if the legs are where it was last known to have some.
    pub(super) known: Option<Uuid>,
    pub(super) degraded: bool,
    pub(super) log: LogSpec,
    pub(super) log_take_over: bool,
    pub(super) source: Option<String>,
    pub(super) serve: ServeChoice,
}

impl Args {
    /// What was asked for, and `before` for the rest. `running`: it is served like that now.
    pub(super) fn choice(&self, before: ServeChoice, running: bool) -> anyhow::Result<ServeChoice> {
        if self.front == Some(Front::Ublk) && self.mount.is_some() {
            let text = "--mount is for --front fuse: a block device is made in /dev";
            return Err(Usage(text.to_owned()).into());
        }
        if self.front == Some(Front::Ublk)
            && let Err(error) = ublk::features(&plain_spawn())
        {
            bail!("--front ublk: {}; or use --front fuse", describe(&error));
        }
        Ok(ServeChoice {
            front: self.front.unwrap_or(before.front),
            mount: match self.front {
                Some(Front::Ublk) => None,
                _ => self.mount.as_ref().map(std::path::absolute).transpose()?.or(before.mount),
            },
            queues: self.queues.or(before.queues),
            depth: self.depth.or(before.depth),
            threads_engine: match self.engine {
                Some(engine) => matches!(engine, Engine::Threads),
                None => before.threads_engine,
            },
            allow_other: self.allow_other || before.allow_other,
            leg_timeout: self.leg_timeout.or(before.leg_timeout),
            event_hook: self.event_hook(before.event_hook)?,
            metrics: self.metrics(before.metrics, running)?,
            spares: self.spares.unwrap_or(before.spares),
            log_tls: self.log_tls(before.log_tls)?,
            log_fallback: self.log_fallback.unwrap_or(before.log_fallback),
        })
    }

    /// Tries the address, unless that is where the running daemon answers.
    fn metrics(&self, before: Option<String>, running: bool) -> anyhow::Result<Option<String>> {
        let text = match self.metrics.as_deref() {
            None => return Ok(before),
            Some("none") => return Ok(None),
            Some(text) => text,
        };
        let address: Address =
            text.parse().map_err(|error: BadAddress| Usage(format!("--metrics {text}: {error}")))?;
        if !address.is_local() && !self.metrics_anywhere {
            let text = format!(
                "--metrics {text}: other machines could read the metrics there without a password; use localhost or \
                 unix:PATH, or add --metrics-anywhere"
            );
            return Err(Usage(text).into());
        }
        let text = address.to_string();
        if !running || before.as_ref() != Some(&text) {
            Listener::bind(&address).map_err(|error| anyhow::Error::msg(describe(&error)))?;
        }
        Ok(Some(text))
    }

    fn log_tls(&self, before: Option<TlsFiles>) -> anyhow::Result<Option<TlsFiles>> {
        let (Some(cert), Some(key), Some(ca)) = (&self.log_tls_cert, &self.log_tls_key, &self.log_tls_ca)
        else {
            return Ok(before);
        };
        let absolute = |path: &PathBuf| std::path::absolute(path);
        let files = TlsFiles { cert: absolute(cert)?, key: absolute(key)?, ca: absolute(ca)? };
        client_config(&files).map_err(|error| anyhow::Error::msg(describe(&error)))?;
        Ok(Some(files))
    }

    fn event_hook(&self, before: Option<PathBuf>) -> anyhow::Result<Option<PathBuf>> {
        match &self.event_hook {
            None => Ok(before),
            Some(none) if none.as_os_str() == "none" => Ok(None),
            Some(program) => match check_hook(program) {
                Ok(()) => Ok(Some(program.clone())),
                Err(error) => Err(Usage(describe(&error)).into()),
            },
        }
    }

    /// Serves a volume: in the background, or here until it is stopped.
    pub(super) fn serve(&self, context: &Context, choice: Choice, doing: &str) -> anyhow::Result<()> {
        let spec = ServeSpec {
            legs: choice.legs,
            read_only: None,
            known: choice.known,
            degraded: choice.degraded,
            log: choice.log,
            log_take_over: choice.log_take_over,
            source: choice.source,
            serve: choice.serve,
            resync_rate: self.resync_rate,
            log_to: self.log_to.clone(),
            log_level: self.log_level,
        };
        if self.foreground {
            let served = Served::begin(&context.dirs, &spec, true)
                .map_err(|error| super::output::fail(doing, &error))?;
            say_done(say(context, &served.status(), served.notices()))?;
            served.wait();
            return Ok(());
        }
        let ready = spawn(&spec, &choice.name).map_err(|error| super::output::fail(doing, &error))?;
        say_done(say(context, &ready.status, &ready.notices))
    }
}

/// A day at most: more is for ever.
fn parse_seconds(text: &str) -> Result<u32, String> {
    match text {
        "none" => Ok(0),
        text => match text.parse() {
            Ok(seconds @ 0..=86_400) => Ok(seconds),
            _ => Err("a number of seconds up to 86400, or none".to_owned()),
        },
    }
}

/// The one line of a volume that is served.
fn say(context: &Context, status: &VolumeStatus, notices: &[String]) -> anyhow::Result<()> {
    for notice in notices {
        note(notice);
    }
    if context.json {
        return print_json(status);
    }
    let legs: Vec<String> = status.legs.iter().map(|leg| leg.path.display().to_string()).collect();
    print(&format!(
        "{}  {}  {}  legs {}  log {}",
        status.name,
        status.device.display(),
        format_size(status.size_bytes),
        legs.join(" "),
        log_name(status)
    ))
}

/// Kind and place of the log.
pub(super) fn log_name(status: &VolumeStatus) -> String {
    match &status.log.place {
        Some(place) => format!("{}:{place}", status.log.kind),
        None => status.log.kind.clone(),
    }
}
