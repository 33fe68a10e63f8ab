//! What happens to a volume, as those who follow it see it, and the hook that is run for each event.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::rig::{Rig, can_serve, is_root, sh, try_sh, until};
use crate::snapshot::{error_of, refused};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// Whether volumes can be served here; prints the skip if not.
fn fuse() -> bool {
    can_serve("events of a running volume")
}

/// A running `mirrord events v --json`.
struct Follower {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    fn new(rig: &Rig, since: &str) -> Follower {
        let mut command = rig.command(&["events", "v", "--json", "--since", since]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Follower { child, lines }
    }

    /// The next event; waits for it.
    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Events up to one of this name.
    fn until(&mut self, name: &str) -> Vec<Value> {
        let mut events = vec![self.next()];
        while events[events.len() - 1]["event"] != name {
            events.push(self.next());
        }
        events
    }

    /// Waits for its end: exit code and standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut error = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        (self.child.wait().unwrap().code(), error)
    }
}

/// What an event says, in short.
fn short(event: &Value) -> String {
    let word = |key: &str| event[key].as_str().unwrap_or("-").to_owned();
    match event["event"].as_str().unwrap() {
        "leg_state" => format!("leg {} {} {} {}", event["leg"], word("from"), word("to"), word("reason")),
        "volume_state" => format!("volume {} {}", word("from"), word("to")),
        name => name.to_owned(),
    }
}

fn shorts(events: &[Value]) -> Vec<String> {
    events.iter().map(short).collect()
}

/// Without errors that were counted: how many are told of at a time is a matter of time.
fn without_errors(events: &[Value]) -> Vec<String> {
    shorts(events).into_iter().filter(|event| event != "io_errors").collect()
}

#[test]
fn a_life_in_events() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &[]);
    let mut follower = Follower::new(&rig, "0");
    let started = follower.next();
    assert_eq!((&started["event"], &started["state"]), (&"started".into(), &"in_sync".into()));
    assert_eq!((&started["volume"], &started["uuid"]), (&"v".into(), &rig.status()["uuid"]));
    assert_eq!(started["device"], rig.volume().to_str().unwrap());
    let time = started["time"].as_str().unwrap();
    assert!(time.len() == 27 && time.ends_with('Z') && &time[10..11] == "T", "{time}");
    rig.ok(&["stop", "v"]);
    let stopping = follower.next();
    assert_eq!((&stopping["event"], &stopping["handed_over"]), (&"stopping".into(), &false.into()));
    assert_eq!(stopping["sequence"].as_u64(), started["sequence"].as_u64().map(|number| number + 1));
    assert_eq!(follower.end(), (Some(0), String::new()));

    // Without one leg, and with it again.
    fs::rename(rig.path("b"), rig.path("away")).unwrap();
    rig.ok(&["start", "v", "--degraded"]);
    let volume = File::options().write(true).open(rig.volume()).unwrap();
    volume.write_all_at(&[7; 4096], 0).unwrap();
    drop(volume);
    let mut follower = Follower::new(&rig, &stopping["sequence"].to_string());
    let missed = follower.next();
    assert_eq!((&missed["event"], &missed["events"]), (&"missed".into(), &Value::Null), "another daemon's");
    assert_eq!(follower.next()["state"], "degraded");
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("away"), rig.path("b")).unwrap();
    rig.ok(&["start", "v"]);
    rig.wait();
    let mut follower = Follower::new(&rig, "0");
    let events = follower.until("resync_finished");
    let words = ["started", "resync_started", "leg 1 syncing in_sync -", "volume resyncing in_sync"];
    assert_eq!(shorts(&events), [&words[..], &["resync_finished"]].concat());
    assert_eq!((&events[4]["complete"], &events[4]["copied_regions"]), (&true.into(), &1.into()));
    assert_eq!(events[2]["path"], rig.path("b").to_str().unwrap());

    // Only what is new, for people.
    let since = events[3]["sequence"].to_string();
    let mut people = rig.command(&["events", "v", "--since", &since]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(people.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.ends_with("  v  resync finished, 1 regions copied\n"), "{line}");
    people.kill().unwrap();
    people.wait().unwrap();
    rig.kill_for_good();
    let (code, error) = follower.end();
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("cannot follow v") && error.contains("killed"), "{error}");
}

