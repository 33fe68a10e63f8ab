//! What `make install` puts where, and that systemd and udev understand it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::rig::{Rig, have, is_root, sh, try_sh, until};

const BINARY: &str = env!("CARGO_BIN_EXE_mirrord");

/// Runs `make install` with these variables; false with a printed reason where there is no make.
fn install(variables: &[(&str, &Path)]) -> bool {
    if !have("make", "make install") {
        return false;
    }
    let mut make = Command::new("make");
    make.args(["-C", env!("CARGO_MANIFEST_DIR"), "install", &format!("BINARY={BINARY}")]);
    make.args(variables.iter().map(|(name, value)| format!("{name}={}", value.display())));
    let output = make.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    true
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// All files below a folder, relative to it.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => drop(found.insert(entry.path().strip_prefix(folder).unwrap().to_owned())),
            }
        }
    }
    found
}

/// Runs a tool that must have nothing to say.
fn silent(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success() && said(&output).trim().is_empty(), "{command:?}: {}", said(&output));
}

#[test]
fn everything_is_installed_where_it_is_looked_for() {
    let rig = Rig::new();
    let root = rig.path("root");
    if !install(&[("DESTDIR", &root), ("PREFIX", Path::new("/usr"))]) {
        return;
    }
    let files = files(&root);
    for file in [
        "bin/mirrord",
        "lib/systemd/system/mirrord@.service",
        "lib/systemd/user/mirrord@.service",
        "lib/systemd/system/mirrord-log.service",
        "lib/systemd/user/mirrord-log.service",
        "lib/udev/rules.d/60-mirrord-ublk.rules",
        "lib/tmpfiles.d/mirrord.conf",
        "share/man/man1/mirrord.1",
        "share/man/man1/mirrord-doctor.1",
        "share/man/man1/mirrord-log-serve.1",
        "share/bash-completion/completions/mirrord",
        "share/zsh/site-functions/_mirrord",
        "share/fish/vendor_completions.d/mirrord.fish",
    ] {
        assert!(files.contains(&Path::new("usr").join(file)), "{file} of {files:?}");
    }
    assert!(files.iter().all(|file| file.starts_with("usr")));
    let output = try_sh(root.join("usr/bin/mirrord").to_str().unwrap(), &["--version"]);
    assert!(output.status.success());
}

#[test]
fn units_and_rules_name_the_program_where_it_is() {
    let rig = Rig::new();
    let root = rig.path("root");
    if !install(&[("DESTDIR", &root)]) {
        return;
    }
    let root = root.join("usr/local");
    for (file, count) in [
        ("lib/systemd/system/mirrord@.service", 2),
        ("lib/systemd/user/mirrord@.service", 2),
        ("lib/systemd/system/mirrord-log.service", 2),
        ("lib/systemd/user/mirrord-log.service", 2),
        ("lib/udev/rules.d/60-mirrord-ublk.rules", 1),
    ] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        assert_eq!(text.matches("/usr/local/bin/mirrord ").count(), count, "{file}");
        assert!(!text.contains("/usr/bin/mirrord"), "{file}");
    }
}

#[test]
fn systemd_understands_the_units() {
    let rig = Rig::new();
    let prefix = rig.path("prefix");
    if !have("systemd-analyze", "systemd units") || !install(&[("PREFIX", &prefix)]) {
        return;
    }
    let analyze = || {
        let mut command = Command::new("systemd-analyze");
        command.args(["verify", "--man=no"]).env("XDG_RUNTIME_DIR", rig.path("run"));
        command
    };
    for unit in ["mirrord@.service", "mirrord-log.service"] {
        silent(analyze().arg(prefix.join("lib/systemd/system").join(unit)));
        silent(analyze().arg("--user").arg(prefix.join("lib/systemd/user").join(unit)));
    }

    // The line for fstab makes no circle of services and mounts.
    let generator = "/usr/lib/systemd/system-generators/systemd-fstab-generator";
    if !Path::new(generator).exists() {
        println!("SKIP: the line for fstab: systemd has no generator here");
        return;
    }
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/README.md")).unwrap();
    let line = readme.lines().find(|line| line.starts_with("/run/mirrord/vol.img")).unwrap();
    for (line, circle) in [(line.to_owned(), false), (line.replace("_netdev,nofail,", ""), true)] {
        let folders = ["generated", "early", "late"].map(|name| rig.path(name));
        for folder in &folders {
            let _ = fs::remove_dir_all(folder);
            fs::create_dir(folder).unwrap();
        }
        fs::write(rig.path("fstab"), format!("{line}\n")).unwrap();
        let mut generate = Command::new(generator);
        assert!(generate.args(&folders).env("SYSTEMD_FSTAB", rig.path("fstab")).status().unwrap().success());
        let units = [&folders[0], &prefix.join("lib/systemd/system"), Path::new("/usr/lib/systemd/system")];
        let units = std::env::join_paths(units).unwrap();
        let names = ["mnt-vol.mount", "multi-user.target", "mirrord@vol.service"];
        let output = analyze().args(names).env("SYSTEMD_UNIT_PATH", &units).output().unwrap();
        assert_eq!(said(&output).contains("ordering cycle"), circle, "{line}: {}", said(&output));
    }
}

