//! A volume's life in containers: used, killed, started again, changed from outside, stopped.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::engine::{LEAST, SERVE, Site, USER, engine, ok, said, tools, variable};
use crate::rig::until;

/// The folder of the volume, for mirrord and for its users.
fn both_ways(folder: &std::path::Path) -> [String; 2] {
    ["rshared", "rslave"].map(|way| format!("--volume={}:/volumes:{way}", folder.display()))
}

const MOUNT: [&str; 2] = ["--mount", "/volumes/vol.img"];

#[test]
#[ignore = "tests/container/run runs it"]
fn another_container_uses_the_volume() {
    let site = Site::new("used");
    let [ours, theirs] = both_ways(&site.shared("volumes"));
    let vol = site.serve(&[&ours], &MOUNT);
    // As a user without any capability, and as root without any but the one to read what is others'.
    let write = "dd if=/dev/urandom of=/volumes/vol.img bs=1M count=8 seek=3 conv=notrunc,fsync";
    site.shell_ok(USER, &[&theirs], write);
    let sum = "dd if=/volumes/vol.img bs=1M count=8 skip=3 | sha256sum";
    let written = site.shell_ok(USER, &[&theirs], sum);
    let root = site.shell_ok(0, &[&theirs, "--cap-add=DAC_OVERRIDE"], sum);
    assert_eq!(written, root);
    let output = site.shell(USER + 1, &[&theirs], sum);
    assert!(said(&output).contains("Permission denied"), "the mode of the file counts: {}", said(&output));
    assert!(vol.status()["io"]["writes"].as_u64().unwrap() > 0);

    assert_eq!(vol.stop(), "0");
    site.legs_are_equal();
    let legs = site.volume("legs", "/data");
    let on_leg = site.shell_ok(USER, &[&legs], "dd if=/data/b.img bs=1M count=8 skip=3 | sha256sum");
    assert_eq!(on_leg, written);
}

