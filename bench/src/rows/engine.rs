//! The engine without a front end on two files, beside fio writing both files.

use anyhow::Result;

use super::{EngineContender, Setting, pair, rate_row};
use crate::compare::{FioContender, measure};
use crate::legs::VolumeSpec;
use crate::report::{Section, Target};
use crate::workload::Workload;

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let (directory, _guard) = setting.directory("engine")?;
    let size = setting.size;
    let legs = pair(&directory, "leg", size)?;
    let files = pair(&directory, "plain", size)?;
    let volume = VolumeSpec::new(&legs, size).serve()?;
    let queues = volume.status().queues;
    let mut engine = EngineContender { name: "engine".to_owned(), volume, size };
    let mut fio = FioContender::plain(&files, size);
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
        "A volume of {} MiB with the internal log on two files, {queues} queues, requests submitted through the \
         library by a load generator that runs on the queue threads; beside it fio, one job per file, each with \
         the whole queue depth, O_DIRECT, with whichever of io_uring and libaio is faster there. The rate of fio \
         is the mean of its jobs. All files were allocated and written before. Processor time of the engine \
         includes the load generator's, that of fio includes fio.",
        size >> 20
    );
    Ok(Section { title: "Engine on two files, no front end".to_owned(), how: vec![how], rows, notes: vec![] })
}