#[test]
fn udev_understands_the_rule() {
    let rule = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/udev/60-mirrord-ublk.rules");
    let knows = try_sh("sh", &["-c", "udevadm verify --help"]).status.success();
    if !knows {
        println!("SKIP: udev rules: need udevadm of systemd 254 or newer");
        return;
    }
    let output = try_sh("udevadm", &["verify", rule.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
}

/// A unit whose sandbox is tried.
struct Sandbox<'a> {
    rig: &'a Rig,
    unit: String,
}

impl Sandbox<'_> {
    /// `None` with a printed reason where that cannot be tried.
    fn of<'a>(rig: &'a Rig, unit: &str) -> Option<Sandbox<'a>> {
        if !is_root() || fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
            println!("SKIP: the unit's sandbox: needs root and /dev/fuse");
            return None;
        }
        if !have("strace", "the unit's sandbox") || !have("systemd-analyze", "the unit's sandbox") {
            return None;
        }
        let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd").join(unit);
        Some(Sandbox { rig, unit: fs::read_to_string(unit).unwrap() })
    }

    fn value(&self, key: &str) -> &str {
        self.unit.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap()
    }

    /// Starts a daemon with the rights that the unit leaves it.
    fn start(&self, args: &[&str]) -> std::process::Child {
        let bounding: Vec<String> = self
            .value("CapabilityBoundingSet")
            .split(' ')
            .map(|name| format!("+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()))
            .collect();
        let command = self.rig.command(&[]);
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-e", "signal=none", "-o"]).arg(self.rig.path("trace"));
        traced.args(["setpriv", "--no-new-privs", "--inh-caps=-all"]);
        traced.arg(format!("--bounding-set=-all,{}", bounding.join(",")));
        traced.arg(command.get_program()).args(args);
        for (name, value) in command.get_envs() {
            traced.env(name, value.unwrap());
        }
        traced.current_dir(self.rig.path("")).stdin(Stdio::null()).stdout(Stdio::null());
        traced.spawn().unwrap()
    }

    /// That it made no system call that the unit's filter refuses.
    fn was_large_enough(&self) {
        let mut allowed = BTreeSet::new();
        let mut groups: Vec<String> = self.value("SystemCallFilter").split(' ').map(str::to_owned).collect();
        while let Some(group) = groups.pop() {
            for line in sh("systemd-analyze", &["syscall-filter", &group]).lines().map(str::trim) {
                match line.chars().next() {
                    None | Some('#') => {}
                    Some('@') if line != group => groups.push(line.to_owned()),
                    _ => drop(allowed.insert(line.to_owned())),
                }
            }
        }
        let trace = fs::read_to_string(self.rig.path("trace")).unwrap();
        let call = |line: &str| {
            let (_, call) = line.split_once(' ')?;
            let (name, _) = call.trim_start().split_once('(')?;
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then(|| name.to_owned())
        };
        let used: BTreeSet<String> = trace.lines().filter_map(call).collect();
        assert!(used.len() > 40, "traced only {used:?}");
        let refused: Vec<&String> = used.difference(&allowed).collect();
        assert!(refused.is_empty(), "the unit's filter refuses {refused:?}");
        let both = trace.lines().find(|line| line.contains("PROT_EXEC") && line.contains("PROT_WRITE"));
        assert_eq!(both, None, "memory that can be written and executed");
    }
}

#[test]
fn the_units_sandbox_has_room_for_a_daemon() {
    let rig = Rig::new();
    let Some(sandbox) = Sandbox::of(&rig, "mirrord@.service") else { return };
    let legs =
        ["create", "--legs", "a", "b", "--size", "8M", "--name", "v", "--mount", "vol", "--foreground"];
    let mut daemon = sandbox.start(&legs);
    until("the volume is served", || rig.run(&["status", "v"]).status.success());
    let volume = rig.path("vol");
    sh(
        "dd",
        &["if=/dev/urandom", &format!("of={}", volume.display()), "bs=1M", "count=8", "conv=notrunc,fsync"],
    );
    sh("fallocate", &["-p", "-l", "1M", volume.to_str().unwrap()]);
    rig.ok(&["stop", "v"]);
    assert!(daemon.wait().unwrap().success());
    sandbox.was_large_enough();
}

#[test]
fn the_log_servers_sandbox_has_room_for_it() {
    use mirrord_log::wire::{LogName, Request, encode_request};
    use std::io::{Read, Write};
    let rig = Rig::new();
    let Some(sandbox) = Sandbox::of(&rig, "mirrord-log.service") else { return };
    let mut daemon = sandbox.start(&["log", "serve", "--unix", "s", "--tcp", "127.0.0.1:0", "--dir", "logs"]);
    until("logs are served", || rig.run(&["log", "status", "--server"]).status.success());
    let mut stream = std::os::unix::net::UnixStream::connect(rig.path("s")).unwrap();
    let text = b"1024 disk v.log 64";
    for request in [Request::Ctr { text, again: false }, Request::Resume, Request::Postsuspend, Request::Dtr]
    {
        let mut bytes = Vec::new();
        encode_request(LogName { uuid: b"u", luid: 1 }, 1, &request, &mut bytes);
        stream.write_all(&bytes).unwrap();
        let mut answer = [0; 160];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[144..148], [0; 4], "{request:?}");
    }
    rig.ok(&["log", "stop"]);
    assert!(daemon.wait().unwrap().success());
    sandbox.was_large_enough();
}
