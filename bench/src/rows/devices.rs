//! Random reads from two legs on two devices against one device.
//!
//! A machine with one disk has no two devices, and devices in memory are as fast as the processors, which
//! they share. So the devices are made slow: each leg is a file on a FUSE file system of its own that
//! answers a fixed number of requests per second. What shows is whether reads keep both legs busy.

use anyhow::Result;

use super::{EngineContender, Setting, pair, rate};
use crate::compare::{Cell, Contender, FioContender, measure};
use crate::legs::VolumeSpec;
use crate::peer::Export;
use crate::report::{Row, Section, Target, grouped};
use crate::stats::Sample;
use crate::workload::Workload;

/// Requests per second of each device: low enough that two of them leave the processors mostly idle.
const LIMIT: u32 = 3000;

/// The engine on legs that cannot be formatted through their devices.
struct Formatted(EngineContender);

impl Contender for Formatted {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn open(&mut self) -> Result<()> {
        self.0.open_as_it_is()
    }

    fn close(&mut self) -> Result<()> {
        self.0.close()
    }

    fn run(&mut self, workload: &Workload, seconds: u32) -> Result<Sample> {
        self.0.run(workload, seconds)
    }
}

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let (directory, _guard) = setting.directory("devices", 3 * setting.size)?;
    let size = setting.size;
    let files = pair(&directory, size)?;
    VolumeSpec::new(&files, size).format()?;
    let mounts = ["a", "b"].map(|device| directory.join(format!("device-{device}")));
    let exports = files.iter().zip(&mounts).map(|(file, mount)| Export::limited(file, mount, LIMIT));
    let _exports: Vec<Export> = exports.collect::<Result<_>>()?;
    let mut engine = Formatted(EngineContender::new("engine, two legs", VolumeSpec::new(&mounts, size)));
    let mut fio = FioContender::plain("fio, one device", &mounts[..1], size);
    let workload = Workload::RANDOM_READ;
    let cell: Cell = measure(&mut [&mut engine, &mut fio], &workload, &setting.plan)?;
    let row = Row {
        what: format!("{workload}, two legs on two devices"),
        ours: format!("{}/s", grouped(cell.spread(0, rate).median)),
        theirs: format!("fio, one device: {}/s", grouped(cell.spread(1, rate).median)),
        judged: Some(cell.ratio(0, 1)),
        target: Target::AtLeast(1.8),
    };
    let how = format!(
        "The engine on two legs, each on a device of its own that answers {LIMIT} requests a second: \
         qemu-storage-daemon's FUSE export of a file behind its throttle. This shows how reads are shared out \
         between legs, not how fast two real disks are: there is one disk here, and devices in memory would share \
         the processors."
    );
    Ok(Section { title: "Two devices".to_owned(), how: vec![how], rows: vec![row], ..Section::default() })
}
