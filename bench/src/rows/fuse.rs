//! mirrord's FUSE file, served by its daemon, beside fio writing both files and qemu-storage-daemon's FUSE
//! export of a quorum of two files.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Setting, pair, rate_row};
use crate::compare::{Contender, FioContender, Server, measure};
use crate::daemon::{Mirrord, Served};
use crate::peer::{AIO, Export};
use crate::report::{Section, Target};
use crate::workload::Workload;

/// Seconds given to each setting of qemu-storage-daemon when one is chosen.
const CHOOSING: u32 = 2;

/// mirrord serving two legs.
struct OurServer<'a> {
    mirrord: &'a Mirrord,
    legs: [PathBuf; 2],
    size: u64,
    mount: PathBuf,
    served: Option<Served<'a>>,
    /// Volumes made so far.
    count: u32,
}

impl Server for OurServer<'_> {
    fn open(&mut self) -> Result<u32> {
        self.count += 1;
        let name = format!("bench{}", self.count);
        let more = ["--assume-clean", "--force"];
        let served = self.mirrord.create(&name, &self.legs, self.size, &self.mount, &more)?;
        Ok(self.served.insert(served).id())
    }

    fn close(&mut self) -> Result<()> {
        self.served.take().map_or(Ok(()), Served::stop)
    }
}

/// qemu-storage-daemon serving two files.
struct QemuServer {
    legs: [PathBuf; 2],
    mount: PathBuf,
    aio: &'static str,
    export: Option<Export>,
}

impl Server for QemuServer {
    fn open(&mut self) -> Result<u32> {
        let export = Export::quorum(&self.legs, &self.mount, self.aio)?;
        Ok(self.export.insert(export).id())
    }

    fn close(&mut self) -> Result<()> {
        self.export = None;
        Ok(())
    }
}

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let size = setting.size;
    let (directory, _guard) = setting.directory("fuse", 3 * size)?;
    let mirrord = Mirrord::new(&setting.mirrord)?;
    let legs = pair(&directory, size)?;
    let mount = directory.join("volume");
    let server = OurServer {
        mirrord: &mirrord,
        legs: legs.clone(),
        size,
        mount: mount.clone(),
        served: None,
        count: 0,
    };
    let mut ours = FioContender::served("mirrord", &mount, size, Box::new(server));
    let mut fio = FioContender::plain("fio on the files", &legs, size);
    let (mut qemu, aio) = best_qemu(&legs, &directory.join("quorum"), size)?;

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
        let used = [&ours, &fio, &qemu].map(|contender| contender.engine().name());
        engines.push(format!("{workload}: {}", used.join(", ")));
    }
    let how = format!(
        "`mirrord create` with the internal log on two files of {} MiB, served through FUSE by its daemon; fio on \
         the mounted file, O_DIRECT. Beside it, in turn on the same two files: fio on the files themselves, one job \
         each, each with the whole queue depth (reads: one file); and fio on qemu-storage-daemon's FUSE export of a \
         quorum of them (`cache.direct=on`, `aio={aio}`, which was the faster of native and io_uring; reads go to the \
         first file). The files were allocated and written before. Processor time is fio's and the daemon's.",
        size >> 20
    );
    let notes = vec![format!(
        "fio's engine, the faster one for mirrord, the files and qemu-storage-daemon: {}.",
        engines.join("; ")
    )];
    Ok(Section { title: "FUSE".to_owned(), how: vec![how], rows, notes, ..Section::default() })
}

/// The peer with whichever of its settings is faster.
fn best_qemu(legs: &[PathBuf; 2], mount: &Path, size: u64) -> Result<(FioContender<'static>, &'static str)> {
    let contender = |aio| {
        let server = QemuServer { legs: legs.clone(), mount: mount.to_owned(), aio, export: None };
        FioContender::served("qemu-storage-daemon", mount, size, Box::new(server))
    };
    let mut best = (0.0, AIO[0]);
    for aio in AIO {
        let mut contender = contender(aio);
        contender.open()?;
        let rate = contender.run(&Workload::RANDOM_WRITE, CHOOSING)?.per_second;
        contender.close()?;
        eprintln!("qemu-storage-daemon with aio={aio}: {rate:.0}/s");
        if rate > best.0 {
            best = (rate, aio);
        }
    }
    Ok((contender(best.1), best.1))
}
