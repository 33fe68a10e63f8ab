//! `mirrord list`.

use std::path::PathBuf;

use mirrord_ublk::{plain_spawn, ublk};
use serde::Serialize;
use uuid::Uuid;

use super::Context;
use super::output::{columns, print, print_json};
use crate::control::{Client, ClientError};
use crate::registry::{Known, Registry};
use crate::status::VolumeStatus;
use crate::units::format_size;

/// List the volumes that run or are known here
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    uuid: Option<Uuid>,
    /// As in status, or `stopped`, `killed` (its daemon died), `gone` (no leg is where it was).
    state: String,
    size_bytes: Option<u64>,
    device: Option<PathBuf>,
    legs: Vec<PathBuf>,
}

pub(super) fn run(context: &Context, _: &Args) -> anyhow::Result<()> {
    let known = Registry::new(&context.dirs).all();
    let mut names: Vec<String> = known.iter().map(|known| known.name.clone()).collect();
    names.extend(context.dirs.sockets());
    names.sort();
    names.dedup();
    let find = |name: &str| known.iter().find(|known| known.name == name);
    let rows: Vec<Row> = names.iter().filter_map(|name| row(context, name, find(name))).collect();
    if context.json {
        return print_json(&rows);
    }
    if rows.is_empty() {
        return print("no volumes");
    }
    let mut table = vec![["NAME", "STATE", "SIZE", "DEVICE", "LEGS"].map(str::to_owned).to_vec()];
    table.extend(rows.into_iter().map(|row| {
        let legs: Vec<String> = row.legs.iter().map(|leg| leg.display().to_string()).collect();
        vec![
            row.name,
            row.state,
            row.size_bytes.map_or("-".to_owned(), format_size),
            row.device.map_or("-".to_owned(), |device| device.display().to_string()),
            legs.join(" "),
        ]
    }));
    print(&columns(&table))
}

fn row(context: &Context, name: &str, known: Option<&Known>) -> Option<Row> {
    let state = match Client::reach(&context.dirs, name) {
        Ok((_, status)) => return Some(running(status)),
        Err(ClientError::NotRunning { .. }) => {
            let legs = known.map_or(0, |known| known.legs_here().len());
            match (legs, context.dirs.socket(name).exists()) {
                (0, _) => "gone",
                (_, true) => "killed",
                (_, false) => "stopped",
            }
        }
        Err(_) => "unreachable",
    };
    if known.is_none() && state == "gone" {
        return None;
    }
    // Its users wait for the next daemon.
    let waiting = |known: &Known| ublk::waiting(known.uuid.into_bytes(), &plain_spawn()).ok().flatten();
    let device = known.and_then(waiting);
    Some(Row {
        name: name.to_owned(),
        uuid: known.map(|known| known.uuid),
        state: if device.is_some() { "killed" } else { state }.to_owned(),
        size_bytes: known.map(|known| known.size_bytes),
        device,
        legs: known.map_or_else(Vec::new, |known| known.leg_paths()),
    })
}

fn running(status: VolumeStatus) -> Row {
    Row {
        name: status.name,
        uuid: Some(status.uuid),
        state: status.state.name().to_owned(),
        size_bytes: Some(status.size_bytes),
        device: Some(status.device),
        legs: status.legs.into_iter().map(|leg| leg.path).collect(),
    }
}
