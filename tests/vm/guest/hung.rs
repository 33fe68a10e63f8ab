//! A leg that hangs under the ublk device of a user without privilege: the kernel kills a daemon that does not
//! answer a request for 30 s.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::devices::{dm, load, loop_leg, run_udev, sectors};
use crate::rig::{Rig, binary, sh, until};

const MIB: u64 = 1 << 20;
const USER: u32 = 1000;

/// Runs a program as the user, in the rig's folder.
fn run(rig: &Rig, program: &str, args: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", program]).args(args);
    command.env("MIRRORD_RUNTIME_DIR", rig.path("run/u")).env("MIRRORD_STATE_DIR", rig.path("state/u"));
    command.current_dir(rig.path("")).output().unwrap()
}

fn ok(rig: &Rig, program: &str, args: &[&str]) -> String {
    let output = run(rig, program, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {error}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn status(rig: &Rig) -> Value {
    serde_json::from_str(&ok(rig, &binary(), &["status", "v", "--json"])).unwrap()
}

fn state_of(status: &Value, leg: usize) -> String {
    status["legs"][leg]["state"].as_str().unwrap().to_owned()
}

/// Writes a MiB, durably.
fn write(rig: &Rig, device: &str, mib: u64) -> Duration {
    let began = Instant::now();
    let (to, seek) = (format!("of={device}"), format!("seek={mib}"));
    let how = ["bs=1M", "count=1", "oflag=direct", "conv=fsync,notrunc", "status=none"];
    ok(rig, "dd", &[&["if=/dev/urandom", &to, &seek][..], &how].concat());
    began.elapsed()
}

pub(crate) fn an_unprivileged_daemon_outlives_a_leg_that_hangs() {
    load(&["ublk_drv", "dm-mod", "loop"]);
    let rig = Rig::new();
    for folder in ["", "run", "state"] {
        fs::set_permissions(rig.path(folder), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let disk = loop_leg(&rig, "disk", 64 * MIB);
    let slow = dm(&rig, "slow", &format!("0 {} linear {disk} 0", sectors(&disk)));
    rig.at_end(&["dmsetup", "resume", "slow"]);
    chown(Path::new(&slow), Some(USER), Some(USER)).unwrap();
    run_udev();

    let mirrord = binary();
    let create = ["create", "--legs", "a", &slow, "--size", "48MiB", "--name", "v", "--front", "ublk"];
    ok(&rig, &mirrord, &[&create[..], &["--leg-timeout", "none"]].concat());
    assert_eq!(status(&rig)["leg_timeout_seconds"], 20, "as long as it can be");
    ok(&rig, &mirrord, &["stop", "v"]);
    // As if it had not been said.
    let known = rig.path("state/u/v.json");
    let text = fs::read_to_string(&known).unwrap();
    assert!(text.contains("\"leg_timeout\": 0"), "{text}");
    fs::write(&known, text.replace("\"leg_timeout\": 0", "\"leg_timeout\": null")).unwrap();
    ok(&rig, &mirrord, &["start", "v"]);
    let before = status(&rig);
    assert_eq!((&before["front"], &before["leg_timeout_seconds"]), (&"ublk".into(), &15.into()), "{before}");
    let device = before["device"].as_str().unwrap().to_owned();
    for mib in 0..8 {
        write(&rig, &device, mib);
    }

    let began = Instant::now();
    sh("dmsetup", &["suspend", "--noflush", "--nolockfs", "slow"]);
    let took = write(&rig, &device, 3);
    println!("written after {took:?}");
    assert!(took >= Duration::from_secs(14), "{took:?}");
    while began.elapsed() < Duration::from_secs(40) {
        println!("nothing waits for it any more: {:?}", write(&rig, &device, 5));
        thread::sleep(Duration::from_secs(1));
    }
    let now = status(&rig);
    assert_eq!(now["pid"], before["pid"], "the daemon lives");
    assert_eq!((state_of(&now, 0).as_str(), state_of(&now, 1).as_str()), ("in_sync", "failed"), "{now}");

    sh("dmsetup", &["resume", "slow"]);
    until("what hung has ended", || status(&rig)["legs"][1]["hung"] == 0);
    write(&rig, &device, 7);
    assert_eq!(state_of(&status(&rig), 1), "failed", "it does not come back by itself");
    ok(&rig, &mirrord, &["stop", "v"]);
    ok(&rig, &mirrord, &["start", "v"]);
    ok(&rig, &mirrord, &["wait", "v", "--timeout", "120"]);
    let copied = status(&rig)["resync"]["copied_regions"].as_u64().unwrap();
    assert!((3..=8).contains(&copied), "only what changed is copied: {copied} regions of 48");
    ok(&rig, &mirrord, &["stop", "v"]);
    rig.assert_same("a", &slow, 48 * MIB);
}
