//! Legs that are added to a volume in use, removed, replaced, kept as spares, or made volumes of their own.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::rig::{Rig, until};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;

fn volume() -> Rig {
    let rig = Rig::new();
    rig.create("32MiB", &["--region-size", "1MiB"]);
    rig
}

fn write_to(path: &Path, mib: u64, byte: u8) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&vec![byte; MIB as usize], mib * MIB).unwrap();
    file.sync_all().unwrap();
}

fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Index, file name and state of each leg.
fn legs(rig: &Rig) -> Vec<(u64, String, String)> {
    let status = rig.status();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let leg = |leg: &serde_json::Value| {
        let path = text(&leg["path"]);
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        (leg["index"].as_u64().unwrap(), name, text(&leg["state"]))
    };
    status["legs"].as_array().unwrap().iter().map(leg).collect()
}

fn is_leg(rig: &Rig, index: u64, name: &str, state: &str) -> bool {
    legs(rig).contains(&(index, name.to_owned(), state.to_owned()))
}

/// The volume is stopped, and these are its legs, all alike.
fn end_alike(rig: &Rig, names: &[&str]) -> Vec<u8> {
    rig.wait();
    rig.ok(&["stop", "v"]);
    let first = bytes(&rig.path(names[0]));
    for name in names {
        assert!(bytes(&rig.path(name)) == first, "{name} differs");
    }
    first
}

