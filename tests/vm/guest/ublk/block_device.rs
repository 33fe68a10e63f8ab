//! What a block device promises: its properties, every kind of request at every place, partitions. The content
//! of the device and of both legs is compared byte for byte with a model of it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::process::{Command, Stdio};

use rustix::fs::OFlags;

use super::{KIB, MIB, Volume};
use crate::devices::is_block;
use crate::rig::{sh, until};

const REGION: u64 = MIB;

/// No multiple of the region size.
const SIZE: u64 = 9 * MIB + 12 * KIB;

pub(crate) fn is_a_block_device() {
    let volume = Volume::create(SIZE, &["--region-size", "1MiB"]);
    properties(&volume);
    let block = queue(&volume, "logical_block_size").parse().unwrap();
    let mut model = Model::new(&volume);
    for direct in [false, true] {
        requests(&mut model, block, direct);
    }
    volume.replace_daemon();
    model.check();
    model.zero(0, SIZE, &[]);
    drop(model);
    partitions(&volume);
    volume.stop();
}

/// A file of /sys/block/ublkbN/queue.
pub(crate) fn queue(volume: &Volume, name: &str) -> String {
    let path = format!("/sys/block/{}/queue/{name}", volume.name());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

fn properties(volume: &Volume) {
    let status = volume.rig.status();
    let block = status["block_size_bytes"].as_u64().unwrap();
    for (name, value) in [
        ("logical_block_size", block.to_string()),
        ("fua", "1".to_owned()),
        ("write_cache", "write back".to_owned()),
        ("chunk_sectors", (REGION / 512).to_string()),
        ("discard_granularity", "4096".to_owned()),
        ("max_hw_sectors_kb", "512".to_owned()),
        ("max_sectors_kb", "512".to_owned()),
        ("rotational", "0".to_owned()),
    ] {
        assert_eq!(queue(volume, name), value, "{name}");
    }
    let number = |name| queue(volume, name).parse::<u64>().unwrap();
    assert!(number("physical_block_size") >= block && number("physical_block_size") <= 4096);
    assert!(number("discard_max_bytes") > 0 && number("write_zeroes_max_bytes") > 0);
    assert_eq!(sh("blockdev", &["--getsize64", &volume.device]).trim(), SIZE.to_string());
    println!("blocks of {block} bytes, on disk {}", number("physical_block_size"));
}

/// Writes, discards and zeroing of odd lengths at odd places, across regions and at the very end. Through the
/// page cache to the byte, past it to the block.
fn requests(model: &mut Model, block: u64, direct: bool) {
    let unit = if direct { block } else { 1 };
    model.write(0, SIZE, direct);
    for (at, len) in [
        (0, 1),
        (REGION - 1, 2),
        (REGION + 3, 5 * KIB + 1),
        (2 * REGION - 7, 2 * REGION + 13),
        (SIZE / unit - 1, 1),
        (SIZE / unit - 300, 300),
    ] {
        model.write(at * unit % SIZE, (len * unit).min(SIZE - at * unit % SIZE), direct);
    }
    let page = 4 * KIB;
    for how in [&[][..], &["-z"]] {
        for (at, len) in [
            (block, block),
            (3 * page, page),
            (5 * page + block, 7 * page),
            (REGION - block, 2 * block),
            (2 * REGION + 3 * block, 3 * REGION),
            (SIZE - block, block),
            (SIZE - 3 * page - block, 3 * page + block),
        ] {
            model.zero(at, len, how);
        }
        model.write(0, SIZE, direct);
    }
}

/// What the device holds, as told by what was written to it.
struct Model {
    device: String,
    legs: [File; 2],
    bytes: Vec<u8>,
    writes: u8,
}

impl Model {
    fn new(volume: &Volume) -> Model {
        let legs = ["a", "b"].map(|leg| File::open(volume.rig.path(leg)).unwrap());
        Model { device: volume.device.clone(), legs, bytes: vec![0; SIZE as usize], writes: 0 }
    }

    fn write(&mut self, at: u64, len: u64, direct: bool) {
        self.writes = self.writes.wrapping_add(1);
        let range = at as usize..(at + len) as usize;
        for (n, byte) in self.bytes[range.clone()].iter_mut().enumerate() {
            *byte = (n as u64 / 512 * 3) as u8 ^ self.writes;
        }
        // A request past the page cache has to begin at the beginning of a page.
        let mut memory = vec![0; range.len() + 4096];
        let start = memory.as_ptr().align_offset(4096);
        memory[start..][..range.len()].copy_from_slice(&self.bytes[range.clone()]);
        let flags = if direct { OFlags::DIRECT } else { OFlags::empty() };
        let device =
            File::options().write(true).custom_flags(flags.bits() as i32).open(&self.device).unwrap();
        device.write_all_at(&memory[start..][..range.len()], at).unwrap();
        device.sync_all().unwrap();
        self.check_after(&format!("a write of {len} at {at}, direct {direct}"));
    }

    /// `blkdiscard` makes holes, which are read as zeroes; with `-z`, zeroes that keep their space.
    fn zero(&mut self, at: u64, len: u64, how: &[&str]) {
        let used = |leg: &File| leg.metadata().unwrap().blocks();
        let before = self.legs.each_ref().map(used);
        let range = ["--offset", &at.to_string(), "--length", &len.to_string(), &self.device];
        sh("blkdiscard", &[how, &range].concat());
        self.bytes[at as usize..(at + len) as usize].fill(0);
        for (leg, before) in self.legs.iter().zip(before) {
            match (used(leg), how) {
                (after, []) => assert!(after < before || after == before && len < 8 * KIB, "{len} at {at}"),
                (after, _) => assert_eq!(after, before, "{len} at {at}"),
            }
        }
        self.check_after(&format!("blkdiscard {how:?} of {len} at {at}"));
    }

    fn check(&self) {
        self.check_after("a change of daemons");
    }

    fn check_after(&self, what: &str) {
        sh("blockdev", &["--flushbufs", &self.device]);
        let device = File::open(&self.device).unwrap();
        for (file, name) in [(&device, "device"), (&self.legs[0], "leg a"), (&self.legs[1], "leg b")] {
            let mut found = vec![0; SIZE as usize];
            file.read_exact_at(&mut found, 0).unwrap();
            if let Some(at) = (0..found.len()).find(|&at| found[at] != self.bytes[at]) {
                panic!("{name} after {what}: {} instead of {} at {at}", found[at], self.bytes[at]);
            }
        }
    }
}

/// Partitions are there at once, hold data, and come back with another daemon and after a stop.
fn partitions(volume: &Volume) {
    let mut sfdisk = Command::new("sfdisk");
    sfdisk.args(["--quiet", &volume.device]).stdin(Stdio::piped());
    let mut sfdisk = sfdisk.spawn().unwrap();
    sfdisk.stdin.take().unwrap().write_all(b"label: gpt\nsize=2MiB\nsize=3MiB\n").unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let parts = [1, 2].map(|n| format!("{}p{n}", volume.device));
    let there = || until("both partitions are there", || parts.iter().all(|part| is_block(part)));
    let text = b"of the second partition";
    there();
    let part = File::options().write(true).open(&parts[1]).unwrap();
    part.write_all_at(text, 3 * MIB - text.len() as u64).unwrap();
    part.sync_all().unwrap();
    drop(part);
    let holds = || {
        there();
        let mut found = vec![0; text.len()];
        sh("blockdev", &["--flushbufs", &parts[1]]);
        File::open(&parts[1]).unwrap().read_exact_at(&mut found, 3 * MIB - text.len() as u64).unwrap();
        assert_eq!(found, text);
    };
    volume.replace_daemon();
    holds();
    volume.rig.ok(&["stop", "v"]);
    volume.rig.ok(&["start", "v"]);
    holds();
}
