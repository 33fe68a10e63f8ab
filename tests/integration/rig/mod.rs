//! What tests of the real binary share: a folder with its own runtime and state directories, the
//! binary run in it, and everything taken down at the end, whatever happened.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a module of test binaries")]

pub mod log_server;
pub mod way;
pub mod yaml;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::Value;

/// A folder on the real disk in which volumes live.
pub struct Rig {
    dir: tempfile::TempDir,
    /// Undone in reverse order at the end: command lines.
    undo: std::cell::RefCell<Vec<Vec<String>>>,
}

impl Rig {
    /// In `MIRRORD_TEST_DIR`, or in the folder that the build has for tests.
    pub fn new() -> Rig {
        let parent = std::env::var("MIRRORD_TEST_DIR").unwrap_or(env!("CARGO_TARGET_TMPDIR").to_owned());
        let dir = tempfile::Builder::new().prefix("rig-").tempdir_in(parent).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        Rig { dir, undo: Default::default() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary with these arguments, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("MIRRORD_RUNTIME_DIR", self.path("run")).env("MIRRORD_STATE_DIR", self.path("state"));
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it and expects success; gives its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "mirrord {args:?}: {}: {error}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it and expects that it is refused with these words.
    pub fn refused(&self, args: &[&str], words: &[&str]) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "mirrord {args:?} was done");
        for word in words {
            assert!(said.contains(word), "{args:?}: {said}");
        }
    }

    /// Writes a MiB of the volume `v` with this byte, durably.
    pub fn write(&self, mib: u64, byte: u8) {
        let file = fs::File::options().write(true).open(self.volume()).unwrap();
        file.write_all_at(&vec![byte; 1 << 20], mib << 20).unwrap();
        file.sync_all().unwrap();
    }

    /// Creates the volume `v` of legs `a` and `b` with the front end under test: FUSE mounts it on `vol`. Gives
    /// its path.
    pub fn create(&self, size: &str, more: &[&str]) -> PathBuf {
        self.create_of(["a", "b"], size, more)
    }

    /// The same of other legs.
    pub fn create_of(&self, legs: [&str; 2], size: &str, more: &[&str]) -> PathBuf {
        let mut args = vec!["create", "--legs", legs[0], legs[1], "--size", size, "--name", "v"];
        args.extend(if is_ublk() { ["--front", "ublk"] } else { ["--mount", "vol"] });
        args.extend(more);
        self.ok(&args);
        self.volume()
    }

    /// The same of any number of legs, with regions of 1 MiB and a log of this kind; one on disk is the file `log`.
    pub fn create_with_log(&self, legs: &[&str], size: &str, log: &str) {
        let disk = format!("disk:{}", self.path("log").display());
        let mut args = vec!["create", "--size", size, "--name", "v", "--region-size", "1MiB"];
        args.extend(if is_ublk() { ["--front", "ublk"] } else { ["--mount", "vol"] });
        args.extend(["--log", if log == "disk" { &disk } else { log }, "--legs"]);
        args.extend(legs);
        self.ok(&args);
    }

    /// Where `v` is served: the number of a block device may be another after each start.
    pub fn volume(&self) -> PathBuf {
        self.status()["device"].as_str().unwrap().into()
    }

    pub fn status(&self) -> Value {
        self.status_of("v")
    }

    pub fn status_of(&self, volume: &str) -> Value {
        serde_json::from_str(&self.ok(&["status", volume, "--json"])).unwrap()
    }

    /// Kills the daemon of `v` without warning and waits until it is gone.
    pub fn kill(&self) {
        self.daemon().kill();
    }

