//! What is measured: one file per group of rows. Each makes its own files and takes them away.

pub(crate) mod devices;
pub(crate) mod engine;
pub(crate) mod fuse;
pub(crate) mod idle;
pub(crate) mod log;
pub(crate) mod log_requests;
pub(crate) mod log_server;
pub(crate) mod micro;
pub(crate) mod resync;
pub(crate) mod vm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use mirrord::engine::Volume;
use mirrord_ublk::Shutdown;

use crate::compare::{Cell, Contender, Plan};
use crate::host::need_space;
use crate::legs::{VolumeSpec, fill, serve};
use crate::load;
use crate::remains::{Guard, Remains};
use crate::report::{Row, Target, grouped, number};
use crate::stats::Sample;
use crate::workload::Workload;

/// What every group needs to know.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Where files go. Named on the command line or made for this run.
    pub(crate) directory: PathBuf,
    /// The program `mirrord`.
    pub(crate) mirrord: PathBuf,
    /// How often and how long.
    pub(crate) plan: Plan,
    /// Bytes of the volumes.
    pub(crate) size: u64,
    /// Seconds over which an idle volume is watched.
    pub(crate) idle_seconds: u32,
    /// Of the group that runs in a virtual machine.
    pub(crate) vm: VmSetting,
}

/// What the group that runs in a virtual machine is measured with.
#[derive(Debug)]
pub(crate) struct VmSetting {
    /// The kernel: `X.Y`.
    pub(crate) kernel: String,
    /// The program, linked statically; built if it is not named.
    pub(crate) mirrord: Option<PathBuf>,
    /// A glance only.
    pub(crate) quick: bool,
}

impl Setting {
    /// A directory of its own for a group, which needs room for so many bytes.
    pub(crate) fn directory(&self, group: &str, bytes: u64) -> Result<(PathBuf, Guard)> {
        need_space(&self.directory, bytes)?;
        let path = self.directory.join(group);
        std::fs::create_dir(&path)?;
        let guard = Guard::new(Remains::Directory(path.clone()))?;
        Ok((path, guard))
    }
}

/// Two filled files with the same contents.
fn pair(directory: &Path, size: u64) -> Result<[PathBuf; 2]> {
    let paths = ["a.img", "b.img"].map(|leg| directory.join(leg));
    for path in &paths {
        fill(path, size, 1)?;
    }
    Ok(paths)
}

/// A volume without a front end.
struct EngineContender {
    name: String,
    spec: VolumeSpec,
    volume: Option<Volume>,
}

impl EngineContender {
    fn new(name: &str, spec: VolumeSpec) -> EngineContender {
        EngineContender { name: name.to_owned(), spec, volume: None }
    }

    /// Serves what is on the legs already.
    fn open_as_it_is(&mut self) -> Result<()> {
        self.volume = Some(serve(&self.spec.legs)?);
        Ok(())
    }

    /// The volume, while it is open.
    fn volume(&self) -> &Volume {
        self.volume.as_ref().expect("a contender is run while it is open")
    }
}

impl Contender for EngineContender {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&mut self) -> Result<()> {
        self.spec.format()?;
        self.open_as_it_is()
    }

    fn close(&mut self) -> Result<()> {
        self.volume.take().map_or(Ok(()), |volume| Ok(volume.stop(Shutdown::Force)?))
    }

    fn run(&mut self, workload: &Workload, seconds: u32) -> Result<Sample> {
        load::run(self.volume(), self.spec.size, workload, Duration::from_secs(seconds.into()))
    }
}

impl Drop for EngineContender {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            eprintln!("{}: {error}", self.name);
        }
    }
}

fn rate(sample: &Sample) -> f64 {
    sample.per_second
}

/// A row that compares rates. `peer` names the other.
fn rate_row(what: String, cell: &Cell, ours: usize, theirs: usize, peer: &str, target: Target) -> Row {
    let figure = |contender| {
        let cpu = cell.spread(contender, |sample| sample.cpu_us).median;
        format!("{}/s, {} us CPU each", grouped(cell.spread(contender, rate).median), number(cpu))
    };
    Row {
        what,
        ours: figure(ours),
        theirs: format!("{}: {}", peer, figure(theirs)),
        judged: Some(cell.ratio(ours, theirs)),
        target,
    }
}
