//! What a volume costs that nobody uses: wake-ups and memory.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use mirrord::status::VolumeState;

use super::Setting;
use crate::daemon::Mirrord;
use crate::process::{Counts, memory};
use crate::report::{Row, Section, Target, number};
use crate::stats::Spread;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// How long a volume may take to come to rest.
const REST: Duration = Duration::from_secs(60);
/// What is taken for buffers in the memory target: the pool's small buffers, in bytes.
const BUFFERS: u64 = 8 << 20;
/// Memory beside them that a volume of 1 TiB may have, in bytes.
const MOST: u64 = 64 << 20;

/// Measures the group.
///
/// # Errors
/// When anything fails.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let (directory, _guard) = setting.directory("idle", 0)?;
    let mut rows = Vec::new();
    let mut notes = Vec::new();
    for (name, size) in [("1 GiB", GIB), ("1 TiB", TIB), ("16 TiB", 16 * TIB)] {
        match volume(setting, &directory, name, size) {
            Ok(found) => rows.extend(found),
            Err(error) => {
                // ext4 has no files of 16 TiB; a file system in memory has, and the legs stay empty.
                let (memory, _guard) = in_memory()?;
                let cause = error.root_cause().to_string();
                let cause = cause.rsplit(": ").next().unwrap_or(&cause);
                notes.push(format!(
                    "{name}: legs on a file system in memory, the one of the other legs does not take them ({cause})."
                ));
                rows.extend(volume(setting, &memory, name, size)?);
            }
        }
    }
    let how = format!(
        "A new volume on two sparse files, served through FUSE, nobody using it. Wake-ups are voluntary context \
         switches of all threads of the daemon over {} s once it is clean and at rest; memory is what is resident \
         (`Rss` of smaps_rollup; `Pss` is the process' own share). The target for 1 TiB is {} MiB and {} MiB of buffers.",
        setting.idle_seconds,
        MOST >> 20,
        BUFFERS >> 20
    );
    Ok(Section { title: "Idle volumes".to_owned(), how: vec![how], rows, notes, ..Section::default() })
}

/// A directory on a file system in memory.
fn in_memory() -> Result<(std::path::PathBuf, crate::remains::Guard)> {
    let path = tempfile::Builder::new().prefix("mirrord-bench-").tempdir_in("/dev/shm")?.keep();
    let guard = crate::remains::Guard::new(crate::remains::Remains::Directory(path.clone()))?;
    Ok((path, guard))
}

fn volume(setting: &Setting, directory: &Path, name: &str, size: u64) -> Result<Vec<Row>> {
    let mirrord = Mirrord::new(&setting.mirrord)?;
    let file = |leg: &str| directory.join(format!("{}-{leg}.img", name.replace(' ', "")));
    let legs = [file("a"), file("b")];
    let served = mirrord.create("idle", &legs, size, &file("volume"), &[])?;
    served.wait_until("at rest", REST, |status| {
        status.state == VolumeState::InSync && status.log.dirty_regions == 0
    })?;
    // The answers to the questions above are not the daemon's own doing.
    std::thread::sleep(Duration::from_secs(2));
    let before = Counts::sleeps(served.id());
    std::thread::sleep(Duration::from_secs(setting.idle_seconds.into()));
    let woken = Counts::sleeps(served.id()).since(&before) as f64 / f64::from(setting.idle_seconds);
    let (resident, own) = memory(served.id())?;
    let status = served.status()?;
    served.stop()?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let value = |value: f64| Some(Spread::of(&[value]));
    let regions = format!("{} regions of {} KiB", status.regions, status.region_size_bytes >> 10);
    Ok(vec![
        Row {
            what: format!("{name}: wake-ups"),
            ours: format!("{}/s", number(woken)),
            theirs: String::new(),
            judged: value(woken),
            target: Target::AtMost(1.0),
        },
        Row {
            what: format!("{name}: memory, {regions}"),
            ours: format!("{} MiB resident, {} MiB own", number(mib(resident)), number(mib(own))),
            theirs: String::new(),
            judged: value(mib(resident)),
            target: if size == TIB { Target::AtMost(mib(MOST + BUFFERS)) } else { Target::None },
        },
    ])
}
