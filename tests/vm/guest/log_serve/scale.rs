//! Many mirrors on one server.

use super::{Bed, MIB, dm_create, remove, status, write};
use crate::devices::loop_leg;
use crate::rig::{sh, until};

const MIRRORS: u64 = 100;

pub(crate) fn many_mirrors() {
    let bed = Bed::new();
    bed.serve();
    let (c, d) = (loop_leg(&bed.rig, "many-c", MIRRORS * MIB), loop_leg(&bed.rig, "many-d", MIRRORS * MIB));
    let logs = loop_leg(&bed.rig, "many-logs", MIRRORS * 64 * 1024);
    for n in 0..MIRRORS {
        let (at, log_at) = (n * MIB / 512, n * 128);
        let log = dm_create(&format!("log{n}"), &format!("0 128 linear {logs} {log_at}"));
        let table = format!(
            "0 2048 mirror userspace 5 many-{n} disk {log} 64 nosync 2 {c} {at} {d} {at} 1 handle_errors"
        );
        dm_create(&format!("m{n}"), &table);
    }
    let server = bed.rig.ok(&["log", "status", "--json"]);
    assert!(server.contains(&format!("\"live\": {MIRRORS}")), "{server}");
    for n in 0..MIRRORS {
        write(&format!("/dev/mapper/m{n}"), n % 256, 1, n as u8);
    }
    // A server that dies finds all of them again.
    bed.kill();
    bed.serve();
    for n in 0..MIRRORS {
        write(&format!("/dev/mapper/m{n}"), (n + 1) % 256, 1, n as u8);
        until("it is in sync", || status(&format!("m{n}")).starts_with("32/32"));
    }
    for n in 0..MIRRORS {
        remove(&format!("m{n}"));
        remove(&format!("log{n}"));
    }
    sh("cmp", &[&c, &d]);
    assert_eq!(bed.rig.ok(&["log", "list"]), "no logs\n");
}
