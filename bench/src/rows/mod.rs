//! What is measured: one file per group of rows. Each makes its own files and takes them away.

pub(crate) mod devices;
pub(crate) mod engine;
pub(crate) mod fuse;
pub(crate) mod idle;
pub(crate) mod log;
pub(crate) mod micro;
pub(crate) mod resync;

use std::path::{Path, PathBuf};

use anyhow::Result;
use mirrord::engine::Volume;

use crate::compare::{Cell, Contender, Plan};
use crate::legs::fill;
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
}

impl Setting {
    /// A directory of its own for a group.
    pub(crate) fn directory(&self, group: &str) -> Result<(PathBuf, Guard)> {
        let path = self.directory.join(group);
        std::fs::create_dir(&path)?;
        let guard = Guard::new(Remains::Directory(path.clone()))?;
        Ok((path, guard))
    }
}

/// Two filled files with the same contents.
fn pair(directory: &Path, name: &str, size: u64) -> Result<[PathBuf; 2]> {
    let paths = ["a", "b"].map(|leg| directory.join(format!("{name}-{leg}.img")));
    for path in &paths {
        fill(path, size, 1)?;
    }
    Ok(paths)
}

/// A volume without a front end.
struct EngineContender {
    name: String,
    volume: Volume,
    size: u64,
}

impl Contender for EngineContender {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn run(&mut self, workload: &Workload, seconds: u32) -> Result<Sample> {
        load::run(&self.volume, self.size, workload, std::time::Duration::from_secs(seconds.into()))
    }
}

impl Drop for EngineContender {
    fn drop(&mut self) {
        if let Err(error) = self.volume.stop(true) {
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
