//! The ublk front end beside the kernel's own mirrors, in a virtual machine whose time is the number of
//! instructions that its processors did: what else the host does changes nothing, and rounds agree.
//!
//! `tests/vm/run` boots the machine and `vm/guest.sh` measures in it, all contenders in one boot.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Setting, VmSetting, rate};
use crate::compare::Cell;
use crate::plot::Plot;
use crate::report::{Figures, Row, Section, Target, grouped};
use crate::stats::{Sample, Spread, median};
use crate::workload::Workload;
use crate::{fio, host, program};

const SCRIPT: &str = include_str!("../vm/guest.sh");

/// How often everything is measured: the second time shows that nothing but instructions counted.
const ROUNDS: u32 = 2;

/// MiB of the volumes: all contenders' legs are in the guest's memory.
const SIZE: u64 = 128;

/// Longest time without a cell done, on a busy host.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is measured, with so many requests in each cell.
static WORKLOADS: [(Workload, u32); 6] = [
    (Workload::RANDOM_WRITE, 16384),
    (Workload::SINGLE_WRITE, 4096),
    (Workload::RANDOM_READ, 16384),
    (Workload::SINGLE_READ, 8192),
    (Workload::SEQUENTIAL_WRITE, 2048),
    (Workload::SEQUENTIAL_READ, 2048),
];

/// Names in guest.sh and in the tables.
const CONTENDERS: [(&str, &str); 10] = [
    ("raw", "one leg, no mirror"),
    ("dm_core", "dm-mirror, core log"),
    ("dm_disk", "dm-mirror, disk log"),
    ("md", "md raid1, internal bitmap"),
    ("mirrord:internal:files", "mirrord, internal log, files"),
    ("mirrord:core:files", "mirrord, core log, files"),
    ("mirrord:disk:files", "mirrord, disk log, files"),
    ("mirrord:internal:devices", "mirrord, internal log, devices"),
    ("mirrord:core:devices", "mirrord, core log, devices"),
    ("mirrord:disk:devices", "mirrord, disk log, devices"),
];
const DM_CORE: usize = 1;
const DM_DISK: usize = 2;
const MD: usize = 3;
/// The first of mirrord's three in each of the two set-ups: the internal log's. The core log's comes next.
const FILES: usize = 4;
const DEVICES: usize = 7;

/// Measures the group. Where there can be no such machine the section says why.
///
/// # Errors
/// When anything fails in it.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).canonicalize()?;
    let title = "ublk beside the kernel's mirrors".to_owned();
    let found = match measure(&setting.vm, &root)? {
        Outcome::Measured(found) => found,
        Outcome::Skipped(why) => {
            return Ok(Section { title, notes: vec![why], dated: true, ..Section::default() });
        }
    };
    let rows = [("same files", FILES), ("same devices", DEVICES)].map(|(place, ours)| {
        let beside = |peer: usize| {
            let row = |(workload, cell)| judged(place, workload, cell, ours, peer);
            each(&found.cells).map(row).collect::<Vec<_>>()
        };
        [beside(DM_DISK), beside(MD), log_rows(place, &found.cells, ours)].concat()
    });
    let plot = Plot {
        file: "bench/vm.svg",
        title: format!("Requests per second against dm-mirror with a disk log (= 1), Linux {}", found.kernel),
        series: [DM_CORE, MD, FILES, DEVICES].map(|contender| CONTENDERS[contender].1.to_owned()).to_vec(),
        groups: each(&found.cells).map(|(workload, cell)| group(workload, cell)).collect(),
    };
    Ok(Section {
        title,
        how: how(setting, &found.kernel),
        rows: rows.concat(),
        plot: Some(plot),
        figures: Some(figures(&found.cells)),
        notes: vec![repeats(&found.cells)],
        dated: true,
    })
}

enum Outcome {
    Measured(Found),
    Skipped(String),
}

struct Found {
    /// Its full name.
    kernel: String,
    /// A cell for each workload, with samples of all contenders.
    cells: Vec<Cell>,
}