#[test]
#[ignore = "tests/container/run runs it"]
fn a_killed_container_goes_on_where_it_was() {
    let site = Site::new("killed");
    let [ours, theirs] = both_ways(&site.shared("volumes"));
    let vol = site.serve(&[&ours], &MOUNT);
    let uuid = vol.status()["uuid"].clone();
    let write = |at: u32| {
        format!("dd if=/dev/urandom of=/volumes/vol.img bs=1M count=2 seek={at} conv=notrunc,fsync")
    };
    let sum = "dd if=/volumes/vol.img bs=1M count=2 skip=10 | sha256sum";
    site.shell_ok(USER, &[&theirs], &write(10));
    let before = site.shell_ok(USER, &[&theirs], sum);

    // The same container again, and then another one in its place; each finds a dead mount.
    vol.kill();
    let dead = site.shell(USER, &[&theirs], "head -c 1 /volumes/vol.img");
    assert!(!dead.status.success(), "nobody serves it: {}", said(&dead));
    vol.start_again();
    for _ in 0..2 {
        let status = vol.status();
        assert_eq!(status["uuid"], uuid);
        let (copied, regions) = (status["resync"]["total_regions"].as_u64(), status["regions"].as_u64());
        assert!(copied.unwrap() <= 4 && regions.unwrap() == 64, "{status}");
        assert_eq!(site.shell_ok(USER, &[&theirs], sum), before);
        site.shell_ok(USER, &[&theirs], &write(20));
        vol.kill();
        ok(&["rm", "--force", &vol.name]);
        site.serve(&[&ours], &MOUNT);
    }
    // No mount is left, but the file that the first one, which was killed, had made for it.
    assert_eq!(vol.stop(), "0");
    assert_eq!(fs::metadata(site.path("volumes/vol.img")).unwrap().len(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(site.path("volumes/vol.img").to_str().unwrap()));
    site.legs_are_equal();
}

#[test]
#[ignore = "tests/container/run runs it"]
fn it_stops_cleanly_while_it_is_used() {
    let site = Site::new("stopped");
    let [ours, theirs] = both_ways(&site.shared("volumes"));
    let vol = site.serve(&[&ours], &MOUNT);
    // Open all the time: between two programs that open it the volume could be unmounted, and the next would
    // write to a plain file.
    let command = "exec 3<>/volumes/vol.img; \
        while dd if=/dev/zero of=/proc/self/fd/3 bs=64k count=512 conv=notrunc,fsync; do :; done 2>/tmp/x";
    let (user, tools) = (format!("--user={USER}"), tools());
    let mut writer = Command::new(variable("CONTAINER_ENGINE"))
        .args(["run", "--rm", "--tmpfs=/tmp", &user, &theirs, &tools, "sh", "-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("something is written", || vol.status()["io"]["writes"].as_u64().unwrap() > 100);
    // 137 would be a kill after the grace period.
    assert_eq!(vol.stop(), "0", "{}", said(&engine(&["logs", &vol.name])));
    writer.wait().unwrap();
    site.legs_are_equal();
    for leg in ["/data/a.img", "/data/b.img"] {
        let legs = site.volume("legs", "/data");
        let report = ok(&["run", "--rm", &legs, &crate::engine::image(), "inspect", leg, "--json"]);
        let report: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(crate::rig::newest_slot(&report)["clean"], true, "{report}");
        assert_eq!(report["log"]["dirty_regions"], 0, "{report}");
    }
    vol.start_again();
    assert_eq!(vol.status()["resync"]["total_regions"], 0);
}

#[test]
#[ignore = "tests/container/run runs it"]
fn a_leg_is_split_off_and_merged_from_another_container() {
    let site = Site::new("outside");
    let control = site.volume("control", "/control");
    let runtime = "--env=MIRRORD_RUNTIME_DIR=/control/run";
    // A volume of the engine belongs to whoever its image says: nobody has said so of this one.
    let image = crate::engine::image();
    ok(&["run", "--rm", "--user=0", &control, &tools(), "sh", "-c", "chown 65532 /control"]);
    let vol = site.serve(&[&control, runtime], &["--mount", "/tmp/vol.img"]);
    let legs = site.volume("legs", "/data");
    // Neither a device nor a capability is needed to ask.
    let outside = |args: &[&str]| {
        let flags = ["run", "--rm", "--read-only", "--cap-drop=ALL", &legs, &control, runtime, &image];
        engine(&[&flags, args].concat())
    };
    let output = outside(&["split", "vol", "--leg", "1", "--track", "--yes"]);
    assert!(output.status.success() && said(&output).contains("split off and tracked"), "{}", said(&output));
    assert_eq!(vol.status()["legs"][1]["state"], "tracked");
    let sum = |path: &str| site.shell_ok(USER, &[&legs], &format!("head -c 67108864 {path} | sha256sum"));
    let (before, path) = (sum("/data/b.img"), vol.status()["device"].as_str().unwrap().to_owned());
    // Written to in mirrord's own container, where its file is.
    let fresh = site.path("fresh");
    fs::write(&fresh, vec![0x5a; 1 << 20]).unwrap();
    let into = format!("/proc/{}/root{path}", vol.inspect(".State.Pid"));
    crate::rig::sh(
        "dd",
        &[&format!("if={}", fresh.display()), &format!("of={into}"), "conv=notrunc,fsync", "seek=9"],
    );
    assert_eq!(sum("/data/b.img"), before, "a leg that is split off stays as it is");

    let output = outside(&["merge", "vol", "1"]);
    assert!(output.status.success(), "{}", said(&output));
    let output = outside(&["wait", "vol", "--timeout", "100"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "vol in_sync\n");
    let copied = vol.status()["legs"][1]["resynced_bytes"].as_u64().unwrap();
    assert!((1..=2 << 20).contains(&copied), "copied {copied}");
    assert!(outside(&["scrub", "vol", "--wait"]).status.success());

    // Another user is nobody to ask.
    let mut args = vec!["run", "--rm", "--user=65533", "--cap-drop=ALL", &control, runtime];
    args.extend(["--env=MIRRORD_STATE_DIR=/tmp/state", &image, "stop", "vol"]);
    assert!(!engine(&args).status.success());
    let output = outside(&["stop", "vol"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(vol.ended().0, "0");
    site.legs_are_equal();
}

#[test]
#[ignore = "tests/container/run runs it"]
fn its_health_is_that_of_the_daemon() {
    let site = Site::new("health");
    let check = |name: &str| engine(&["healthcheck", "run", name]).status.success();
    if !crate::engine::is_podman() {
        println!("SKIP: a health check by hand: podman's alone");
        return;
    }
    let idle = site.start("idle", &[], &["log", "serve", "--unix", "/tmp/socket", "--dir", "/tmp/logs"]);
    assert!(!check(&idle.name), "there is no volume");
    let vol = site.serve(&[], &[]);
    assert!(check(&vol.name));
    let health = vol.inspect(".State.Health.Status");
    assert_eq!(health, "healthy");
    // A degraded volume serves.
    vol.mirrord_ok(&["leg", "fail", "vol", "1"]);
    assert!(check(&vol.name));
    ok(&["kill", "--signal", "STOP", &vol.name]);
    assert!(!check(&vol.name), "a daemon that does not answer is not healthy");
    ok(&["kill", "--signal", "CONT", &vol.name]);
    assert!(check(&vol.name));
}

#[test]
#[ignore = "tests/container/run runs it"]
fn nothing_is_overwritten() {
    let site = Site::new("refused");
    let legs = site.volume("legs", "/data");
    let image = crate::engine::image();
    ok(&["run", "--rm", &legs, &image, "--version"]);
    let fill =
        "head -c 70000000 /dev/urandom >/data/a.img; cp /data/a.img /data/b.img; sha256sum /data/a.img";
    let before = site.shell_ok(USER, &[&legs], fill);
    let flags = [&LEAST[..], &[&legs]].concat();
    let (code, said) = site.start("data", &flags, &SERVE).ended();
    assert_eq!(code, "1", "{said}");
    assert!(said.contains("both hold data") && said.contains("--source"), "{said}");
    assert_eq!(site.shell_ok(USER, &[&legs], "sha256sum /data/a.img"), before);

    // A volume whose legs are not there is not made anew.
    site.shell_ok(USER, &[&legs], "rm /data/a.img /data/b.img");
    let vol = site.serve(&[], &[]);
    let uuid = vol.status()["uuid"].clone();
    assert_eq!(vol.stop(), "0");
    site.shell_ok(USER, &[&legs], "cd /data; for leg in a b; do mv $leg.img $leg.away; done");
    ok(&["start", &vol.name]);
    let (code, said) = vol.ended();
    assert!(code == "1" && said.contains("it is known"), "{said}");
    site.shell_ok(USER, &[&legs], "cd /data; for leg in a b; do mv $leg.away $leg.img; done");
    vol.start_again();
    assert_eq!(vol.status()["uuid"], uuid);
}
