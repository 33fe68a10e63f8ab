//! `mirrord doctor` on this machine, as whoever runs the tests, as nobody, and where io_uring is forbidden.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::data::fuse;
use crate::rig::{Rig, binary, everybody_may_use_fuse, have, is_root, is_ublk, try_sh};
use crate::snapshot::Snapshot;

/// The findings by check, of a run that must have printed a list that makes sense.
fn findings(output: &Output) -> BTreeMap<String, Value> {
    let list: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list.last().unwrap()["check"], "verdict");
    for finding in &list {
        let state = finding["state"].as_str().unwrap();
        assert!(["ok", "limited", "missing"].contains(&state), "{finding}");
        assert!(["found", "why"].iter().all(|key| !finding[key].as_str().unwrap().is_empty()), "{finding}");
        assert_eq!(finding["remedy"].is_null(), state == "ok", "{finding}");
    }
    list.into_iter().map(|finding| (finding["check"].as_str().unwrap().to_owned(), finding)).collect()
}

/// Runs it as nobody, with directories of their own; `None` with a printed reason where that cannot be.
fn as_nobody(rig: &Rig, flags: &[&str]) -> Option<Output> {
    let binary = &binary();
    let user = [&["--reuid", "65534", "--regid", "65534", "--clear-groups"], flags].concat();
    if !is_root() || !try_sh("setpriv", &[&user[..], &["test", "-x", binary]].concat()).status.success() {
        println!("SKIP: doctor as nobody: needs root, and a build folder that nobody can reach");
        return None;
    }
    for path in [rig.path(""), rig.path("run"), rig.path("state")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let set = |name: &str, path: &str| format!("{name}={}", rig.path(path).display());
    let (run, state) = (set("MIRRORD_RUNTIME_DIR", "run/own"), set("MIRRORD_STATE_DIR", "state/own"));
    let (folder, command) = (rig.path(""), ["env", &run, &state, binary, "doctor", "--json"]);
    let args = [&user[..], &command, &[folder.to_str().unwrap()]].concat();
    Some(try_sh("setpriv", &args))
}

#[test]
fn doctor_says_how_it_is_here() {
    let rig = Rig::new();
    fs::write(rig.path("leg"), [7; 10000]).unwrap();
    let before = Snapshot::of(&rig);
    let output = rig.run(&["doctor", "--json", "leg", ".", "none"]);
    assert!(before == Snapshot::of(&rig), "it touched something");
    let found = findings(&output);
    let state = |check: &str| found[check]["state"].as_str().unwrap();
    assert_eq!(output.status.success(), state("verdict") == "ok");
    assert_eq!(state("leg none"), "missing");
    for leg in ["leg leg", "leg ."] {
        assert_ne!(state(leg), "missing");
        assert!(found[leg]["found"].as_str().unwrap().ends_with("free"), "{}", found[leg]);
    }
    if !Path::new("/sys/module/ublk_drv").exists() {
        assert_eq!(state("ublk control"), "missing");
        assert!(found["ublk driver"]["remedy"].is_string() || state("ublk driver") == "ok");
    }
    if fuse() {
        assert_eq!(state("fuse device"), "ok");
    }
    // What it says of io_uring is what a volume does.
    if state("verdict") == "ok" && fuse() {
        rig.create("4M", &[]);
        let engine = rig.status()["engine"].as_str().unwrap().to_owned();
        assert!(found["verdict"]["found"].as_str().unwrap().ends_with(&engine), "{engine}");
        let locked = rig.status()["hardening"]["memory_locked"].as_bool().unwrap();
        assert_eq!(locked, state("locked memory") == "ok");
    }
}

#[test]
fn doctor_speaks_to_people_too() {
    let rig = Rig::new();
    let output = rig.run(&["doctor"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty());
    let json: Vec<Value> = serde_json::from_slice(&rig.run(&["doctor", "--json"]).stdout).unwrap();
    for finding in &json {
        let (state, check) = (finding["state"].as_str().unwrap(), finding["check"].as_str().unwrap());
        // How wide the first column is depends on what is in it.
        let is_it =
            |line: &str| line.strip_prefix(state).is_some_and(|rest| rest.trim_start().starts_with(check));
        let line = text.lines().find(|line| is_it(line));
        assert!(
            line.is_some_and(|line| line.ends_with(finding["found"].as_str().unwrap())),
            "{check}: {text}"
        );
        if let Some(remedy) = finding["remedy"].as_str() {
            assert!(text.contains(&format!("  do:  {remedy}\n")), "{check}: {text}");
        }
    }
    assert!(text.lines().last().unwrap().contains("verdict"), "{text}");
}

#[test]
fn doctor_knows_a_plain_user() {
    let rig = Rig::new();
    let Some(output) = as_nobody(&rig, &[]) else { return };
    let found = findings(&output);
    for capability in ["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_IPC_LOCK"] {
        assert_eq!(found[capability]["state"], "limited", "{capability}");
    }
    assert!(found["verdict"]["found"].as_str().unwrap().contains("as user 65534"));
    assert!(found["runtime directory"]["found"].as_str().unwrap().ends_with("to be made"));
    assert!(!rig.path("run/own").exists());
    if fuse() && have("fusermount3", "doctor as nobody") && everybody_may_use_fuse("doctor as nobody") {
        assert!(found["fuse mount"]["found"].as_str().unwrap().ends_with("/fusermount3"), "{found:?}");
        assert!(output.status.success());
    }
}

/// As in a container that forbids it, where a helper is of no use.
#[test]
fn doctor_sees_that_a_setuid_helper_has_no_effect() {
    let rig = Rig::new();
    let Some(output) = as_nobody(&rig, &["--no-new-privs"]) else { return };
    let found = findings(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(found["verdict"]["state"], "missing");
    if have("fusermount3", "doctor where privileges cannot be gained") {
        assert!(found["fuse mount"]["remedy"].as_str().unwrap().contains("NoNewPrivileges"));
    }
}

#[test]
fn doctor_needs_its_directories() {
    let rig = Rig::new();
    for variable in ["MIRRORD_RUNTIME_DIR", "MIRRORD_STATE_DIR"] {
        let output = rig.command(&["doctor", "--json"]).env(variable, "/dev/null/x").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let found = findings(&output);
        let missing =
            ["runtime directory", "state directory"].map(|check| found[check]["state"] == "missing");
        assert_eq!(missing.into_iter().filter(|missing| *missing).count(), 1);
        assert!(found["verdict"]["found"].as_str().unwrap().contains("directory"));
    }
}

/// Runs a command under a filter that does to io_uring_setup what docker's default profile does.
const FILTER: &str = r#"
import ctypes, os, struct, sys
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if os.geteuid() != 0:
    libc.prctl(38, 1, 0, 0, 0)
if libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) != 0:
    sys.exit(77)
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
fn doctor_tells_a_filter_from_a_kernel_without_io_uring() {
    let rig = Rig::new();
    if !have("python3", "io_uring under a filter") {
        return;
    }
    let filtered = |args: &[&str]| {
        let mut command = std::process::Command::new("python3");
        command.args(["-c", FILTER, &binary()]).args(args).current_dir(rig.path(""));
        command.env("MIRRORD_RUNTIME_DIR", rig.path("run")).env("MIRRORD_STATE_DIR", rig.path("state"));
        command.output().unwrap()
    };
    let output = filtered(&["doctor", "--json"]);
    if output.status.code() == Some(77) {
        println!("SKIP: io_uring under a filter: filters cannot be set here");
        return;
    }
    let found = findings(&output);
    let io_uring = &found["io_uring"];
    assert_eq!(io_uring["state"], "limited");
    let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    if matches!(sysctl.trim(), "0" | "") {
        assert!(io_uring["found"].as_str().unwrap().contains("seccomp"), "{io_uring}");
        assert!(io_uring["remedy"].as_str().unwrap().contains("--security-opt"), "{io_uring}");
    }
    if fuse() && !is_ublk() && output.status.success() {
        let args = ["create", "--legs", "a", "b", "--size", "4M", "--name", "v", "--mount", "vol"];
        assert!(filtered(&args).status.success());
        assert_eq!(rig.status()["engine"], "threads");
        assert!(found["verdict"]["found"].as_str().unwrap().ends_with("threads"));
    }
}

#[test]
fn udev_is_told_owners_of_ublk_devices_only() {
    let rig = Rig::new();
    for name in ["sda", "ublk-control", "ublkb99999", "ublkc99999"] {
        let output = rig.run(&["udev-owner", name]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{name}");
    }
    assert!(!rig.ok(&["--help"]).contains("udev-owner"), "hidden");
}
