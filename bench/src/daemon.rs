//! mirrord through its command line: volumes served by its daemon, in directories of this run, so that no
//! other volume of the user is touched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mirrord::status::VolumeStatus;

use crate::program;
use crate::remains::{Guard, Remains};

/// How long the legs of a volume that was just stopped may stay locked.
const LOCKS: Duration = Duration::from_secs(5);

/// The program, with directories of its own.
#[derive(Debug)]
pub(crate) struct Mirrord {
    program: PathBuf,
    /// In the directory for temporary files: the path of a socket must be short.
    runtime: PathBuf,
    _guard: Guard,
}

impl Mirrord {
    /// Uses the program at `path`.
    ///
    /// # Errors
    /// When it is not there or cannot be run.
    pub(crate) fn new(path: &Path) -> Result<Mirrord> {
        ensure!(
            path.exists(),
            "{} is not there: build it (cargo build --release) or name it with --mirrord",
            path.display()
        );
        let runtime = tempfile::Builder::new().prefix("mirrord-bench-").tempdir()?.keep();
        let guard = Guard::new(Remains::Directory(runtime.clone()))?;
        let mirrord = Mirrord { program: path.to_owned(), runtime, _guard: guard };
        program::run(mirrord.command().arg("--version"))?;
        Ok(mirrord)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("MIRRORD_RUNTIME_DIR", self.runtime.join("run"));
        command.env("MIRRORD_STATE_DIR", self.runtime.join("state"));
        command
    }

    /// Creates and serves a volume of `size` bytes on `legs` as the file `mount`.
    ///
    /// # Errors
    /// When mirrord refuses.
    pub(crate) fn create(
        &self,
        name: &str,
        legs: &[PathBuf],
        size: u64,
        mount: &Path,
        more: &[&str],
    ) -> Result<Served<'_>> {
        let mounted = Guard::new(Remains::Mount(mount.to_owned()))?;
        let stop = || {
            let mut stop = self.command();
            stop.args(["stop", name, "--force"]);
            stop
        };
        let maybe_running = Guard::new(Remains::Daemon { stop: stop(), id: None })?;
        let mut command = self.command();
        command.arg("create").args(["--name", name, "--front", "fuse", "--json"]);
        command.arg("--size").arg(size.to_string()).arg("--mount").arg(mount);
        command.args(more).arg("--legs").args(legs);
        // Whoever had the legs a moment ago may still be letting go of them.
        let deadline = Instant::now() + LOCKS;
        while let Err(error) = program::run(&mut command) {
            if !error.to_string().contains("in use") || Instant::now() > deadline {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let id = self.status(name)?.pid;
        let running = Guard::new(Remains::Daemon { stop: stop(), id: Some(id) })?;
        maybe_running.gone();
        Ok(Served { mirrord: self, name: name.to_owned(), id, running, mounted })
    }

    fn status(&self, name: &str) -> Result<VolumeStatus> {
        let output = program::run(self.command().args(["status", name, "--json"]))?;
        serde_json::from_slice(&output.stdout).context("cannot read what mirrord status prints")
    }
}

/// A volume that a daemon serves. Dropped, it is stopped.
#[derive(Debug)]
pub(crate) struct Served<'a> {
    mirrord: &'a Mirrord,
    name: String,
    id: u32,
    running: Guard,
    mounted: Guard,
}

impl Served<'_> {
    /// The daemon's process id.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// What the daemon says of the volume.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) fn status(&self) -> Result<VolumeStatus> {
        self.mirrord.status(&self.name)
    }

    /// Waits until `reached`, at most so long.
    ///
    /// # Errors
    /// When it takes longer.
    pub(crate) fn wait_until(
        &self,
        what: &str,
        patience: Duration,
        reached: impl Fn(&VolumeStatus) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !reached(&self.status()?) {
            ensure!(Instant::now() < deadline, "volume {} is not {what} after {patience:?}", self.name);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Stops it.
    ///
    /// # Errors
    /// When it does not stop.
    pub(crate) fn stop(self) -> Result<()> {
        program::run(self.mirrord.command().args(["stop", &self.name]))?;
        self.running.gone();
        self.mounted.gone();
        Ok(())
    }
}
