//! The map of a running volume.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use super::data::{fuse, leg_with_data};
use crate::rig::{Rig, binary, have, try_sh, until};
use crate::snapshot::error_of;

/// Size of the regions of most volumes here.
const REGION: u64 = 64 << 10;

fn map(rig: &Rig) -> Value {
    serde_json::from_str(&rig.ok(&["map", "v", "--json"])).unwrap()
}

/// Start and length of the runs in which `which` holds.
fn runs(map: &Value, which: impl Fn(&Value) -> bool) -> Vec<(u64, u64)> {
    let number = |run: &Value, key: &str| run[key].as_u64().unwrap();
    let runs = map["runs"].as_array().unwrap().iter().filter(|run| which(run));
    runs.map(|run| (number(run, "start"), number(run, "count"))).collect()
}

/// Writes into each of these regions, to where they are dirty.
fn write(volume: &Path, regions: &[u64]) {
    let file = File::options().write(true).open(volume).unwrap();
    for region in regions {
        file.write_all_at(&[7; 4096], region * REGION).unwrap();
    }
    file.sync_data().unwrap();
}

/// The cells of a map in a pipe, block by block.
fn cells(text: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    for line in text.lines().skip(4) {
        match line.strip_prefix(' ').and_then(|line| line.trim_start().split_once(' ')) {
            Some((_, cells)) => blocks.last_mut().unwrap().push_str(cells),
            None => blocks.push(String::new()),
        }
    }
    blocks
}

#[test]
fn regions_are_dirty_where_they_were_written() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let volume = rig.create("4M", &["--region-size", "64K"]);
    let status = rig.status();
    // They are clean again a while after: what was written is written again until both were seen.
    until("three regions are dirty", || {
        write(&volume, &[3, 17, 18]);
        let map = map(&rig);
        assert_eq!((&map["regions"], &map["regions_per_cell"]), (&64.into(), &1.into()));
        assert_eq!((&map["region_size_bytes"], &map["size_bytes"]), (&REGION.into(), &status["size_bytes"]));
        let covered: u64 = runs(&map, |_| true).iter().map(|run| run.1).sum();
        assert_eq!(covered, 64);
        runs(&map, |run| run["state"] == "dirty") == [(3, 1), (17, 2)]
            && (&map["clean_regions"], &map["dirty_regions"]) == (&61.into(), &3.into())
    });
    until("they are drawn", || {
        write(&volume, &[3, 17, 18]);
        let text = rig.ok(&["map", "v", "--width", "16"]);
        assert!(
            text.starts_with("v  in_sync\n4MiB in 64 regions of 64KiB\na cell is 1 region, 64KiB\n"),
            "{text}"
        );
        assert!(!text.contains('\x1b'), "{text}");
        text.contains("3 dirty")
            && text.lines().skip(5).eq([
                "        0B ...#............",
                "      1MiB .##.............",
                "      2MiB ................",
                "      3MiB ................",
            ])
    });
    // Fewer cells than regions: the dirty one shows.
    until("they are drawn in few cells", || {
        write(&volume, &[3, 17, 18]);
        let text = rig.ok(&["map", "v", "--width", "1"]);
        assert!(text.contains("a cell is 4 regions, 256KiB"), "{text}");
        cells(&text) == ["#...#..........."]
    });
}

#[test]
fn a_leg_that_is_missing_is_stale_where_was_written() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &["--region-size", "64K"]);
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("b"), rig.path("away")).unwrap();
    rig.ok(&["start", "v", "--degraded"]);
    let before = map(&rig);
    assert_eq!((&before["dirty_regions"], &before["legs"][1]["state"]), (&0.into(), &"missing".into()));
    write(&rig.volume(), &[5, 6, 40]);
    let map = map(&rig);
    let stale = |run: &Value| run["stale_legs"] == serde_json::json!([1]) && run["state"] == "stale";
    assert_eq!(runs(&map, stale), [(5, 2), (40, 1)]);
    let leg = |index: usize| (&map["legs"][index]["stale_regions"], &map["legs"][index]["resyncing_regions"]);
    assert_eq!((leg(0), leg(1)), ((&0.into(), &0.into()), (&3.into(), &0.into())));
    let text = rig.ok(&["map", "v"]);
    assert!(
        text.starts_with("v  degraded\n") && text.contains("leg 1  missing, 61 regions in sync, 3 stale")
    );
    let drawn = |glyph: &str| format!(".....{glyph}{glyph}{}{glyph}{}", ".".repeat(33), ".".repeat(23));
    assert_eq!(cells(&text), [drawn("#"), drawn("x")]);
}

#[test]
fn a_leg_that_is_copied_to_shows_how_far() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    leg_with_data(&rig, "a", 32 << 20);
    rig.create("32M", &["--resync-rate", "1K"]);
    until("regions are being copied", || map(&rig)["legs"][1]["resyncing_regions"].as_u64().unwrap() > 0);
    let map = map(&rig);
    assert!(map["legs"][1]["stale_regions"].as_u64().unwrap() > 16, "{map}");
    let copied = |run: &Value| run["state"] == "resyncing" && run["resyncing_legs"] == serde_json::json!([1]);
    let count: u64 = runs(&map, copied).iter().map(|run| run.1).sum();
    assert_eq!(map["legs"][1]["resyncing_regions"].as_u64(), Some(count));
    let text = rig.ok(&["map", "v"]);
    assert!(text.starts_with("v  resyncing  resync "), "{text}");
    assert!(cells(&text)[1].contains('>') && cells(&text)[1].contains('x'), "{text}");
    rig.ok(&["resync", "v", "--rate", "0"]);
    rig.wait();
    assert_eq!(cells(&rig.ok(&["map", "v"])).len(), 1, "only the log");
}