    /// The process that serves `v`.
    pub fn daemon(&self) -> Daemon {
        let pid = self.status()["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32)).unwrap();
        Daemon(pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    /// Kills the daemon of `v`; its users get errors then, also those of a block device, who would wait.
    pub fn kill_for_good(&self) {
        self.kill();
        if is_ublk() {
            self.ok(&["stop", "v", "--force"]);
        }
    }

    /// Waits until `v` is in sync.
    pub fn wait(&self) {
        self.ok(&["wait", "v", "--timeout", "300"]);
    }

    /// Until one leg is in sync, whatever the others are.
    pub fn wait_for_leg(&self, index: usize) {
        until("the leg is in sync", || self.status()["legs"][index]["state"] == "in_sync");
    }

    /// Has a command run at the end, before those that were named earlier.
    pub fn at_end(&self, command: &[&str]) {
        self.undo.borrow_mut().push(command.iter().map(|&word| word.to_owned()).collect());
    }

    /// A small ext4 file system of its own, mounted on `name`; `None` with a printed reason where that
    /// cannot be had.
    pub fn file_system(&self, name: &str, size: u64) -> Option<PathBuf> {
        let (image, mount) = (self.path(&format!("{name}.img")), self.path(name));
        if !is_root() || !Path::new("/dev/loop-control").exists() {
            println!("SKIP: tests on a file system of their own: need root and loop devices");
            return None;
        }
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        fs::create_dir(&mount).unwrap();
        let (image, text) = (image.to_str().unwrap().to_owned(), mount.to_str().unwrap().to_owned());
        sh("mkfs.ext4", &["-q", "-F", "-m", "0", "-O", "^has_journal", &image]);
        sh("mount", &["-o", "loop", &image, &text]);
        self.at_end(&["umount", "-l", &text]);
        Some(mount)
    }

    /// A loop device over `file`, with direct IO; `None` with a printed reason where that cannot be had.
    pub fn loop_device(&self, file: &Path) -> Option<String> {
        if !is_root() || !Path::new("/dev/loop-control").exists() {
            println!("SKIP: tests with a file system on the volume: need root and loop devices");
            return None;
        }
        let device = sh("losetup", &["--find", "--show", "--direct-io=on", file.to_str().unwrap()]);
        let device = device.trim().to_owned();
        self.at_end(&["losetup", "-d", &device]);
        Some(device)
    }

    /// Compares the first `size` bytes of two legs.
    pub fn assert_same(&self, one: &str, other: &str, size: u64) {
        let (one, other) = (self.path(one), self.path(other));
        sh("cmp", &["-n", &size.to_string(), one.to_str().unwrap(), other.to_str().unwrap()]);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for command in self.undo.borrow().iter().rev() {
            let _ = Command::new(&command[0]).args(&command[1..]).stderr(Stdio::null()).status();
        }
        for entry in fs::read_dir(self.path("run")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".sock") {
                let _ = self.command(&["stop", name, "--force"]).stderr(Stdio::null()).output();
            }
        }
        // Block devices whose daemon is gone.
        for entry in fs::read_dir(self.path("state")).into_iter().flatten().flatten().filter(|_| is_ublk()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".json") {
                let _ = self.command(&["stop", name, "--force"]).stderr(Stdio::null()).output();
            }
        }
        let _ = Command::new("umount").arg("-l").arg(self.path("vol")).stderr(Stdio::null()).status();
    }
}

/// The binary under test: the one that was built with the tests, unless they run far from their build.
pub fn binary() -> String {
    std::env::var("MIRRORD_BIN").unwrap_or(env!("CARGO_BIN_EXE_mirrord").to_owned())
}

/// A volume's process.
pub struct Daemon(OwnedFd);

impl Daemon {
    /// Kills it without warning, and waits until its last thread has let go of its files and locks.
    pub fn kill(&self) {
        pidfd_send_signal(&self.0, Signal::KILL).unwrap();
        self.wait_ended();
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        pidfd_send_signal(&self.0, Signal::TERM).unwrap();
    }

    /// Waits until its last thread is gone.
    pub fn wait_ended(&self) {
        let ended =
            poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&Timespec { tv_sec: 300, tv_nsec: 0 }));
        assert_eq!(ended, Ok(1), "the daemon is gone");
    }
}

/// The front end that volumes of the tests are to have.
pub fn front() -> String {
    std::env::var("MIRRORD_TEST_FRONT").unwrap_or("fuse".to_owned())
}

/// Whether that is a block device.
pub fn is_ublk() -> bool {
    front() == "ublk"
}

pub fn is_root() -> bool {
    sh("id", &["-u"]).trim() == "0"
}

/// Runs a program and expects success; gives its standard output.
pub fn sh(program: &str, args: &[&str]) -> String {
    let output = try_sh(program, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a program, whatever comes of it.
pub fn try_sh(program: &str, args: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new(program).args(args).env("PATH", path).stdin(Stdio::null()).output().unwrap()
}

/// Unmounts a file system. A program that another test starts holds what is open here until it is executed, so it may be
/// busy for a moment.
pub fn unmount(at: &str) {
    until("the file system is unmounted", || {
        let output = try_sh("umount", &[at]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("busy"), "umount {at}: {said}");
        output.status.success()
    });
}

/// Whether a program is installed; prints the skip if not.
pub fn have(program: &str, what: &str) -> bool {
    let found = try_sh("sh", &["-c", &format!("command -v {program}")]).status.success();
    if !found {
        println!("SKIP: {what}: {program} is not installed");
    }
    found
}

/// The superblock that counts, of what `inspect --json` says of a leg.
pub fn newest_slot(report: &Value) -> &Value {
    &report["slots"][report["newest_slot"].as_u64().unwrap() as usize]
}

/// Whether volumes can be served here; prints the skip if not.
pub fn can_serve(what: &str) -> bool {
    let there = is_ublk() || fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !there {
        println!("SKIP: {what}: /dev/fuse cannot be opened");
    }
    there
}

/// Whether users without privilege may open /dev/fuse, as udev lets them; prints the skip if not.
pub fn everybody_may_use_fuse(what: &str) -> bool {
    let may = fs::metadata("/dev/fuse").is_ok_and(|node| node.permissions().mode() & 0o006 == 0o006);
    if !may {
        println!("SKIP: {what}: /dev/fuse is for root alone here");
    }
    may
}

/// Waits for something that must come about.
pub fn until(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while !there() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
