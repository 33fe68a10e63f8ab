//! fio: runs a workload on files and reads what it found.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::program;
use crate::stats::Sample;
use crate::workload::Workload;

/// How fio does its IO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IoEngine {
    /// `ioengine=io_uring`.
    IoUring,
    /// `ioengine=libaio`.
    Libaio,
}

impl IoEngine {
    /// All of them.
    pub(crate) const ALL: [IoEngine; 2] = [IoEngine::IoUring, IoEngine::Libaio];

    /// As fio calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            IoEngine::IoUring => "io_uring",
            IoEngine::Libaio => "libaio",
        }
    }
}

/// A run of fio on some files: one job for each, at the same time.
#[derive(Clone, Debug)]
pub(crate) struct Fio {
    /// The files; they exist.
    pub(crate) files: Vec<PathBuf>,
    /// How much of each, in bytes.
    pub(crate) size: u64,
    /// How.
    pub(crate) engine: IoEngine,
    /// At most so many requests per second and file.
    pub(crate) rate: Option<u32>,
}

#[derive(Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i32,
    /// Milliseconds.
    job_runtime: f64,
    /// Per cent of the run time.
    usr_cpu: f64,
    /// Per cent of the run time.
    sys_cpu: f64,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    iops: f64,
    total_ios: u64,
    clat_ns: Latency,
}

#[derive(Deserialize)]
struct Latency {
    mean: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, u64>,
}

impl Fio {
    /// Runs `workload` for so many seconds. The rate is the mean of the jobs: with one job for each copy,
    /// that of whole mirrored requests. Processor time is fio's own.
    ///
    /// # Errors
    /// When fio fails or one of its requests did.
    pub(crate) fn run(&self, workload: &Workload, seconds: u32) -> Result<Sample> {
        let mut command = Command::new("fio");
        command.args(["--output-format=json", "--direct=1", "--time_based", "--randrepeat=0"]);
        command.args(["--norandommap", "--allow_file_create=0", "--fallocate=none"]);
        command.arg(format!("--ioengine={}", self.engine.name()));
        command.arg(format!("--rw={}", workload.fio_rw()));
        command.arg(format!("--bs={}", workload.block));
        command.arg(format!("--iodepth={}", workload.depth));
        command.arg(format!("--runtime={seconds}"));
        command.arg(format!("--size={}", self.size));
        if let Some(rate) = self.rate {
            command.arg(format!("--rate_iops={rate}"));
        }
        for (number, file) in self.files.iter().enumerate() {
            command.arg(format!("--name=job{number}")).arg(format!("--filename={}", file.display()));
        }
        let output = program::run(&mut command)?;
        let text = String::from_utf8_lossy(&output.stdout);
        // fio puts warnings before the report.
        let start = text.find('{').context("fio wrote no report")?;
        sample(&text[start..], workload)
    }
}

/// What fio's report of `workload` says.
///
/// # Errors
/// When it is no report, or one of a request that failed.
pub(crate) fn sample(text: &str, workload: &Workload) -> Result<Sample> {
    let report: Report = serde_json::from_str(text).context("cannot read fio's report")?;
    ensure!(!report.jobs.is_empty(), "fio ran no job");
    let count = report.jobs.len() as f64;
    let mut sample = Sample::default();
    let mut requests = 0.0;
    let mut cpu_us = 0.0;
    for job in &report.jobs {
        ensure!(job.error == 0, "fio met error {}", job.error);
        let way = if workload.writes() { &job.write } else { &job.read };
        sample.per_second += way.iops / count;
        sample.mean_us += way.clat_ns.mean / 1000.0 / count;
        let p99 = way.clat_ns.percentile.get("99.000000").copied().unwrap_or(0);
        sample.p99_us = sample.p99_us.max(p99 as f64 / 1000.0);
        requests += way.total_ios as f64 / count;
        cpu_us += (job.usr_cpu + job.sys_cpu) / 100.0 * job.job_runtime * 1000.0;
    }
    ensure!(requests > 0.0, "fio did nothing");
    sample.cpu_us = cpu_us / requests;
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_jobs_are_one_mirror() {
        let job = |iops: f64, p99: u64| {
            format!(
                r#"{{"error":0,"job_runtime":1000,"usr_cpu":5.0,"sys_cpu":15.0,
                "read":{{"iops":0.0,"total_ios":0,"clat_ns":{{"mean":0.0}}}},
                "write":{{"iops":{iops},"total_ios":1000,"clat_ns":{{"mean":10000.0,
                "percentile":{{"99.000000":{p99}}}}}}}}}"#
            )
        };
        let text = format!(r#"{{"jobs":[{},{}]}}"#, job(900.0, 20_000), job(1100.0, 30_000));
        let found = sample(&text, &Workload::RANDOM_WRITE).unwrap();
        assert_eq!((found.per_second, found.mean_us, found.p99_us), (1000.0, 10.0, 30.0));
        assert_eq!(found.cpu_us, 400.0, "both copies are one request");
        assert!(sample(&text, &Workload::RANDOM_READ).is_err());
    }
}
