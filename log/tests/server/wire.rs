//! The wire format against the captures: everything that the kernel sent is understood and made again byte for byte.

use std::collections::{BTreeMap, HashMap};

use mirrord_log::wire::{Frame, RequestType, encode_answer, encode_request, netlink};

use crate::capture::{self, Line, Message};

/// Answers of the other daemons that are not what we would make of them: in which capture, to what, why, how many.
const ODD: &[(&str, &str, &str, usize)] = &[
    ("disk-ctr-sync-write-teardown", "GET_RESYNC_WORK", NO_WORK, 3),
    ("errors-ctr", "GET_RESYNC_WORK", NO_WORK, 1),
    ("nosync", "GET_RESYNC_WORK", NO_WORK, 4),
    ("proc-events", "GET_RESYNC_WORK", NO_WORK, 1),
];

/// cmirrord names a region where there is no work: one behind the last.
const NO_WORK: &str = "Work(None) [0, 0, 0, 0, 0, 0, 0, 0, 41, 0, 0, 0, 0, 0, 0, 0]";

fn wrapped(message: &Message, seq: u32) -> Vec<u8> {
    let mut datagram = Vec::new();
    netlink::wrap(seq, &mut datagram, |to| to.extend_from_slice(&message.bytes));
    datagram
}

#[test]
fn every_request_is_understood_and_made_again() {
    let (mut requests, mut foreign) = (0, 0);
    for name in capture::names() {
        for line in capture::read(&name) {
            let Line::Asked(message) = line else { continue };
            let Some(frame) = netlink::unwrap(&message.datagram).unwrap() else {
                assert_eq!((name.as_str(), message.kind.as_str()), ("proc-events", "SHORT"));
                foreign += 1;
                continue;
            };
            let request = frame.request().unwrap();
            let mut again = Vec::new();
            encode_request(frame.name(), frame.seq(), &request, &mut again);
            assert_eq!(again, message.bytes, "{name} {}", message.seq);
            assert_eq!(wrapped(&message, frame.seq()), message.datagram, "{name} {}", message.seq);
            requests += 1;
        }
    }
    assert_eq!((requests, foreign), (4783, 38));
}

#[test]
fn every_answer_is_understood_and_made_again() {
    let (mut answers, mut acknowledged) = (0, 0);
    let mut odd: BTreeMap<(String, String, String), usize> = BTreeMap::new();
    for name in capture::names() {
        let mut asked: HashMap<u32, RequestType> = HashMap::new();
        for line in capture::read(&name) {
            let message = match line {
                Line::Note(_) => continue,
                Line::Asked(message) => {
                    if let Ok(Some(frame)) = netlink::unwrap(&message.datagram) {
                        asked.insert(frame.seq(), RequestType::from_number(frame.request_type()).unwrap());
                    }
                    continue;
                }
                Line::Answered(message) => message,
            };
            if message.kind == "ACK" {
                // The connector's own way to say that it is done: no message.
                assert!(netlink::unwrap(&message.datagram).is_err());
                acknowledged += 1;
                continue;
            }
            let frame = netlink::unwrap(&message.datagram).unwrap().unwrap();
            let mut note =
                |why: String| *odd.entry((name.clone(), message.kind.clone(), why)).or_default() += 1;
            let reply = match frame.reply(asked[&frame.seq()]) {
                Ok(reply) => reply,
                Err(error) => {
                    note(error.to_string());
                    continue;
                }
            };
            let mut again = Vec::new();
            let number = frame.request_type();
            encode_answer(frame.name(), frame.version(), frame.seq(), number, &reply, &mut again);
            if again != message.bytes {
                note(format!("{reply:?} {:?}", frame.data()));
            }
            // The other daemons left the netlink sequence 0 and gave their own pid: the kernel looks at neither.
            let ours = wrapped(&message, frame.seq());
            assert_eq!((&ours[..8], &ours[16..24]), (&message.datagram[..8], &message.datagram[16..24]));
            assert_eq!((&ours[28..36], &ours[36..]), (&message.datagram[28..36], &message.bytes[..]));
            answers += 1;
        }
    }
    let odd: Vec<_> = odd
        .iter()
        .map(|((file, to, why), count)| (file.as_str(), to.as_str(), why.as_str(), *count))
        .collect();
    assert_eq!(odd, ODD);
    assert_eq!((answers, acknowledged), (4220, 600));
}

#[test]
fn the_kernels_padding_is_not_looked_at() {
    for name in capture::names() {
        for line in capture::read(&name) {
            let Line::Asked(mut message) = line else { continue };
            message.datagram.extend_from_slice(&[0xaa; 3]);
            let Ok(Some(frame)) = netlink::unwrap(&message.datagram) else { continue };
            assert_eq!(frame.data(), &message.bytes[160..]);
            assert!(Frame::parse(&message.bytes[..message.bytes.len() - 1]).is_err());
        }
    }
}