#[test]
fn a_volume_of_most_regions_is_mapped() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let volume = rig.create("16GiB", &["--region-size", "4KiB"]);
    until("the last region is dirty", || {
        let file = File::options().write(true).open(&volume).unwrap();
        file.write_all_at(&[7; 4096], (16 << 30) - 4096).unwrap();
        let map = map(&rig);
        runs(&map, |run| run["state"] == "dirty") == [((1 << 22) - 1, 1)]
            && runs(&map, |run| run["state"] == "clean") == [(0, (1 << 22) - 1)]
    });
    let text = rig.ok(&["map", "v"]);
    assert!(text.contains("in 4194304 regions of 4KiB\na cell is 2622 regions, 10.24MiB, and"), "{text}");
    assert_eq!(cells(&text)[0].len(), 1600, "{text}");
}

#[test]
fn a_picture_is_written_and_never_over_a_file_unless_told() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &["--region-size", "64K"]);
    assert_eq!(rig.ok(&["map", "v", "--svg", "map.svg"]), "v drawn to map.svg\n");
    let picture = fs::read_to_string(rig.path("map.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"), "{picture}");
    assert!(picture.contains("in 64 regions of 64KiB"), "{picture}");
    fs::write(rig.path("mine"), "mine").unwrap();
    let args = ["map", "v", "--svg", "mine"];
    error_of(&args, &rig.run(&args), 1, &["mine", "there already", "another file", "--force"]);
    assert_eq!(fs::read(rig.path("mine")).unwrap(), b"mine");
    error_of(&args, &rig.run(&["map", "v", "--svg", "a", "--force"]), 1, &["a is a leg"]);
    rig.ok(&["map", "v", "--svg", "mine", "--force"]);
    assert!(fs::read_to_string(rig.path("mine")).unwrap().starts_with("<svg "));
    let args = ["map", "v", "--svg", "nix/map.svg"];
    error_of(&args, &rig.run(&args), 1, &["cannot write nix/map.svg", "No such file"]);
}

#[test]
fn options_that_make_no_sense() {
    let rig = Rig::new();
    for more in [
        &["--width", "0"][..],
        &["--width", "1001"],
        &["--width", "wide"],
        &["--width", "80", "--json"],
        &["--force"],
        &["--svg", "map.svg", "--watch"],
        &["--svg", "map.svg", "--json"],
    ] {
        let output = rig.run(&[&["map", "v"], more].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{more:?}: {error}");
        assert!(error.contains(more[0]) && output.stdout.is_empty(), "{more:?}: {error}");
    }
    assert!(!rig.path("map.svg").exists());
}

#[test]
fn a_daemon_of_an_older_version() {
    let rig = Rig::new();
    let listener = UnixListener::bind(rig.path("run/v.sock")).unwrap();
    let daemon = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut asked = String::new();
        BufReader::new(&client).read_line(&mut asked).unwrap();
        let answer = r#"{"answer":"failed","reason":"bad_request","message":"unknown variant `map`"}"#;
        writeln!(client, "{answer}").unwrap();
        asked
    });
    let args = ["map", "v", "--json"];
    error_of(&args, &rig.run(&args), 1, &["cannot map v", "older version", "mirrord upgrade v"]);
    assert_eq!(daemon.join().unwrap(), "{\"verb\":\"map\",\"from\":0}\n");
}

#[test]
fn a_watcher_sees_each_change_and_the_end() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let volume = rig.create("4M", &[]);
    let mut watcher = rig.command(&["map", "v", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watcher.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut frame = || lines.by_ref().take(6).collect::<Vec<String>>();
    let first = frame();
    assert_eq!((&first[0][..], &first[4][..]), ("v  in_sync", "log  4 regions clean, 0 dirty"), "{first:?}");
    // It is clean again a while after: written until it was seen.
    let seen = AtomicBool::new(false);
    let second = thread::scope(|scope| {
        scope.spawn(|| {
            while !seen.load(Ordering::SeqCst) {
                write(&volume, &[16]);
                thread::sleep(Duration::from_millis(50));
            }
        });
        let second = frame();
        seen.store(true, Ordering::SeqCst);
        second
    });
    assert_eq!((&second[0][..], &second[5][..]), ("v  in_sync", "        0B .#.."), "{second:?}");
    rig.ok(&["stop", "v"]);
    // It may be seen clean before it is stopped.
    assert_eq!(lines.last().unwrap(), "v stopped");
    assert!(watcher.wait().unwrap().success());
}

#[test]
fn a_terminal_has_colours_and_is_filled() {
    if !fuse() || !have("script", "a map on a terminal") {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &["--region-size", "64K"]);
    let drawn = |colour: &str| {
        let (run, state) = (rig.path("run"), rig.path("state"));
        let command = format!(
            "stty cols 43 rows 20; {colour} MIRRORD_RUNTIME_DIR={} MIRRORD_STATE_DIR={} {} map v",
            run.display(),
            state.display(),
            binary()
        );
        let output = try_sh("script", &["-qec", &command, "/dev/null"]);
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        assert!(output.status.success(), "{text}");
        text
    };
    let (coloured, plain) = (drawn("env -u NO_COLOR"), drawn("NO_COLOR=1"));
    assert!(coloured.contains("\x1b[32m") && !plain.contains('\x1b'), "{coloured}{plain}");
    // 32 cells and what is before them are all 43 columns.
    let last = plain.trim_end().lines().last().unwrap();
    assert_eq!((last.len(), &last[..13]), (43, "      2MiB .."), "{plain}");
}
