//! Files of legs that are deleted, renamed, replaced or cut while the volume is served.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::rig::{Rig, can_serve, sh, until};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// The volume `v`, each MiB of it filled with its number and one.
fn volume() -> Option<Rig> {
    if !can_serve("legs that go") {
        return None;
    }
    let rig = Rig::new();
    rig.create("16MiB", &["--region-size", "1MiB"]);
    (0..16).for_each(|mib| rig.write(mib, mib as u8 + 1));
    Some(rig)
}

/// What is amiss with a leg's file.
fn amiss(rig: &Rig, leg: usize) -> String {
    rig.status()["legs"][leg]["file"].as_str().unwrap_or("nothing").to_owned()
}

fn state(rig: &Rig, leg: usize) -> String {
    rig.status()["legs"][leg]["state"].as_str().unwrap().to_owned()
}

fn becomes(rig: &Rig, leg: usize, what: &str) {
    until(what, || amiss(rig, leg) == what);
}

/// Standard error of a command that succeeds.
fn notes(rig: &Rig, args: &[&str]) -> String {
    let output = rig.run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

/// A MiB as the file has it.
fn mib(path: &Path, mib: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; MIB as usize];
    File::open(path)?.read_exact_at(&mut bytes, mib * MIB).map(|()| bytes)
}

/// Every MiB of the file is what was written to the volume.
fn is_as_written(path: &Path) {
    for at in 0..16 {
        assert!(mib(path, at).unwrap() == vec![at as u8 + 1; MIB as usize], "{} at {at} MiB", path.display());
    }
}

