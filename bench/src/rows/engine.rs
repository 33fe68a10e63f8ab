//! The engine without a front end on two files, beside fio writing both files.

use anyhow::Result;

use super::{EngineContender, Setting, pair, rate_row};
use crate::compare::{Contender, FioContender, measure};
use crate::legs::VolumeSpec;
use crate::report::{Section, Target};
use crate::workload::Workload;

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let (directory, _guard) = setting.directory("engine", 3 * setting.size)?;
    let size = setting.size;
    let legs = pair(&directory, size)?;
    let mut engine = EngineContender::new("engine", VolumeSpec::new(&legs, size));
    let mut fio = FioContender::plain("fio on the files", &legs, size);
    engine.open()?;
    let queues = engine.volume().status().queues;
    engine.close()?;
    let mut rows = Vec::new();
    for workload in Workload::ALL {
        let cell = measure(&mut [&mut engine, &mut fio], &workload, &setting.plan)?;
        let peer = if workload.writes() { "fio, both files" } else { "fio, one file" };
        let target = match workload {
            Workload::RANDOM_WRITE | Workload::SEQUENTIAL_WRITE => Target::AtLeast(0.9),
            _ => Target::None,
        };
        let peer = format!("{peer} ({})", fio.engine().name());
        rows.push(rate_row(workload.to_string(), &cell, 0, 1, &peer, target));
    }
    let how = format!(
        "A volume of {} MiB with the internal log on two files, queues by default (here {queues}), requests submitted \
         through the library by a load generator that runs on the queue threads. Beside it fio on the same files \
         while the volume is stopped: one job per file, each with the whole queue depth, O_DIRECT, with whichever \
         of io_uring and libaio is faster; its rate is the mean of the jobs. The files were allocated and written \
         before. Processor time of the engine includes the load generator's.",
        size >> 20
    );
    Ok(Section {
        title: "Engine on two files, no front end".to_owned(),
        how: vec![how],
        rows,
        ..Section::default()
    })
}
