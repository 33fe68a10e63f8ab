//! `mirrord log serve --netlink` and the kernel's own dm-mirror, which keeps its log there.

pub(crate) mod answers;
pub(crate) mod faults;
pub(crate) mod forgotten;
pub(crate) mod killed;
pub(crate) mod lives;
pub(crate) mod machine;
pub(crate) mod marks;
pub(crate) mod refused;
pub(crate) mod resync;
pub(crate) mod scale;
pub(crate) mod strangers;
pub(crate) mod swaps;

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::devices::{is_block, load, loop_leg};
use crate::rig::{Rig, sh, try_sh, until};

const MIB: u64 = 1 << 20;
/// Of each leg, and in how many regions: 1024 sectors each.
const SIZE: u64 = 32 * MIB;
const REGIONS: u64 = 64;

/// Two legs, a log device and a server.
pub(crate) struct Bed {
    pub(crate) rig: Rig,
    pub(crate) a: String,
    pub(crate) b: String,
    pub(crate) log: String,
    server: RefCell<Option<Child>>,
}

impl Bed {
    /// With legs that hold nothing.
    pub(crate) fn new() -> Bed {
        load(&["dm-mirror", "dm-log-userspace", "loop"]);
        let rig = Rig::new();
        let (a, b) = (loop_leg(&rig, "a", SIZE), loop_leg(&rig, "b", SIZE));
        let log = loop_leg(&rig, "log", MIB);
        Bed { rig, a, b, log, server: RefCell::default() }
    }

