//! Resync beside a plain copy of the same bytes, and what a user of the volume notices of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mirrord::status::VolumeState;

use super::{EngineContender, Setting};
use crate::compare::Contender;
use crate::daemon::{Mirrord, Served};
use crate::fio::{Fio, IoEngine};
use crate::legs::{VolumeSpec, Way, are_equal, copy, fill};
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
/// And at least this large, in bytes.
const LEAST: u64 = 2 << 30;
/// No resync here takes as long.
const PATIENCE: Duration = Duration::from_secs(600);

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let size = (LARGER * setting.size).max(LEAST);
    let (directory, _guard) = setting.directory("resync", 2 * size + setting.size)?;
    let legs = ["a", "b"].map(|leg| directory.join(format!("{leg}.img")));
    legs.iter().try_for_each(|leg| fill(leg, size, 1))?;
    let (row, notes) = manners(setting, &directory, &legs, size)?;
    let mut rows = speed(setting, &legs, size)?;
    rows.push(row);
    let how = vec![
        format!(
            "Speed: a volume of {} MiB of which every region is dirty, from opening it until it is in sync, flushed and \
             stopped. Beside it copies from one of its files to the other, O_DIRECT and synced: {}, {}, and `dd`; the \
             fastest counts. The files were allocated and written before, with different contents, and \
             were equal after the resync.",
            size >> 20,
            Way::LARGE,
            Way::SMALL
        ),
        format!(
            "Foreground: 4 KiB random writes with fio through FUSE, {USER_RATE} a second, at most {USER_DEPTH} in \
             flight, while the same volume is resynced under the default throttle, and when it is in sync."
        ),
    ];
    Ok(Section { title: "Resync".to_owned(), how, rows, notes, ..Section::default() })
}

/// Resync against copies.
fn speed(setting: &Setting, legs: &[PathBuf; 2], size: u64) -> Result<Vec<Row>> {
    let [from, to] = legs;
    // Not alike, so that it shows whether a resync really copied.
    fill(from, size, 2)?;
    fill(to, size, 3)?;
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", from.display())).arg(format!("of={}", to.display()));
    dd.args(["bs=1M", "iflag=direct", "oflag=direct", "conv=notrunc,fdatasync", "status=none"]);
    dd.arg(format!("count={}", size >> 20));
    let spec = VolumeSpec { dirty: true, ..VolumeSpec::new(legs, size) };
    let mut engine = EngineContender::new("resync", spec);
    let names = ["resync", "copy, large pieces", "copy, small pieces", "dd"];
    let mut found = names.map(|_| Vec::new());
    for round in 0..setting.plan.rounds as usize {
        for turn in 0..names.len() {
            let which = (round + turn) % names.len();
            engine.spec.format()?;
            let speed = per_second(size, || match which {
                0 => resync(&mut engine),
                1 => copy(from, to, size, Way::LARGE),
                2 => copy(from, to, size, Way::SMALL),
                _ => program::run(&mut dd).map(drop),
            })?;
            if found[0].is_empty() && which == 0 {
                ensure!(are_equal(from, to, size)?, "the legs differ after a resync");
            }
            eprintln!("round {}: {}: {speed:.0} MiB/s", round + 1, names[which]);
            found[which].push(speed);
        }
    }
    let [resyncs, copies @ ..] = &found;
    let median = |values: &[f64]| Spread::of(values).median;
    let copies = || names[1..].iter().zip(copies);
    let best = copies().max_by(|one, other| median(one.1).total_cmp(&median(other.1)));
    let (name, best) = best.expect("there are three");
    Ok(vec![Row {
        what: format!("resync of {} MiB", size >> 20),
        ours: format!("{} MiB/s", grouped(median(resyncs))),
        theirs: format!("{name}: {} MiB/s", grouped(median(best))),
        judged: Some(Spread::of_ratios(resyncs, best)),
        target: Target::AtLeast(0.9),
    }])
}

/// MiB per second at which `work` moves `size` bytes.
fn per_second(size: u64, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok((size >> 20) as f64 / started.elapsed().as_secs_f64())
}

/// Serves the volume until it is in sync.
fn resync(engine: &mut EngineContender) -> Result<()> {
    engine.open_as_it_is()?;
    let deadline = Instant::now() + PATIENCE;
    while engine.volume().status().state != VolumeState::InSync {
        ensure!(Instant::now() < deadline, "the resync does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
    engine.close()
}

/// What a user notices.
fn manners(
    setting: &Setting,
    directory: &Path,
    legs: &[PathBuf; 2],
    size: u64,
) -> Result<(Row, Vec<String>)> {
    let mirrord = Mirrord::new(&setting.mirrord)?;
    let mount = directory.join("volume");
    let user = User {
        fio: Fio { files: vec![mount.clone()], size, engine: IoEngine::IoUring, rate: Some(USER_RATE) },
        workload: Workload { depth: USER_DEPTH, ..Workload::RANDOM_WRITE },
    };
    let source = legs[0].display().to_string();
    let (mut with, mut without, mut speeds) = (Vec::new(), Vec::new(), Vec::new());
    let mut seconds = setting.plan.seconds;
    let mut count = 0;
    while with.len() < setting.plan.rounds as usize {
        count += 1;
        let name = format!("resync{count}");
        let served = mirrord.create(&name, legs, size, &mount, &["--source", &source, "--force"])?;
        let Some((p99, speed)) = user.during_resync(&served, seconds)? else {
            ensure!(seconds > 1, "the resync is over too soon: use a larger --size-mib");
            seconds /= 2;
            served.stop()?;
            continue;
        };
        served.wait_until("in sync", PATIENCE, |status| status.state == VolumeState::InSync)?;
        let calm = user.undisturbed(seconds)?;
        eprintln!("p99 with resync {p99:.0} us, without {calm:.0} us; resync {speed:.0} MiB/s");
        with.push(p99);
        without.push(calm);
        speeds.push(speed);
        served.stop()?;
    }
    let workload = user.workload;
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

/// Somebody who uses the volume at a moderate rate.
struct User {
    fio: Fio,
    workload: Workload,
}

impl User {
    /// p99 in microseconds and the speed of the resync in MiB/s; `None` if the resync was over too soon.
    fn during_resync(&self, served: &Served<'_>, seconds: u32) -> Result<Option<(f64, f64)>> {
        let before = served.status()?;
        let started = Instant::now();
        let sample = self.fio.run(&self.workload, seconds)?;
        let after = served.status()?;
        if !(before.resync.active && after.resync.active) {
            return Ok(None);
        }
        let copied = after.resync.copied_regions - before.resync.copied_regions;
        let mib = (copied * after.region_size_bytes) as f64 / f64::from(1 << 20);
        Ok(Some((sample.p99_us, mib / started.elapsed().as_secs_f64())))
    }

    /// p99 in microseconds. During a resync every region is marked already: so they are to be here.
    fn undisturbed(&self, seconds: u32) -> Result<f64> {
        let fast = Fio { rate: None, ..self.fio.clone() };
        fast.run(&Workload::RANDOM_WRITE, 1)?;
        Ok(self.fio.run(&self.workload, seconds)?.p99_us)
    }
}
