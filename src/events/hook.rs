//! A program that is run for each event: one at a time, in order, on a thread of its own.
//!
//! It is given the event's name and the volume's as arguments, the event as JSON on standard input, and each
//! field of that as `MIRRORD_FIELD` in its environment; what it prints goes nowhere. The queue is the journal:
//! a hook that is too slow for it misses events, which is logged. One that takes longer than [`EACH`] is killed
//! with its process group. Neither adding an event nor serving the volume ever waits for it.
//!
//! The daemon does not fork: all its memory would be copied on write for a moment, by threads that must not
//! wait for memory. It spawns this program ([`become_hook`]), which gives up what protects a daemon and
//! becomes the hook.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, AtFlags, CWD, MemfdFlags, accessat, memfd_create};
use rustix::process::{Pid, Signal, configure_io_flusher_behavior, kill_process_group};

use super::{Event, Journal, Next, Reader};

/// How long a hook may run.
const EACH: Duration = Duration::from_secs(30);

/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// How long the thread may take over what it cannot be interrupted in, once it is to end.
const SLACK: Duration = Duration::from_secs(1);

/// Why a program cannot be a hook.
#[derive(Debug, thiserror::Error)]
pub enum BadHook {
    /// Its path depends on where one stands.
    #[error("--event-hook {}: give its whole path, beginning with /", path.display())]
    NotAbsolute {
        /// The program.
        path: PathBuf,
    },
    /// It is a directory or the like.
    #[error("--event-hook {}: it is no file", path.display())]
    NoFile {
        /// The program.
        path: PathBuf,
    },
    /// It is not there or must not be run.
    #[error("--event-hook {}: it cannot be run", path.display())]
    Io {
        /// The program.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Whether `path` can be run as a hook.
///
/// # Errors
/// See [`BadHook`].
pub fn check_hook(path: &Path) -> Result<(), BadHook> {
    if !path.is_absolute() {
        return Err(BadHook::NotAbsolute { path: path.to_owned() });
    }
    let failed = |source| BadHook::Io { path: path.to_owned(), source };
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(BadHook::NoFile { path: path.to_owned() });
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).map_err(|errno| failed(errno.into()))
}

/// Turns this process into the hook `program`, as mortal as any and away from the daemon's directory. Gives why
/// it could not.
pub fn become_hook(program: &Path, args: &[String]) -> io::Error {
    // Refused where there is no protection to give up.
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    let _ = configure_io_flusher_behavior(false);
    let _ = std::env::set_current_dir("/");
    Command::new(program).args(args).exec()
}

/// A running hook thread.
#[derive(Debug)]
pub struct Hook {
    thread: JoinHandle<()>,
    /// When all is to be over.
    end: Arc<Mutex<Option<Instant>>>,
}

impl Hook {
    /// Runs `program` for every event of `journal` from its first on, until it is closed. `device` is what is
    /// served: a program on it is not run.
    ///
    /// # Errors
    /// When there is no thread or file descriptor left.
    pub fn start(program: &Path, journal: &Arc<Journal>, device: &Path) -> io::Result<Hook> {
        let end = Arc::default();
        let runner = Runner {
            command: Box::new(as_hook),
            program: program.to_owned(),
            device: device_number(device),
            each: EACH,
            end: Arc::clone(&end),
        };
        Hook::run(runner, journal.reader(Some(0))?, end)
    }

    fn run(runner: Runner, reader: Reader, end: Arc<Mutex<Option<Instant>>>) -> io::Result<Hook> {
        let body = move || runner.follow(reader);
        let thread = thread::Builder::new().name("mirrord-hook".to_owned()).spawn(body)?;
        Ok(Hook { thread, end })
    }

    /// After the journal was closed: waits for what is left, at most for `patience`, and kills what runs then.
    pub fn finish(self, patience: Duration) {
        let end = Instant::now() + patience;
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        // Not joined: the kernel may hold it, in the directory of a dead file server.
        while !self.thread.is_finished() && Instant::now() < end + SLACK {
            thread::sleep(LOOK);
        }
    }
}

/// What the thread has.
struct Runner {
    command: Box<dyn Fn(&Path) -> Command + Send>,
    program: PathBuf,
    /// Of the device that is served, if it is one.
    device: Option<u64>,
    each: Duration,
    end: Arc<Mutex<Option<Instant>>>,
}

impl Runner {
    fn follow(&self, mut reader: Reader) {
        let mut dropped = 0;
        loop {
            match reader.read() {
                Next::Event(_) if self.is_over() => dropped += 1,
                Next::Event(event) => {
                    if let Err(why) = self.run(&event) {
                        let (program, sequence) = (self.program.display(), event.sequence);
                        tracing::warn!(%program, event = event.name(), sequence, "event hook: {why}");
                    }
                }
                Next::Missed(events) => {
                    let events = events.unwrap_or(0);
                    tracing::warn!(events, "the event hook is too slow: it missed events");
                }
                Next::Nothing => {
                    // An interrupted wait is a short one.
                    let _ = poll(&mut [PollFd::from_borrowed_fd(reader.bell(), PollFlags::IN)], None);
                }
                Next::End => break,
            }
        }
        if dropped > 0 {
            tracing::warn!(events = dropped, "the event hook is too slow: it missed events at the end");
        }
    }

    fn is_over(&self) -> bool {
        self.end().is_some_and(|end| Instant::now() >= end)
    }

