//! Captured conversations (`vectors/wire`): what the kernel asked and what another daemon answered.

use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::Value;

/// A line of a capture.
pub(crate) enum Line {
    /// A note, often the command that was run.
    Note(String),
    /// A message from the kernel.
    Asked(Message),
    /// A message to the kernel.
    Answered(Message),
}

/// A message in its datagram.
pub(crate) struct Message {
    /// Which request it is or answers, as the capture calls it.
    pub(crate) kind: String,
    pub(crate) seq: u32,
    /// The whole datagram.
    pub(crate) datagram: Vec<u8>,
    /// The part behind the connector's header.
    pub(crate) bytes: Vec<u8>,
    /// Error of an acknowledgement without a message.
    pub(crate) error: i64,
}

/// The captures, by name.
pub(crate) fn names() -> Vec<String> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/wire")).unwrap();
    let files = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> =
        files.filter_map(|file| Some(file.strip_suffix(".jsonl.gz")?.to_owned())).collect();
    names.sort();
    assert_eq!(names.len(), 13);
    names
}

/// A capture.
pub(crate) fn read(name: &str) -> Vec<Line> {
    let path = format!("{}/tests/vectors/wire/{name}.jsonl.gz", env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    text.lines().map(|line| parse(&serde_json::from_str(line).unwrap())).collect()
}

fn parse(line: &Value) -> Line {
    if line["dir"] == "mark" {
        return Line::Note(line["text"].as_str().unwrap().to_owned());
    }
    let digits = line["hex"].as_str().unwrap();
    let bytes: Vec<u8> =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    let mut datagram = Vec::new();
    for (header, field, width) in [
        ("nl", "len", 4),
        ("nl", "type", 2),
        ("nl", "flags", 2),
        ("nl", "seq", 4),
        ("nl", "pid", 4),
        ("cn", "idx", 4),
        ("cn", "val", 4),
        ("cn", "seq", 4),
        ("cn", "ack", 4),
        ("cn", "len", 2),
        ("cn", "flags", 2),
    ] {
        let number = line[header][field].as_u64().unwrap();
        datagram.extend_from_slice(&number.to_le_bytes()[..width]);
    }
    datagram.extend_from_slice(&bytes);
    let message = Message {
        kind: line["name"].as_str().unwrap().to_owned(),
        seq: line["seq"].as_u64().unwrap() as u32,
        datagram,
        bytes,
        error: line["error"].as_i64().unwrap_or(0),
    };
    if line["dir"] == "k2u" { Line::Asked(message) } else { Line::Answered(message) }
}