#[test]
fn a_leg_that_is_deleted_is_told_and_missed() {
    let Some(rig) = volume() else { return };
    let watching = rig
        .command(&["events", "v", "--json", "--since", "0"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    fs::remove_file(rig.path("b")).unwrap();
    becomes(&rig, 1, "deleted");
    assert_eq!(state(&rig, 1), "in_sync", "it serves as long as it is open");
    assert!(rig.ok(&["status", "v"]).contains("in_sync, deleted"));
    let doctor = String::from_utf8(rig.run(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains("b of v") && doctor.contains("mirrord leg add v FILE"), "{doctor}");
    rig.write(3, 4);
    let said = notes(&rig, &["stop", "v"]);
    assert!(said.contains("/b was deleted: what was on it is gone"), "{said}");
    let events = String::from_utf8(watching.wait_with_output().unwrap().stdout).unwrap();
    assert!(
        events.contains(r#""event":"leg_file","leg":1"#) && events.contains(r#""amiss":"deleted""#),
        "{events}"
    );
    is_as_written(&rig.path("a"));
    rig.refused(&["start", "v"], &["/b", "there is no such file"]);
    rig.ok(&["start", "v", "--degraded"]);
    rig.ok(&["stop", "v"]);
}

#[test]
fn the_last_copy_is_not_let_go_of_unasked() {
    let Some(rig) = volume() else { return };
    fs::remove_file(rig.path("a")).unwrap();
    fs::remove_file(rig.path("b")).unwrap();
    // Looked at when it counts.
    rig.refused(&["stop", "v"], &["/a", "/b", "all data is gone", "mirrord leg add v", "--force"]);
    is_as_written(&rig.volume());
    rig.ok(&["leg", "add", "v", "c"]);
    rig.wait();
    let said = notes(&rig, &["stop", "v", "--json"]);
    assert!(said.contains("/a was deleted") && said.contains("/b was deleted"), "{said}");
    is_as_written(&rig.path("c"));
    rig.ok(&["start", "./c", "--degraded"]);
    is_as_written(&rig.volume());
    fs::remove_file(rig.path("c")).unwrap();
    rig.refused(&["stop", "v"], &["/c"]);
    rig.ok(&["stop", "v", "--force"]);
}

#[test]
fn a_leg_that_is_renamed_or_replaced_is_told() {
    let Some(rig) = volume() else { return };
    fs::rename(rig.path("b"), rig.path("elsewhere")).unwrap();
    becomes(&rig, 1, "renamed");
    fs::rename(rig.path("elsewhere"), rig.path("b")).unwrap();
    becomes(&rig, 1, "nothing");
    // Something else with its name; the leg has another.
    fs::hard_link(rig.path("b"), rig.path("kept")).unwrap();
    fs::write(rig.path("new"), "x").unwrap();
    fs::rename(rig.path("new"), rig.path("b")).unwrap();
    becomes(&rig, 1, "renamed");
    // And none any more.
    fs::remove_file(rig.path("kept")).unwrap();
    becomes(&rig, 1, "deleted");
    rig.write(5, 6);
    let said = notes(&rig, &["stop", "v"]);
    assert!(said.contains("/b was deleted"), "{said}");
    assert_eq!(fs::read(rig.path("b")).unwrap(), b"x", "what has its name now is not touched");
    is_as_written(&rig.path("a"));
    // One that has another name is no loss.
    rig.ok(&["start", "./a", "--degraded"]);
    fs::rename(rig.path("a"), rig.path("moved")).unwrap();
    let said = notes(&rig, &["stop", "v"]);
    assert!(said.contains("/a: its name leads to another file or nowhere"), "{said}");
    rig.ok(&["start", "./moved", "--degraded"]);
    is_as_written(&rig.volume());
    rig.ok(&["stop", "v"]);
}

/// Nothing of what was cut off a leg comes back as zeroes, and nothing is copied from it.
#[test]
fn a_leg_that_becomes_shorter_is_failed_and_never_believed() {
    for left in [0, 5 * MIB + 512, SIZE + 8192] {
        let Some(rig) = volume() else { return };
        // Dirty, so that writes to it ask for no mark.
        rig.write(8, 9);
        sh("truncate", &["-s", &left.to_string(), rig.path("a").to_str().unwrap()]);
        rig.write(8, 9);
        rig.write(9, 10);
        // Begun or refused: the leg may be failed already. Begun, it would wait for a second leg in sync.
        rig.run(&["scrub", "v", "--repair"]);
        until("the leg is failed", || state(&rig, 0) == "failed");
        rig.run(&["scrub", "v", "--cancel"]);
        assert_eq!(rig.status()["legs"][0]["reason"], "io_error");
        becomes(&rig, 0, "truncated");
        is_as_written(&rig.volume());
        rig.refused(&["scrub", "v", "--repair", "--wait"], &["1 leg in sync"]);
        let said = notes(&rig, &["stop", "v"]);
        println!("{left}: {said}");
        is_as_written(&rig.path("b"));
        let len = fs::metadata(rig.path("a")).unwrap().len();
        assert!(len <= left.max(10 * MIB), "metadata made it {len} bytes long");
    }
}

/// Also if nobody uses the volume.
#[test]
fn an_idle_volume_notices_that_a_leg_became_shorter() {
    let Some(rig) = volume() else { return };
    until("all is clean", || rig.status()["log"]["dirty_regions"] == 0);
    let len = fs::metadata(rig.path("b")).unwrap().len() - 100;
    sh("truncate", &["-s", &len.to_string(), rig.path("b").to_str().unwrap()]);
    until("the leg is failed", || state(&rig, 1) == "failed");
    assert_eq!(amiss(&rig, 1), "truncated");
    rig.ok(&["stop", "v"]);
    assert_eq!(fs::metadata(rig.path("b")).unwrap().len(), len, "nothing was written behind its end");
    is_as_written(&rig.path("a"));
}

#[test]
fn the_last_leg_is_not_failed_and_gives_errors_instead_of_zeroes() {
    let Some(rig) = volume() else { return };
    until("all is clean", || rig.status()["log"]["dirty_regions"] == 0);
    rig.ok(&["leg", "fail", "v", "b"]);
    sh("truncate", &["-s", "5M", rig.path("a").to_str().unwrap()]);
    becomes(&rig, 0, "truncated");
    assert_eq!(state(&rig, 0), "in_sync");
    let volume = rig.volume();
    for at in 5..16 {
        assert!(mib(&volume, at).is_err(), "{at} MiB was cut off");
    }
    for at in 0..5 {
        assert!(mib(&volume, at).unwrap() == vec![at as u8 + 1; MIB as usize], "{at} MiB is there");
    }
    // Nor is it made long again.
    let write = |at: u64| {
        let file = File::options().write(true).open(&volume).unwrap();
        file.write_all_at(&vec![7; MIB as usize], at * MIB).and_then(|()| file.sync_all())
    };
    assert!(write(9).is_err() && mib(&volume, 9).is_err());
    assert_eq!(fs::metadata(rig.path("a")).unwrap().len(), 5 * MIB);
    let said = notes(&rig, &["stop", "v"]);
    assert!(said.contains("/a became shorter"), "{said}");
    assert_eq!(fs::metadata(rig.path("a")).unwrap().len(), 5 * MIB);
}