    /// Starts a server and returns when it serves.
    pub(crate) fn serve(&self) {
        let mut command = self.rig.command(&["log", "serve", "--netlink", "--single-host"]);
        let mut server = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "default netlink\n", "the server did not start");
        *self.server.borrow_mut() = Some(server);
    }

    /// Sends the server a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.server.borrow().as_ref().unwrap().id().to_string();
        sh("kill", &[signal, &pid]);
    }

    /// Waits for a server that was told to end.
    pub(crate) fn reap(&self) {
        let status = self.server.borrow_mut().take().unwrap().wait().unwrap();
        assert!(status.success(), "the server ended with {status}");
    }

    /// Kills the server without warning.
    pub(crate) fn kill(&self) {
        let mut server = self.server.borrow_mut().take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// A mirror of the legs with such a log: `userspace` and what follows it, without the number of words.
    pub(crate) fn table(&self, log: &str) -> String {
        self.table_on(&[self.a.clone(), self.b.clone()], log)
    }

    /// The same of other legs.
    pub(crate) fn table_on(&self, [a, b]: &[String; 2], log: &str) -> String {
        let count = log.split_ascii_whitespace().count();
        format!("0 {} mirror userspace {count} {log} 2 {a} 0 {b} 0 1 handle_errors", SIZE / 512)
    }

    pub(crate) fn create(&self, name: &str, log: &str) -> String {
        dm_create(name, &self.table(log))
    }

    /// One more mirror, of legs of its own, which are given.
    pub(crate) fn create_other(&self, name: &str, log: &str) -> [String; 2] {
        let legs = ["c", "d"].map(|leg| loop_leg(&self.rig, &format!("{name}-{leg}"), SIZE));
        dm_create(name, &self.table(log).replace(&self.a, &legs[0]).replace(&self.b, &legs[1]));
        legs
    }

    pub(crate) fn refused(&self, log: &str) {
        let output = try_sh("dmsetup", &["create", "refused", "--table", &self.table(log)]);
        assert!(!output.status.success(), "{log}: a mirror was made");
    }

    /// A log as the server shows it.
    pub(crate) fn show(&self, uuid: &str) -> Value {
        serde_json::from_str(&self.rig.ok(&["log", "status", uuid, "--json"])).unwrap()
    }

    /// Removes what the server notes for the next one.
    pub(crate) fn forget_notes(&self) {
        std::fs::remove_dir_all(self.rig.path("run/log-serve/default/sessions")).unwrap();
    }

    /// Has the device go on as another: `table` without the start and the length.
    pub(crate) fn become_of(&self, name: &str, table: &str) {
        sh("dmsetup", &["load", name, "--table", &format!("0 {} {table}", SIZE / 512)]);
        sh("dmsetup", &["suspend", "--noflush", "--nolockfs", name]);
        sh("dmsetup", &["resume", name]);
    }

    /// Legs hold the same.
    pub(crate) fn assert_same(&self) {
        self.assert_same_on(&[self.a.clone(), self.b.clone()]);
    }

    /// The same of other legs.
    pub(crate) fn assert_same_on(&self, legs: &[String; 2]) {
        // What was read of a leg before stays in the page cache as long as another device is on it.
        for leg in legs {
            sh("blockdev", &["--flushbufs", leg]);
        }
        sh("cmp", &[&legs[0], &legs[1]]);
    }

    /// Makes the legs differ everywhere.
    pub(crate) fn differ(&self) {
        self.differ_on(&[self.a.clone(), self.b.clone()]);
    }

    /// The same of other legs.
    pub(crate) fn differ_on(&self, legs: &[String; 2]) {
        for (leg, byte) in legs.iter().zip([0x11, 0x22]) {
            std::fs::write(self.rig.path("fill"), vec![byte; SIZE as usize]).unwrap();
            let from = format!("if={}", self.rig.path("fill").display());
            sh("dd", &[&from, &format!("of={leg}"), "bs=1M", "oflag=direct"]);
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.borrow_mut().take() {
            // Mirrors go first, or they would wait for it.
            let _ = try_sh("dmsetup", &["remove_all"]);
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

pub(crate) fn dm_create(name: &str, table: &str) -> String {
    sh("dmsetup", &["create", name, "--table", table]);
    let path = format!("/dev/mapper/{name}");
    until("the mirror is there", || is_block(&path));
    path
}

pub(crate) fn remove(name: &str) {
    sh("dmsetup", &["remove", "--retry", name]);
}

/// The status line, from the number of regions in sync on.
pub(crate) fn status(name: &str) -> String {
    let line = sh("dmsetup", &["status", name]);
    line.split_ascii_whitespace().skip(6).collect::<Vec<_>>().join(" ")
}

pub(crate) fn until_in_sync(name: &str) {
    until("all regions are in sync", || status(name).starts_with(&format!("{REGIONS}/{REGIONS} ")));
}

/// Writes so many blocks of 4 KiB with this byte, from a block on.
pub(crate) fn write(device: &str, block: u64, count: u64, byte: u8) {
    let file = format!("/tmp/block-{byte}");
    std::fs::write(&file, vec![byte; 4096 * count as usize]).unwrap();
    let (from, to) = (format!("if={file}"), format!("of={device}"));
    sh("dd", &[&from, &to, "bs=4k", &format!("seek={block}"), "oflag=direct", "conv=notrunc,nocreat"]);
}

/// A write of one block that is not waited for.
pub(crate) fn writer(device: &str, block: u64) -> Child {
    let (to, seek) = (format!("of={device}"), format!("seek={block}"));
    let dd = ["if=/dev/urandom", &to, &seek, "bs=4k", "count=1", "oflag=direct", "conv=notrunc,nocreat"];
    Command::new("dd").args(dd).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits for it; it must have succeeded.
pub(crate) fn finish(mut writer: Child) {
    assert!(writer.wait().unwrap().success(), "a write failed");
}

/// Whether it waits still.
pub(crate) fn is_waiting(writer: &mut Child) -> bool {
    writer.try_wait().unwrap().is_none()
}

/// Regions in sync, as the status line has them.
pub(crate) fn in_sync(name: &str) -> u64 {
    status(name).split('/').next().unwrap().parse().unwrap()
}

/// Sectors written to a block device since it was made.
pub(crate) fn sectors_written(device: &str) -> u64 {
    let name = Path::new(device).canonicalize().unwrap();
    let name = name.file_name().unwrap().to_str().unwrap();
    let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    stat.split_ascii_whitespace().nth(6).unwrap().parse().unwrap()
}

/// `MAJOR:MINOR` of a device.
pub(crate) fn number(device: &str) -> String {
    let name = Path::new(device).canonicalize().unwrap();
    let name = name.file_name().unwrap().to_str().unwrap();
    std::fs::read_to_string(format!("/sys/block/{name}/dev")).unwrap().trim().to_owned()
}

/// The dirty regions of a log: of that on a device, or of the server's with this uuid.
pub(crate) fn dirty(rig: &Rig, log: &str) -> Vec<u64> {
    let log: Value = serde_json::from_str(&rig.ok(&["log", "dump", log, "--json"])).unwrap();
    let runs = log["dirty"].as_array().unwrap();
    runs.iter().flat_map(|run| run[0].as_u64().unwrap()..=run[1].as_u64().unwrap()).collect()
}