    fn end(&self) -> Option<Instant> {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the hook for one event, to its end or ours.
    fn run(&self, event: &Event) -> Result<(), String> {
        let metadata = fs::metadata(&self.program).map_err(|error| error.to_string())?;
        if self.device == Some(metadata.dev()) {
            return Err("it lies on the volume itself and is not run".to_owned());
        }
        let begun = Instant::now();
        let mut child = self.spawn(event).map_err(|error| format!("cannot run it: {error}"))?;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("it failed: {status}")),
                Ok(None) => {}
                Err(error) => return Err(format!("cannot wait for it: {error}")),
            }
            if begun.elapsed() >= self.each || self.is_over() {
                // Whatever it started, too. It was not waited for, so the number is still its own.
                let killed = kill_process_group(Pid::from_child(&child), Signal::KILL);
                killed.map_err(|error| format!("cannot kill it: {error}"))?;
                let _ = child.wait();
                return Err(format!("killed after {} s", begun.elapsed().as_secs()));
            }
            thread::sleep(LOOK);
        }
    }

    fn spawn(&self, event: &Event) -> io::Result<Child> {
        // A file in memory, not a pipe: one that nobody reads would be waited for.
        let mut input = File::from(memfd_create(c"mirrord-event", MemfdFlags::CLOEXEC)?);
        serde_json::to_writer(&input, event)?;
        input.write_all(b"\n")?;
        input.rewind()?;
        let variable = |(name, value): (String, String)| (format!("MIRRORD_{}", name.to_uppercase()), value);
        (self.command)(&self.program)
            .args([event.name(), &event.volume])
            .envs(event.fields().into_iter().map(variable))
            // The service manager hears of the daemon from the daemon.
            .env_remove("NOTIFY_SOCKET")
            .process_group(0)
            .stdin(input)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
    }
}

/// This program, on its way to become `program`.
fn as_hook(program: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("mirrord").arg("run-hook").arg(program);
    command
}

fn device_number(path: &Path) -> Option<u64> {
    let metadata = fs::metadata(path).ok()?;
    metadata.file_type().is_block_device().then(|| metadata.rdev())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::What;
    use std::os::unix::fs::PermissionsExt;
    use uuid::Uuid;

    /// A folder with a hook that runs `script` in it.
    fn hook(script: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hook");
        fs::write(&path, format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    fn start(path: &Path, journal: &Arc<Journal>, each: Duration) -> Hook {
        let end = Arc::default();
        let runner = Runner {
            // A file that was written a moment ago may be held open by a program that another test runs, and
            // is not run itself then.
            command: Box::new(|program| {
                let mut command = Command::new("sh");
                command.arg(program);
                command
            }),
            program: path.to_owned(),
            device: None,
            each,
            end: Arc::clone(&end),
        };
        Hook::run(runner, journal.reader(Some(0)).unwrap(), end).unwrap()
    }

    #[test]
    fn programs_are_checked() {
        let (dir, good) = hook("");
        check_hook(&good).unwrap();
        let said = |path: &Path| crate::failure::describe(&check_hook(path).unwrap_err());
        assert!(said(Path::new("hook")).contains("whole path"));
        assert!(said(dir.path()).contains("no file"));
        assert!(said(&dir.path().join("nix")).contains("No such file"));
        fs::set_permissions(&good, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(said(&good).contains("Permission denied"));
    }

    #[test]
    fn events_come_one_after_the_other() {
        let script =
            "echo \"$1 $2 $MIRRORD_EVENT $MIRRORD_STALE_REGIONS\" >> said; cat >> said; echo no one reads";
        let (dir, path) = hook(script);
        let journal = Journal::new("v", Uuid::nil());
        journal.add(What::ResyncStarted { stale_regions: 1 });
        let hook = start(&path, &journal, EACH);
        journal.add(What::ResyncStarted { stale_regions: 2 });
        journal.add(What::LogFailed);
        journal.close();
        hook.finish(EACH);
        let said = fs::read_to_string(dir.path().join("said")).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 6, "{said}");
        assert_eq!(lines[0], "resync_started v resync_started 1");
        assert_eq!(lines[2], "resync_started v resync_started 2");
        assert_eq!(lines[4], "log_failed v log_failed ");
        let event: Event = serde_json::from_str(lines[3]).unwrap();
        assert_eq!(event.what, What::ResyncStarted { stale_regions: 2 });
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_what_it_started() {
        let (dir, path) = hook("sleep 1000 & echo $! >> pids; wait");
        let journal = Journal::new("v", Uuid::nil());
        let hook = start(&path, &journal, Duration::from_secs(2));
        journal.add(What::LogFailed);
        journal.add(What::LogFailed);
        journal.close();
        hook.finish(EACH);
        let pids = fs::read_to_string(dir.path().join("pids")).unwrap();
        assert_eq!(pids.lines().count(), 2, "the second event had its turn");
        let is_dead = |pid: &str| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
        };
        let begun = Instant::now();
        while !pids.lines().all(is_dead) {
            assert!(begun.elapsed() < EACH, "alive: {pids}");
            thread::sleep(LOOK);
        }
    }

    #[test]
    fn the_end_does_not_wait_for_a_hook_that_hangs() {
        let (_dir, path) = hook("sleep 1000");
        let journal = Journal::new("v", Uuid::nil());
        let hook = start(&path, &journal, Duration::from_secs(1000));
        (0..3).for_each(|_| journal.add(What::LogFailed));
        journal.close();
        let begun = Instant::now();
        hook.finish(Duration::from_millis(100));
        assert!(begun.elapsed() < Duration::from_secs(1000));
    }
}
