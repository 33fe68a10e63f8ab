//! Places of legs that are neither files nor devices, and verbs that end whatever they are given.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use crate::hung_leg::Disk;
use crate::rig::{Rig, can_serve, sh, until};

/// Longer than any verb here takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs it and expects that it ends.
fn ends(rig: &Rig, args: &[&str]) -> Output {
    let mut command = rig.command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("mirrord {args:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn refused(rig: &Rig, args: &[&str], word: &str) {
    let output = ends(rig, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(word), "{args:?}: {said}");
}

/// One of each kind: its name, and what it is called.
fn odd_places(rig: &Rig) -> (UnixListener, [(&'static str, &'static str); 4]) {
    sh("mkfifo", &[rig.path("pipe").to_str().unwrap()]);
    fs::create_dir(rig.path("dir")).unwrap();
    let socket = UnixListener::bind(rig.path("socket")).unwrap();
    let kinds = [
        ("pipe", "a pipe"),
        ("dir", "a directory"),
        ("socket", "a socket"),
        ("/dev/zero", "a character device"),
    ];
    (socket, kinds)
}

#[test]
fn what_is_neither_file_nor_device_is_refused_by_every_verb() {
    if !can_serve("legs of every kind") {
        return;
    }
    let rig = Rig::new();
    let (_socket, kinds) = odd_places(&rig);
    rig.create("8MiB", &["--region-size", "1MiB"]);
    for (place, kind) in kinds {
        let path = rig.path(place);
        let path = path.to_str().unwrap();
        for args in [
            &["create", "--legs", path, "x", "--size", "1MiB", "--name", "w"][..],
            &["start", path],
            &["start", path, "./a"],
            &["inspect", path],
            &["leg", "add", "v", path],
            &["leg", "add", "v", path, "--spare", "--force"],
            &["leg", "replace", "v", "b", path, "--force"],
            &["merge", "v", path],
        ] {
            refused(&rig, args, kind);
        }
        refused(&rig, &["log", "dump", path], "");
        let doctor = ends(&rig, &["doctor", path]);
        // A folder is a place where legs can be.
        let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(place == "dir" || said.contains("a leg is a file or a block device"), "{said}");
    }
    ends(&rig, &["stop", "v"]);
    // In the place of a leg that was there before.
    fs::rename(rig.path("b"), rig.path("kept")).unwrap();
    fs::rename(rig.path("pipe"), rig.path("b")).unwrap();
    refused(&rig, &["start", "v"], "b: it is a pipe");
    refused(&rig, &["start", "./a", "./b"], "b: it is a pipe");
    assert!(ends(&rig, &["list"]).status.success());
    fs::rename(rig.path("b"), rig.path("pipe")).unwrap();
    fs::rename(rig.path("kept"), rig.path("b")).unwrap();
    rig.ok(&["start", "v"]);
    // Of one that is out while its name leads to a pipe.
    rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
    fs::rename(rig.path("b"), rig.path("kept")).unwrap();
    fs::rename(rig.path("pipe"), rig.path("b")).unwrap();
    for args in [
        &["merge", "v", "b"][..],
        &["split", "v", "--leg", "b", "--track", "--serve", "--yes"],
        &["split", "v", "--leg", "b", "--name", "w"],
    ] {
        refused(&rig, args, "b: it is a pipe");
    }
    assert!(ends(&rig, &["leg", "remove", "v", "b"]).status.success());
    assert!(ends(&rig, &["stop", "v"]).status.success());
}

/// The file system of a leg-to-be does not answer, and with it the thread that makes the leg.
#[test]
fn a_stop_does_not_say_that_a_daemon_ended_which_hangs() {
    let rig = Rig::new();
    let Some(disk) = Disk::new(&rig) else { return };
    rig.create("8MiB", &[]);
    let daemon = rig.status()["pid"].clone();
    disk.hang();
    let adding = {
        let mut command = rig.command(&["leg", "add", "v", "disk/c"]);
        std::thread::spawn(move || command.output().unwrap())
    };
    // In the kernel by now, for as long as the file system is frozen.
    until("the daemon hangs", || {
        let threads = fs::read_dir(format!("/proc/{daemon}/task")).unwrap().flatten();
        threads.into_iter().any(|thread| {
            let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.contains("(mirrord-client) D ")
        })
    });
    let output = ends(&rig, &["stop", "v"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(&format!("process {daemon} has not ended")), "{said}");
    assert!(output.stdout.is_empty());
    // Nobody else is kept from the legs, and the name is free.
    rig.ok(&["start", "./a", "./b"]);
    assert_ne!(rig.status()["pid"], daemon);
    disk.go_on();
    adding.join().unwrap();
    until("the daemon ends", || !fs::exists(format!("/proc/{daemon}")).unwrap());
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 8 << 20);
}
