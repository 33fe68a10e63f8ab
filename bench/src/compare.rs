//! Measuring side by side: every contender in every round, the first of one round last in the next, so
//! that whatever drifts (the disk, the neighbours, the temperature) hits all alike.

use anyhow::{Context, Result};

use crate::fio::{Fio, IoEngine};
use crate::process::cpu_time;
use crate::stats::{Sample, Spread};
use crate::workload::Workload;

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Rounds.
    pub(crate) rounds: u32,
    /// Seconds measured per cell, contender and round.
    pub(crate) seconds: u32,
    /// Seconds before that which do not count.
    pub(crate) warm_up: u32,
}

/// Something that a workload can be run on.
pub(crate) trait Contender {
    /// What it is called in the tables.
    fn name(&self) -> String;

    /// Runs a workload for so many seconds.
    ///
    /// # Errors
    /// When a request fails.
    fn run(&mut self, workload: &Workload, seconds: u32) -> Result<Sample>;

    /// Makes it ready for a workload, if there is anything to choose.
    ///
    /// # Errors
    /// When a request fails.
    fn prepare(&mut self, _: &Workload) -> Result<()> {
        Ok(())
    }
}

/// What was found in one cell: for each contender one sample per round.
pub(crate) struct Cell {
    samples: Vec<Vec<Sample>>,
}

impl Cell {
    /// Values of a contender, round by round.
    pub(crate) fn values(&self, contender: usize, value: impl Fn(&Sample) -> f64) -> Vec<f64> {
        self.samples[contender].iter().map(value).collect()
    }

    /// A value of a contender over the rounds.
    pub(crate) fn spread(&self, contender: usize, value: impl Fn(&Sample) -> f64) -> Spread {
        Spread::of(&self.values(contender, value))
    }

    /// Rates of one contender through those of another, each in the same round.
    pub(crate) fn ratio(&self, ours: usize, theirs: usize) -> Spread {
        let rate = |sample: &Sample| sample.per_second;
        Spread::of_ratios(&self.values(ours, rate), &self.values(theirs, rate))
    }
}

/// Runs `workload` on all contenders in turn.
///
/// # Errors
/// Of the first that fails.
pub(crate) fn measure(
    contenders: &mut [&mut dyn Contender],
    workload: &Workload,
    plan: &Plan,
) -> Result<Cell> {
    let failed = |name: &str| format!("{name}, {workload}");
    for contender in contenders.iter_mut() {
        let name = contender.name();
        contender.prepare(workload).with_context(|| failed(&name))?;
    }
    let count = contenders.len();
    let mut samples = vec![Vec::new(); count];
    for round in 0..plan.rounds {
        for turn in 0..count {
            let number = (turn + round as usize) % count;
            let contender = &mut contenders[number];
            let name = contender.name();
            if plan.warm_up > 0 {
                contender.run(workload, plan.warm_up).with_context(|| failed(&name))?;
            }
            let sample = contender.run(workload, plan.seconds).with_context(|| failed(&name))?;
            eprintln!(
                "{workload}, round {} of {}: {name}: {:.0}/s, mean {:.0} us, p99 {:.0} us, cpu {:.1} us",
                round + 1,
                plan.rounds,
                sample.per_second,
                sample.mean_us,
                sample.p99_us,
                sample.cpu_us
            );
            samples[number].push(sample);
        }
    }
    Ok(Cell { samples })
}

/// fio on files, some served by another process. It uses whichever of fio's engines is faster there,
/// found anew for each workload.
pub(crate) struct FioContender {
    name: String,
    fio: Fio,
    /// Workloads that only read use the first file alone.
    reads_one: bool,
    all: Vec<std::path::PathBuf>,
    /// Serves the files, if they are served.
    server: Option<u32>,
}

impl FioContender {
    /// On plain files, `size` bytes of each. Reads go to the first alone: a mirror reads one copy.
    pub(crate) fn plain(files: &[std::path::PathBuf], size: u64) -> FioContender {
        FioContender { reads_one: true, ..FioContender::served("fio on both files", files, size, None) }
    }

    /// On files that process `server` serves.
    pub(crate) fn served(
        name: &str,
        files: &[std::path::PathBuf],
        size: u64,
        server: Option<u32>,
    ) -> FioContender {
        let fio = Fio { files: files.to_vec(), size, engine: IoEngine::IoUring, rate: None };
        FioContender { name: name.to_owned(), fio, reads_one: false, all: files.to_vec(), server }
    }

    /// The engine in use.
    pub(crate) fn engine(&self) -> IoEngine {
        self.fio.engine
    }
}

/// Seconds given to each engine when one is chosen.
const CHOOSING: u32 = 2;

impl Contender for FioContender {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn run(&mut self, workload: &Workload, seconds: u32) -> Result<Sample> {
        let used = |server: Option<u32>| server.map_or(std::time::Duration::ZERO, cpu_time);
        let before = used(self.server);
        let mut sample = self.fio.run(workload, seconds)?;
        let served = used(self.server).saturating_sub(before);
        let requests = sample.per_second * f64::from(seconds);
        sample.cpu_us += served.as_secs_f64() * 1e6 / requests;
        Ok(sample)
    }

    fn prepare(&mut self, workload: &Workload) -> Result<()> {
        let one = self.reads_one && !workload.writes();
        self.fio.files = if one { self.all[..1].to_vec() } else { self.all.clone() };
        let mut best = (0.0, self.fio.engine);
        for engine in IoEngine::ALL {
            self.fio.engine = engine;
            let rate = self.run(workload, CHOOSING)?.per_second;
            eprintln!("{workload}: {} with {}: {rate:.0}/s", self.name, engine.name());
            if rate > best.0 {
                best = (rate, engine);
            }
        }
        self.fio.engine = best.1;
        Ok(())
    }
}
