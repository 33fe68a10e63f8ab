//! Scrubs of volumes whose legs differ, or do not, and of ones that are in use.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::rig::{Rig, have, is_ublk, sh, until};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

/// A volume of so many legs with something on it, all clean.
fn volume(legs: &[&str]) -> Rig {
    let rig = Rig::new();
    let front = if is_ublk() { ["--front", "ublk"] } else { ["--mount", "vol"] };
    let head = ["create", "--name", "v", "--size", "64MiB", "--region-size", "1MiB", "--legs"];
    rig.ok(&[&head[..], legs, &front].concat());
    let file = File::options().write(true).open(rig.volume()).unwrap();
    let bytes: Vec<u8> = (0..SIZE / 2).map(|at| (at / 512 % 251) as u8 + 1).collect();
    file.write_all_at(&bytes, 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    until("the log is clean", || rig.status()["log"]["dirty_regions"] == 0);
    rig
}

/// The volume's bytes on a leg.
fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Changes bytes of a leg behind the volume's back.
fn scribble(rig: &Rig, leg: &str, offset: u64, count: usize) {
    let file = File::options().write(true).open(rig.path(leg)).unwrap();
    file.write_all_at(&vec![0xff; count], offset).unwrap();
    file.sync_all().unwrap();
}

/// Scrubs to the end; what was found, and whether that was taken for success.
fn scrub(rig: &Rig, more: &[&str]) -> (Value, bool) {
    let output = rig.run(&[&["scrub", "v", "--wait", "--json"], more].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut status: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    assert_eq!(status["active"], false);
    (status["last"].take(), output.status.success())
}

/// A figure of the volume's metrics, by what stands before it.
fn metric(rig: &Rig, name: &str) -> f64 {
    let mut stream = UnixStream::connect(rig.path("metrics")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{name}: {answer}")).parse().unwrap()
}

fn stand(rig: &Rig) -> Value {
    rig.status()["scrub"].take()
}

fn done(rig: &Rig) -> u64 {
    stand(rig)["done_bytes"].as_u64().unwrap()
}

#[test]
fn legs_that_are_alike_are_found_so() {
    let rig = volume(&["a", "b", "--metrics", "unix:metrics"]);
    assert_eq!(stand(&rig)["last"], Value::Null);
    let (result, ok) = scrub(&rig, &[]);
    assert!(ok && result["complete"] == true && result["mismatched_ranges"] == 0, "{result}");
    assert_eq!((&result["ranges"], &result["read_errors"]), (&json!([]), &json!(0)));
    let result_in = |name: &str| metric(&rig, &format!("mirrord_scrub_{name}{{volume=\"v\"}} "));
    assert_eq!((result_in("active"), result_in("last_complete")), (0.0, 1.0));
    assert_eq!(result_in("last_mismatched_bytes"), 0.0);
    assert_eq!(Some(result_in("last_end_timestamp_seconds")), result["ended_unix_seconds"].as_f64());
    // What the last one found outlives the daemon; so does its place in `status`.
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    assert_eq!(stand(&rig)["last"], result);
    assert!(rig.ok(&["status", "v"]).contains("no difference"));
    let events = ["scrub_started", "scrub_finished"];
    rig.ok(&["scrub", "v"]);
    until("it ends", || stand(&rig)["active"] == false);
    let follow =
        rig.command(&["events", "v", "--since", "0", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    rig.ok(&["stop", "v"]);
    let told = String::from_utf8(follow.wait_with_output().unwrap().stdout).unwrap();
    for event in events {
        assert!(told.contains(&format!("\"event\":\"{event}\"")), "{told}");
    }
}

#[test]
fn the_odd_one_of_three_is_named_and_repaired() {
    let rig = volume(&["a", "b", "c"]);
    let before = bytes(&rig.path("a"));
    // Over the border of a window, and the very first and last bytes.
    scribble(&rig, "b", 3 * MIB - 700, 1000);
    scribble(&rig, "a", 0, 1);
    scribble(&rig, "c", SIZE - 1, 1);
    let (result, ok) = scrub(&rig, &[]);
    assert!(!ok, "{result}");
    let range = |offset: u64, length: u64, wrong: usize, repaired: bool| {
        let right: Vec<usize> = (0..3).filter(|&leg| leg != wrong).collect();
        let groups = if wrong == 0 { json!([[0], right]) } else { json!([right, [wrong]]) };
        let repaired = if repaired { json!([wrong]) } else { json!([]) };
        json!({"offset": offset, "length": length, "groups": groups, "outvoted": [wrong], "repaired": repaired})
    };
    let ranges = |repaired| {
        json!([
            range(0, 512, 0, repaired),
            range(3 * MIB - 1024, 1536, 1, repaired),
            range(SIZE - 512, 512, 2, repaired)
        ])
    };
    assert_eq!(result["ranges"], ranges(false), "{result}");
    assert_eq!((&result["mismatched_ranges"], &result["mismatched_bytes"]), (&json!(3), &json!(2560)));
    assert_eq!(result["outvoted"][1], json!({"leg": 1, "bytes": 1536}));
    assert!(bytes(&rig.path("b")) != before, "nothing was repaired");

    let (result, ok) = scrub(&rig, &["--repair"]);
    assert!(ok && result["repaired_ranges"] == 3 && result["repaired_bytes"] == 2560, "{result}");
    assert_eq!(result["ranges"], ranges(true));
    assert!(["a", "b", "c"].iter().all(|leg| bytes(&rig.path(leg)) == before));
    let (result, ok) = scrub(&rig, &[]);
    assert!(ok && result["mismatched_ranges"] == 0, "{result}");
    // As any write: the regions were marked, and are clean again some time.
    until("the log is clean", || rig.status()["log"]["dirty_regions"] == 0);
    rig.ok(&["stop", "v"]);
}

#[test]
fn of_two_legs_neither_is_wrong_until_somebody_says_so() {
    let rig = volume(&["a", "b"]);
    let before = bytes(&rig.path("a"));
    scribble(&rig, "a", 5 * MIB, 4096);
    let other = bytes(&rig.path("a"));
    let (result, ok) = scrub(&rig, &[]);
    let range =
        json!({"offset": 5 * MIB, "length": 4096, "groups": [[0], [1]], "outvoted": [], "repaired": []});
    assert!(!ok && result["ranges"] == json!([range]) && result["outvoted"] == json!([]), "{result}");
    assert!(rig.ok(&["status", "v"]).contains("no majority"));

    let (result, ok) = scrub(&rig, &["--repair", "--from", "b"]);
    assert!(ok && result["ranges"][0]["repaired"] == json!([0]), "{result}");
    assert!(bytes(&rig.path("a")) == before && bytes(&rig.path("b")) == before);

    // Without a word it is the source that counts: the first leg in sync.
    scribble(&rig, "a", 5 * MIB, 4096);
    let (result, ok) = scrub(&rig, &["--repair"]);
    assert!(ok && result["ranges"][0]["repaired"] == json!([1]), "{result}");
    assert!(bytes(&rig.path("a")) == other && bytes(&rig.path("b")) == other);
    rig.ok(&["stop", "v"]);
}

#[test]
fn a_volume_in_use_has_no_differences() {
    if !have("fio", "scrubs of a volume in use") {
        return;
    }
    let rig = volume(&["a", "b", "c"]);
    let (path, out) = (rig.volume(), rig.path("fio"));
    let fio = [
        "fio --name=load --rw=randrw --rwmixread=30 --bsrange=512-64k --iodepth=16 --ioengine=psync",
        "--numjobs=4 --size=64m --group_reporting --time_based --runtime=12 --fsync=64 --filename",
    ];
    let fio = format!("{} {} > {}", fio.join(" "), path.display(), out.display());
    let load = thread::spawn(move || sh("sh", &["-c", &fio]));
    let mut scrubs = 0;
    while !load.is_finished() {
        let (result, ok) = scrub(&rig, if scrubs % 2 == 0 { &[] } else { &["--repair"] });
        assert!(ok && result["mismatched_ranges"] == 0, "{result}");
        scrubs += 1;
        if scrubs % 3 == 0 && !load.is_finished() {
            // One beside a split, and beside the resync of its end.
            rig.ok(&["scrub", "v", "--rate", "32MiB"]);
            rig.ok(&["split", "v", "--leg", "c", "--track"]);
            rig.ok(&["merge", "v", "c"]);
            rig.ok(&["scrub", "v", "--rate", "0"]);
            let (result, ok) = scrub(&rig, &[]);
            assert!(ok && result["mismatched_ranges"] == 0, "{result}");
        }
    }
    load.join().unwrap();
    println!("{scrubs} scrubs");
    rig.wait();
    let (result, ok) = scrub(&rig, &[]);
    assert!(ok && scrubs > 0, "{result}");
    rig.ok(&["stop", "v"]);
    assert!(bytes(&rig.path("a")) == bytes(&rig.path("b")) && bytes(&rig.path("a")) == bytes(&rig.path("c")));
}

#[test]
fn a_scrub_is_held_let_go_on_and_canceled() {
    let rig = volume(&["a", "b"]);
    // Where a start has no sample of the legs.
    scribble(&rig, "b", 3 * MIB + 100_000, 1);
    let said: Value = serde_json::from_str(&rig.ok(&["scrub", "v", "--rate", "8MiB", "--json"])).unwrap();
    assert_eq!((&said["active"], &said["limit_bytes_per_second"]), (&json!(true), &json!(8 * MIB)));
    until("some is done", || done(&rig) >= 4 * MIB);
    rig.ok(&["scrub", "v", "--pause"]);
    // The window under way, and then nothing.
    thread::sleep(Duration::from_millis(200));
    let held = done(&rig);
    thread::sleep(Duration::from_millis(500));
    let status = stand(&rig);
    assert_eq!((&status["done_bytes"], &status["paused"]), (&json!(held), &json!(true)), "{status}");
    assert_eq!(status["current"]["mismatched_ranges"], 1);
    rig.refused(&["scrub", "v", "--wait"], &["is held", "--resume"]);
    // Held it stays, also through a restart.
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    let status = stand(&rig);
    assert_eq!((&status["done_bytes"], &status["paused"]), (&json!(held), &json!(true)), "{status}");
    rig.ok(&["scrub", "v", "--resume"]);
    until("it goes on", || done(&rig) > held);
    // A window that waits for its turn under a low limit does not hold the cancel up.
    rig.ok(&["scrub", "v", "--rate", "1"]);
    let text = rig.ok(&["scrub", "v", "--cancel"]);
    assert!(text.contains("canceled") && text.contains("1 range differed"), "{text}");
    let status = stand(&rig);
    let last = &status["last"];
    assert_eq!((&status["active"], &last["complete"]), (&json!(false), &json!(false)), "{status}");
    let (result, ok) = scrub(&rig, &["--repair"]);
    assert!(ok && result["complete"] == true && result["repaired_ranges"] == 1, "{result}");
    rig.ok(&["stop", "v"]);
}

#[test]
fn a_scrub_goes_on_after_its_daemon_was_killed() {
    let rig = volume(&["a", "b", "c"]);
    // Where a start has no sample of the legs.
    let places = [3 * MIB + (64 << 10), 60 * MIB + (64 << 10)];
    scribble(&rig, "b", places[0], 512);
    scribble(&rig, "c", places[1], 512);
    rig.ok(&["scrub", "v", "--repair", "--rate", "2MiB"]);
    // It is remembered every three seconds.
    until("some is done", || done(&rig) >= 14 * MIB);
    rig.kill_for_good();
    rig.ok(&["start", "v"]);
    let status = stand(&rig);
    let from = status["done_bytes"].as_u64().unwrap();
    assert!(status["active"] == true && from >= 2 * MIB, "{status}");
    assert_eq!((&status["repair"], &status["limit_bytes_per_second"]), (&json!(true), &json!(2 * MIB)));
    assert_eq!(status["current"]["repaired_ranges"], 1, "what was found before is not forgotten");
    // One command: a scrub that were done before the second of two would not be waited for, another would begin.
    let (result, ok) = scrub(&rig, &["--rate", "0"]);
    assert!(ok && result["repaired_ranges"] == 2 && result["complete"] == true, "{result}");
    let first = &result["ranges"];
    assert_eq!((&first[0]["offset"], &first[1]["offset"]), (&json!(places[0]), &json!(places[1])));
    rig.ok(&["stop", "v"]);
    assert!(bytes(&rig.path("a")) == bytes(&rig.path("b")) && bytes(&rig.path("a")) == bytes(&rig.path("c")));
}

#[test]
fn a_scrub_begins_by_itself_when_it_is_due() {
    let rig = volume(&["a", "b"]);
    let text = rig.ok(&["scrub", "v", "--schedule", "7"]);
    assert!(text.contains("every 7 days") || text.contains('%'), "{text}");
    until("the first one ends", || stand(&rig)["last"]["complete"] == true);
    let status = stand(&rig);
    assert_eq!((&status["schedule_days"], &status["active"]), (&json!(7), &json!(false)));
    // As if it had been long ago.
    rig.ok(&["stop", "v"]);
    let path = rig.path("state").join("v.scrub");
    let mut memory: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let ended = memory["last"]["ended_unix_seconds"].as_u64().unwrap();
    for (days, begins) in [(6, false), (8, true)] {
        let then = ended - days * 24 * 60 * 60;
        memory["last"]["ended_unix_seconds"] = then.into();
        fs::write(&path, memory.to_string()).unwrap();
        rig.ok(&["start", "v"]);
        if begins {
            until("the next one ends", || stand(&rig)["last"]["ended_unix_seconds"].as_u64() >= Some(ended));
        } else {
            thread::sleep(Duration::from_millis(500));
            assert_eq!(stand(&rig)["last"]["ended_unix_seconds"], then);
        }
        rig.ok(&["stop", "v"]);
    }
    rig.ok(&["start", "v"]);
    rig.ok(&["scrub", "v", "--schedule", "off"]);
    assert_eq!(stand(&rig)["schedule_days"], Value::Null);
    rig.ok(&["stop", "v"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let rig = volume(&["a", "b", "c"]);
    rig.refused(&["scrub", "w"], &["there is no volume w"]);
    rig.refused(&["scrub", "v", "--repair", "--from", "7"], &["no leg", "7"]);
    for order in ["--pause", "--resume", "--cancel"] {
        rig.refused(&["scrub", "v", order], &["no scrub is under way"]);
    }
    for args in
        [&["--from", "a"][..], &["--pause", "--resume"], &["--schedule", "0"], &["--cancel", "--repair"]]
    {
        let args = [&["scrub", "v"], args].concat();
        assert_eq!(rig.run(&args).status.code(), Some(2), "{args:?}");
    }
    rig.ok(&["scrub", "v", "--rate", "1MiB"]);
    for args in
        [&["scrub", "v"][..], &["scrub", "v", "--repair"], &["scrub", "v", "--repair", "--rate", "9MiB"]]
    {
        rig.refused(args, &["a scrub is under way", "--cancel"]);
    }
    let status = stand(&rig);
    assert_eq!((&status["repair"], &status["limit_bytes_per_second"]), (&json!(false), &json!(MIB)));
    rig.ok(&["scrub", "v", "--cancel"]);

    rig.ok(&["leg", "fail", "v", "c"]);
    rig.refused(&["scrub", "v", "--repair", "--from", "c"], &["leg 2 is not in sync"]);
    // The two others are compared.
    assert!(scrub(&rig, &[]).1);
    // One that is under way waits for a second leg, and goes on by itself.
    rig.ok(&["scrub", "v", "--rate", "8MiB"]);
    rig.ok(&["leg", "fail", "v", "b"]);
    until("it waits", || stand(&rig)["waiting_for"] == "legs");
    let text = rig.ok(&["status", "v"]);
    assert!(text.contains("waits for a second leg in sync"), "{text}");
    rig.ok(&["leg", "add", "v", "b"]);
    rig.ok(&["scrub", "v", "--rate", "0"]);
    assert!(scrub(&rig, &[]).1);
    rig.ok(&["leg", "fail", "v", "b"]);
    rig.refused(&["scrub", "v"], &["1 leg in sync", "mirrord leg add"]);
    rig.ok(&["stop", "v"]);
    rig.refused(&["scrub", "v"], &["not running", "mirrord start v"]);
}
