//! What the dirty-region log costs: on against off, and the first write to a clean region.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mirrord::engine::Volume;
use mirrord_log::LogPlace;

use super::{EngineContender, Setting, pair, rate_row};
use crate::compare::{Contender, measure};
use crate::legs::VolumeSpec;
use crate::load::{self, first_writes};
use crate::report::{Row, Section, Target, grouped, number};
use crate::stats::Spread;
use crate::workload::Workload;

/// Region size for first writes, in bytes: small, so that there are many of them.
const SMALL_REGION: u64 = 64 << 10;

/// Regions of the part of the volume that is kept warm.
const WARM_REGIONS: u64 = 512;

/// How long a volume may take to have all regions clean.
const CLEAN: Duration = Duration::from_secs(60);

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let (directory, _guard) = setting.directory("log", 3 * setting.size)?;
    let legs = pair(&directory, setting.size)?;
    let spec = VolumeSpec::new(&legs, setting.size);
    let mut rows = Vec::new();
    let mut internal = EngineContender::new("engine, log internal", spec.clone());
    let core = VolumeSpec { log: LogPlace::Core, ..spec.clone() };
    let mut core = EngineContender::new("engine, log core", core);
    for (workload, target) in
        [(Workload::RANDOM_WRITE, Target::AtLeast(0.95)), (Workload::SINGLE_WRITE, Target::None)]
    {
        let cell = measure(&mut [&mut internal, &mut core], &workload, &setting.plan)?;
        let what = format!("{workload}, warm regions: log internal");
        rows.push(rate_row(what, &cell, 0, 1, "log core", target));
    }
    let spec = VolumeSpec { region_size: Some(SMALL_REGION), ..spec };
    let mut engine = EngineContender::new("engine, small regions", spec);
    for workload in [Workload::RANDOM_WRITE, Workload::SINGLE_WRITE] {
        rows.push(cold(&mut engine, &workload, setting)?);
    }
    let how = vec![
        "The engine as above. Warm: every region was written to in the seconds before, so its mark is \
         durable already. `core` keeps the log in memory only."
            .to_owned(),
        format!(
            "Cold: regions of {} KiB, all clean; one 4 KiB write into each, so that every write needs a mark, which \
             is a synchronous write to both legs; marks wanted at the same time share one. Beside it writes to \
             {WARM_REGIONS} warm regions of the same volume.",
            SMALL_REGION >> 10
        ),
    ];
    Ok(Section { title: "The log".to_owned(), how, rows, ..Section::default() })
}

/// First writes to clean regions beside writes to warm ones.
fn cold(engine: &mut EngineContender, workload: &Workload, setting: &Setting) -> Result<Row> {
    let (mut first, mut warm, mut commits) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=setting.plan.rounds {
        engine.open()?;
        wait_until_clean(engine.volume())?;
        let before = engine.volume().status().log.commits;
        let cold_rate = first_writes(engine.volume(), workload)?.per_second;
        let status = engine.volume().status();
        commits.push((status.log.commits - before) as f64 / f64::from(status.regions));
        // So few regions that none of them is left alone long enough to be cleared.
        let area = WARM_REGIONS * SMALL_REGION;
        let time = Duration::from_secs(setting.plan.seconds.into());
        load::run(engine.volume(), area, &workload.warming(), Duration::from_secs(1))?;
        let warm_rate = load::run(engine.volume(), area, workload, time)?.per_second;
        eprintln!("{workload}, round {round}: cold {cold_rate:.0}/s, warm {warm_rate:.0}/s");
        first.push(cold_rate);
        warm.push(warm_rate);
        engine.close()?;
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
