//! Peers that mean no good: each costs its own connection, and a bounded piece of memory.

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mirrord_log::wire::{HEADER, LogName, Request, encode_request};
use mirrord_raid::Errno;

use super::client::{Client, Server, messages};
use crate::rig::Rig;

/// Where fields of the header are, in bytes.
const UUID: usize = 8;
const TYPE: usize = 152;
const DATA_SIZE: usize = 156;

/// The log is on another connection, or nowhere.
const ESRCH: i32 = 3;

fn frame(request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_request(LogName { uuid: b"u", luid: 1 }, 1, request, &mut bytes);
    bytes
}

#[test]
fn what_is_no_message_ends_its_connection() {
    let rig = Rig::new();
    let server = Server::start(&rig, &["--unix", "s"]);
    let mut good = Client::unix(&rig);
    good.construct("u", 1, "core", false);
    let mut huge = frame(&Request::GetSyncCount);
    huge[DATA_SIZE..].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut endless = frame(&Request::GetSyncCount);
    endless[UUID..UUID + 129].fill(b'u');
    for bytes in [huge, endless, vec![0xff; 4096]] {
        let mut client = Client::unix(&rig);
        client.stream.write_all(&bytes).unwrap();
        client.is_hung_up_on();
    }
    messages(&rig, "no message has more than");
    messages(&rig, "the uuid has no end");

    // What is a message and makes no sense is answered.
    let mut unknown = frame(&Request::GetSyncCount);
    unknown[TYPE..TYPE + 4].copy_from_slice(&200u32.to_le_bytes());
    good.stream.write_all(&unknown).unwrap();
    assert_eq!(good.receive().unwrap().error, -38);
    good.fails("u", 2, &Request::InSync(0), Errno(3));
    good.fails("v", 1, &Request::Ctr { text: b"nonsense", again: false }, Errno(22));
    // A log that another connection has.
    let mut other = Client::unix(&rig);
    other.fails("u", 1, &Request::GetSyncCount, Errno(ESRCH));
    drop(server);
}

/// One ends in the middle of a message, one says nothing at all.
#[test]
fn who_does_not_finish_a_message_is_dropped() {
    let rig = Rig::new();
    let _server = Server::start(&rig, &["--unix", "s"]);
    let mut silent = Client::unix(&rig);
    let mut half = Client::unix(&rig);
    half.stream.write_all(&frame(&Request::GetSyncCount)[..HEADER - 1]).unwrap();
    half.is_hung_up_on();
    messages(&rig, "did not finish a message");
    // Who has nothing to say may stay.
    silent.fails("u", 1, &Request::GetSyncCount, Errno(3));
}

#[test]
fn who_does_not_read_is_not_read_from() {
    let rig = Rig::new();
    let server = Server::start(&rig, &["--unix", "s"]);
    let mut good = Client::unix(&rig);
    good.construct("u", 1, "core", false);
    let before = server.memory();
    let request = frame(&Request::GetSyncCount).repeat(1000);
    let slow: Vec<(UnixStream, usize)> = (0..8)
        .map(|_| {
            let mut stream = UnixStream::connect(rig.path("s")).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut sent = 0;
            loop {
                match stream.write(&request) {
                    Ok(len) => sent += len,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => panic!("{error}"),
                }
                assert!(sent < 64 << 20, "it is read from for ever");
            }
            (stream, sent)
        })
        .collect();
    let grown = server.memory().saturating_sub(before);
    assert!(grown < 8 * 4096, "{grown} KiB");
    // Others do not notice.
    for _ in 0..100 {
        assert_eq!(good.ask("u", 1, &Request::GetSyncCount).number(), 0);
    }
    // And who reads in the end has an answer to each request that was whole.
    let (stream, sent) = slow.into_iter().next().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let mut client = Client::over(stream);
    for _ in 0..sent / HEADER {
        assert_eq!(client.receive().unwrap().error, -ESRCH);
    }
}

#[test]
fn one_connection_takes_nothing_from_another() {
    let rig = Rig::new();
    let _server = Server::start(&rig, &["--unix", "s"]);
    let mut one = Client::unix(&rig);
    one.construct("u", 1, "core", false);
    one.done("u", 1, &Request::Resume);
    let mut other = Client::unix(&rig);
    // By name alone it is not his.
    assert_ne!(other.ask("u", 1, &Request::GetSyncCount).error, 0);
    other.construct("u", 2, "core", false);
    other.fails("u", 2, &Request::Resume, Errno(16));
    assert_eq!(one.ask("u", 1, &Request::GetSyncCount).number(), 0);
}
