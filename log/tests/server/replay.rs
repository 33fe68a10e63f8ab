//! The captures again, with our server in the other daemon's place.
//!
//! Each request is asked in the recorded order, and our answer has to be the recorded one byte for byte, but for the
//! luid, which cmirrord often left 0 and which the kernel does not look at. Where it is another one, [`DIFFERENCES`]
//! says so and why.

use std::collections::BTreeMap;

use mirrord_log::server::ClientId;
use mirrord_log::wire::Frame;

use crate::capture::{self, Line};
use crate::differences::{DIFFERENCES, SAME};
use crate::rig::{Rig, answer};

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
    let mut same = 0;
    for name in capture::names() {
        let mut rig = rig();
        let mut ours: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
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
                    let row = (name.clone(), uuid, asked, answer(&their), answer(&our));
                    *found.entry(row).or_default() += 1;
                }
            }
        }
    }
    let found: Vec<_> = found
        .iter()
        .map(|((a, b, c, d, e), count)| (a.as_str(), b.as_str(), c.as_str(), d.as_str(), e.as_str(), *count))
        .collect();
    let known: Vec<_> = DIFFERENCES.iter().map(|&(a, b, c, d, e, count, _)| (a, b, c, d, e, count)).collect();
    if std::env::var_os("SHOW_DIFFERENCES").is_some() {
        for row in &found {
            println!("ROW {row:?}");
        }
    }
    assert_eq!(found, known);
    assert_eq!(same, SAME);
}

/// A request whose data names the log's kind `core`.
fn renamed(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = [&bytes[..160 + at], b"core", &bytes[160 + at + 8..]].concat();
    let len = (bytes.len() - 160) as u32;
    bytes[156..160].copy_from_slice(&len.to_le_bytes());
    bytes
}
