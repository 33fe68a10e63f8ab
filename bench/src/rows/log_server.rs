//! Logs that `mirrord log serve` keeps for the kernel's dm-mirror, beside the kernel's own and beside the least that can
//! answer it (`bin/bare-log.rs`), in a virtual machine whose time is the number of instructions.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::vm::{build, build_static};
use super::{Setting, VmSetting, rate};
use crate::compare::Cell;
use crate::report::{Figures, Row, Section, Target, grouped};
use crate::stats::Sample;
use crate::workload::Workload;
use crate::{fio, host, program};

const SCRIPT: &str = include_str!("../vm/log_server.sh");

const ROUNDS: u32 = 2;

/// Longest time without a cell done, on a busy host.
const PATIENCE: Duration = Duration::from_secs(600);

/// What is measured, with so many requests.
const WORKLOADS: [(Workload, u32); 2] = [(Workload::SINGLE_WRITE, 3000), (Workload::RANDOM_WRITE, 12000)];

/// Names in log_server.sh and in the tables.
const CONTENDERS: [(&str, &str); 8] = [
    ("kernel:core", "the kernel's core log"),
    ("kernel:disk", "the kernel's disk log"),
    ("bare:core", "bare responder, core"),
    ("bare:disk", "bare responder, disk"),
    ("bare:flush", "bare responder, disk, integrated flush"),
    ("mirrord:core", "mirrord, core"),
    ("mirrord:disk", "mirrord, disk"),
    ("mirrord:flush", "mirrord, disk, integrated flush"),
];

/// Ours, and whom it is beside with which target: at least 0.85 of what any daemon could reach.
const PAIRS: [(usize, usize, Target); 6] = [
    (5, 2, Target::AtLeast(0.85)),
    (6, 3, Target::AtLeast(0.85)),
    (7, 4, Target::AtLeast(0.85)),
    (5, 0, Target::None),
    (6, 1, Target::None),
    (7, 1, Target::None),
];

/// Measures the group. Where there can be no such machine the section says why.
///
/// # Errors
/// When anything fails in it.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).canonicalize()?;
    let title = "Logs served to dm-mirror".to_owned();
    let (kernel, cells) = match measure(&setting.vm, &root)? {
        Ok(found) => found,
        Err(why) => return Ok(Section { title, notes: vec![why], dated: true, ..Section::default() }),
    };
    let rows = cells.iter().enumerate().flat_map(|(what, cell)| {
        PAIRS.map(|(ours, theirs, target)| row(&names()[what], cell, ours, theirs, target))
    });
    let figures = Figures {
        head: std::iter::once("writes per second; regions".to_owned()).chain(names()).collect(),
        rows: CONTENDERS
            .iter()
            .enumerate()
            .map(|(contender, (_, name))| {
                let figures = cells.iter().map(|cell| figure(cell, contender));
                std::iter::once((*name).to_owned()).chain(figures).collect()
            })
            .collect(),
    };
    let rows = rows.collect();
    Ok(Section {
        title,
        how: how(setting, &kernel),
        rows,
        figures: Some(figures),
        dated: true,
        ..Section::default()
    })
}

/// Requests a second, and of those that were timed one by one, how long the slowest hundredth took.
fn figure(cell: &Cell, contender: usize) -> String {
    let per_second = grouped(cell.spread(contender, rate).median);
    let p99 = cell.spread(contender, |sample| sample.p99_us).median;
    if p99 > 0.0 { format!("{per_second}, p99 {} us", grouped(p99)) } else { per_second }
}

/// What the cells are called: the workloads, then the resync.
fn names() -> [String; 3] {
    let [single, random] = WORKLOADS.map(|(workload, _)| workload.to_string());
    [single, random, "regions resynced in 10 s, of 1,048,576".to_owned()]
}

type Found = (String, Vec<Cell>);

