//! The kernel's side of each captured conversation, said to our server: it answers what the daemon of the capture
//! answered, wherever that was right.

use std::collections::{BTreeMap, BTreeSet};

use mirrord_log::wire::{Frame, Reply, Request, RequestType, encode_request};

use crate::conversation::{self, Line, Message};
use crate::served::Served;

/// As it was asked, with the kind of log of the scripted answerer called by its usual name.
fn asked(message: &Message) -> Vec<u8> {
    let (frame, _) = Frame::parse(&message.bytes).unwrap();
    let Ok(Request::Ctr { text, again }) = frame.request() else { return message.bytes.clone() };
    let text = String::from_utf8(text.to_vec()).unwrap().replace("ref-core", "core");
    let mut bytes = Vec::new();
    encode_request(frame.name(), frame.seq(), &Request::Ctr { text: text.as_bytes(), again }, &mut bytes);
    bytes
}

/// What an answer says. The connector's own acknowledgement says that it is done.
fn shown(message: &Message) -> String {
    let Ok((frame, _)) = Frame::parse(&message.bytes) else { return "Done".to_owned() };
    let to = RequestType::from_number(frame.request_type()).unwrap();
    match frame.reply(to).unwrap() {
        Reply::Failed(errno) => format!("errno {}", errno.0),
        Reply::Text(text) => text.replace("ref-core", "core"),
        reply => format!("{reply:?}"),
    }
}

/// Where our server does not answer what the daemon of the capture did: capture, request, how often, why.
const DIFFERENT: &[(&str, &str, u32, &str)] = &[
    (
        "core-ctr-sync-write-teardown",
        "GET_RESYNC_WORK",
        42,
        "it forgets at a suspend what was in sync, and puts a region first that a write waits for; none waits here",
    ),
    (
        "core-ctr-sync-write-teardown",
        "GET_SYNC_COUNT",
        3,
        "as before; and once it counts a region later than it says",
    ),
    ("core-ctr-sync-write-teardown", "IN_SYNC", 41, "it forgets at a suspend what was in sync"),
    (
        "core-ctr-sync-write-teardown",
        "IS_REMOTE_RECOVERING",
        5,
        "it has writes wait for a resync that no other machine does",
    ),
    ("core-ctr-sync-write-teardown", "STATUS_INFO", 1, "it has no status of a log that is suspended"),
    (
        "daemon-restart-esrch",
        "CTR",
        8,
        "a device has its number, which needs no folder of devices; its answer to a CTR that comes again does not fit and is an error from then on",
    ),
    ("disk-ctr-sync-write-teardown", "CTR", 3, "a device has its number"),
    ("disk-ctr-sync-write-teardown", "GET_RESYNC_WORK", 2, "as in the core log; it does not heed `sync`"),
    (
        "disk-ctr-sync-write-teardown",
        "GET_SYNC_COUNT",
        4,
        "it does not heed `sync`; and once it counts a region later than it says",
    ),
    (
        "disk-ctr-sync-write-teardown",
        "IS_REMOTE_RECOVERING",
        5,
        "it has writes wait for a resync that no other machine does",
    ),
    ("disk-ctr-sync-write-teardown", "STATUS_INFO", 1, "it has no status of a log that is suspended"),
    (
        "errors-ctr",
        "CTR",
        9,
        "it takes region sizes that are none, words that mean nothing, a device that is too small, a size for a device",
    ),
    ("errors-ctr", "GET_RESYNC_WORK", 1, "it cannot resume a log whose uuid has 128 characters"),
    ("errors-ctr", "POSTSUSPEND", 1, "as before"),
    ("errors-ctr", "RESUME", 1, "as before"),
    ("errors-ctr", "STATUS_INFO", 1, "as before"),
    ("errors-unknown-uuid", "CTR", 1, "a device has its number"),
    (
        "errors-unknown-uuid",
        "DTR",
        1,
        "it knows no log after it was killed, and does not say so in a way that the kernel heeds",
    ),
    ("errors-unknown-uuid", "GET_RESYNC_WORK", 1, "as before"),
    ("errors-unknown-uuid", "GET_SYNC_COUNT", 4, "as before; and once it counts a region later than it says"),
    ("errors-unknown-uuid", "IN_SYNC", 2, "as before"),
    ("errors-unknown-uuid", "POSTSUSPEND", 2, "as before"),
    ("errors-unknown-uuid", "PRESUSPEND", 2, "as before"),
    ("errors-unknown-uuid", "STATUS_INFO", 3, "as before"),
    ("k-err-esrch", "MARK_REGION", 1, "the error was a fault made on purpose"),
    ("nosync", "CTR", 2, "a device has its number"),
    ("swap-same-uuid-core", "GET_SYNC_COUNT", 3, "it counts a region later than it says"),
    ("swap-same-uuid-core", "STATUS_INFO", 2, "it has no status of a log that was never resumed"),
];

#[test]
fn our_server_answers_as_was_right() {
    let mut different: BTreeMap<(String, String), (u32, String)> = BTreeMap::new();
    for (name, lines) in conversation::all() {
        let mut served = Served::new();
        for device in 2..10 {
            // One device of the captures is too small for a log.
            let len = if device == 5 { 512 } else { 64 << 10 };
            served.files.insert(format!("/dev/loop{device}"), vec![0; len]);
        }
        served.files.insert("253:0".to_owned(), vec![0; 64 << 10]);
        let mut ours = BTreeMap::new();
        let mut refused = BTreeSet::new();
        for line in &lines {
            match line {
                Line::Asked(message) if message.cn[0] == 7 => {
                    let answer = served.ask(&asked(message)).expect("every request is answered at once");
                    ours.insert(message.seq, answer);
                }
                Line::Answered(message) => {
                    let Some(answer) = ours.remove(&message.seq) else { continue };
                    let (frame, _) = Frame::parse(&answer).unwrap();
                    let (uuid, is_ctr) = (frame.name().uuid.to_vec(), message.name == "CTR");
                    if refused.contains(&uuid) && !is_ctr {
                        // The kernel asks on about a log that we did not construct.
                        continue;
                    }
                    let ours = shown(&Message { bytes: answer.clone(), ..message.clone() });
                    let theirs = shown(message);
                    if is_ctr && ours.starts_with("errno") {
                        refused.insert(uuid);
                    }
                    if ours != theirs {
                        let entry = different.entry((name.clone(), message.name.clone())).or_default();
                        entry.0 += 1;
                        entry.1 += &format!("\n    theirs {theirs}, ours {ours}");
                    }
                }
                Line::Note(text) if text.contains("kill") => served.restart(),
                _ => {}
            }
        }
    }
    for (name, request, count, why) in DIFFERENT {
        let key = ((*name).to_owned(), (*request).to_owned());
        match different.remove(&key) {
            Some((found, said)) => assert_eq!(found, *count, "{name} {request} ({why}):{said}"),
            None => panic!("{name} {request}: there is no such difference any more ({why})"),
        }
    }
    for ((name, request), (count, said)) in &different {
        println!("    (\"{name}\", \"{request}\", {count}, \"\"),{}", &said[..said.len().min(150)]);
    }
    assert!(different.is_empty(), "not in the table");
}
