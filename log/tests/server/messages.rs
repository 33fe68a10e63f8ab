//! Every message that the kernel and its daemons were seen to send can be read, and is written to the same bytes.

use std::collections::BTreeSet;

use mirrord_log::wire::{
    Frame, Reply, Request, RequestType, encode_answer, encode_reply, encode_request, netlink,
};

use crate::conversation::{self, Line};

/// Of which version each answer's bare form is: the connector's own acknowledgement, without a message.
fn is_bare(line: &conversation::Message) -> bool {
    line.bytes.is_empty()
}

#[test]
fn what_the_kernel_asks_is_written_as_it_was_read() {
    let mut seen = BTreeSet::new();
    for (name, lines) in conversation::all() {
        for line in &lines {
            let Line::Asked(message) = line else { continue };
            let datagram = message.datagram();
            let frame = match netlink::unwrap(&datagram) {
                Ok(Some(frame)) => frame,
                // Events of processes, which the daemon had joined the group of by mistake.
                other => {
                    assert!(name == "proc-events" && message.cn[0] == 1, "{name}: {other:?} {message:?}");
                    assert_eq!(other.unwrap().map(|frame| frame.seq()), None);
                    continue;
                }
            };
            let request = frame.request().unwrap();
            assert_eq!(format!("{:?}", request.request_type()).to_uppercase(), message.name.replace('_', ""));
            assert_eq!((frame.version(), frame.seq(), frame.error()), (3, message.seq, 0));
            seen.insert(frame.request_type());
            let mut again = Vec::new();
            netlink::wrap(message.seq, &mut again, |to| {
                encode_request(frame.name(), frame.seq(), &request, to);
            });
            assert_eq!(again, datagram, "{name}: {request:?}");
        }
    }
    // The kernel's mirror never asks for the others.
    let never = [RequestType::IsClean, RequestType::StatusTable];
    let expected = RequestType::ALL.into_iter().filter(|kind| !never.contains(kind)).map(|kind| kind as u32);
    assert_eq!(seen, expected.collect());
}

/// Answers with something in a field that says nothing: there is no region to resync, and one is named.
const LOOSE: [(&str, &str); 4] = [
    ("disk-ctr-sync-write-teardown", "GET_RESYNC_WORK"),
    ("errors-ctr", "GET_RESYNC_WORK"),
    ("nosync", "GET_RESYNC_WORK"),
    ("proc-events", "GET_RESYNC_WORK"),
];

#[test]
fn what_daemons_answer_is_written_as_it_was_read() {
    let mut loose = BTreeSet::new();
    let conversations = conversation::all();
    for (name, lines) in &conversations {
        for line in lines {
            let Line::Answered(message) = line else { continue };
            if is_bare(message) {
                continue;
            }
            let (frame, len) = Frame::parse(&message.bytes).unwrap();
            assert_eq!(len, message.bytes.len());
            let to = RequestType::from_number(frame.request_type()).unwrap();
            let reply = frame.reply(to).unwrap_or_else(|error| panic!("{name}: {error}"));
            let mut again = Vec::new();
            encode_answer(
                frame.name(),
                frame.version(),
                frame.seq(),
                frame.request_type(),
                &reply,
                &mut again,
            );
            if again != message.bytes {
                let (written, _) = Frame::parse(&again).unwrap();
                assert_eq!(written.reply(to), Ok(reply));
                loose.insert((name.as_str(), message.name.as_str()));
            }
        }
    }
    assert_eq!(loose.into_iter().collect::<Vec<_>>(), LOOSE);
}

#[test]
fn an_answer_repeats_whom_it_answers() {
    let mut bytes = Vec::new();
    let name = mirrord_log::wire::LogName { uuid: b"a log", luid: 0xffff_8880_1234_5678 };
    encode_request(name, 7, &Request::InSync(3), &mut bytes);
    let (asked, _) = Frame::parse(&bytes).unwrap();
    let mut answer = Vec::new();
    encode_reply(&asked, &Reply::Is(true), &mut answer);
    let (answer, _) = Frame::parse(&answer).unwrap();
    assert_eq!((answer.name(), answer.seq(), answer.request_type()), (name, 7, 8));
    assert_eq!(answer.reply(RequestType::InSync), Ok(Reply::Is(true)));
    assert_eq!(answer.data(), 1i64.to_le_bytes());
}
