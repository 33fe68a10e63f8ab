//! `create --or-start`: the one command of a service or container, and `status` without a name.

use std::fs;

use serde_json::Value;

use super::data::fuse;
use crate::rig::{Rig, is_ublk, newest_slot, until};
use crate::snapshot::refused;

const SAME: [&str; 9] = ["create", "--or-start", "--legs", "a", "b", "--size", "4M", "--name", "v"];

fn uuid_of_leg(rig: &Rig, leg: &str) -> Value {
    let report: Value = serde_json::from_str(&rig.ok(&["inspect", leg, "--json"])).unwrap();
    newest_slot(&report)["volume"].clone()
}

#[test]
fn it_makes_a_volume_once_and_starts_it_from_then_on() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.ok(&SAME);
    rig.write(1, 7);
    let uuid = rig.status()["uuid"].clone();
    // What is in use is no new volume either.
    rig.refused(&SAME, &["cannot start v", "running already"]);
    rig.kill_for_good();
    rig.ok(&SAME);
    let status = rig.status();
    assert_eq!(status["uuid"], uuid);
    assert!(status["resync"]["total_regions"].as_u64().unwrap() < 4, "{status}");
    assert_eq!(fs::read(rig.volume()).unwrap()[1 << 20..2 << 20], [7; 1 << 20]);

    // A leg more is not taken in silently, and the others are started as they are.
    rig.ok(&["stop", "v"]);
    let more = ["create", "--or-start", "--legs", "a", "b", "c", "--size", "4M", "--name", "v"];
    let output = rig.run(&more);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && said.contains("c is no leg of v") && said.contains("leg add"),
        "{said}"
    );
    assert!(!rig.path("c").exists());
    rig.ok(&["stop", "v"]);

    // Nor are others silently made a volume of the same name.
    let others = ["create", "--or-start", "--legs", "d", "e", "--size", "4M", "--name", "v"];
    let said = String::from_utf8(rig.run(&others).stderr).unwrap();
    assert!(said.contains("d is no leg of v") && said.contains("e is no leg of v"), "{said}");
    assert_eq!(rig.status()["uuid"], uuid);
    rig.ok(&["stop", "v"]);

    // Without what is known of it, as in a container that was made anew.
    fs::remove_file(rig.path("state/v.json")).unwrap();
    rig.ok(&SAME);
    assert_eq!(rig.status()["uuid"], uuid);
    rig.ok(&["stop", "v"]);

    // The legs are somewhere else now.
    for leg in ["a", "b"] {
        fs::create_dir_all(rig.path("moved")).unwrap();
        fs::rename(rig.path(leg), rig.path("moved").join(leg)).unwrap();
    }
    let moved = ["create", "--or-start", "--legs", "moved/a", "moved/b", "--size", "4M", "--name", "v"];
    rig.ok(&moved);
    assert_eq!(rig.status()["uuid"], uuid);
    assert_eq!(fs::read(rig.volume()).unwrap()[1 << 20..2 << 20], [7; 1 << 20]);
}

#[test]
fn it_starts_what_became_of_the_volume() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.ok(&SAME);
    rig.ok(&["leg", "replace", "v", "b", "c"]);
    rig.wait();
    until("the leg has left", || {
        rig.status()["legs"].as_array().unwrap().iter().filter(|leg| leg["state"] == "in_sync").count() == 2
    });
    rig.ok(&["stop", "v"]);
    let output = rig.run(&SAME);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("b is no leg of v"), "{said}");
    let paths: Vec<String> = rig.status()["legs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|leg| leg["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned())
        .collect();
    assert!(paths.contains(&"a".to_owned()) && paths.contains(&"c".to_owned()), "{paths:?}");
}

#[test]
fn it_overwrites_nothing() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    // Files with data are refused as ever.
    fs::write(rig.path("a"), vec![1; 5 << 20]).unwrap();
    fs::write(rig.path("b"), vec![2; 5 << 20]).unwrap();
    refused(&rig, &SAME, 1, &["cannot create v", "hold data", "--source"]);
    assert_eq!(fs::read(rig.path("a")).unwrap(), vec![1; 5 << 20]);
    for flag in ["--force", "--adopt-log"] {
        rig.refused(&[&SAME[..], &[flag]].concat(), &["'--or-start' cannot be used with", flag]);
    }
    fs::remove_file(rig.path("a")).unwrap();
    fs::remove_file(rig.path("b")).unwrap();

    rig.ok(&SAME);
    rig.write(0, 3);
    rig.ok(&["stop", "v"]);
    let uuid = uuid_of_leg(&rig, "a");
    // Another name than the volume has.
    let other = ["create", "--or-start", "--legs", "a", "b", "--size", "4M", "--name", "w"];
    refused(&rig, &other, 1, &["cannot start w", "a is a leg of the volume v", "--name v"]);
    // One leg is gone: neither started without it nor made anew.
    fs::rename(rig.path("b"), rig.path("kept")).unwrap();
    refused(&rig, &SAME, 1, &["cannot start v", "no such file", "--degraded"]);
    assert!(!rig.path("b").exists());
    // Both are: what they are on is not mounted, perhaps.
    fs::rename(rig.path("a"), rig.path("kept-too")).unwrap();
    refused(&rig, &SAME, 1, &["cannot start v", "it is known", "without --or-start"]);
    assert!(!rig.path("a").exists() && !rig.path("b").exists());
    // A leg in whose place another volume's is.
    fs::rename(rig.path("kept-too"), rig.path("a")).unwrap();
    rig.ok(&["create", "--legs", "b", "x", "--size", "4M", "--name", "other"]);
    rig.ok(&["stop", "other"]);
    refused(&rig, &SAME, 1, &["cannot start v"]);
    assert_eq!(uuid_of_leg(&rig, "a"), uuid);
    assert_ne!(uuid_of_leg(&rig, "b"), uuid);
}

#[test]
fn the_only_volume_needs_no_name() {
    if !fuse() || is_ublk() {
        return;
    }
    let rig = Rig::new();
    refused(&rig, &["status", "--json"], 1, &["no volume is running"]);
    rig.create("4M", &[]);
    let only = || serde_json::from_str::<Value>(&rig.ok(&["status", "--json"])).unwrap()["name"].clone();
    assert_eq!(only(), "v");
    rig.ok(&["split", "v", "--leg", "1", "--track", "--yes", "--serve"]);
    assert_eq!(only(), "v", "a leg that is served for reading is no other volume");
    rig.ok(&["create", "--legs", "c", "d", "--size", "4M", "--name", "w"]);
    rig.refused(&["status"], &["v and w are running", "say which"]);
    rig.ok(&["stop", "w"]);
    rig.kill();
    refused(&rig, &["status"], 1, &["no volume is running"]);
}

#[test]
fn a_volume_is_waited_for_that_is_not_there_yet() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    refused(&rig, &["wait", "v"], 1, &["there is no volume v"]);
    refused(&rig, &["wait", "v", "--startup", "1"], 1, &["there is no volume v"]);
    let mut waiting = rig.command(&["wait", "v", "--startup", "100"]);
    let waiting = waiting.stdout(std::process::Stdio::piped()).spawn().unwrap();
    rig.create("4M", &[]);
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, b"v in_sync\n");
}
