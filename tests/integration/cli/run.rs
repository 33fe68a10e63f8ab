//! The life of a volume: list, status, wait, resync, inspect, stop, start.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::data::{fuse, leg_with_data};
use crate::rig::{Rig, binary, is_ublk, newest_slot, sh, until};
use crate::snapshot::error_of;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_volume_lives() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.create("4M", &[]);
    let volume = File::options().read(true).write(true).open(&path).unwrap();
    volume.write_all_at(b"hello", 4097).unwrap();
    volume.sync_all().unwrap();
    drop(volume);

    let status = rig.status();
    for key in ["name", "uuid", "pid", "device", "front", "size_bytes", "region_size_bytes", "state"] {
        assert!(!status[key].is_null(), "{key}: {status}");
    }
    assert_eq!(status["device"], path.to_str().unwrap());
    assert!(status["io"]["writes"].as_u64().unwrap() >= 1);
    let row = json(&rig.ok(&["list", "--json"]))[0].clone();
    assert_eq!((&row["name"], &row["state"]), (&"v".into(), &"in_sync".into()));
    assert!(rig.ok(&["status", "v"]).contains("in_sync"));
    assert_eq!(rig.ok(&["wait", "v"]), "v in_sync\n");
    assert_eq!(json(&rig.ok(&["wait", "v", "--json"]))["state"], "in_sync");

    assert_eq!(rig.ok(&["stop", "v"]), "v stopped\n");
    // The number of a block device may be another volume's by now.
    assert!(!rig.path("run/v.sock").exists() && (is_ublk() || !path.exists()));
    assert_eq!(json(&rig.ok(&["list", "--json"]))[0]["state"], "stopped");
    for leg in ["a", "b"] {
        assert_eq!(&fs::read(rig.path(leg)).unwrap()[4097..4102], b"hello");
        let report = json(&rig.ok(&["inspect", leg, "--json"]));
        assert_eq!(report["kind"], "leg");
        assert_eq!(report["problem"], Value::Null);
        assert_eq!(report["log"]["dirty_regions"], 0);
        assert_eq!(newest_slot(&report)["clean"], true);
        assert!(rig.ok(&["inspect", leg]).contains("newest"));
    }

    // By name it is served where it was, by its legs too.
    for what in [&["start", "v"][..], &["start", "b", "a"]] {
        let line = rig.ok(what);
        let path = if is_ublk() { rig.volume() } else { path.clone() };
        assert!(line.starts_with("v ") && line.contains(path.to_str().unwrap()), "{line}");
        let mut there = [0; 5];
        File::open(&path).unwrap().read_exact_at(&mut there, 4097).unwrap();
        assert_eq!(&there, b"hello");
        rig.ok(&["stop", "v", "--json"]);
    }
}

#[test]
fn a_volume_in_use_is_not_stopped_unless_forced() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.create("4M", &[]);
    let user = File::options().read(true).write(true).open(&path).unwrap();
    let output = rig.run(&["stop", "v"]);
    error_of(&["stop", "v"], &output, 1, &["cannot stop v", "in use", "--force"]);
    user.write_all_at(b"still served", 0).unwrap();
    rig.ok(&["stop", "v", "--force"]);
    assert!(user.write_all_at(b"gone", 0).is_err());
    rig.assert_same("a", "b", 4 << 20);
}

#[test]
fn resync_can_be_held_and_limited() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    leg_with_data(&rig, "a", 32 << 20);
    rig.create("32M", &["--resync-rate", "64K"]);
    let status = rig.status();
    assert_eq!((&status["state"], &status["legs"][1]["state"]), (&"resyncing".into(), &"syncing".into()));
    assert_eq!(json(&rig.ok(&["resync", "v", "--pause", "--json"]))["paused"], true);
    let output = rig.run(&["wait", "v", "--timeout", "1"]);
    error_of(&["wait"], &output, 1, &["v is resyncing after 1s", "paused"]);
    let output = rig.run(&["resync", "v", "--pause", "--resume"]);
    assert_eq!(output.status.code(), Some(2));
    let text = rig.ok(&["resync", "v", "--resume", "--rate", "0"]);
    assert!(text.starts_with("v resync"), "{text}");
    rig.wait();
    assert_eq!(rig.status()["resync"]["limit_bytes_per_second"], Value::Null);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 32 << 20);
}

#[test]
fn wait_says_when_it_is_in_vain() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &[]);
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("b"), rig.path("away")).unwrap();
    rig.ok(&["start", "v", "--degraded"]);
    let output = rig.run(&["wait", "v"]);
    error_of(&["wait"], &output, 1, &["v is degraded", "/b", "missing", "--degraded-ok"]);
    assert_eq!(rig.ok(&["wait", "v", "--degraded-ok"]), "v degraded\n");
    // It comes back where it was, and the volume is whole again.
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("away"), rig.path("b")).unwrap();
    rig.ok(&["start", "v"]);
    rig.wait();
}

