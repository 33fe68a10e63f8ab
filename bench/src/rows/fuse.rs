//! mirrord's FUSE file, served by its daemon, beside fio writing both files and qemu-storage-daemon's FUSE
//! export of a quorum of two files.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Setting, pair, rate_row};
use crate::compare::{Contender, FioContender, measure};
use crate::daemon::Mirrord;
use crate::host::need_space;
use crate::peer::{AIO, Export};
use crate::report::{Section, Target};
use crate::workload::Workload;

/// Seconds given to each setting of qemu-storage-daemon when one is chosen.
const CHOOSING: u32 = 2;

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let (directory, _guard) = setting.directory("fuse")?;
    let size = setting.size;
    need_space(&directory, 7 * size)?;
    let plain = pair(&directory, "plain", size)?;
    let mut fio = FioContender::plain(&plain, size);

    let mirrord = Mirrord::new(&setting.mirrord)?;
    let legs = pair(&directory, "leg", size)?;
    let mount = directory.join("volume");
    let served = mirrord.create("bench", &legs, size, &mount, &["--assume-clean"])?;
    let mut ours = FioContender::served("mirrord", &[mount], size, Some(served.id()));

    let children = pair(&directory, "quorum", size)?;
    let mount = directory.join("quorum");
    let (export, aio) = best_export(&children, &mount, size)?;
    let mut qemu = FioContender::served("qemu-storage-daemon", &[mount], size, Some(export.id()));

    let mut rows = Vec::new();
    let mut engines = Vec::new();
    for workload in Workload::ALL {
        let cell = measure(&mut [&mut ours, &mut fio, &mut qemu], &workload, &setting.plan)?;
        let (beside_fio, beside_qemu) = match workload {
            Workload::RANDOM_WRITE => (Target::AtLeast(0.8), Target::AtLeast(1.5)),
            Workload::SEQUENTIAL_WRITE => (Target::AtLeast(0.9), Target::None),
            _ => (Target::None, Target::None),
        };
        let plain = if workload.writes() { "fio, both files" } else { "fio, one file" };
        rows.push(rate_row(workload.to_string(), &cell, 0, 1, plain, beside_fio));
        rows.push(rate_row(workload.to_string(), &cell, 0, 2, "qemu-storage-daemon", beside_qemu));
        engines.push(format!(
            "{workload}: mirrord {}, files {}, qemu-storage-daemon {}",
            ours.engine().name(),
            fio.engine().name(),
            qemu.engine().name()
        ));
    }
    let status = served.status()?;
    let queues = status.queues;
    served.stop()?;
    let how = format!(
        "`mirrord create` with the internal log on two files of {} MiB, served through FUSE by its daemon with \
         {queues} queues ({}); fio on the mounted file, O_DIRECT. Beside it fio with one job on each of two plain \
         files, each job with the whole queue depth (reads: one file), and fio on qemu-storage-daemon's FUSE export \
         of a quorum of two files (`cache.direct=on`, `aio={aio}`, which was the faster of native and io_uring; \
         reads go to the first file). All files were allocated and written before. Processor time is fio's and \
         the daemon's.",
        size >> 20,
        status.engine
    );
    let notes = vec![format!("fio's engine, the faster one for each: {}.", engines.join("; "))];
    Ok(Section { title: "FUSE".to_owned(), how: vec![how], rows, notes })
}

/// The peer with whichever of its settings is faster.
fn best_export(legs: &[PathBuf], mount: &Path, size: u64) -> Result<(Export, &'static str)> {
    let mut best = (0.0, AIO[0]);
    for aio in AIO {
        let export = Export::quorum(legs, mount, aio)?;
        let mut contender = FioContender::served(aio, &[mount.to_owned()], size, Some(export.id()));
        let rate = contender.run(&Workload::RANDOM_WRITE, CHOOSING)?.per_second;
        eprintln!("qemu-storage-daemon with aio={aio}: {rate:.0}/s");
        if rate > best.0 {
            best = (rate, aio);
        }
    }
    Ok((Export::quorum(legs, mount, best.1)?, best.1))
}
