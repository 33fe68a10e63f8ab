//! The daemon is killed again and again under load: its users notice nothing but a pause.

use std::process::Stdio;
use std::time::Instant;

use super::{Load, MIB, Volume, kill_daemons, pause, verified};

pub(crate) fn users_notice_nothing() {
    rounds(30);
}

pub(crate) fn users_notice_nothing_shortly() {
    rounds(5);
}

fn rounds(count: u64) {
    let volume = Volume::create(64 * MIB, &["--queues", "2"]);
    let split = ["--cpus_allowed=0,1", "--cpus_allowed_policy=split"];
    let load = Load::begin(verified(&volume.device, 2, 8 * MIB, &split));
    let mut longest = 0;
    for round in 0..count {
        // From a moment at which nothing of the last round is left to do, to one with everything in flight.
        pause(50 + round * 37 % 300);
        let start = Instant::now();
        if round % 5 == 4 {
            kill_while_starting(&volume, round * 53 % 400);
        } else {
            volume.replace_daemon();
        }
        let took = start.elapsed().as_millis();
        longest = longest.max(took);
        println!("round {round}: {took} ms");
        assert!(load.goes_on(), "round {round}");
    }
    println!("the longest takeover took {longest} ms");
    load.end();
    let legs = volume.rig.status()["legs"].clone();
    assert!(legs.as_array().unwrap().iter().all(|leg| leg["write_errors"] == 0), "{legs}");
    volume.stop();
}

/// Kills a daemon, and the one that takes its place so many milliseconds after that was asked for.
fn kill_while_starting(volume: &Volume, milliseconds: u64) {
    volume.rig.kill();
    let mut starting = volume.rig.command(&["start", "v"]).stdout(Stdio::null()).spawn().unwrap();
    pause(milliseconds);
    kill_daemons();
    if starting.wait().unwrap().success() {
        println!("{milliseconds} ms after it was asked for there was no daemon yet, or no other");
        volume.rig.kill();
    }
    volume.rig.ok(&["start", "v"]);
}

/// With all tags of a queue in the dead daemon's hands some kernels are slow to notice that it is dead.
pub(crate) fn with_every_tag_in_flight() {
    let volume = Volume::create(64 * MIB, &["--depth", "16"]);
    let load = Load::begin(verified(&volume.device, 1, 8 * MIB, &[]));
    for _ in 0..3 {
        pause(300);
        let start = Instant::now();
        volume.replace_daemon();
        println!("all of 16 tags in flight: {} ms", start.elapsed().as_millis());
    }
    load.end();
    volume.stop();
}
