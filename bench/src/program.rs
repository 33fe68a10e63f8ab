//! Programs that the bench starts: they end with it, and how they were started is on record.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::remains::{Guard, Remains};

static COMMANDS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The command line as one would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}

/// Every command line so far, with `directory` written as `$DIR`, in order.
pub(crate) fn command_lines(directory: &Path) -> Vec<String> {
    let directory = directory.display().to_string();
    let commands = COMMANDS.lock().unwrap_or_else(PoisonError::into_inner);
    commands.iter().map(|line| line.replace(&directory, "$DIR")).collect()
}

fn record(command: &Command) {
    COMMANDS.lock().unwrap_or_else(PoisonError::into_inner).insert(line(command));
}

/// A program in the background. Dropped, it is asked to end, then reaped.
#[derive(Debug)]
pub(crate) struct Background {
    child: Child,
    guard: Option<Guard>,
}

impl Background {
    /// Starts `command`, its output discarded but for errors.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(command: &mut Command) -> Result<Background> {
        record(command);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {}", line(command)))?;
        let guard = Guard::new(Remains::Program(child.id()))?;
        Ok(Background { child, guard: Some(guard) })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.guard.take());
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end.
///
/// # Errors
/// When it cannot be started or fails; the error carries what it wrote to stderr.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    record(command);
    let text = line(command);
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot start {text}"))?;
    let guard = Guard::new(Remains::Program(child.id()))?;
    let output = child.wait_with_output();
    guard.gone();
    let output = output.with_context(|| format!("waiting for {text}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let last: Vec<&str> = stderr.lines().chain(stdout.lines()).take(12).collect();
        bail!("{text}\nfailed with {}: {}", output.status, last.join("\n"));
    }
    Ok(output)
}

/// Runs `command` to its end, in a process group of its own, and hands over each line that it prints. It is
/// ended when it prints nothing for as long as `patience`. How it was started is not put on record.
///
/// # Errors
/// When it cannot be started or is silent for too long.
pub(crate) fn lines(
    command: &mut Command,
    patience: Duration,
    mut take: impl FnMut(String),
) -> Result<ExitStatus> {
    let name = command.get_program().to_string_lossy().into_owned();
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let guard = Guard::new(Remains::Group(child.id()))?;
    let output = BufReader::new(child.stdout.take().context("no pipe")?);
    let (sender, lines) = channel();
    thread::spawn(move || {
        // A console may print any byte.
        let texts = output.split(b'\n').map_while(Result::ok);
        texts
            .map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
            .try_for_each(|line| sender.send(line))
    });
    loop {
        match lines.recv_timeout(patience) {
            Ok(line) => take(line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                drop(guard);
                let _ = child.wait();
                bail!("{name} printed nothing for {} s", patience.as_secs());
            }
        }
    }
    let status = child.wait();
    guard.gone();
    Ok(status?)
}