/// Writes to the volume until it is dropped; counts what it wrote.
struct Load {
    ends: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Load {
    fn on(rig: &Rig) -> Load {
        let (ends, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (path, over, count) = (rig.volume(), Arc::clone(&ends), Arc::clone(&written));
        let body = move || {
            let file = File::options().write(true).open(path).unwrap();
            for n in 0u64.. {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let block = (n * 7919) % (SIZE / 4096);
                file.write_all_at(&[n as u8; 4096], block * 4096).unwrap();
                count.store(n + 1, Ordering::SeqCst);
            }
        };
        Load { ends, written, thread: Some(thread::spawn(body)) }
    }

    fn end(mut self) -> u64 {
        self.ends.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
        self.written.load(Ordering::SeqCst)
    }
}

#[test]
fn a_new_leg_is_copied_to_under_load_and_stays_one() {
    let rig = volume();
    rig.write(3, 0x33);
    let load = Load::on(&rig);
    rig.ok(&["leg", "add", "v", "c"]);
    rig.wait();
    assert!(load.end() > 0);
    assert!(is_leg(&rig, 2, "c", "in_sync"), "{:?}", legs(&rig));
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    assert_eq!(legs(&rig).len(), 3, "it is remembered");
    rig.write(5, 0x55);
    // It is as good as the others.
    rig.ok(&["leg", "fail", "v", "a"]);
    rig.ok(&["leg", "fail", "v", "b"]);
    rig.refused(&["leg", "fail", "v", "c"], &["only leg in sync"]);
    rig.write(6, 0x66);
    rig.ok(&["leg", "add", "v", "a"]);
    rig.ok(&["leg", "add", "v", "b"]);
    let all = end_alike(&rig, &["a", "b", "c"]);
    assert!(all[5 * MIB as usize] == 0x55 && all[6 * MIB as usize] == 0x66);
}

#[test]
fn a_killed_daemon_goes_on_copying_to_a_new_leg() {
    let rig = volume();
    let load = Load::on(&rig);
    rig.ok(&["resync", "v", "--rate", "512KiB"]);
    rig.ok(&["leg", "add", "v", "c"]);
    load.end();
    assert!(is_leg(&rig, 2, "c", "syncing"), "{:?}", legs(&rig));
    rig.kill();
    rig.ok(&["start", "v"]);
    end_alike(&rig, &["a", "b", "c"]);
}

#[test]
fn a_leg_that_is_removed_is_one_no_more() {
    let rig = volume();
    rig.ok(&["leg", "add", "v", "c"]);
    rig.wait();
    rig.write(1, 0x11);
    rig.ok(&["leg", "remove", "v", "b"]);
    assert_eq!(rig.status()["state"], "in_sync", "it lacks nothing");
    rig.write(1, 0x22);
    assert_eq!(bytes(&rig.path("b"))[MIB as usize], 0x11, "its data stays");
    assert!(rig.ok(&["inspect", "b"]).contains("not a leg"));
    assert_eq!(fs::metadata(rig.path("b")).unwrap().len(), SIZE, "a plain image, without metadata behind it");
    rig.refused(&["leg", "remove", "v", "b"], &["no leg of the volume is called"]);
    // Its data is somebody's now.
    rig.refused(&["leg", "add", "v", "b"], &["holds data", "--force"]);
    rig.ok(&["leg", "add", "v", "b", "--force"]);
    rig.wait();
    assert!(is_leg(&rig, 1, "b", "in_sync"), "the index was free: {:?}", legs(&rig));
    // Also one that is out, and one that is not there.
    rig.ok(&["leg", "fail", "v", "c"]);
    rig.ok(&["leg", "remove", "v", "2"]);
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("b"), rig.path("gone")).unwrap();
    rig.ok(&["start", "v", "--degraded"]);
    rig.refused(&["leg", "remove", "v", "a"], &["only leg in sync"]);
    let said = rig.run(&["leg", "remove", "v", "1"]);
    assert!(said.status.success() && String::from_utf8_lossy(&said.stderr).contains("could not be wiped"));
    assert_eq!(legs(&rig).len(), 1);
    rig.ok(&["stop", "v"]);
    rig.refused(&["start", "./a", "./gone"], &["gone", "removed"]);
    rig.ok(&["start", "v"]);
    // The daemon was killed before it had forgotten where a leg was that it removed.
    rig.ok(&["leg", "add", "v", "b"]);
    rig.wait();
    let known = fs::read(rig.path("state/v.json")).unwrap();
    rig.ok(&["leg", "remove", "v", "b"]);
    rig.ok(&["stop", "v"]);
    for there in ["wiped", "not wiped", "another volume's"] {
        fs::write(rig.path("state/v.json"), &known).unwrap();
        match there {
            "not wiped" => drop(fs::copy(rig.path("gone"), rig.path("b")).unwrap()),
            "wiped" => {}
            _ => {
                let other = ["create", "--legs", "b", "x", "--size", "1MiB", "--name", "w", "--force"];
                rig.ok(&other);
                rig.ok(&["stop", "w"]);
            }
        }
        let said = rig.run(&["start", "v"]);
        let notes = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.success() && notes.contains("b is no leg of the volume any more"), "{notes}");
        assert_eq!(legs(&rig).len(), 1, "{there}");
        rig.ok(&["stop", "v"]);
    }
    rig.ok(&["start", "v"]);
    rig.ok(&["stop", "v"]);
}

