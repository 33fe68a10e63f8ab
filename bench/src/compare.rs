//! Measuring side by side, on the same files: files of one size and making may differ twofold in speed by
//! where the disk has them, so contenders take turns on one set. Every contender has its turn in every
//! round, the first of one round last in the next, so that whatever drifts hits all alike.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::fio::{Fio, IoEngine};
use crate::process::Counts;
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
    fn name(&self) -> &str;

    /// Takes the files.
    ///
    /// # Errors
    /// When it cannot serve them.
    fn open(&mut self) -> Result<()> {
        Ok(())
    }

    /// Lets go of the files.
    ///
    /// # Errors
    /// When it does not stop.
    fn close(&mut self) -> Result<()> {
        Ok(())
    }

    /// Chooses what is best for a workload, if there is anything to choose. Between open and close.
    ///
    /// # Errors
    /// When a request fails.
    fn prepare(&mut self, _: &Workload) -> Result<()> {
        Ok(())
    }

    /// Runs a workload for so many seconds. Between open and close.
    ///
    /// # Errors
    /// When a request fails.
    fn run(&mut self, workload: &Workload, seconds: u32) -> Result<Sample>;
}

/// What was found in one cell: for each contender one sample per round.
pub(crate) struct Cell {
    samples: Vec<Vec<Sample>>,
}

impl Cell {
    /// Of the samples of each contender, round by round.
    pub(crate) fn new(samples: Vec<Vec<Sample>>) -> Cell {
        Cell { samples }
    }

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
    for contender in contenders.iter_mut() {
        turn(*contender, workload, |contender| contender.prepare(workload))?;
    }
    let count = contenders.len();
    let mut samples = vec![Vec::new(); count];
    for round in 0..plan.rounds {
        for step in 0..count {
            let number = (step + round as usize) % count;
            let sample = turn(&mut *contenders[number], workload, |contender| {
                if plan.warm_up > 0 {
                    contender.run(&workload.warming(), plan.warm_up)?;
                }
                contender.run(workload, plan.seconds)
            })?;
            eprintln!(
                "{workload}, round {} of {}: {}: {:.0}/s, mean {:.0} us, p99 {:.0} us, cpu {:.1} us",
                round + 1,
                plan.rounds,
                contenders[number].name(),
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

fn turn<T>(
    contender: &mut dyn Contender,
    workload: &Workload,
    work: impl FnOnce(&mut dyn Contender) -> Result<T>,
) -> Result<T> {
    let result = contender.open().and_then(|()| {
        let result = work(contender);
        contender.close()?;
        result
    });
    result.with_context(|| format!("{}, {workload}", contender.name()))
}

/// A process that serves files for fio to use.
pub(crate) trait Server {
    /// Takes the files; gives the process' id.
    ///
    /// # Errors
    /// When it cannot serve them.
    fn open(&mut self) -> Result<u32>;

    /// Lets go of the files.
    ///
    /// # Errors
    /// When it does not stop.
    fn close(&mut self) -> Result<()>;
}

/// fio on files, some served by another process. It uses whichever of fio's engines is faster there,
/// found anew for each workload.
pub(crate) struct FioContender<'a> {
    name: String,
    fio: Fio,
    /// All files; a workload that only reads may use the first alone.
    files: Vec<PathBuf>,
    server: Option<Box<dyn Server + 'a>>,
    /// The server's process, while it serves.
    id: Option<u32>,
}

/// Seconds given to each engine when one is chosen.
const CHOOSING: u32 = 2;

impl<'a> FioContender<'a> {
    /// On plain files, `size` bytes of each. Reads go to the first alone: a mirror reads one copy.
    pub(crate) fn plain(name: &str, files: &[PathBuf], size: u64) -> FioContender<'a> {
        let fio = Fio { files: files.to_vec(), size, engine: IoEngine::IoUring, rate: None };
        FioContender { name: name.to_owned(), fio, files: files.to_vec(), server: None, id: None }
    }

    /// On the file `mount` of `size` bytes that `server` serves while it is open.
    pub(crate) fn served(name: &str, mount: &Path, size: u64, server: Box<dyn Server + 'a>) -> Self {
        FioContender { server: Some(server), ..FioContender::plain(name, &[mount.to_owned()], size) }
    }

    /// The engine in use.
    pub(crate) fn engine(&self) -> IoEngine {
        self.fio.engine
    }
}

impl Contender for FioContender<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&mut self) -> Result<()> {
        self.id = self.server.as_mut().map(|server| server.open()).transpose()?;
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.id = None;
        self.server.as_mut().map_or(Ok(()), |server| server.close())
    }

    fn prepare(&mut self, workload: &Workload) -> Result<()> {
        let count = if workload.writes() { self.files.len() } else { 1 };
        self.fio.files = self.files[..count].to_vec();
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

    fn run(&mut self, workload: &Workload, seconds: u32) -> Result<Sample> {
        let before = self.id.map(Counts::cpu_time);
        let mut sample = self.fio.run(workload, seconds)?;
        if let (Some(id), Some(before)) = (self.id, before) {
            let used = Counts::cpu_time(id).time_since(&before);
            sample.cpu_us += used.as_secs_f64() * 1e6 / (sample.per_second * f64::from(seconds));
        }
        Ok(sample)
    }
}