fn measure(setting: &VmSetting, root: &Path) -> Result<Outcome> {
    let mirrord = setting.mirrord.clone().map_or_else(|| build(root), Ok)?;
    let rounds = if setting.quick { 1 } else { ROUNDS };
    let workloads = WORKLOADS.map(|(workload, requests)| {
        format!("{}:{}", key(&workload), if setting.quick { requests / 16 } else { requests })
    });
    let script = format!(
        "contenders='{}' workloads='{}' rounds={rounds} size_mib={SIZE}\n{SCRIPT}",
        CONTENDERS.map(|(name, _)| name).join(" "),
        workloads.join(" ")
    );
    let mut command = Command::new(root.join("tests/vm/run"));
    command.args(["--icount", "--kernel", &setting.kernel, "--sh", &script, "--mirrord"]).arg(mirrord);
    let mut kernel = String::new();
    let mut samples = vec![vec![Vec::new(); CONTENDERS.len()]; WORKLOADS.len()];
    let (mut done, mut skipped, mut said) = (false, None, Vec::new());
    let status = program::lines(&mut command, PATIENCE, |line| {
        if let Some(text) = line.strip_prefix("CELL ") {
            match cell(text) {
                Ok((workload, contender, sample)) => samples[workload][contender].push(sample),
                Err(error) => said.push(format!("{error:#}: {line}")),
            }
        } else if let Some(name) = line.strip_prefix("KERNEL ") {
            kernel = name.to_owned();
        } else if line.starts_with("SKIP: ") {
            skipped = Some(line);
        } else if line == "DONE" {
            done = true;
        } else {
            eprintln!("{line}");
            said.push(line);
        }
    })?;
    if let Some(why) = skipped {
        return Ok(Outcome::Skipped(why));
    }
    ensure!(done && status.success(), "the guest failed: {}", said.join("\n"));
    let whole = |of: &Vec<Sample>| of.len() == rounds as usize;
    ensure!(samples.iter().flatten().all(whole), "the guest left cells out: {}", said.join("\n"));
    Ok(Outcome::Measured(Found { kernel, cells: samples.into_iter().map(Cell::new).collect() }))
}

/// The program as it is released, but linked statically: the guest has no libraries for it.
pub(super) fn build(root: &Path) -> Result<PathBuf> {
    build_static(root, "mirrord", "mirrord")
}

/// A program of a package of the workspace, linked statically.
pub(super) fn build_static(root: &Path, package: &str, name: &str) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = root.join("target/static");
    let mut command = Command::new(root.join("scripts/static"));
    command.current_dir(root).env("CARGO_TARGET_DIR", &folder);
    program::run(command.args(["build", "--quiet", "--release", "--package", package, "--bin", name]))?;
    Ok(folder.join(TARGET).join("release").join(name))
}

/// A workload as guest.sh calls it, without the number of requests.
fn key(workload: &Workload) -> String {
    format!("{}:{}k:{}", workload.fio_rw(), workload.block >> 10, workload.depth)
}

/// Which workload and contender a line of guest.sh is about, and what was found.
fn cell(text: &str) -> Result<(usize, usize, Sample)> {
    let mut words = text.splitn(4, ' ');
    let mut word = || words.next().context("a line too short");
    let (contender, round, workload, report) = (word()?, word()?, word()?, word()?);
    let number = WORKLOADS.iter().position(|(known, _)| workload.starts_with(&format!("{}:", key(known))));
    let number = number.context("an unknown workload")?;
    let known = CONTENDERS.iter().position(|(name, _)| *name == contender);
    let known = known.context("an unknown contender")?;
    let sample = fio::sample(report, &WORKLOADS[number].0)?;
    eprintln!("round {round}: {}, {}: {:.0}/s", CONTENDERS[known].1, WORKLOADS[number].0, sample.per_second);
    Ok((number, known, sample))
}

fn row(what: String, cell: &Cell, ours: usize, theirs: usize, target: Target) -> Row {
    let figure = |contender| format!("{}/s", grouped(cell.spread(contender, rate).median));
    let beside = format!("{}: {}", CONTENDERS[theirs].1, figure(theirs));
    Row { what, ours: figure(ours), theirs: beside, judged: Some(cell.ratio(ours, theirs)), target }
}

/// mirrord with the internal log beside a mirror of the kernel's.
fn judged(place: &str, workload: &Workload, cell: &Cell, ours: usize, peer: usize) -> Row {
    let target = match (*workload, ours, peer) {
        (Workload::RANDOM_WRITE, FILES, _) => Target::AtLeast(1.25),
        (Workload::RANDOM_WRITE, DEVICES, DM_DISK) => Target::AtLeast(0.9),
        (Workload::SINGLE_WRITE, FILES, DM_DISK) => Target::AtLeast(1.5),
        (Workload::RANDOM_READ, FILES, MD) => Target::AtLeast(0.9),
        _ => Target::None,
    };
    row(format!("{place}: {workload}"), cell, ours, peer, target)
}

/// The internal log against none but that in memory.
fn log_rows(place: &str, cells: &[Cell], ours: usize) -> Vec<Row> {
    let writes = each(cells).filter(|(workload, _)| workload.writes());
    let row = |(workload, cell): (&Workload, &Cell)| {
        let what = format!("{place}: {workload}: log on against off");
        row(what, cell, ours, ours + 1, Target::AtLeast(0.95))
    };
    writes.map(row).collect()
}

/// Rates through those of dm-mirror with a disk log.
fn group(workload: &Workload, cell: &Cell) -> ([String; 2], Vec<f64>) {
    let name = workload.to_string();
    let (what, depth) = name.split_once(", ").unwrap_or((&name, ""));
    let ratios = [DM_CORE, MD, FILES, DEVICES].map(|contender| cell.ratio(contender, DM_DISK).median);
    ([what.to_owned(), depth.to_owned()], ratios.to_vec())
}

/// Workloads and what was found for them.
fn each(cells: &[Cell]) -> impl Iterator<Item = (&'static Workload, &Cell)> {
    WORKLOADS.iter().map(|(workload, _)| workload).zip(cells)
}

