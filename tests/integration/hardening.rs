//! What protects a daemon, as the kernel sees it, how it ends, and what it tells its service manager.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::rig::{
    Rig, binary, can_serve, everybody_may_use_fuse, have, is_root, newest_slot, sh, try_sh, until,
};
use serde_json::Value;

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_RESOURCE: u32 = 24;

/// Whether volumes can be served here; prints the skip if not.
fn fuse() -> bool {
    can_serve("tests of a running daemon")
}

/// A field of `/proc/PID/status`.
fn field(pid: u64, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// Whether a process has a capability that counts for the whole machine.
fn capable(pid: u64, capability: u32) -> bool {
    let everywhere = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    let set = u64::from_str_radix(&field(pid, "CapEff"), 16).unwrap();
    everywhere.split_whitespace().last() == Some("4294967295") && set & (1 << capability) != 0
}

fn locked_kilobytes(pid: u64) -> u64 {
    field(pid, "VmLck").trim_end_matches(" kB").trim().parse().unwrap()
}

/// The limit of locked memory of a process, soft.
fn lockable(pid: u64) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_daemon_is_protected_as_far_as_it_may_be() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("4M", &["--log-to", &format!("file:{}", rig.path("log").display())]);
    let status = rig.status();
    let pid = status["pid"].as_u64().unwrap();
    let hardening = |key: &str| status["hardening"][key].as_bool().unwrap();

    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(hardening("oom_protected"), score.trim() == "-1000");
    assert_eq!(hardening("memory_locked"), locked_kilobytes(pid) > 0);
    if capable(pid, CAP_SYS_RESOURCE) {
        assert!(hardening("oom_protected") && hardening("io_flusher"), "{status}");
        // PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE, in every thread.
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap();
            let flags: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(6).unwrap().parse().unwrap();
            assert_eq!(flags & 0x0008_0000, 0x0008_0000, "{stat}");
        }
    } else {
        println!("SKIP: OOM score and IO flusher of a daemon: need CAP_SYS_RESOURCE");
    }
    if capable(pid, CAP_IPC_LOCK) || lockable(pid) == "unlimited" {
        assert!(hardening("memory_locked"), "{status}");
    } else {
        println!("SKIP: locked memory of a daemon: needs CAP_IPC_LOCK or no limit");
    }
    let log = fs::read_to_string(rig.path("log")).unwrap();
    let complaints = log.lines().filter(|line| line.contains("not protected fully")).count();
    let all = ["oom_protected", "memory_locked", "io_flusher"].into_iter().all(hardening);
    assert_eq!(complaints, usize::from(!all), "{log}");
}

#[test]
fn a_daemon_keeps_nothing_of_whoever_started_it() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    fs::write(rig.path("lock"), "").unwrap();
    let script = "exec 9<>lock 10<lock; exec \"$0\" create --legs a b --size 4M --name v --mount vol";
    let mut shell = Command::new("bash");
    shell.args(["-c", script, &binary()]).current_dir(rig.path("")).stdin(Stdio::null());
    shell.env("MIRRORD_RUNTIME_DIR", rig.path("run")).env("MIRRORD_STATE_DIR", rig.path("state"));
    assert!(shell.output().unwrap().status.success());
    let pid = rig.status()["pid"].as_u64().unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let target = fs::read_link(entry.path()).unwrap_or_default();
        assert_ne!(target, rig.path("lock"), "descriptor {number} was inherited");
        // A program that the daemon runs inherits nothing either.
        if let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))
            && number > 2
        {
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
            assert_ne!(flags & 0o2_000_000, 0, "{number}: {} is not closed on exec", target.display());
            seen += 1;
        }
    }
    assert!(seen > 4, "saw {seen} descriptors");
}

