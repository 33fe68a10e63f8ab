//! Legs that are there and cannot be used when a volume is started: the others serve it, and nobody has to leave the bad
//! one out by hand.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::rig::{Rig, sh};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;

fn states(rig: &Rig) -> Vec<String> {
    let status = rig.status();
    let legs = status["legs"].as_array().unwrap();
    legs.iter().map(|leg| leg["state"].as_str().unwrap().to_owned()).collect()
}

/// Legs 0 and 1 of a volume, on devices that can be made read-only; `None` where there are none.
fn on_devices(rig: &Rig) -> Option<[String; 2]> {
    let device = |name| {
        let file = rig.path(name);
        File::create(&file).unwrap().set_len(80 * MIB).unwrap();
        rig.loop_device(&file)
    };
    let devices = [device("a.disk")?, device("b.disk")?];
    rig.create_of([&devices[0], &devices[1]], "64MiB", &[]);
    rig.write(3, 1);
    Some(devices)
}

fn first_byte(rig: &Rig, mib: u64) -> u8 {
    let mut byte = [0];
    File::open(rig.volume()).unwrap().read_exact_at(&mut byte, mib * MIB).unwrap();
    byte[0]
}

/// Starts `v` and gives what it says on standard error.
fn start(rig: &Rig, more: &[&str]) -> String {
    let output = rig.run(&[&["start", "v"], more].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn a_read_only_leg_in_use_needs_degraded_whichever_it_is() {
    for bad in [0, 1] {
        let rig = Rig::new();
        let Some(devices) = on_devices(&rig) else { return };
        rig.ok(&["stop", "v"]);
        sh("blockdev", &["--setro", &devices[bad]]);
        rig.refused(&["start", "v"], &[&devices[bad], "cannot be", "--degraded"]);
        let said = start(&rig, &["--degraded"]);
        assert!(said.contains(&devices[bad]) && said.contains("without it"), "{said}");
        assert_ne!(states(&rig)[bad], "in_sync");
        assert_eq!((states(&rig)[1 - bad].as_str(), first_byte(&rig, 3)), ("in_sync", 1));
        rig.write(5, 2);
        rig.ok(&["stop", "v"]);

        // It is recorded as out by now: no flag is needed, and with write access it is back.
        start(&rig, &[]);
        assert_ne!(states(&rig)[bad], "in_sync");
        rig.ok(&["stop", "v"]);
        sh("blockdev", &["--setrw", &devices[bad]]);
        start(&rig, &[]);
        rig.wait();
        assert_eq!((states(&rig), first_byte(&rig, 5)), (vec!["in_sync".to_owned(); 2], 2));
        rig.ok(&["stop", "v"]);
        sh("cmp", &["-n", &SIZE.to_string(), &devices[0], &devices[1]]);
    }
}

#[test]
fn the_only_leg_in_sync_is_not_left_out_for_an_older_one() {
    let rig = Rig::new();
    let Some(devices) = on_devices(&rig) else { return };
    rig.ok(&["leg", "fail", "v", "1"]);
    rig.write(3, 7);
    rig.ok(&["stop", "v"]);
    sh("blockdev", &["--setro", &devices[0]]);
    rig.refused(&["start", "v", "--degraded"], &["cannot be"]);
    sh("blockdev", &["--setrw", &devices[0]]);
    start(&rig, &[]);
    assert_eq!(first_byte(&rig, 3), 7);
}

#[test]
fn a_leg_with_a_garbled_footer_is_as_one_that_is_missing() {
    let rig = Rig::new();
    rig.create("64MiB", &[]);
    rig.write(3, 1);
    rig.ok(&["stop", "v"]);
    let leg = File::options().write(true).open(rig.path("b")).unwrap();
    let end = leg.metadata().unwrap().len();
    leg.write_all_at(&[0x5a; 64], end - 4096 + 16).unwrap();
    for what in [&["v"][..], &["./a", "./b"]] {
        rig.refused(&[&["start"], what].concat(), &["b: ", "footer", "--degraded"]);
    }
    let said = start(&rig, &["--degraded"]);
    assert!(said.contains("footer"), "{said}");
    assert_eq!((states(&rig)[0].as_str(), first_byte(&rig, 3)), ("in_sync", 1));
    rig.ok(&["stop", "v"]);
    // It is recorded as out.
    start(&rig, &[]);
    rig.ok(&["stop", "v"]);
    // What is no leg at all is not taken for one that is out.
    File::create(rig.path("c")).unwrap().set_len(MIB).unwrap();
    rig.refused(&["start", "--degraded", "./a", "./b", "./c"], &["cannot start", "footer"]);
}
