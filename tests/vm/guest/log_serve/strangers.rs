//! Others than the kernel who talk to the connector: nothing of it is taken for a request.

use std::fs;
use std::os::fd::OwnedFd;

use mirrord_log::wire::netlink::{WRAPPING, wrap};
use mirrord_log::wire::{LogName, Request, RequestType, encode_request};
use rustix::net::netlink::{CONNECTOR, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, sendto, socket_with};

use super::{Bed, dirty, finish, remove, status, write, writer};
use crate::devices::dm;
use crate::rig::{sh, until};

/// Where a message says what is asked.
const REQUEST_TYPE: usize = 152;

/// The group of device-mapper's logs, as a bit.
const GROUP: u32 = 1 << 6;

pub(crate) fn nobody_else_is_listened_to() {
    let bed = Bed::new();
    bed.serve();
    let slow = dm(&bed.rig, "slow", &format!("0 {} linear {} 0", super::SIZE / 512, bed.b));
    let table = bed.table("victim core 1024 nosync").replace(&bed.b, &slow);
    let mirror = super::dm_create("m", &table);
    write(&mirror, 1, 1, 1);
    let (server, groups) = listener();
    assert_eq!(groups, GROUP, "it is in its own group and no other, as those of process events");

    // A write under way, whose mark somebody else wants cleared.
    sh("dmsetup", &["suspend", "--nolockfs", "--noflush", "slow"]);
    let under_way = writer(&mirror, 9 * 128);
    until("it is marked", || dirty(&bed.rig, "victim") == [9]);
    let luid = bed.show("victim")["luid"].as_str().map(|luid| u64::from_str_radix(luid, 16).unwrap());
    let name = LogName { uuid: b"victim", luid: luid.unwrap() };
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(CONNECTOR))
            .unwrap();
    bind(&socket, &SocketAddrNetlink::new(0, 0)).unwrap();
    let to = [SocketAddrNetlink::new(server, 0), SocketAddrNetlink::new(0, GROUP)];
    let nosync = Request::Ctr { text: b"65536 core 1024 nosync", again: false };
    let requests = [
        // With other numbers of what is asked: their data is the same.
        (Request::InSync(9), Some(RequestType::ClearRegion)),
        (Request::InSync(9), Some(RequestType::Flush)),
        (Request::SetRegionSync { region: 3, in_sync: false }, None),
        (Request::Postsuspend, None),
        (Request::Dtr, None),
        (nosync, None),
    ];
    for to in &to {
        for (request, other) in &requests {
            let mut datagram = Vec::new();
            wrap(1, &mut datagram, |message| encode_request(name, 1, request, message));
            if let Some(other) = other {
                datagram[WRAPPING + REQUEST_TYPE..][..4].copy_from_slice(&(*other as u32).to_le_bytes());
            }
            say(&socket, &datagram, to);
        }
        // And what is no message at all.
        for datagram in [&[][..], &[0; 16], &[0xff; 36], &[0xff; 4096]] {
            say(&socket, datagram, to);
        }
    }
    assert_eq!(dirty(&bed.rig, "victim"), [9], "the mark is still there");
    assert_eq!(bed.show("victim")["state"], "live");
    sh("dmsetup", &["resume", "slow"]);
    finish(under_way);
    until("it is clean", || dirty(&bed.rig, "victim").is_empty());
    assert_eq!(status("m"), "64/64 1 AA 1 core");
    remove("m");
    bed.assert_same();
    assert_eq!(bed.rig.ok(&["log", "list"]), "no logs\n");
}

/// Sends to the server or its group; the kernel may refuse what is no datagram.
fn say(socket: &OwnedFd, datagram: &[u8], to: &SocketAddrNetlink) {
    let sent = sendto(socket, datagram, SendFlags::empty(), to);
    println!("{} bytes to {to:?}: {sent:?}", datagram.len());
}

/// The netlink address of who listens to the connector, and its groups.
fn listener() -> (u32, u32) {
    let text = fs::read_to_string("/proc/net/netlink").unwrap();
    let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines = text.lines().skip(1).map(words);
    let mut found = lines.filter(|line| line[1] == "11" && line[2] != "0");
    let line = found.next().expect("the server listens");
    assert!(found.next().is_none(), "{text}");
    (line[2].parse().unwrap(), u32::from_str_radix(&line[3], 16).unwrap())
}