/// Locking memory under a limit would make later mappings fail: it must be left alone, and all work.
#[test]
fn a_small_limit_of_locked_memory_hurts_nobody() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    for path in [rig.path(""), rig.path("run"), rig.path("state")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let script = r#"
        cd "$1"; export MIRRORD_RUNTIME_DIR=$1/run/nobody MIRRORD_STATE_DIR=$1/state/nobody
        ulimit -l 64; ulimit -Hl 64
        "$0" create --legs a b --size 32M --name v --mount vol >&2 || exit 1
        dd if=/dev/urandom of=vol bs=1M count=16 conv=notrunc,fsync status=none || exit 1
        "$0" status v --json
        pid=$("$0" status v --json | tr -d ' ,' | sed -n 's/^"pid":\([0-9]*\)$/\1/p')
        grep VmLck "/proc/$pid/status" >&2
        "$0" stop v >&2"#;
    let binary = &binary();
    let folder = rig.path("");
    let mut args = vec!["bash", "-c", script, binary, folder.to_str().unwrap()];
    if is_root() {
        let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
        if !try_sh(user[0], &[&user[1..], &["test", "-x", binary]].concat()).status.success() {
            println!("SKIP: a limit of locked memory: nobody cannot reach the build folder");
            return;
        }
        if !everybody_may_use_fuse("a limit of locked memory") {
            return;
        }
        args.splice(0..0, user);
    }
    let output = try_sh(args[0], &args[1..]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["hardening"]["memory_locked"], false);
    assert!(said.contains("VmLck:\t       0 kB"), "{said}");
}

#[test]
fn a_background_daemon_ends_cleanly_by_a_signal() {
    if !fuse() {
        return;
    }
    for signal in ["-TERM", "-INT"] {
        let rig = Rig::new();
        rig.create("4M", &[]);
        let pid = rig.status()["pid"].as_u64().unwrap();
        sh("kill", &[signal, &pid.to_string()]);
        until("the daemon is gone", || !Path::new(&format!("/proc/{pid}/fd/0")).exists());
        assert!(!rig.path("run/v.sock").exists() && !rig.path("vol").exists());
        let report: Value = serde_json::from_str(&rig.ok(&["inspect", "a", "--json"])).unwrap();
        assert_eq!(newest_slot(&report)["clean"], true, "{signal}");
        assert_eq!(report["log"]["dirty_regions"], 0, "{signal}");
    }
}

#[test]
fn nohup_keeps_its_meaning() {
    if !fuse() || !have("nohup", "a daemon without a terminal") {
        return;
    }
    let rig = Rig::new();
    let mut command = Command::new("nohup");
    command.args([&binary(), "create", "--legs", "a", "b", "--size", "4M", "--name", "v"]);
    command.args(["--foreground"]).current_dir(rig.path("")).stdin(Stdio::null());
    command.env("MIRRORD_RUNTIME_DIR", rig.path("run")).env("MIRRORD_STATE_DIR", rig.path("state"));
    let mut daemon = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    sh("kill", &["-HUP", &daemon.id().to_string()]);
    assert_eq!(rig.status()["pid"], daemon.id());
    rig.ok(&["stop", "v"]);
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_service_manager_is_told() {
    if !fuse() {
        return;
    }
    for (signal, name) in [(true, "notify"), (false, "@abstract")] {
        let rig = Rig::new();
        let (socket, name) = match name.strip_prefix('@') {
            None => (UnixDatagram::bind(rig.path(name)).unwrap(), rig.path(name).display().to_string()),
            Some(_) => {
                use std::os::linux::net::SocketAddrExt;
                let name = format!("mirrord-test-{}", std::process::id());
                let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
                (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
            }
        };
        socket.set_read_timeout(Some(std::time::Duration::from_secs(120))).unwrap();
        let hear = || {
            let mut text = [0; 512];
            let len = socket.recv(&mut text).unwrap();
            String::from_utf8_lossy(&text[..len]).into_owned()
        };
        let args = ["create", "--legs", "a", "b", "--size", "4M", "--name", "v", "--foreground"];
        let mut command = rig.command(&args);
        command.env("NOTIFY_SOCKET", &name).stdout(Stdio::null()).stderr(Stdio::null());
        let mut daemon = command.spawn().unwrap();
        let ready = hear();
        assert!(ready.starts_with("READY=1\nSTATUS=serving /"), "{ready}");
        assert_eq!(rig.status()["pid"], daemon.id(), "ready means that it can be used");
        match signal {
            true => drop(sh("kill", &["-TERM", &daemon.id().to_string()])),
            false => drop(rig.ok(&["stop", "v"])),
        }
        assert_eq!(hear(), "STOPPING=1");
        assert!(daemon.wait().unwrap().success());
        // A daemon in the background is nobody's to supervise.
        socket.set_nonblocking(true).unwrap();
        while socket.recv(&mut [0; 512]).is_ok() {}
        let started = rig.command(&["start", "v"]).env("NOTIFY_SOCKET", &name).output().unwrap();
        assert!(started.status.success());
        rig.ok(&["stop", "v"]);
        assert!(socket.recv(&mut [0; 512]).is_err());
    }
}