fn figures(cells: &[Cell]) -> Figures {
    let names = WORKLOADS.map(|(workload, _)| workload.to_string());
    let head = std::iter::once("requests per second".to_owned()).chain(names).collect();
    let row = |(contender, (_, name)): (usize, &(&str, &str))| {
        let rates = cells.iter().map(|cell| grouped(cell.spread(contender, rate).median));
        std::iter::once((*name).to_owned()).chain(rates).collect()
    };
    Figures { head, rows: CONTENDERS.iter().enumerate().map(row).collect() }
}

/// How far the rounds were apart.
fn repeats(cells: &[Cell]) -> String {
    let mut apart = Vec::new();
    for (workload, cell) in each(cells) {
        for (contender, (_, name)) in CONTENDERS.iter().enumerate() {
            let Spread { least, most, .. } = cell.spread(contender, rate);
            apart.push(((most / least - 1.0) * 100.0, format!("{name}, {workload}")));
        }
    }
    apart.sort_by(|one, other| other.0.total_cmp(&one.0));
    let middle = median(&apart.iter().map(|(percent, _)| *percent).collect::<Vec<_>>());
    let within = apart.iter().filter(|(percent, _)| *percent <= 1.0).count();
    let worst: Vec<String> =
        apart.iter().take(3).map(|(percent, what)| format!("{percent:.1} % ({what})")).collect();
    format!(
        "How far the rounds were apart: {middle:.2} % in the middle, at most 1 % in {within} of {} cells, most in \
         these: {}.",
        apart.len(),
        worst.join("; ")
    )
}

fn how(setting: &Setting, kernel: &str) -> Vec<String> {
    let facts = host::facts(&setting.directory);
    let fact = |wanted: &str| {
        facts.iter().find(|(name, _)| *name == wanted).map_or("unknown", |(_, value)| value).to_owned()
    };
    let qemu = host::version("qemu-system-x86_64", "--version");
    let counts = WORKLOADS.map(|(workload, requests)| format!("{requests} x {workload}")).join("; ");
    vec![
        format!(
            "`make bench ARGS=\"--only vm --write BENCHMARKS.md\"`: an emulated machine with two processors \
             (`tests/vm/run --icount`) in which every instruction takes 2 ns and processors take turns. Rates tell \
             what a request costs in instructions, of fio, the kernel and mirrord together, on whatever host and \
             beside whatever other work; they do not show what two processors gain by working at the same time."
        ),
        format!(
            "- date: {}\n- kernel: Linux {kernel}\n- emulated by: {qemu}, on {}",
            fact("date"),
            fact("processor")
        ),
        format!(
            "Two legs of {SIZE} MiB, files on a tmpfs, allocated; each contender's volume was written once before, so \
             its regions are warm. The kernel's mirrors have them through loop devices with direct IO: dm-mirror \
             with regions of 512 KiB, md with its defaults. mirrord has them directly (`same files`) or through the \
             same loop devices (`same devices`), with the internal log where nothing else is said. fio with libaio \
             and O_DIRECT does a fixed number of requests, the same ones for all: {counts}. {ROUNDS} rounds."
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(per_second: f64) -> Sample {
        Sample { per_second, ..Sample::default() }
    }

    #[test]
    fn lines_of_the_guest_are_read() {
        let report = r#"{"jobs":[{"error":0,"job_runtime":1000,"usr_cpu":5.0,"sys_cpu":15.0,
            "read":{"iops":0.0,"total_ios":0,"clat_ns":{"mean":0.0}},
            "write":{"iops":900.0,"total_ios":900,"clat_ns":{"mean":1.0}}}]}"#;
        let (workload, contender, sample) =
            cell(&format!("mirrord:core:files 1 randwrite:4k:1:4096 {report}")).unwrap();
        assert_eq!((workload, contender, sample.per_second), (1, 5, 900.0));
        assert!(cell(&format!("none 1 randwrite:4k:1:4096 {report}")).is_err());
        assert!(cell("md 1 randwrite:4k:1:4096").is_err());
    }

    #[test]
    fn targets_are_where_the_design_has_them() {
        let samples = (0..CONTENDERS.len()).map(|number| vec![sample(1000.0 + number as f64)]).collect();
        let cell = Cell::new(samples);
        let target = |workload, ours, peer| judged("", &workload, &cell, ours, peer).target;
        assert_eq!(target(Workload::RANDOM_WRITE, FILES, MD), Target::AtLeast(1.25));
        assert_eq!(target(Workload::RANDOM_WRITE, DEVICES, DM_DISK), Target::AtLeast(0.9));
        assert_eq!(target(Workload::RANDOM_WRITE, DEVICES, MD), Target::None);
        assert_eq!(target(Workload::SEQUENTIAL_READ, FILES, MD), Target::None);
        for (first, kind) in [(FILES, "files"), (DEVICES, "devices")] {
            assert_eq!(CONTENDERS[first].0, format!("mirrord:internal:{kind}"));
            assert_eq!(CONTENDERS[first + 1].0, format!("mirrord:core:{kind}"));
        }
    }
}