fn measure(setting: &VmSetting, root: &Path) -> Result<std::result::Result<Found, String>> {
    let mirrord = setting.mirrord.clone().map_or_else(|| build(root), Ok)?;
    let bare = build_static(root, "mirrord-bench", "bare-log")?;
    let rounds = if setting.quick { 1 } else { ROUNDS };
    let workloads = WORKLOADS.map(|(workload, requests)| {
        format!("{}:{}", workload.depth, if setting.quick { requests / 16 } else { requests })
    });
    let script = format!(
        "contenders='{}' workloads='{}' rounds={rounds}\n{SCRIPT}",
        CONTENDERS.map(|(name, _)| name).join(" "),
        workloads.join(" ")
    );
    let mut command = Command::new(root.join("tests/vm/run"));
    command.args(["--icount", "--mem", "3G", "--kernel", &setting.kernel, "--sh", &script]);
    command.arg("--mirrord").arg(mirrord).arg("--add").arg(bare);
    let mut kernel = String::new();
    let mut samples = vec![vec![Vec::new(); CONTENDERS.len()]; WORKLOADS.len() + 1];
    let (mut done, mut skipped, mut said) = (false, None, Vec::new());
    let status = program::lines(&mut command, PATIENCE, |line| {
        if line.starts_with("CELL ") || line.starts_with("RESYNC ") {
            match cell(&line) {
                Ok((what, contender, sample)) => samples[what][contender].push(sample),
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
        return Ok(Err(why));
    }
    ensure!(done && status.success(), "the guest failed: {}", said.join("\n"));
    let whole = |of: &Vec<Sample>| of.len() == rounds as usize;
    ensure!(samples.iter().flatten().all(whole), "the guest left cells out: {}", said.join("\n"));
    Ok(Ok((kernel, samples.into_iter().map(Cell::new).collect())))
}

/// What a line of log_server.sh is about: cell, contender, and what was found.
fn cell(line: &str) -> Result<(usize, usize, Sample)> {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().context("a line too short");
    let (kind, contender) = (word()?, word()?);
    let known = CONTENDERS.iter().position(|(name, _)| *name == contender).context("an unknown contender")?;
    let (what, sample) = if kind == "RESYNC" {
        (WORKLOADS.len(), Sample { per_second: word()?.parse()?, ..Sample::default() })
    } else {
        let depth: u32 = word()?.parse()?;
        let what = WORKLOADS.iter().position(|(workload, _)| workload.depth == depth);
        let what = what.context("an unknown workload")?;
        (what, fio::sample(word()?, &WORKLOADS[what].0)?)
    };
    eprintln!("{}: {}: {:.0}", CONTENDERS[known].1, names()[what], sample.per_second);
    Ok((what, known, sample))
}

fn row(what: &str, cell: &Cell, ours: usize, theirs: usize, target: Target) -> Row {
    let figure = |contender| grouped(cell.spread(contender, rate).median);
    Row {
        what: format!("{what}: {}", CONTENDERS[ours].1),
        ours: figure(ours),
        theirs: format!("{}: {}", CONTENDERS[theirs].1, figure(theirs)),
        judged: Some(cell.ratio(ours, theirs)),
        target,
    }
}

fn how(setting: &Setting, kernel: &str) -> Vec<String> {
    let facts = host::facts(&setting.directory);
    let fact = |wanted: &str| {
        facts.iter().find(|(name, _)| *name == wanted).map_or("unknown", |(_, value)| value).to_owned()
    };
    vec![
        "`make bench ARGS=\"--only log-server --write BENCHMARKS.md\"`: an emulated machine (`tests/vm/run --icount`) in \
         which every instruction takes 2 ns and processors take turns."
            .to_owned(),
        format!(
            "- date: {}\n- kernel: Linux {kernel}\n- emulated by: {}, on {}",
            fact("date"),
            host::version("qemu-system-x86_64", "--version"),
            fact("processor")
        ),
        format!(
            "dm-mirror over two loop devices of 128 MiB with direct IO, files on a tmpfs, with regions of 512 KiB; the \
             log device is one, too. The bare responder checks and keeps nothing: it receives, writes its device with \
             O_DIRECT and O_DSYNC on a FLUSH, and answers, in one thread. Nearly every write is the first to its region for a \
             while: it waits for a mark and a flush. Resync: legs of 1 GiB in regions of 1 KiB, the \
             log forced out of sync, for 10 s. {ROUNDS} rounds."
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest_are_read() {
        let (what, contender, sample) = cell("RESYNC mirrord:disk 1234").unwrap();
        assert_eq!((what, contender, sample.per_second), (2, 6, 1234.0));
        assert!(cell("RESYNC none 1").is_err() && cell("CELL mirrord:disk 7 {}").is_err());
        for (ours, theirs, _) in PAIRS {
            assert!(
                CONTENDERS[ours].0.starts_with("mirrord:") && !CONTENDERS[theirs].0.starts_with("mirrord:")
            );
        }
    }
}
