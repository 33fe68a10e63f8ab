//! `mirrord doctor`.

use std::path::PathBuf;

use super::Context;
use super::output::{Told, columns, print, print_json};
use crate::doctor::{Finding, Health, Machine, Report, examine};

/// Say what this machine can do, what is missing and how to mend it
///
/// Changes nothing. Each line is ok, limited (mirrord does with less) or missing. Exit code 0 if a volume
/// can be served, 1 if not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folders, files or devices to look at as places for legs.
    path: Vec<PathBuf>,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let report = examine(&Machine::here(&context.dirs), &args.path);
    if context.json {
        print_json(&report.findings)?
    } else {
        print(&view(&report))?
    }
    if report.serves { Ok(()) } else { Err(Told.into()) }
}

fn view(report: &Report) -> String {
    let row = |finding: &Finding| {
        vec![finding.state.name().to_owned(), finding.check.clone(), finding.found.clone()]
    };
    let rows: Vec<Vec<String>> = report.findings.iter().map(row).collect();
    let mut text = String::new();
    for (line, finding) in columns(&rows).lines().zip(&report.findings) {
        if finding.check == "verdict" {
            text.push('\n');
        }
        text.push_str(line);
        text.push('\n');
        if let Some(remedy) = finding.remedy.as_ref().filter(|_| finding.state != Health::Ok) {
            text.push_str(&format!("         why: {}\n         do:  {remedy}\n", finding.why));
        }
    }
    text
}
