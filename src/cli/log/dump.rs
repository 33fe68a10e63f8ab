//! `mirrord log dump`.

use std::path::Path;

use serde::Serialize;

use super::super::Context;
use super::super::output::{columns, fail, print, print_json};
use super::Server;
use super::status::view;
use crate::control::{Request, Response};
use crate::log_server::{DiskLogDump, RegionRange, dump};

/// Show which regions are dirty in a log: of a file or device, or of a server
///
/// What is there as a file or device is read as a disk log in the kernel's format; anything else is the uuid of a log
/// that a server keeps. Changes nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A disk log, or the uuid of a log of the server.
    #[arg(value_name = "FILE|UUID")]
    what: String,
    /// Which life of the mirror's table, if there are several [default: the one in use].
    #[arg(long)]
    luid: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// A log, and the first and last region of each dirty run.
#[derive(Debug, Serialize)]
struct WithDirty<'a, L: Serialize> {
    #[serde(flatten)]
    log: &'a L,
    dirty: Vec<[u32; 2]>,
}

impl<'a, L: Serialize> WithDirty<'a, L> {
    fn of(log: &'a L, ranges: &[RegionRange]) -> WithDirty<'a, L> {
        let dirty = ranges.iter().map(|range| [range.from, range.from + (range.regions - 1)]).collect();
        WithDirty { log, dirty }
    }
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let path = Path::new(&args.what);
    if args.what.contains('/') || path.exists() {
        let doing = format!("cannot dump {}", args.what);
        let dump = dump(path).map_err(|error| fail(&doing, &error))?;
        return if context.json {
            print_json(&WithDirty::of(&dump, &dump.dirty))
        } else {
            print(&file_view(&dump))
        };
    }
    let mut server = args.server.connect(context, &format!("cannot dump the log {}", args.what))?;
    let (mut all, mut from, mut log) = (Vec::<RegionRange>::new(), Some(0), None);
    while let Some(at) = from {
        let request = Request::DirtyRegions { uuid: args.what.clone(), luid: args.luid.clone(), from: at };
        let Response::DirtyRegions { log: found, dirty, next } = server.ask(&request)? else {
            return Err(server.unexpected());
        };
        all.extend(dirty);
        log = Some(found);
        from = next;
    }
    let Some(log) = log else { return Err(server.unexpected()) };
    if context.json {
        return print_json(&WithDirty::of(&*log, &all));
    }
    print(&format!("{}\n{}", view(&log), ranges_view(&all)))
}

fn file_view(dump: &DiskLogDump) -> String {
    let pair = |key: &str, value: String| vec![key.to_owned(), value];
    let unused = || "not known: LVM made this log, and no mirror has used it since".to_owned();
    let regions = dump.regions.map_or_else(unused, |regions| regions.to_string());
    let mut rows = vec![
        pair("log", format!("{}, disk log of version {}", dump.path.display(), dump.version)),
        pair("regions", regions),
        pair("dirty", dump.dirty_regions.to_string()),
    ];
    if let Some(owner) = &dump.owner {
        let released = if dump.released == Some(true) { ", which needs it no more" } else { "" };
        rows.push(pair("owner", format!("a volume's life {owner}{released}")));
    }
    format!("{}\n{}", columns(&rows), ranges_view(&dump.dirty))
}

/// A line for each range.
fn ranges_view(ranges: &[RegionRange]) -> String {
    let mut rows = vec![vec!["FROM".to_owned(), "REGIONS".to_owned()]];
    rows.extend(ranges.iter().map(|range| vec![range.from.to_string(), range.regions.to_string()]));
    if ranges.is_empty() { "nothing is dirty".to_owned() } else { columns(&rows) }
}
