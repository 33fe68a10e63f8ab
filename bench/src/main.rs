//! `mirrord-bench`: measures mirrord beside its peers, all in one run, and says which targets are met.
//!
//! Figures of different runs or machines do not compare; the ratios within one run do. Every contender is
//! measured in every round, rounds are interleaved, medians are reported with their spread. Whatever the
//! bench makes (files, mounts, daemons) it takes away again, also when it fails or is interrupted.

#![forbid(unsafe_code)]

mod compare;
mod daemon;
mod document;
mod fio;
mod host;
mod legs;
mod load;
mod peer;
mod plot;
mod process;
mod program;
mod random;
mod remains;
mod report;
mod rows;
mod stats;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use compare::Plan;
use document::Document;
use remains::{Guard, Remains};
use report::Section;
use rows::{Setting, VmSetting};

/// Measures mirrord beside fio, qemu-storage-daemon, plain copies and the kernel's mirrors.
#[derive(Parser, Debug)]
#[command(name = "mirrord-bench", version)]
struct Options {
    /// Where files go; made if it is not there. Default: a new directory beside this program.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds per cell, contender and round.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Size of the volumes in MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(64..))]
    size_mib: u64,
    /// Measure this group only; may be given several times.
    #[arg(long, value_name = "NAME")]
    only: Vec<Group>,
    /// One short round on small volumes: shows that everything works, not how fast.
    #[arg(long)]
    quick: bool,
    /// The program to measure, linked statically for the group vm. Default: the one beside this program.
    #[arg(long, value_name = "PATH")]
    mirrord: Option<PathBuf>,
    /// The kernel for the group vm, as tests/vm/run takes it.
    #[arg(long, value_name = "X.Y", default_value = "7.2")]
    vm_kernel: String,
    /// Write the tables to this file as Markdown. With --only, what other groups have there stays.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// A group of rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Group {
    /// The engine beside fio.
    Engine,
    /// The FUSE front end beside fio and qemu-storage-daemon.
    Fuse,
    /// Log on against log off.
    Log,
    /// Reads from two devices.
    Devices,
    /// Resync beside a copy, and what it costs others.
    Resync,
    /// Idle volumes.
    Idle,
    /// The engine's parts, without IO.
    Micro,
    /// ublk beside the kernel's mirrors, in a virtual machine.
    Vm,
    /// Requests to the log server over its sockets.
    LogRequests,
    /// Logs served to the kernel's dm-mirror beside its own, in a virtual machine.
    LogServer,
}

impl Group {
    fn run(self, setting: &Setting) -> Result<Section> {
        match self {
            Group::Engine => rows::engine::run(setting),
            Group::Fuse => rows::fuse::run(setting),
            Group::Log => rows::log::run(setting),
            Group::Devices => rows::devices::run(setting),
            Group::Resync => rows::resync::run(setting),
            Group::Idle => rows::idle::run(setting),
            Group::Micro => rows::micro::run(setting),
            Group::Vm => rows::vm::run(setting),
            Group::LogRequests => rows::log_requests::run(setting),
            Group::LogServer => rows::log_server::run(setting),
        }
    }
}

/// Load average of the last minute above which figures are rough: half a processor is somebody else's.
const BUSY: f64 = 0.5;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            while remains::interrupted() {
                // The signal's thread cleans up and ends the process.
                std::thread::park();
            }
            eprintln!("mirrord-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    remains::watch()?;
    let beside = std::env::current_exe().context("cannot find this program")?;
    let beside = beside.parent().context("this program is nowhere")?.to_owned();
    let parent = options.dir.clone().unwrap_or_else(|| beside.clone());
    std::fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let directory = tempfile::Builder::new().prefix("mirrord-bench-").tempdir_in(&parent)?.keep();
    let _guard = Guard::new(Remains::Directory(directory.clone()))?;
    let quick = options.quick;
    let setting = Setting {
        directory: directory.canonicalize()?,
        mirrord: options.mirrord.clone().unwrap_or_else(|| beside.join("mirrord")),
        plan: Plan {
            rounds: if quick { 1 } else { options.rounds },
            seconds: if quick { 1 } else { options.seconds },
            warm_up: u32::from(!quick),
        },
        size: if quick { 128 << 20 } else { options.size_mib << 20 },
        idle_seconds: if quick { 3 } else { 20 },
        vm: VmSetting { kernel: options.vm_kernel.clone(), mirrord: options.mirrord.clone(), quick },
    };
    let facts = host::facts(&setting.directory);
    let every = || Group::value_variants().to_vec();
    let groups = if options.only.is_empty() { every() } else { options.only.clone() };
    // Other work does not change what is counted in the virtual machine.
    let busy =
        host::load() > BUSY && groups.iter().any(|group| !matches!(group, Group::Vm | Group::LogServer));
    if busy {
        eprintln!("mirrord-bench: the machine is busy with other work: the figures will be rough");
    }
    let mut sections = Vec::new();
    let mut failed = 0;
    for group in groups {
        let name = group.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned());
        // What the other groups found is not to be lost.
        let section = group.run(&setting).unwrap_or_else(|error| {
            failed += 1;
            let notes = vec![format!("Not measured: {error:#}")];
            Section { title: name.clone(), notes, ..Section::default() }
        });
        ensure!(!remains::interrupted(), "interrupted");
        print!("{}", section.text());
        sections.push((name, section));
    }
    let missed = sections.iter().flat_map(|(_, section)| &section.rows);
    let judged: Vec<&str> = missed.filter_map(report::Row::verdict).collect();
    let met = judged.iter().filter(|verdict| **verdict == "met").count();
    println!("\n{met} of {} targets met", judged.len());
    if let Some(path) = &options.write {
        ensure!(!quick, "--quick measures nothing worth writing down: leave out --quick or --write");
        let Setting { directory, plan, .. } = &setting;
        let document = Document { directory, plan: *plan, facts: &facts, busy, sections: &sections };
        document.write(path, !options.only.is_empty())?;
    }
    ensure!(failed == 0, "{failed} groups could not be measured");
    Ok(())
}
