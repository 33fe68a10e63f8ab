//! Where a daemon's messages go.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Where messages go.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogTo {
    /// Standard error.
    Stderr,
    /// The journal of systemd.
    Journald,
    /// Appended to a file.
    File(PathBuf),
}

/// Not a place for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("use stderr, journald or file:PATH")]
pub struct BadLogTo;

impl FromStr for LogTo {
    type Err = BadLogTo;

    fn from_str(text: &str) -> Result<LogTo, BadLogTo> {
        match text {
            "stderr" => Ok(LogTo::Stderr),
            "journald" => Ok(LogTo::Journald),
            _ => {
                let path = text.strip_prefix("file:").filter(|path| !path.is_empty()).ok_or(BadLogTo)?;
                std::path::absolute(path).map(LogTo::File).map_err(|_| BadLogTo)
            }
        }
    }
}

/// How much is said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// What went wrong.
    Error,
    /// And what may go wrong.
    Warn,
    /// And what changed.
    #[default]
    Info,
    /// And how.
    Debug,
    /// Everything.
    Trace,
}

impl From<Level> for LevelFilter {
    fn from(level: Level) -> LevelFilter {
        match level {
            Level::Error => LevelFilter::ERROR,
            Level::Warn => LevelFilter::WARN,
            Level::Info => LevelFilter::INFO,
            Level::Debug => LevelFilter::DEBUG,
            Level::Trace => LevelFilter::TRACE,
        }
    }
}

/// Sends messages there from now on; panics too. Does nothing if it was called before.
///
/// # Errors
/// When the file or the journal cannot be opened.
pub fn begin(to: &LogTo, level: Level) -> io::Result<()> {
    let everything = LevelFilter::from(level);
    // What libublk tells of each step is of use to those who look for a fault in it.
    let libublk =
        if everything <= LevelFilter::INFO { LevelFilter::WARN.min(everything) } else { everything };
    let levels = Targets::new().with_default(everything).with_target("libublk", libublk);
    let registry = tracing_subscriber::registry().with(levels);
    let plain = || {
        // That a message cannot be written, for a full disk perhaps, is said on standard error, or else a panic.
        tracing_subscriber::fmt::layer().with_ansi(false).log_internal_errors(false)
    };
    let begun = match to {
        LogTo::Stderr => registry.with(plain().with_writer(io::stderr)).try_init(),
        LogTo::Journald => registry.with(tracing_journald::layer()?).try_init(),
        LogTo::File(path) => {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            registry.with(plain().with_writer(Mutex::new(file))).try_init()
        }
    };
    if begun.is_ok() {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            tracing::error!("{panic}");
            print(panic);
        }));
    }
    Ok(())
}
