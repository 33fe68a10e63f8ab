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
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long a program may take to end before it is killed.
const END: Duration = Duration::from_secs(5);
/// How long a command that stops a daemon may take.
const STOP: Duration = Duration::from_secs(30);

/// Tries to remove a directory, and the time between them.
const TRIES: u32 = 20;
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Something to take away.
#[derive(Debug)]
pub(crate) enum Remains {
    /// A directory with all that is in it.
    Directory(PathBuf),
    /// A FUSE mount.
    Mount(PathBuf),
    /// A program that the bench started and that ends on SIGTERM.
    Program(u32),
    /// A program that the bench started in a process group of its own, with all that it started there.
    Group(u32),
    /// A daemon that may have been started.
    Daemon {
        /// Ends it; fails if it is not there.
        stop: Command,
        /// Its process, once that is known.
        id: Option<u32>,
    },
}

struct Registry {
    next: u64,
    /// Closed after an interrupt.
    closed: bool,
    /// Things that guards are taking away just now.
    busy: u32,
    entries: Vec<(u64, Remains)>,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { next: 0, closed: false, busy: 0, entries: Vec::new() });

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
        drop(self.unregister(&mut registry()));
        std::mem::forget(self);
    }

    fn unregister(&self, registry: &mut Registry) -> Option<Remains> {
        let at = registry.entries.iter().position(|(id, _)| *id == self.0)?;
        Some(registry.entries.remove(at).1)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut locked = registry();
        if locked.closed {
            return;
        }
        if let Some(remains) = self.unregister(&mut locked) {
            locked.busy += 1;
            drop(locked);
            remains.take_away();
            registry().busy -= 1;
        }
    }
}

/// Takes everything away that is left, and waits for what guards are taking away. The registry is closed.
fn take_all_away() {
    loop {
        let mut locked = registry();
        match (locked.entries.pop(), locked.busy) {
            (Some((_, remains)), _) => {
                drop(locked);
                remains.take_away();
            }
            (None, 0) => return,
            (None, _) => {
                drop(locked);
                thread::sleep(TRY_AGAIN);
            }
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
                // After an interrupt the main thread may just be making something there.
                let mut tries = 1;
                while let Err(error) = std::fs::remove_dir_all(&path) {
                    if tries == TRIES {
                        eprintln!("cannot remove {}: {error}", path.display());
                        return;
                    }
                    tries += 1;
                    thread::sleep(TRY_AGAIN);
                }
            }
            Remains::Mount(path) => {
                let mut unmount = Command::new("fusermount3");
                quietly(unmount.args(["-u", "-z", "-q"]).arg(path));
            }
            Remains::Program(id) => end_child(id, kill_process),
            Remains::Group(id) => end_child(id, kill_process_group),
            Remains::Daemon { mut stop, id } => {
                quietly(&mut stop);
                id.into_iter().for_each(kill_daemon);
            }
        }
    }
}

/// Runs a command to its end, but not for ever.
fn quietly(command: &mut Command) {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return };
    let deadline = Instant::now() + STOP;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Kills a daemon that did not stop. The id may be another's by now: only a mirrord is killed.
fn kill_daemon(id: u32) {
    let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
    if line.starts_with(b"mirrord\0serve\0")
        && let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw)
        && !has_ended_within(pid, id, END)
    {
        eprintln!("the daemon with process id {id} did not stop: killing it");
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn has_ended_within(pid: Pid, id: u32, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while is_running(pid, id) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    !is_running(pid, id)
}

/// Ends a child: asked first, killed later. Nobody else reaps it meanwhile, so the id stays its own.
fn end_child(id: u32, kill: fn(Pid, Signal) -> rustix::io::Result<()>) {
    let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) else { return };
    let _ = kill(pid, Signal::TERM);
    if !has_ended_within(pid, id, END) {
        let _ = kill(pid, Signal::KILL);
    }
}

fn is_running(pid: Pid, id: u32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let is_zombie = state.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    test_kill_process(pid).is_ok() && !is_zombie
}
