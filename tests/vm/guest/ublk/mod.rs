//! Volumes that are block devices: `mirrord create --front ublk`. Here is what these cases share.

pub(crate) mod block_device;
pub(crate) mod blocks;
pub(crate) mod fence;
pub(crate) mod file_system;
pub(crate) mod hardened;
pub(crate) mod killed;
pub(crate) mod plain_user;
pub(crate) mod refused;
pub(crate) mod resize;
pub(crate) mod same_bytes;
pub(crate) mod upgrade;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::devices::{is_block, load};
use crate::rig::{Rig, sh, try_sh, until};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// The volume `v`, served as a block device.
pub(crate) struct Volume {
    pub(crate) rig: Rig,
    /// `/dev/ublkbN`
    pub(crate) device: String,
    legs: Vec<String>,
    size: u64,
}

impl Volume {
    /// Of two new files, `a` and `b`.
    pub(crate) fn create(size: u64, more: &[&str]) -> Volume {
        Volume::of_legs(Rig::new(), &["a", "b"], size, more)
    }

    pub(crate) fn of_legs(rig: Rig, legs: &[&str], size: u64, more: &[&str]) -> Volume {
        load(&["ublk_drv"]);
        let size_text = size.to_string();
        let what = ["--size", &size_text, "--name", "v", "--front", "ublk"];
        rig.ok(&[&["create", "--legs"], legs, &what, more].concat());
        let device = rig.status()["device"].as_str().unwrap().to_owned();
        assert!(is_block(&device), "{device}");
        let legs = legs.iter().map(|&leg| leg.to_owned()).collect();
        Volume { rig, device, legs, size }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.rig.status()["pid"].as_u64().unwrap() as u32
    }

    /// The device's name in /sys: `ublkbN`.
    pub(crate) fn name(&self) -> &str {
        self.device.trim_start_matches("/dev/")
    }

    /// Kills the daemon, and starts another that takes the device over.
    pub(crate) fn replace_daemon(&self) {
        self.rig.kill();
        assert!(is_block(&self.device), "the device outlives its daemon");
        self.rig.ok(&["start", "v"]);
        assert_eq!(self.rig.status()["device"], self.device.as_str(), "it is taken over");
    }

    /// Waits for resync, stops the volume, and compares its legs byte by byte.
    pub(crate) fn stop(&self) {
        self.rig.wait();
        self.rig.ok(&["stop", "v"]);
        assert!(!Path::new(&self.device).exists(), "a stopped volume has no device");
        self.compare();
    }

    pub(crate) fn compare(&self) {
        self.rig.assert_same(&self.legs[0], &self.legs[1], self.size);
    }
}

impl Drop for Volume {
    /// After a failure nobody must go on waiting for the device.
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.rig.run(&["stop", "v", "--force"]);
        }
    }
}

/// Refused by mirrord with all of these words.
pub(crate) fn refused(rig: &Rig, args: &[&str], words: &[&str]) {
    let output = rig.run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "mirrord {args:?} went well");
    for word in words {
        assert!(said.contains(word), "mirrord {args:?} does not say {word:?}: {said}");
    }
    println!("{}", said.trim());
}

/// Kills every daemon, whether it serves yet or not, and waits until they are gone.
pub(crate) fn kill_daemons() {
    let daemons = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pid = |process: fs::DirEntry| {
            let words = fs::read(process.path().join("cmdline")).ok()?;
            words.starts_with(b"mirrord\0serve\0").then(|| process.file_name().into_string().unwrap())
        };
        processes.filter_map(pid).collect::<Vec<_>>()
    };
    until("the daemons are gone", || {
        let daemons = daemons();
        // One may have come since the last look.
        daemons.iter().for_each(|pid| drop(try_sh("kill", &["-9", pid])));
        daemons.is_empty()
    });
}

/// Arguments of fio: random writes of 4 KiB, 32 at a time, past the page cache, all of it read back and checked.
/// Each job has `size` bytes of its own.
pub(crate) fn verified(file: &str, jobs: u64, size: u64, more: &[&str]) -> Vec<String> {
    let what = [
        "--name=v",
        "--eta=never",
        "--rw=randwrite",
        "--bs=4k",
        "--direct=1",
        "--ioengine=libaio",
        "--iodepth=32",
    ];
    let check = ["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256", "--verify_state_save=0"];
    let how = ["--thread", "--randrepeat=0", "--group_reporting"];
    let mut args: Vec<String> =
        [&what[..], &check, &how].concat().iter().map(|&arg| arg.to_owned()).collect();
    args.extend([format!("--filename={file}"), format!("--size={size}"), format!("--numjobs={jobs}")]);
    args.push(format!("--offset_increment={size}"));
    args.extend(more.iter().map(|&arg| arg.to_owned()));
    args
}

/// fio, run again and again in the background.
pub(crate) struct Load {
    ending: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Load {
    pub(crate) fn begin(args: Vec<String>) -> Load {
        let ending = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&ending);
        let run = move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let mut rounds = 0;
            while !asked.load(Ordering::SeqCst) {
                sh("fio", &args);
                rounds += 1;
            }
            rounds
        };
        Load { ending, thread: thread::spawn(run) }
    }

    /// Nothing has failed so far.
    pub(crate) fn goes_on(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Lets the present run end. None saw an error.
    pub(crate) fn end(self) {
        self.ending.store(true, Ordering::SeqCst);
        println!("{} runs of fio", self.thread.join().expect("fio is content"));
    }
}

/// A program in the background.
pub(crate) fn begin(program: &str, args: &[&str]) -> Child {
    Command::new(program).args(args).stdin(Stdio::null()).spawn().unwrap()
}

pub(crate) fn pause(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}

/// Mounts a device, until it is unmounted or the case ends; gives where.
pub(crate) fn mount(rig: &Rig, device: &str) -> String {
    let path = rig.path("mnt").to_str().unwrap().to_owned();
    fs::create_dir_all(&path).unwrap();
    sh("mount", &[device, &path]);
    rig.at_end(&["umount", "-l", &path]);
    path
}
