//! A connection to a log server that is cut after every message of the talk in turn: of a start, a write, a resync and a
//! goodbye. The next connection has to make good for it, whatever was lost.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::rig::Rig;
use crate::rig::log_server::LogServer;
use crate::rig::way::{free_port, way};

const MIB: u64 = 1 << 20;

/// Messages in a talk, at most: a start with one dirty region, a write, its clearing and a goodbye.
const MESSAGES: i64 = 26;

/// A way to a server that passes messages on, until it has passed so many: then it is cut, and the next one holds.
struct Way {
    port: u16,
    left: Arc<AtomicI64>,
}

impl Way {
    fn new(to: &str) -> Way {
        let left = Arc::new(AtomicI64::new(i64::MAX));
        let count = Arc::clone(&left);
        Way { port: way(to, move |from, to| pass_on(from, to, &count)), left }
    }

    fn cut_after(&self, messages: i64) {
        self.left.store(messages, Ordering::SeqCst);
    }

    /// Whether it was cut since it was asked for.
    fn was_cut(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= 0
    }
}

fn pass_on(mut from: &TcpStream, mut to: &TcpStream, left: &AtomicI64) {
    while let Ok(message) = message(&mut from) {
        if to.write_all(&message).is_err() || left.fetch_sub(1, Ordering::SeqCst) == 1 {
            break;
        }
    }
}

/// A header of 160 bytes, whose last four say how much data follows.
fn message(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 160];
    from.read_exact(&mut message)?;
    let data = u32::from_le_bytes(message[156..].try_into().unwrap());
    message.resize(160 + data as usize, 0);
    from.read_exact(&mut message[160..])?;
    Ok(message)
}

#[test]
fn a_connection_cut_after_any_message_costs_nothing() {
    let rig = Rig::new();
    let server = format!("127.0.0.1:{}", free_port());
    let _server = LogServer::start(&rig, &["--tcp", &server, "--insecure"], 1);
    let way = Way::new(&server);
    way.cut_after(3);
    let log = format!("remote:insecure:127.0.0.1:{}", way.port);
    rig.create("64MiB", &["--log", &log, "--region-size", "1MiB"]);
    assert!(way.was_cut());
    rig.ok(&["stop", "v"]);

    let mut cuts = 0;
    for cut in 1..=MESSAGES {
        way.cut_after(cut);
        rig.ok(&["start", "v"]);
        let volume = File::options().read(true).write(true).open(rig.volume()).unwrap();
        for region in 0..cut as u64 {
            let mut block = [0; 4096];
            volume.read_exact_at(&mut block, region * MIB).unwrap();
            assert!(block.iter().all(|&byte| u64::from(byte) == region), "region {region}, cut {cut}");
        }
        volume.write_all_at(&[cut as u8; 4096], cut as u64 * MIB).unwrap();
        volume.sync_data().unwrap();
        drop(volume);
        if cut % 4 == 0 {
            rig.kill();
        } else {
            rig.ok(&["stop", "v"]);
            rig.assert_same("a", "b", 64 * MIB);
        }
        cuts += i64::from(way.was_cut());
    }
    assert!(cuts >= MESSAGES / 2, "only {cuts} talks were cut");
}
