//! Volumes of this user that are served: legs whose files are not what they were.

use super::finding::Finding;
use super::machine::Machine;
use crate::control::Client;
use crate::status::LegStatus;

const WHY: &str = "a leg lives as long as its file";

pub(super) fn examine(machine: &Machine) -> Vec<Finding> {
    let reach = |name: String| Some((Client::reach(&machine.dirs, &name).ok()?.1.legs, name));
    let served = machine.dirs.sockets().into_iter().filter_map(reach);
    served.flat_map(|(legs, name)| legs.into_iter().filter_map(move |leg| of_leg(&name, &leg))).collect()
}

fn of_leg(volume: &str, leg: &LegStatus) -> Option<Finding> {
    let (found, remedy) = match leg.file.as_deref()? {
        "deleted" => (
            "deleted: what is on it is gone once the volume stops",
            format!("give the volume another leg before it stops: mirrord leg add {volume} FILE"),
        ),
        "truncated" => (
            "became shorter: what was cut off is lost",
            format!("put another file in its place: mirrord leg replace {volume} {} FILE", leg.index),
        ),
        _ => (
            "its name leads to another file or nowhere",
            "give the file its name back, or name it where it is at the next start".to_owned(),
        ),
    };
    Some(Finding::limited(&format!("leg {} of {volume}", leg.path.display()), WHY, found, remedy))
}