#[test]
fn a_leg_that_is_full_alone_fails_and_comes_back() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let Some(disk) = rig.file_system("disk", 96 * MIB) else { return };
    rig.create_of(["a", "disk/b"], "64MiB", &[]);
    let mut follower = Follower::new(&rig, "0");
    assert_eq!(short(&follower.next()), "started");
    let ballast = disk.join("ballast");
    // As much as there is, and then what is too little for a block more.
    try_sh("dd", &["if=/dev/zero", &format!("of={}", ballast.display()), "bs=64k"]);
    let volume = File::options().write(true).open(rig.volume()).unwrap();
    volume.write_all_at(&vec![9; 8 * MIB as usize], 0).unwrap();
    volume.sync_all().unwrap();
    let events = follower.until("volume_state");
    assert!(events[0]["leg"] == 1 && events[0]["writes"].as_u64() > Some(0), "{}", events[0]);
    assert_eq!(without_errors(&events), ["leg 1 in_sync failed no_space", "volume in_sync degraded"]);
    fs::remove_file(ballast).unwrap();
    let events = follower.until("resync_finished");
    assert_eq!(
        without_errors(&events),
        [
            "leg 1 failed syncing -",
            "volume degraded resyncing",
            "resync_started",
            "leg 1 syncing in_sync -",
            "volume resyncing in_sync",
            "resync_finished"
        ]
    );
    let last = &events[events.len() - 1];
    assert!(last["complete"] == true && last["copied_regions"].as_u64() > Some(0), "{last}");
    drop(volume);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "disk/b", 64 * MIB);
}

#[test]
fn followers_that_do_not_read_hold_up_nobody() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &[]);
    let ask = || {
        let mut stream = UnixStream::connect(rig.path("run/v.sock")).unwrap();
        stream.write_all(b"{\"verb\":\"events\",\"since\":0}\n").unwrap();
        stream
    };
    let mut first = BufReader::new(ask());
    let mut line = String::new();
    first.read_line(&mut line).unwrap();
    assert!(line.contains(r#""answer":"event""#) && line.contains(r#""event":"started""#), "{line}");
    let deaf: Vec<UnixStream> = (0..7).map(|_| ask()).collect();
    // All eight are there once they were sent something.
    deaf.iter().for_each(|mut stream| assert_eq!(stream.read(&mut [0]).unwrap(), 1));
    let output = rig.run(&["events", "v"]);
    error_of(&["events", "v"], &output, 1, &["cannot follow v", "8 others"]);
    assert_eq!(rig.status()["state"], "in_sync");
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", rig.status()["pid"])).unwrap().flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.trim() == "mirrord-client").count()
    };
    until("only they are left", || threads() == 8);
    drop(deaf);
    until("those that went left nothing behind", || threads() == 1);
    rig.ok(&["stop", "v"]);
}

