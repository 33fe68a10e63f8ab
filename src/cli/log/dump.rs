//! `mirrord log dump`.

use std::io::Read;
use std::path::Path;

use anyhow::Context as _;
use mirrord_log::{DISK_MAGIC, DirtyLog, DiskLog, ResumeNote, SyncMode};
use serde::Serialize;

use super::super::Context;
use super::super::output::{columns, print, print_json};
use super::{Server, Which, status};
use crate::control::{Request, Response};
use crate::log_server::LogInfo;

/// Longest log that is read from a file, in bytes: of the most regions that a log can have.
const MOST_BYTES: u64 = 16 << 20;

/// Show what a log says is dirty: one of a server, or one in a file or on a device
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A file or device with a log (a path with a slash), or the uuid of a server's log.
    log: String,
    /// Which of several logs with this uuid [default: the one in use].
    #[arg(long)]
    luid: Option<String>,
    #[command(flatten)]
    which: Which,
}

/// What a log in a file says.
#[derive(Debug, Serialize)]
struct FileLog {
    path: String,
    version: u32,
    regions: u64,
    dirty_regions: u64,
    /// Of a volume's log on a server: the last life of the volume that used it, and whether that is over.
    owner: Option<String>,
    released: Option<bool>,
    /// First and last region of each run.
    dirty: Vec<[u32; 2]>,
}

#[derive(Debug, Serialize)]
struct ServerLog {
    #[serde(flatten)]
    log: LogInfo,
    dirty: Vec<[u32; 2]>,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    if args.log.contains('/') {
        let log = read(Path::new(&args.log)).with_context(|| format!("cannot dump {}", args.log))?;
        return if context.json { print_json(&log) } else { print(&view(&log)) };
    }
    let doing = format!("cannot dump log {}", args.log);
    let mut server = Server::connect(context, &args.which, &doing)?;
    let (mut found, mut dirty, mut from) = (None, Vec::new(), Some(0));
    while let Some(first) = from {
        let request = Request::LogRegions { uuid: args.log.clone(), luid: args.luid.clone(), from: first };
        let Response::LogRegions { log, dirty: page, next } = server.ask(&request)? else {
            return server.unexpected();
        };
        found = Some(log);
        dirty.extend(page);
        from = next;
    }
    let Some(log) = found else { return server.unexpected() };
    let dirty = runs(dirty);
    if context.json {
        return print_json(&ServerLog { log: *log, dirty });
    }
    print(&(status::view(&log) + &lines(&dirty)))
}

fn read(path: &Path) -> anyhow::Result<FileLog> {
    let mut image = Vec::new();
    std::fs::File::open(path)?.take(MOST_BYTES).read_to_end(&mut image)?;
    let word = |at: usize| {
        image.get(at..at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    };
    let Some(regions) = DiskLog::regions_of(&image) else {
        match word(0) {
            Some(DISK_MAGIC) => anyhow::bail!("it is a log of version {}, not 1 or 2", word(4).unwrap_or(0)),
            _ => anyhow::bail!("there is no log in it"),
        }
    };
    let count = u32::try_from(regions).ok().filter(|&count| DiskLog::len_of(count, 512) <= MOST_BYTES);
    let count = count.with_context(|| format!("it says that it has {regions} regions, which is too many"))?;
    // How large regions are is not in it, and does not matter here.
    let mut log = DiskLog::new(512, count, 512, SyncMode::Default);
    let _ = log.resume(&[Some(&image)]);
    if log.note() != ResumeNote::Trusted {
        anyhow::bail!("it is cut off: {} of {} bytes are there", image.len(), log.io_size());
    }
    Ok(FileLog {
        path: path.display().to_string(),
        version: word(4).unwrap_or(0),
        regions,
        dirty_regions: log.dirty_count(),
        owner: log.owner().map(|owner| format!("{:x}", owner.luid)),
        released: log.owner().map(|owner| owner.released),
        dirty: runs(log.dirty().map(|region| region.0)),
    })
}

fn view(log: &FileLog) -> String {
    let mut rows = vec![
        ("log", log.path.clone()),
        ("version", log.version.to_string()),
        ("regions", log.regions.to_string()),
        ("dirty", log.dirty_regions.to_string()),
    ];
    if let (Some(owner), Some(released)) = (&log.owner, log.released) {
        rows.push(("owner", format!("{owner}{}", if released { ", which needs it no more" } else { "" })));
    }
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    columns(&rows) + &lines(&log.dirty)
}

fn lines(runs: &[[u32; 2]]) -> String {
    let line = |&[first, last]: &[u32; 2]| match last - first {
        0 => format!("  {first}\n"),
        _ => format!("  {first}-{last}\n"),
    };
    runs.iter().map(line).collect()
}

/// Regions that follow one another as first and last.
fn runs(regions: impl IntoIterator<Item = u32>) -> Vec<[u32; 2]> {
    let mut runs: Vec<[u32; 2]> = Vec::new();
    for region in regions {
        match runs.last_mut() {
            Some(run) if run[1] + 1 == region => run[1] = region,
            _ => runs.push([region, region]),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        assert_eq!(runs([0, 1, 2, 5, 7, 8]), [[0, 2], [5, 5], [7, 8]]);
        assert_eq!(lines(&runs([3, 9, 10])), "  3\n  9-10\n");
    }
}
