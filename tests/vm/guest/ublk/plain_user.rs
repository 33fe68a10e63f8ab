//! A user without privilege has a block device, where the administrator installed the udev rule.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::{Command, Output};

use super::{MIB, pause};
use crate::devices::{load, run_udev};
use crate::rig::{sh, until};
const HOME: &str = "/test/user";
const SIZE: u64 = 48 * MIB;

pub(crate) fn has_a_block_device() {
    load(&["ublk_drv"]);
    fs::create_dir(HOME).unwrap();
    chown(HOME, Some(1000), Some(1000)).unwrap();
    // Without the rule the way out is said, and a file is served.
    let doctor = as_user(&["mirrord", "doctor"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    println!("{said}");
    assert!(said.contains("udev"), "{said}");
    let said = fails(&[
        "mirrord", "create", "--legs", "a", "b", "--size", "48MiB", "--name", "v", "--front", "ublk",
    ]);
    assert!(said.contains("udev rule"), "{said}");

    run_udev();
    until("users may ask for devices", || as_user(&["test", "-w", "/dev/ublk-control"]).status.success());
    println!("{}", String::from_utf8_lossy(&as_user(&["mirrord", "doctor"]).stdout));
    ok(&["mirrord", "create", "--legs", "a", "b", "--size", "48MiB", "--name", "v", "--front", "ublk"]);
    let first = device();
    let node = fs::metadata(&first).unwrap();
    assert_eq!((node.uid(), node.gid(), node.mode() & 0o777), (1000, 1000, 0o600));
    load_by_user(&first);

    // It goes with its daemon, and users are told so.
    let mut fio = Command::new("setpriv");
    let mut fio = fio
        .args(USER)
        .arg("fio")
        .args(load_of(&first))
        .args(["--time_based", "--runtime=120"])
        .spawn()
        .unwrap();
    pause(1000);
    let pid = daemon();
    sh("kill", &["-9", &pid]);
    assert!(!fio.wait().unwrap().success(), "fio goes on without a device");
    until("the device is gone", || !Path::new(&first).exists());
    ok(&["mirrord", "start", "v"]);
    let second = device();
    load_by_user(&second);
    ok(&["mirrord", "wait", "v", "--timeout", "300"]);
    let said = fails(&["mirrord", "upgrade", "v"]);
    assert!(said.contains("without privilege"), "{said}");
    load_by_user(&second);
    ok(&["mirrord", "stop", "v"]);
    sh("cmp", &["-n", &SIZE.to_string(), &format!("{HOME}/a"), &format!("{HOME}/b")]);
}

const USER: [&str; 5] = ["--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all", "--"];

fn as_user(words: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args(USER).args(words).current_dir(HOME).env("HOME", HOME);
    command
        .env("MIRRORD_RUNTIME_DIR", format!("{HOME}/run"))
        .env("MIRRORD_STATE_DIR", format!("{HOME}/state"));
    command.output().unwrap()
}

fn ok(words: &[&str]) -> String {
    let output = as_user(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(words: &[&str]) -> String {
    let output = as_user(words);
    assert!(!output.status.success(), "{words:?}");
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    println!("{said}");
    said
}

fn status() -> serde_json::Value {
    serde_json::from_str(&ok(&["mirrord", "status", "v", "--json"])).unwrap()
}

fn device() -> String {
    let status = status();
    assert_eq!(status["front"], "ublk", "{}", status["front_note"]);
    status["device"].as_str().unwrap().to_owned()
}

fn daemon() -> String {
    status()["pid"].to_string()
}

fn load_of(device: &str) -> Vec<String> {
    super::verified(device, 1, 8 * MIB, &[])
}

fn load_by_user(device: &str) {
    let args = load_of(device);
    ok(&[&["fio"], &args.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
}