/// A leg that is removed and holds nothing is an empty file, and one with data keeps it and no more.
#[test]
fn a_volume_is_made_of_legs_that_were_removed() {
    let rig = volume();
    rig.ok(&["leg", "remove", "v", "b"]);
    rig.write(3, 0x33);
    rig.ok(&["leg", "add", "v", "c"]);
    rig.wait();
    rig.ok(&["leg", "remove", "v", "c"]);
    for (legs, notes) in [(["b", "x"], ""), (["c", "y"], "leg c holds data: it is kept")] {
        let output = rig
            .run(&["create", "--legs", legs[0], legs[1], "--size", "32MiB", "--name", "w", "--mount", "w"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains(notes) && !said.contains("cut"), "{said}");
        assert!(notes.is_empty() == said.is_empty(), "{said}");
        rig.ok(&["wait", "w"]);
        let byte = if notes.is_empty() { 0 } else { 0x33 };
        assert_eq!(bytes(&rig.path("w"))[3 * MIB as usize], byte);
        rig.ok(&["stop", "w"]);
        rig.assert_same(legs[0], legs[1], SIZE);
        fs::remove_file(rig.path("state/w.json")).unwrap();
    }
    rig.ok(&["stop", "v"]);
}

#[test]
fn a_leg_is_replaced_while_it_serves() {
    let rig = volume();
    for mib in 0..32 {
        rig.write(mib, mib as u8 + 1);
    }
    let load = Load::on(&rig);
    rig.ok(&["resync", "v", "--rate", "1MiB"]);
    rig.ok(&["leg", "replace", "v", "b", "c"]);
    assert!(is_leg(&rig, 1, "b", "in_sync"), "it stays until the new one is in sync: {:?}", legs(&rig));
    assert_eq!(rig.status()["legs"][2]["replaces"], 1);
    rig.refused(&["leg", "replace", "v", "b", "d"], &["takes its place already"]);
    rig.refused(&["split", "v", "--leg", "b", "--track", "--yes"], &["another takes its place"]);
    // The daemon that began it is not the one that ends it.
    load.end();
    rig.kill();
    rig.ok(&["start", "v"]);
    let load = Load::on(&rig);
    until("the old leg leaves", || legs(&rig).len() == 2);
    load.end();
    assert!(is_leg(&rig, 2, "c", "in_sync"), "{:?}", legs(&rig));
    until("it is wiped", || rig.ok(&["inspect", "b"]).contains("not a leg"));
    end_alike(&rig, &["a", "c"]);
    rig.ok(&["start", "v"]);
    assert_eq!(legs(&rig).len(), 2);
    // The only one there is, too.
    rig.ok(&["leg", "remove", "v", "a"]);
    rig.ok(&["leg", "replace", "v", "c", "d"]);
    until("the last leg leaves", || legs(&rig).len() == 1);
    end_alike(&rig, &["d"]);
}

#[test]
fn a_spare_takes_the_place_of_a_leg_that_fails() {
    let rig = volume();
    rig.write(2, 0x22);
    rig.ok(&["leg", "add", "v", "c", "--spare"]);
    assert!(is_leg(&rig, 2, "c", "spare"));
    assert_eq!(rig.status()["state"], "in_sync");
    // It waits through a restart.
    rig.kill();
    rig.ok(&["start", "v"]);
    rig.wait();
    assert!(is_leg(&rig, 2, "c", "spare"), "{:?}", legs(&rig));
    rig.ok(&["leg", "fail", "v", "b"]);
    until("the spare is in sync, the failed leg has left", || {
        legs(&rig).len() == 2 && is_leg(&rig, 2, "c", "in_sync")
    });
    end_alike(&rig, &["a", "c"]);
    rig.ok(&["start", "v"]);
    assert_eq!(legs(&rig).len(), 2);
    // The one that failed is none of the volume's.
    rig.refused(&["leg", "add", "v", "b"], &["--force"]);
    rig.ok(&["stop", "v"]);
}

#[test]
fn a_spare_is_left_alone_if_that_is_the_policy() {
    let rig = volume();
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v", "--spares", "warn"]);
    rig.ok(&["leg", "add", "v", "c", "--spare"]);
    rig.ok(&["leg", "fail", "v", "b"]);
    thread::sleep(Duration::from_millis(1500));
    assert!(is_leg(&rig, 2, "c", "spare") && is_leg(&rig, 1, "b", "failed"), "{:?}", legs(&rig));
    rig.ok(&["leg", "add", "v", "b"]);
    rig.wait();
    // A spare that is not there keeps no volume from starting.
    rig.ok(&["stop", "v"]);
    fs::rename(rig.path("c"), rig.path("gone")).unwrap();
    rig.ok(&["start", "v", "--spares", "allocate"]);
    assert!(is_leg(&rig, 1, "b", "in_sync"));
    let status = rig.status();
    assert_eq!((&status["state"], &status["legs"][2]["reason"]), (&"in_sync".into(), &"missing".into()));
    rig.ok(&["leg", "remove", "v", "2"]);
    end_alike(&rig, &["a", "b"]);
}

#[test]
fn a_leg_becomes_a_volume_of_its_own() {
    let rig = volume();
    rig.write(4, 0x44);
    rig.refused(&["split", "v", "--leg", "b", "--name", "w"], &["--yes"]);
    rig.refused(&["split", "v", "--leg", "b", "--name", "v", "--yes"], &["volume v is running"]);
    rig.refused(&["split", "v", "--leg", "b", "--name", "a/b", "--yes"], &["a/b"]);
    rig.ok(&["split", "v", "--leg", "b", "--name", "w", "--yes"]);
    assert_eq!((legs(&rig).len(), &rig.status()["state"]), (1, &"in_sync".into()));
    rig.write(4, 0x45);
    rig.ok(&["start", "w"]);
    let of_w = rig.status_of("w");
    assert_ne!(of_w["uuid"], rig.status()["uuid"]);
    let volume = of_w["device"].as_str().unwrap().to_owned();
    assert_eq!(bytes(Path::new(&volume))[4 * MIB as usize], 0x44, "as it was");
    write_to(Path::new(&volume), 5, 0x77);
    // Both get a partner again.
    rig.ok(&["leg", "add", "w", "x"]);
    rig.ok(&["leg", "add", "v", "y"]);
    rig.ok(&["wait", "w"]);
    rig.wait();
    rig.ok(&["stop", "w"]);
    let w = [bytes(&rig.path("b")), bytes(&rig.path("x"))];
    assert!(w[0] == w[1] && w[0][4 * MIB as usize] == 0x44 && w[0][5 * MIB as usize] == 0x77);
    // One that was tracked before, as it was then.
    rig.ok(&["split", "v", "--leg", "y", "--track", "--yes"]);
    rig.write(4, 0x46);
    rig.kill();
    rig.ok(&["start", "v"]);
    rig.ok(&["split", "v", "--leg", "y", "--name", "z"]);
    assert_eq!(bytes(&rig.path("y"))[4 * MIB as usize], 0x45);
    rig.refused(&["merge", "v", "y"], &["y"]);
    rig.ok(&["start", "z"]);
    rig.ok(&["stop", "z"]);
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
    rig.ok(&["stop", "v"]);
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_touched() {
    let rig = volume();
    fs::write(rig.path("data"), [7; 8192]).unwrap();
    let other = Rig::new();
    other.create("8MiB", &[]);
    let foreign = other.path("a");
    let foreign = foreign.to_str().unwrap();
    let volume = rig.volume();
    let before: Vec<_> = ["a", "b"].map(|leg| bytes(&rig.path(leg))).into();
    for (args, words) in [
        (&["leg", "add", "w", "c"][..], &["w"][..]),
        (&["leg", "add", "v", "a"], &["in use already"]),
        (&["leg", "add", "v", "b", "--spare"], &["a leg of the volume already"]),
        (&["leg", "add", "v", "data"], &["holds data", "--force"]),
        (&["leg", "add", "v", foreign, "--force"], &["in use by process"]),
        (&["leg", "add", "v", volume.to_str().unwrap(), "--force"], &["the volume itself"]),
        (&["leg", "add", "v", "no/such/c"], &["no/such"]),
        (&["leg", "add", "v", "/dev/null", "--force"], &["/dev/null"]),
        (&["leg", "remove", "v", "nobody"], &["no leg of the volume is called nobody"]),
        (&["leg", "replace", "v", "nobody", "c"], &["no leg of the volume is called nobody"]),
        (&["leg", "replace", "v", "b", "a"], &["a leg of the volume already"]),
        (&["leg", "replace", "v", "b", "data"], &["holds data", "--force"]),
    ] {
        rig.refused(args, words);
    }
    assert!(!rig.path("c").exists(), "what was created is gone again");
    assert_eq!(fs::read(rig.path("data")).unwrap(), [7; 8192]);
    assert_eq!(legs(&rig).len(), 2);
    // No more than there can be.
    for n in 2..8 {
        rig.ok(&["leg", "add", "v", &format!("n{n}"), "--spare"]);
    }
    rig.refused(&["leg", "add", "v", "n8"], &["8 legs", "remove one"]);
    rig.ok(&["stop", "v"]);
    for (leg, before) in ["a", "b"].iter().zip(before) {
        assert!(bytes(&rig.path(leg)) == before);
    }
    rig.refused(&["start", "./a", "./b", "--source", "./n2"], &["n2"]);
    other.ok(&["stop", "v"]);
}
