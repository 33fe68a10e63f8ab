//! `mirrord inspect`.

use std::path::PathBuf;

use super::Context;
use super::output::{columns, fail, print, print_json};
use crate::inspect::{Found, Inspection, LegReport, RecentReport, SlotReport, inspect};
use crate::units::format_size;

/// Show the metadata on a leg or in a disk log; changes nothing
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A leg, a disk log, or what may be one.
    path: PathBuf,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let doing = format!("cannot inspect {}", args.path.display());
    let inspection = inspect(&args.path).map_err(|error| fail(&doing, &error))?;
    if context.json { print_json(&inspection) } else { print(&view(&inspection)) }
}

fn pair(key: &str, value: String) -> Vec<String> {
    vec![key.to_owned(), value]
}

fn view(inspection: &Inspection) -> String {
    let mut rows = vec![pair(
        "path",
        format!("{} ({}, {} bytes)", inspection.path.display(), inspection.backing, inspection.len_bytes),
    )];
    match &inspection.found {
        Found::Leg(leg) => rows.extend(leg_rows(leg)),
        Found::DiskLog(log) => {
            rows.push(pair("kind", format!("disk log of the kernel's format, version {}", log.version)));
            let dirty = log.dirty_regions.map_or("unknown".to_owned(), |dirty| dirty.to_string());
            rows.push(pair("regions", format!("{}, dirty {dirty}", log.regions)));
            rows.extend(log.volume.map(|volume| pair("volume", volume.to_string())));
            rows.extend(log.note.iter().map(|note| pair("note", note.clone())));
        }
        Found::Other { footer, signatures } => {
            rows.push(pair("kind", format!("not a leg: {footer}")));
            rows.extend(
                signatures
                    .iter()
                    .map(|found| pair("holds", format!("{} (at byte {})", found.name, found.offset))),
            );
        }
    }
    columns(&rows)
}

fn leg_rows(leg: &LegReport) -> Vec<Vec<String>> {
    let footer = &leg.footer;
    let mut rows = vec![pair("kind", "leg".to_owned())];
    rows.extend(leg.problem.iter().map(|problem| pair("problem", problem.clone())));
    rows.push(pair(
        "footer",
        format!(
            "at {}: volume {}, leg {}, size {}",
            footer.footer_offset, footer.volume, footer.leg, footer.size_bytes
        ),
    ));
    rows.push(pair(
        "layout",
        format!(
            "slots at {} and {}, log at {} ({} pages)",
            footer.slot_offsets[0], footer.slot_offsets[1], footer.log_offset, footer.log_pages
        ),
    ));
    for (index, slot) in leg.slots.iter().enumerate() {
        let newest = if leg.newest_slot == Some(index) { " (newest)" } else { "" };
        rows.extend(slot_rows(&format!("slot {index}{newest}"), slot));
    }
    let log = &leg.log;
    let used = if log.in_use { "" } else { ", not in use" };
    rows.push(pair(
        "log",
        format!(
            "{} of {} regions dirty, {} of {} sectors bad, generation {}{used}",
            log.dirty_regions, log.regions, log.bad_sectors, log.sectors, log.generation
        ),
    ));
    rows
}

fn slot_rows(title: &str, slot: &SlotReport) -> Vec<Vec<String>> {
    if let Some(error) = &slot.error {
        return vec![pair(title, error.clone())];
    }
    let Some(block) = &slot.superblock else { return Vec::new() };
    let stopped = if block.clean { "clean" } else { "not clean" };
    let failed = if block.log_failed { ", log failed" } else { "" };
    let place = block.log_place.as_ref().map_or(String::new(), |place| format!(":{place}"));
    let mut rows = vec![
        pair(
            title,
            format!("generation {}, event count {}, {stopped}{failed}", block.generation, block.event_count),
        ),
        pair("", format!("session {}, {} before it", block.session, block.past_sessions.len())),
        pair("", format!("volume {} ({}), leg {}", block.name, block.volume, block.leg_index)),
        pair(
            "",
            format!(
                "size {} ({}), region size {}, log {}{place}",
                block.size_bytes,
                format_size(block.size_bytes),
                format_size(block.region_size_bytes),
                block.log_kind
            ),
        ),
    ];
    for (index, entry) in block.legs.iter().enumerate() {
        let reason = entry.reason.map_or(String::new(), |reason| format!(" ({reason})"));
        rows.push(pair("", format!("leg {index} {} {}{reason}", entry.uuid, entry.state)));
    }
    if let Some(recent) = &block.recent {
        let legs: Vec<String> = recent.legs.iter().map(usize::to_string).collect();
        let RecentReport { groups, regions_per_group, .. } = recent;
        let legs = legs.join(" ");
        rows.push(pair("", format!("legs {legs} equal but in {groups} x {regions_per_group} regions")));
    }
    rows
}