/// An executable script in the rig. Written by another process: this one may hand the open file to programs that other
/// tests run, and it could not be run itself meanwhile.
fn script(rig: &Rig, name: &str, text: &str) -> PathBuf {
    let path = rig.path(name);
    let mut shell = Command::new("sh");
    shell.args(["-c", "cat > \"$0\"; chmod +x \"$0\"", path.to_str().unwrap()]).stdin(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let text = format!("#!/bin/sh\ncd {}\n{text}\n", rig.path("").display());
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
    path
}

#[test]
fn a_hook_is_run_for_each_event() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let text = "echo \"$1 $2 $# $MIRRORD_EVENT $MIRRORD_VOLUME $MIRRORD_STATE $MIRRORD_HANDED_OVER\" >> said\n\
                cat >> json; echo noise; cat /proc/self/oom_score_adj > score\n\
                for fd in /proc/$$/fd/*; do readlink $fd; done > descriptors";
    let hook = script(&rig, "hook", text);
    let hook = hook.to_str().unwrap();
    rig.create("4M", &["--event-hook", hook]);
    rig.ok(&["stop", "v"]);
    let lines = |name: &str| {
        let text = fs::read_to_string(rig.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let both = ["started v 2 started v in_sync ", "stopping v 2 stopping v  false"];
    assert_eq!(lines("said"), both, "the end waited for the hook");
    let events: Vec<Value> = lines("json").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(shorts(&events), ["started", "stopping"]);
    assert!(lines("score")[0].parse::<i32>().unwrap() >= 0, "as mortal as any");
    let output = rig.path("descriptors");
    let own = ["/dev/null", "/memfd", hook, output.to_str().unwrap()];
    let inherited = |path: &&String| !own.iter().any(|own| path.starts_with(own));
    let descriptors = lines("descriptors");
    assert_eq!(descriptors.iter().find(inherited), None, "of {descriptors:?}");

    // As before, until it is said otherwise.
    rig.ok(&["start", "v"]);
    rig.ok(&["stop", "v"]);
    assert_eq!(lines("said").len(), 4);
    rig.ok(&["start", "v", "--event-hook", "none"]);
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    rig.ok(&["stop", "v"]);
    assert_eq!(lines("said").len(), 4);

    // One that is gone by now is no reason not to serve.
    rig.ok(&["start", "v", "--event-hook", hook]);
    rig.ok(&["stop", "v"]);
    fs::remove_file(hook).unwrap();
    let output = rig.run(&["start", "v"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && error.contains("note: --event-hook"), "{error}");
}

#[test]
fn a_hook_that_hangs_holds_up_no_io_and_the_end_not_for_long() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let hook = script(&rig, "hook", "echo $$ >> pids; sleep 100000");
    let log = format!("file:{}", rig.path("log").display());
    rig.create("4M", &["--event-hook", hook.to_str().unwrap(), "--log-to", &log]);
    until("the hook runs", || rig.path("pids").exists());
    let volume = File::options().write(true).open(rig.volume()).unwrap();
    volume.write_all_at(&[1; 4096], 0).unwrap();
    volume.sync_all().unwrap();
    drop(volume);
    // Were it waited for, this would take longer than any test may.
    rig.ok(&["stop", "v"]);
    let pid = fs::read_to_string(rig.path("pids")).unwrap();
    let pid = pid.lines().next().unwrap();
    until("the hook is killed", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), None | Some('Z' | 'X'))
    });
    let log = fs::read_to_string(rig.path("log")).unwrap();
    assert!(log.contains("killed after") && log.contains("missed events at the end"), "{log}");
    rig.assert_same("a", "b", 4 * MIB);
}

#[test]
fn what_is_no_hook() {
    let rig = Rig::new();
    fs::write(rig.path("plain"), "text").unwrap();
    let plain = rig.path("plain");
    let with = |hook: &str| {
        let create = ["create", "--legs", "a", "b", "--size", "1M", "--event-hook", hook];
        create.map(str::to_owned)
    };
    let refused = |hook: &str, words: &[&str]| {
        let args = with(hook);
        refused(&rig, &args.each_ref().map(String::as_str), 2, words)
    };
    refused("hook", &["--event-hook hook", "whole path"]);
    refused("/nix/nowhere", &["--event-hook /nix/nowhere", "No such file"]);
    refused(rig.path("").to_str().unwrap(), &["it is no file"]);
    refused(plain.to_str().unwrap(), &["cannot be run", "Permission denied"]);
    if !fuse() {
        return;
    }
    rig.create("4M", &[]);
    rig.ok(&["stop", "v"]);
    crate::snapshot::refused(&rig, &["start", "v", "--event-hook", "hook"], 2, &["whole path"]);
    if is_root() {
        sh("chmod", &["755", plain.to_str().unwrap()]);
        rig.ok(&["start", "v", "--event-hook", plain.to_str().unwrap()]);
    }
}

#[test]
fn volumes_that_cannot_be_followed() {
    let rig = Rig::new();
    refused(&rig, &["events", "nix"], 1, &["cannot follow nix", "there is no volume"]);
    if !fuse() {
        return;
    }
    rig.create("1M", &[]);
    rig.ok(&["stop", "v"]);
    refused(&rig, &["events", "v"], 1, &["cannot follow v", "not running", "mirrord start v"]);
    let output = rig.run(&["events", "v", "--since", "x"]);
    assert_eq!(output.status.code(), Some(2));
}