#[test]
fn a_watcher_sees_changes_and_the_end() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &[]);
    let mut watcher = rig.command(&["status", "v", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watcher.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.next().unwrap();
    assert!(first.starts_with("v  in_sync  legs 0:in_sync 1:in_sync"), "{first}");
    rig.ok(&["stop", "v"]);
    assert_eq!(lines.next().unwrap(), "v stopped");
    assert!(watcher.wait().unwrap().success());
}

#[test]
fn a_signal_stops_cleanly() {
    if !fuse() {
        return;
    }
    for signal in ["-TERM", "-INT"] {
        let rig = Rig::new();
        let args = ["create", "--legs", "a", "b", "--size", "4M", "--name", "v", "--foreground"];
        let mut daemon = rig.command(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(daemon.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("v "), "{line}");
        assert_eq!(rig.status()["pid"], daemon.id());
        // Somebody uses it: a signal means it all the same.
        let user = File::options().write(true).open(rig.volume()).unwrap();
        user.write_all_at(b"x", 0).unwrap();
        user.sync_data().unwrap();
        sh("kill", &[signal, &daemon.id().to_string()]);
        assert!(daemon.wait().unwrap().success());
        assert!(!rig.path("run/v.sock").exists());
        if is_ublk() {
            // A block device in use is left to the next daemon.
            assert!(rig.ok(&["list"]).contains("killed"));
        }
        let report = json(&rig.ok(&["inspect", "a", "--json"]));
        assert_eq!(newest_slot(&report)["clean"], true);
        assert_eq!(report["log"]["dirty_regions"], 0);
    }
}

#[test]
fn a_daemon_lets_go_of_its_parent() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    // `output` reads to the end of both streams: it would wait for a daemon that kept them.
    rig.create("4M", &["--log-to", &format!("file:{}", rig.path("log").display()), "--log-level", "debug"]);
    let pid = rig.status()["pid"].to_string();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(session, pid, "a session of its own");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(command, b"mirrord\0serve\0v\0");
    rig.ok(&["stop", "v"]);
    let log = fs::read_to_string(rig.path("log")).unwrap();
    assert!(log.contains("serving") && log.contains("stopped"), "{log}");
}

#[test]
fn threads_do_the_io_if_asked() {
    if !fuse() {
        return;
    }
    if is_ublk() {
        return println!("SKIP: threads instead of io_uring: ublk is served by io_uring alone");
    }
    let rig = Rig::new();
    rig.create("4M", &["--engine", "threads", "--queues", "1", "--depth", "8"]);
    assert_eq!(rig.status()["engine"], "threads");
    assert_eq!(rig.status()["queues"], 1);
    rig.ok(&["stop", "v"]);
    // As before, unless it is said otherwise.
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["engine"], "threads");
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v", "--engine", "auto", "--queues", "2"]);
    assert_eq!(rig.status()["queues"], 2);
}

#[test]
fn inspect_knows_logs_and_says_what_else_there_is() {
    let rig = Rig::new();
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("log/tests/vectors");
    for (name, dirty) in [("kernel-disk-1-after-resume.bin", true), ("kernel-disk-2-in-sync.bin", false)] {
        let report = json(&rig.ok(&["inspect", vectors.join(name).to_str().unwrap(), "--json"]));
        assert_eq!(report["kind"], "disk_log", "{name}");
        assert_eq!(report["dirty_regions"].as_u64().unwrap() > 0, dirty, "{name}: {report}");
    }
    fs::write(rig.path("disk"), [&[0; 510][..], b"\x55\xaa", &[0; 8000]].concat()).unwrap();
    let report = json(&rig.ok(&["inspect", "disk", "--json"]));
    assert_eq!((&report["kind"], &report["signatures"][0]["offset"]), (&"other".into(), &510.into()));
    assert!(rig.ok(&["inspect", "disk"]).contains("MBR"));
}

#[test]
fn shells_and_man_get_what_they_need() {
    let rig = Rig::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(rig.ok(&["completions", shell]).contains("region-size"), "{shell}");
    }
    rig.ok(&["man", "man"]);
    for page in ["mirrord.1", "mirrord-create.1", "mirrord-status.1"] {
        assert!(rig.path("man").join(page).exists(), "{page}");
    }
    assert!(!rig.path("man/mirrord-serve.1").exists());
    assert!(!rig.ok(&["--help"]).lines().any(|line| line.trim_start().starts_with("serve")), "hidden");
    assert_eq!(rig.run(&[]).status.code(), Some(2));
    assert_eq!(rig.run(&["--version"]).status.code(), Some(0));
    // A reader that has seen enough is no error.
    let bash = "\"$0\" list; \"$0\" completions bash | head -1 >/dev/null; echo ${PIPESTATUS[0]}";
    let output = sh("bash", &["-c", bash, &binary()]);
    assert!(output.trim_end().ends_with('0'), "{output}");
}

#[test]
fn a_stop_does_not_wait_for_a_limited_resync() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    leg_with_data(&rig, "a", 4 << 20);
    rig.create("4M", &["--resync-rate", "1"]);
    // At a byte per second the first region would take days.
    let mut stop = rig.command(&["stop", "v"]).stdout(Stdio::null()).spawn().unwrap();
    let mut status = None;
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("the volume is stopped", || {
            status = stop.try_wait().unwrap();
            status.is_some()
        });
    }));
    if stopped.is_err() {
        // Or the end of this test would wait for ever.
        rig.ok(&["resync", "v", "--rate", "0"]);
        panic!("the stop waited for the resync");
    }
    assert!(status.unwrap().success());
}
