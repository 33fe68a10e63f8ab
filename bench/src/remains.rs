//! What would outlive the bench if nobody took it away: directories, mounts, daemons, programs.
//!
//! Guarantee: what is registered here is taken away once, in the opposite order, whether its guard is
//! dropped, the bench panics (which aborts in release builds), fails, or is interrupted. After an
//! interrupt nothing new is registered.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long a program may take to end before it is killed.
const END: Duration = Duration::from_secs(5);

/// Something to take away.
#[derive(Debug)]
pub(crate) enum Remains {
    /// A directory with all that is in it.
    Directory(PathBuf),
    /// A FUSE mount.
    Mount(PathBuf),
    /// A program that the bench started and that ends on SIGTERM.
    Program(u32),
    /// Whatever this command ends; it may fail.
    Ends(Command),
}

struct Registry {
    next: u64,
    /// Closed after an interrupt.
    closed: bool,
    entries: Vec<(u64, Remains)>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { next: 0, closed: false, entries: Vec::new() });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes its thing away when it is dropped.
#[derive(Debug)]
pub(crate) struct Guard(u64);

impl Guard {
    /// Registers `remains`.
    ///
    /// # Errors
    /// When the bench was interrupted; `remains` is taken away at once.
    pub(crate) fn new(remains: Remains) -> Result<Guard> {
        let mut registry = registry();
        if registry.closed {
            drop(registry);
            remains.take_away();
            bail!("interrupted");
        }
        registry.next += 1;
        let id = registry.next;
        registry.entries.push((id, remains));
        Ok(Guard(id))
    }

    /// It went away by itself.
    pub(crate) fn gone(self) {
        self.unregister();
        std::mem::forget(self);
    }

    fn unregister(&self) -> Option<Remains> {
        let mut registry = registry();
        let at = registry.entries.iter().position(|(id, _)| *id == self.0)?;
        Some(registry.entries.remove(at).1)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(remains) = self.unregister() {
            remains.take_away();
        }
    }
}

/// Takes everything away that is left.
fn take_all_away() {
    loop {
        let last = registry().entries.pop();
        match last {
            Some((_, remains)) => remains.take_away(),
            None => return,
        }
    }
}

/// Whether the bench was interrupted and is about to exit.
pub(crate) fn interrupted() -> bool {
    registry().closed
}

/// From now on SIGINT, SIGTERM, SIGHUP and panics take everything away before the process ends.
///
/// # Errors
/// When the handlers cannot be set.
pub(crate) fn watch() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch signals")?;
    let on_signal = move || {
        if signals.forever().next().is_some() {
            registry().closed = true;
            eprintln!("interrupted: cleaning up");
            take_all_away();
            std::process::exit(130);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(on_signal).context("cannot catch signals")?;
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        registry().closed = true;
        take_all_away();
    }));
    Ok(())
}

impl Remains {
    fn take_away(self) {
        match self {
            Remains::Directory(path) => {
                if let Err(error) = std::fs::remove_dir_all(&path) {
                    eprintln!("cannot remove {}: {error}", path.display());
                }
            }
            Remains::Mount(path) => {
                let mut unmount = Command::new("fusermount3");
                quietly(unmount.args(["-u", "-z", "-q"]).arg(path));
            }
            Remains::Program(id) => end_program(id),
            Remains::Ends(mut command) => quietly(&mut command),
        }
    }
}

fn quietly(command: &mut Command) {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _ = command.status();
}

/// Ends a child: asked first, killed later. Nobody else reaps it meanwhile, so the id stays its own.
fn end_program(id: u32) {
    let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) else { return };
    let _ = kill_process(pid, Signal::TERM);
    let deadline = Instant::now() + END;
    while is_running(pid, id) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    if is_running(pid, id) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn is_running(pid: Pid, id: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let is_zombie = state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    test_kill_process(pid).is_ok() && !is_zombie
}
