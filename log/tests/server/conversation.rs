//! Conversations of the real kernel with a log daemon, as they were captured (vectors/wire/README.md).

use std::io::Read;
use std::path::Path;

use serde_json::Value;

/// One line of a capture.
#[derive(Clone, Debug)]
pub(crate) enum Line {
    /// The kernel asks.
    Asked(Message),
    /// The daemon answers.
    Answered(Message),
    /// What was done at that point.
    Note(String),
}

/// A datagram, and what was said of it: the headers of netlink and connector, and what is behind them.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) name: String,
    pub(crate) seq: u32,
    /// `struct dm_ulog_request` with its data; of a foreign message whatever it has.
    pub(crate) bytes: Vec<u8>,
    /// len, type, flags, seq, pid.
    pub(crate) nl: [u32; 5],
    /// idx, val, seq, ack, len, flags.
    pub(crate) cn: [u32; 6],
}

impl Message {
    fn of(line: &Value) -> Message {
        let number = |value: &Value| value.as_u64().unwrap_or(0) as u32;
        let fields = |from: &str, names: &[&str]| -> Vec<u32> {
            names.iter().map(|name| number(&line[from][*name])).collect()
        };
        let hex = line["hex"].as_str().unwrap_or("");
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        Message {
            name: line["name"].as_str().unwrap_or("").to_owned(),
            seq: number(&line["seq"]),
            bytes: (0..hex.len()).step_by(2).map(byte).collect(),
            nl: fields("nl", &["len", "type", "flags", "seq", "pid"]).try_into().unwrap(),
            cn: fields("cn", &["idx", "val", "seq", "ack", "len", "flags"]).try_into().unwrap(),
        }
    }

    /// The datagram as it was on the wire, without padding.
    pub(crate) fn datagram(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.nl[0].to_le_bytes());
        bytes.extend((self.nl[1] as u16).to_le_bytes());
        bytes.extend((self.nl[2] as u16).to_le_bytes());
        bytes.extend(self.nl[3..].iter().flat_map(|field| field.to_le_bytes()));
        bytes.extend(self.cn[..4].iter().flat_map(|field| field.to_le_bytes()));
        bytes.extend(self.cn[4..].iter().flat_map(|field| (*field as u16).to_le_bytes()));
        bytes.extend(&self.bytes);
        bytes
    }
}

/// All captures, by name.
pub(crate) fn all() -> Vec<(String, Vec<Line>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/wire");
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".jsonl.gz").map(str::to_owned))
        .collect();
    names.sort();
    assert_eq!(names.len(), 13);
    names.into_iter().map(|name| (name.clone(), read(&folder.join(format!("{name}.jsonl.gz"))))).collect()
}

fn read(path: &Path) -> Vec<Line> {
    let mut text = String::new();
    let file = std::fs::File::open(path).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| match line["dir"].as_str().unwrap() {
            "k2u" => Line::Asked(Message::of(&line)),
            "u2k" => Line::Answered(Message::of(&line)),
            _ => Line::Note(line["text"].as_str().unwrap_or("").to_owned()),
        })
        .collect()
}
