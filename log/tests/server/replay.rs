//! The captures again, with our server in the other daemon's place.
//!
//! Each request is asked in the recorded order, and our answer has to be the recorded one byte for byte, but for the
//! luid, which cmirrord often left 0 and which the kernel does not look at. Where it is another one, `differences.txt`
//! says so and why.

use std::collections::{BTreeMap, BTreeSet};

use mirrord_log::server::ClientId;
use mirrord_log::wire::{Frame, RequestType};

use crate::capture::{self, Line};
use crate::rig::{Rig, answer};

const DIFFERENCES: &str = include_str!("differences.txt");

/// Answers that are the recorded ones.
const SAME: usize = 4313;

fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.devices.clear();
    for (name, number, len) in [
        ("/dev/loop2", "7:2", 1 << 20),
        ("253:0", "253:0", 1 << 20),
        ("/dev/loop5", "7:5", 512),
        ("7:2", "7:2", 1 << 20),
    ] {
        rig.device(name, len, 512);
        rig.devices.get_mut(name).unwrap().number = Some(number.to_owned());
    }
    rig
}

#[test]
fn answers_are_the_recorded_ones_but_for_known_differences() {
    let mut found: BTreeMap<(String, String, String, String, String), usize> = BTreeMap::new();
    let (mut same, mut images) = (0, 0);
    for name in capture::names() {
        let mut rig = rig();
        let mut ours: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut refused: BTreeSet<String> = BTreeSet::new();
        for line in capture::read(&name) {
            match line {
                Line::Note(text) => {
                    if text.contains("daemon killed") || text.starts_with("kill -9 daemon") {
                        rig.restart();
                    }
                }
                Line::Asked(message) => {
                    let bytes = &message.bytes;
                    let Ok((frame, _)) = Frame::parse(bytes) else { continue };
                    // The scripted responder called its log so.
                    let bytes = match frame.data().windows(8).position(|word| word == b"ref-core") {
                        Some(at) => renamed(bytes, at),
                        None => bytes.clone(),
                    };
                    rig.send(ClientId::KERNEL, &bytes);
                    assert_eq!(rig.hears().len(), 1, "{name} {}", message.seq);
                    ours.insert(message.seq, rig.last.clone());
                    images += is_the_kernels_image(&name, &frame, &rig);
                }
                Line::Answered(message) => {
                    let Some(ours) = ours.remove(&message.seq) else { continue };
                    let (our, _) = Frame::parse(&ours).unwrap();
                    let their = if message.kind == "ACK" {
                        assert_eq!(message.error, 0);
                        // Says the same as an answer without data.
                        let mut bytes = ours[..160].to_vec();
                        bytes[144..148].fill(0);
                        bytes[156..160].fill(0);
                        bytes
                    } else {
                        [&ours[..8], &message.bytes[8..]].concat()
                    };
                    if their == ours {
                        same += 1;
                        continue;
                    }
                    let (their, _) = Frame::parse(&their).unwrap();
                    let uuid = String::from_utf8_lossy(our.name().uuid).into_owned();
                    let asked =
                        if message.kind == "ACK" { "CLEAR_REGION".to_owned() } else { message.kind.clone() };
                    let mut row = (name.clone(), uuid, asked, pattern(&answer(&their)), answer(&our));
                    if row.2 == "CTR" && row.4 == "failed 22" || row.4 == "failed 28" {
                        refused.insert(row.1.clone());
                    } else if refused.contains(&row.1) && row.4 == "failed 3" {
                        (row.2, row.3) = ("all else".to_owned(), "as if it were there".to_owned());
                    } else if row.3 == row.4 {
                        row.3 = format!("{} {:?}", row.3, their.data());
                    }
                    *found.entry(row).or_default() += 1;
                }
            }
        }
    }
    let found: Vec<String> = found
        .iter()
        .map(|((a, b, c, d, e), count)| [a, b, c, d, e, &count.to_string()].map(String::as_str).join(" | "))
        .collect();
    let known = DIFFERENCES.lines().filter(|line| !line.starts_with('#'));
    let known: Vec<&str> = known.map(|line| line.rsplit_once(" | ").expect("each has a reason").0).collect();
    assert_eq!(found, known);
    assert_eq!(same, SAME);
    assert_eq!(images, 8);
}

/// Compares the log with what the kernel's own log is at the same point of the same life (`vectors/kernel-*`).
fn is_the_kernels_image(capture: &str, request: &Frame<'_>, rig: &Rig) -> usize {
    let image = match (capture, request.name().uuid, request.request_type()) {
        ("disk-ctr-sync-write-teardown", b"U-disk-1", POSTSUSPEND) => "disk-5-suspended",
        ("disk-ctr-sync-write-teardown", b"U-disk-1", DTR) => "disk-6-removed",
        ("nosync", b"U-ns-disk", RESUME) => "nosync-after-resume",
        _ => return 0,
    };
    if capture != "nosync" && request.seq() >= SYNC_FROM {
        return 0;
    }
    let path = format!("{}/tests/vectors/kernel-{image}.bin", env!("CARGO_MANIFEST_DIR"));
    assert!(rig.devices["/dev/loop2"].bytes[..8192] == std::fs::read(path).unwrap(), "{capture}: {image}");
    1
}

/// From here on the log is said to be constructed with `sync`, of which cmirrord took no notice: the kernel did not resync.
const SYNC_FROM: u32 = 1046;
const DTR: u32 = RequestType::Dtr as u32;
const POSTSUSPEND: u32 = RequestType::Postsuspend as u32;
const RESUME: u32 = RequestType::Resume as u32;

/// An answer with a star for each number of a region.
fn pattern(answer: &str) -> String {
    let is_counted = ["work ", "remote ", "count "].iter().any(|word| answer.starts_with(word));
    let words = answer.split(' ').map(|word| match word.parse::<u64>() {
        Ok(_) if is_counted => "*",
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A request whose data names the log's kind `core`.
fn renamed(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = [&bytes[..160 + at], b"core", &bytes[160 + at + 8..]].concat();
    let len = (bytes.len() - 160) as u32;
    bytes[156..160].copy_from_slice(&len.to_le_bytes());
    bytes
}
