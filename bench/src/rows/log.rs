//! What the dirty-region log costs: on against off, and the first write to a clean region.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mirrord::engine::Volume;
use mirrord_log::LogPlace;

use super::{EngineContender, Setting, pair, rate_row};
use crate::compare::measure;
use crate::legs::VolumeSpec;
use crate::load::first_writes;
use crate::report::{Row, Section, Target, grouped, number};
use crate::stats::{Sample, Spread};
use crate::workload::Workload;

/// Region size for first writes, in bytes: small, so that there are many of them.
const SMALL_REGION: u64 = 64 << 10;

/// How long a volume may take to have all regions clean.
const CLEAN: Duration = Duration::from_secs(60);

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let (directory, _guard) = setting.directory("log")?;
    let size = setting.size;
    let mut rows = Vec::new();
    {
        let contender = |name: &str, log: LogPlace| -> Result<EngineContender> {
            let legs = pair(&directory, name, size)?;
            let volume = VolumeSpec { log, ..VolumeSpec::new(&legs, size) }.serve()?;
            Ok(EngineContender { name: format!("engine, log {name}"), volume, size })
        };
        let mut internal = contender("internal", LogPlace::Internal)?;
        let mut core = contender("core", LogPlace::Core)?;
        for (workload, target) in
            [(Workload::RANDOM_WRITE, Target::AtLeast(0.95)), (Workload::SINGLE_WRITE, Target::None)]
        {
            let cell = measure(&mut [&mut internal, &mut core], &workload, &setting.plan)?;
            let what = format!("{workload}, warm regions: log internal");
            rows.push(rate_row(what, &cell, 0, 1, "log core", target));
        }
    }
    let legs = ["a", "b"].map(|leg| directory.join(format!("internal-{leg}.img")));
    let spec = VolumeSpec { region_size: Some(SMALL_REGION), ..VolumeSpec::new(&legs, size) };
    for workload in [Workload::RANDOM_WRITE, Workload::SINGLE_WRITE] {
        rows.push(cold(&spec, &workload, setting)?);
    }
    let how = vec![
        "The engine as above. Warm: every region was written to in the seconds before, so its mark is \
         durable already. `core` keeps the log in memory only."
            .to_owned(),
        format!(
            "Cold: regions of {} KiB, all clean; one 4 KiB write into each, so that every write needs a mark, which \
             is a synchronous write to both legs; those that come at the same time share one. Beside it writes \
             to warm regions of the same volume.",
            SMALL_REGION >> 10
        ),
    ];
    Ok(Section { title: "The log".to_owned(), how, rows, notes: vec![] })
}

/// First writes to clean regions beside writes to warm ones.
fn cold(spec: &VolumeSpec, workload: &Workload, setting: &Setting) -> Result<Row> {
    let (mut first, mut warm) = (Vec::new(), Vec::new());
    let mut commits = Vec::new();
    for round in 0..setting.plan.rounds {
        let volume = spec.serve()?;
        let mut engine = EngineContender { name: "engine, cold".to_owned(), volume, size: spec.size };
        wait_until_clean(&engine.volume)?;
        let before = engine.volume.status().log.commits;
        let sample: Sample = first_writes(&engine.volume, workload)?;
        let status = engine.volume.status();
        commits.push((status.log.commits - before) as f64 / f64::from(status.regions));
        first.push(sample.per_second);
        warm.push(crate::compare::Contender::run(&mut engine, workload, setting.plan.seconds)?.per_second);
        eprintln!(
            "{workload}, round {}: cold {:.0}/s, warm {:.0}/s",
            round + 1,
            first[round as usize],
            warm[round as usize]
        );
    }
    let rates = |values: &[f64]| grouped(Spread::of(values).median);
    Ok(Row {
        what: format!("{workload}, cold regions: first writes"),
        ours: format!("{}/s, {} commits each", rates(&first), number(Spread::of(&commits).median)),
        theirs: format!("warm: {}/s", rates(&warm)),
        judged: Some(Spread::of_ratios(&first, &warm)),
        target: Target::None,
    })
}

fn wait_until_clean(volume: &Volume) -> Result<()> {
    let deadline = Instant::now() + CLEAN;
    while volume.status().log.dirty_regions > 0 {
        ensure!(Instant::now() < deadline, "the volume does not become clean");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
