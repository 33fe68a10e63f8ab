//! Serving in a process of its own.
//!
//! [`spawn`] runs this program again with the hidden verb `serve`, gives it a [`ServeSpec`] on standard
//! input and waits for one line on standard output: ready, or why not. [`serve_behind`] is the other
//! side; once it has reported it lets go of the terminal: own session, standard streams to nowhere or
//! to the log file. If the parent goes away first, the volume is served all the same.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use mirrord_ublk::process::inherit_none_from;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use serde::{Deserialize, Serialize};

use super::{DaemonError, ServeSpec, Served};
use crate::failure::describe;
use crate::logging::LogTo;
use crate::paths::Dirs;
use crate::status::VolumeStatus;

/// A volume that is being served by another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// How it is.
    pub status: VolumeStatus,
    /// What the user should know.
    pub notices: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Ready(Box<Ready>),
    Failed(String),
}

/// Why the daemon does not serve.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// It said why.
    #[error("{message}")]
    Refused {
        /// The reason.
        message: String,
    },
    /// It ended without a word.
    #[error("the daemon ended before it was ready: {status}")]
    Died {
        /// How it ended.
        status: String,
    },
    /// It could not be started or talked to.
    #[error("cannot start the daemon")]
    Io(#[source] io::Error),
}

impl From<io::Error> for SpawnError {
    fn from(error: io::Error) -> SpawnError {
        SpawnError::Io(error)
    }
}

/// Starts a daemon that serves `name` (for the list of processes) and returns when it is ready.
///
/// # Errors
/// See [`SpawnError`].
pub fn spawn(spec: &ServeSpec, name: &str) -> Result<Ready, SpawnError> {
    // What this process was left by whoever ran it (a lock, a pipe that somebody reads to its end) is not the
    // daemon's to keep.
    inherit_none_from(3)?;
    let mut child = Command::new("/proc/self/exe")
        .arg0("mirrord")
        .args(["serve", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        let spec = serde_json::to_vec(spec).map_err(io::Error::from)?;
        match stdin.write_all(&spec) {
            // What it died of is told below.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    match serde_json::from_str(&line) {
        Ok(Report::Ready(ready)) => Ok(*ready),
        Ok(Report::Failed(message)) => {
            let _ = child.wait();
            Err(SpawnError::Refused { message })
        }
        Err(_) => Err(SpawnError::Died { status: child.wait()?.to_string() }),
    }
}

/// The other side of [`spawn`]: serves until the volume is stopped.
///
/// # Errors
/// When it cannot serve; the parent was told.
pub fn serve_behind(dirs: &Dirs) -> Result<(), DaemonError> {
    // Fails if it is a session of its own already.
    let _ = rustix::process::setsid();
    let mut text = String::new();
    let served = io::stdin()
        .read_to_string(&mut text)
        .and_then(|_| serde_json::from_str::<ServeSpec>(&text).map_err(io::Error::from))
        .map_err(DaemonError::Spec)
        .and_then(|spec| Served::begin(dirs, &spec, false));
    match served {
        Ok(served) => {
            let ready = Ready { status: served.status(), notices: served.notices().to_vec() };
            report(&Report::Ready(Box::new(ready)));
            if let Err(error) = detach(served.log_to()) {
                tracing::warn!(%error, "cannot let go of the terminal");
            }
            served.wait();
            Ok(())
        }
        Err(error) => {
            report(&Report::Failed(describe(&error)));
            Err(error)
        }
    }
}

/// A parent that went away is not missed.
fn report(report: &Report) {
    let line = serde_json::to_string(report).unwrap_or_default();
    let _ = writeln!(io::stdout(), "{line}");
}

fn detach(log_to: &LogTo) -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    let stderr: Option<File> = match log_to {
        LogTo::Stderr => None,
        LogTo::Journald => Some(null),
        LogTo::File(path) => Some(OpenOptions::new().append(true).create(true).mode(0o600).open(path)?),
    };
    if let Some(file) = stderr {
        dup2_stderr(&file)?;
    }
    Ok(())
}
