//! What the system lets the process have is checked before anything is touched, and is never a leg's fault; signals and
//! streams that mean nothing to a daemon do not end it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output, Stdio};

use crate::rig::{Rig, can_serve, sh};

const MIB: u64 = 1 << 20;

/// Runs the program by a shell that has done something first; `$@` is the program with these arguments.
fn run_after(rig: &Rig, before: &str, args: &[&str]) -> Output {
    let program = rig.command(args);
    let mut shell = Command::new("sh");
    shell.args(["-c", before, "sh"]).arg(program.get_program()).args(args);
    shell.envs(program.get_envs().filter_map(|(key, value)| Some((key, value?))));
    shell.current_dir(program.get_current_dir().unwrap()).stdin(Stdio::null()).output().unwrap()
}

fn refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
}

/// In blocks of 512 bytes, as `sh` counts.
fn with_file_limit(mib: u64) -> String {
    format!("ulimit -f {}; exec \"$@\"", mib * 2048)
}

#[test]
fn a_limit_of_file_sizes_is_told_before_anything_is_touched() {
    if !can_serve("a limit of file sizes") {
        return;
    }
    let rig = Rig::new();
    let words = ["leg", "ulimit -f unlimited", "process may write"];
    let create = ["create", "--legs", "a", "b", "--size", "16MiB", "--name", "v", "--mount", "vol"];
    refused(&run_after(&rig, &with_file_limit(8), &create), &words);
    assert!(!rig.path("a").exists() && !rig.path("b").exists());

    rig.create("16MiB", &["--log", "disk:log"]);
    rig.write(3, 7);
    rig.ok(&["stop", "v"]);
    refused(&run_after(&rig, &with_file_limit(8), &["start", "v"]), &words);
    // Enough for the volume, and not for one that is larger.
    assert!(run_after(&rig, &with_file_limit(20), &["start", "v"]).status.success());
    rig.refused(&["resize", "v", "--size", "64MiB"], &words);
    rig.refused(&["resize", "v", "--size", "32MiB"], &words);
    assert_eq!(rig.status()["state"], "in_sync");
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 16 * MIB);
}

/// Devices have no such limit, and the file that is to join them has.
#[test]
fn a_limit_of_file_sizes_is_told_when_a_leg_is_added() {
    if !can_serve("a limit of file sizes") {
        return;
    }
    let rig = Rig::new();
    let mut legs = Vec::new();
    for name in ["a", "b"] {
        File::create(rig.path(name)).unwrap().set_len(17 * MIB).unwrap();
        let Some(device) = rig.loop_device(&rig.path(name)) else { return };
        legs.push(device);
    }
    let create = ["create", "--legs", &legs[0], &legs[1], "--size", "16MiB", "--name", "v", "--mount", "vol"];
    let created = run_after(&rig, &with_file_limit(8), &create);
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    for add in [&["leg", "add", "v", "c"][..], &["leg", "add", "v", "c", "--spare"]] {
        rig.refused(add, &["leg", "ulimit -f unlimited", "process may write"]);
        assert!(!rig.path("c").exists());
    }
    rig.write(3, 7);
    assert_eq!(rig.status()["state"], "in_sync");
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 16 * MIB);
}

#[test]
fn too_few_descriptors_are_told_before_the_volume_is_served() {
    if !can_serve("a limit of open files") {
        return;
    }
    let rig = Rig::new();
    rig.create("16MiB", &[]);
    rig.ok(&["stop", "v"]);
    // Both limits: what may be had is had.
    let limited = |limit: &str| format!("ulimit -n {limit}; exec \"$@\"");
    refused(&run_after(&rig, &limited("64"), &["start", "v"]), &["64 files open", "ulimit -n", "--queues"]);
    let soft = "ulimit -S -n 64; exec \"$@\"";
    assert!(run_after(&rig, soft, &["start", "v"]).status.success());
    let pid = rig.status()["pid"].to_string();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
    rig.ok(&["stop", "v"]);
}

#[test]
fn stray_signals_end_no_daemon_in_the_background() {
    if !can_serve("stray signals") {
        return;
    }
    let rig = Rig::new();
    let volume = rig.create("16MiB", &[]);
    let pid = rig.status()["pid"].to_string();
    for signal in ["HUP", "USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "STKFLT", "PWR", "XFSZ", "PIPE"] {
        sh("kill", &[&format!("-{signal}"), &pid]);
        // Signals are delivered before the next call of any thread returns.
        let file = File::options().read(true).write(true).open(&volume).unwrap();
        file.write_all_at(signal.as_bytes(), 5 * MIB).unwrap();
        file.sync_all().unwrap();
        assert_eq!(rig.status()["pid"].to_string(), pid, "SIG{signal}");
        assert_eq!(rig.status()["state"], "in_sync", "SIG{signal}");
    }
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 16 * MIB);
}

#[test]
fn what_cannot_be_printed_is_done_all_the_same() {
    if !can_serve("standard output that is full") {
        return;
    }
    if !fs::exists("/dev/full").unwrap() {
        println!("SKIP: standard output that is full: no /dev/full");
        return;
    }
    let rig = Rig::new();
    let done = |output: &Output| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {said}", output.status);
        said
    };
    let full = "exec \"$@\" >/dev/full";
    let create = ["create", "--legs", "a", "b", "--size", "16MiB", "--name", "v", "--mount", "vol"];
    let said = done(&run_after(&rig, full, &create));
    assert!(said.contains("it is done, but standard output cannot be written: No space left"), "{said}");
    assert_eq!(rig.status()["state"], "in_sync");
    for args in [&["leg", "fail", "v", "b"][..], &["leg", "add", "v", "b"], &["stop", "v"]] {
        assert!(done(&run_after(&rig, full, args)).contains("it is done"), "{args:?}");
    }
    rig.refused(&["status", "v"], &["not running"]);
    // Neither stream, and a closed one.
    for streams in ["exec \"$@\" >/dev/full 2>/dev/full", "exec \"$@\" >&- 2>&-"] {
        done(&run_after(&rig, streams, &["start", "v"]));
        assert_eq!(rig.status()["state"], "in_sync");
        done(&run_after(&rig, streams, &["stop", "v"]));
    }
    // What is asked for is not there if it cannot be printed.
    let list = run_after(&rig, full, &["list"]);
    assert_eq!(list.status.code(), Some(1));
    let refused = run_after(&rig, "exec \"$@\" 2>/dev/full", &["start", "nothing"]);
    assert_eq!(refused.status.code(), Some(1));
}
