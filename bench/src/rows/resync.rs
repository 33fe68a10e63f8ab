//! Resync beside a plain copy of the same bytes, and what a user of the volume notices of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use mirrord::status::VolumeState;

use super::{EngineContender, Setting};
use crate::daemon::Mirrord;
use crate::fio::{Fio, IoEngine};
use crate::host::need_space;
use crate::legs::{VolumeSpec, are_equal, copy, fill};
use crate::program;
use crate::report::{Row, Section, Target, grouped};
use crate::stats::Spread;
use crate::workload::Workload;

/// Requests per second of the user while a resync runs: any volume bears this many.
const USER_RATE: u32 = 1000;
/// How many of them may be in flight.
const USER_DEPTH: u32 = 4;
/// The volume under use is larger by this than the others: its resync must outlast the measurement.
const LARGER: u64 = 4;
/// No resync here takes as long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let (directory, _guard) = setting.directory("resync")?;
    let size = LARGER * setting.size;
    need_space(&directory, 2 * size + setting.size)?;
    let legs = ["a", "b"].map(|leg| directory.join(format!("{leg}.img")));
    for (seed, leg) in legs.iter().enumerate() {
        // Not alike, so that it shows whether a resync really copied.
        fill(leg, size, seed as u64 + 1)?;
    }
    let mut rows = speed(setting, &legs)?;
    let (row, notes) = manners(setting, &directory, &legs, size)?;
    rows.push(row);
    let how = vec![
        format!(
            "Speed: a volume of {} MiB of which every region is dirty, from the start of its daemon's engine until it is \
             in sync (and its legs flushed); beside it a copy from file to file, O_DIRECT, 1 MiB at a time by four threads, \
             synced, and `dd`. All onto files that were allocated and written before; contents compared afterwards.",
            setting.size >> 20
        ),
        format!(
            "Foreground: 4 KiB random writes with fio through FUSE, {USER_RATE} a second, at most {USER_DEPTH} in \
             flight, while a volume of {} MiB is resynced under the default throttle, and on the same volume in sync.",
            size >> 20
        ),
    ];
    Ok(Section { title: "Resync".to_owned(), how, rows, notes })
}

/// Resync against copies.
fn speed(setting: &Setting, legs: &[PathBuf; 2]) -> Result<Vec<Row>> {
    let size = setting.size;
    let [from, to] = legs;
    // A throw-away copy target, so that the peers write to a file of the same making.
    let target = from.with_extension("copy");
    fill(&target, size, 9)?;
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", from.display())).arg(format!("of={}", target.display()));
    dd.args(["bs=1M", "iflag=direct", "oflag=direct", "conv=notrunc,fdatasync", "status=none"]);
    dd.arg(format!("count={}", size >> 20));
    let spec = VolumeSpec { dirty: true, ..VolumeSpec::new(legs, size) };
    let (mut resyncs, mut copies, mut dds) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..setting.plan.rounds {
        spec.format()?;
        resyncs.push(per_second(size, || resync(legs, size))?);
        if round == 0 {
            ensure!(are_equal(from, to, size)?, "the legs differ after a resync");
        }
        copies.push(per_second(size, || copy(from, &target, size))?);
        dds.push(per_second(size, || program::run(&mut dd).map(drop))?);
        let last = round as usize;
        eprintln!(
            "resync, round {}: {:.0} MiB/s, copy {:.0} MiB/s, dd {:.0} MiB/s",
            round + 1,
            resyncs[last],
            copies[last],
            dds[last]
        );
    }
    std::fs::remove_file(&target)?;
    let row = |peer: &str, theirs: &[f64], target| Row {
        what: format!("resync of {} MiB", size >> 20),
        ours: format!("{} MiB/s", grouped(Spread::of(&resyncs).median)),
        theirs: format!("{peer}: {} MiB/s", grouped(Spread::of(theirs).median)),
        judged: Some(Spread::of_ratios(&resyncs, theirs)),
        target,
    };
    Ok(vec![row("copy", &copies, Target::AtLeast(0.9)), row("dd", &dds, Target::None)])
}

/// MiB per second at which `work` moves `size` bytes.
fn per_second(size: u64, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok((size >> 20) as f64 / started.elapsed().as_secs_f64())
}

/// Serves the volume on `legs` until it is in sync.
fn resync(legs: &[PathBuf; 2], size: u64) -> Result<()> {
    let volume = crate::legs::serve(legs, false)?;
    let engine = EngineContender { name: "resync".to_owned(), volume, size };
    let deadline = Instant::now() + PATIENCE;
    while engine.volume.status().state != VolumeState::InSync {
        ensure!(Instant::now() < deadline, "the resync does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// What a user notices.
fn manners(
    setting: &Setting,
    directory: &Path,
    legs: &[PathBuf; 2],
    size: u64,
) -> Result<(Row, Vec<String>)> {
    let mirrord = Mirrord::new(&setting.mirrord)?;
    let workload = Workload { depth: USER_DEPTH, ..Workload::RANDOM_WRITE };
    let (mut with, mut without, mut speeds) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..setting.plan.rounds {
        let mount = directory.join("volume");
        let source = legs[0].display().to_string();
        let more = ["--source", &source, "--force"];
        let fio = Fio { files: vec![mount.clone()], size, engine: IoEngine::IoUring, rate: Some(USER_RATE) };
        let served = mirrord.create(&format!("resync{round}"), legs, size, &mount, &more)?;
        let before = served.status()?;
        let started = Instant::now();
        let sample = fio.run(&workload, setting.plan.seconds)?;
        let after = served.status()?;
        if !(before.resync.active && after.resync.active) {
            bail!("the resync was over before the measurement: use a larger --size-mib or fewer --seconds");
        }
        let copied = after.resync.copied_regions - before.resync.copied_regions;
        let mib = (copied * after.region_size_bytes) as f64 / f64::from(1 << 20);
        speeds.push(mib / started.elapsed().as_secs_f64());
        with.push(sample.p99_us);
        served.wait_until("in sync", PATIENCE, |status| status.state == VolumeState::InSync)?;
        let sample = fio.run(&workload, setting.plan.seconds)?;
        without.push(sample.p99_us);
        let last = round as usize;
        eprintln!("p99 with resync {:.0} us, without {:.0} us", with[last], without[last]);
        served.stop()?;
    }
    let row = Row {
        what: format!("p99 of {workload}, {USER_RATE}/s through FUSE, with resync"),
        ours: format!("{} us", grouped(Spread::of(&with).median)),
        theirs: format!("without resync: {} us", grouped(Spread::of(&without).median)),
        judged: Some(Spread::of_ratios(&with, &without)),
        target: Target::AtMost(3.0),
    };
    let note = format!("Meanwhile resync copied {} MiB/s.", grouped(Spread::of(&speeds).median));
    Ok((row, vec![note]))
}
