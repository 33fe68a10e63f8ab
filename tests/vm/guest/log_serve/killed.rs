//! A server that dies, comes back, and stands still, under mirrors that are written to.

use std::process::{Child, Stdio};
use std::time::Duration;

use super::{Bed, MIB, dm_create, remove, sectors_written, status, until_in_sync};
use crate::devices::loop_leg;
use crate::rig::{sh, until};

/// What fio writes on each mirror.
const LOADED: u64 = 8 * MIB;

/// fio that writes all of [`LOADED`] and reads it back.
fn load_on(bed: &Bed, name: &str) -> Child {
    let mut fio = std::process::Command::new("/bin/fio");
    fio.args(["--name=v", &format!("--filename=/dev/mapper/{name}"), &format!("--size={LOADED}")]);
    fio.args(["--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=8", "--thread"]);
    fio.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1"]);
    let said = std::fs::File::create(said_of(bed, name)).unwrap();
    fio.stdout(said.try_clone().unwrap()).stderr(Stdio::from(said)).spawn().unwrap()
}

fn said_of(bed: &Bed, name: &str) -> std::path::PathBuf {
    bed.rig.path(&format!("{name}-fio"))
}

fn end(bed: &Bed, name: &str, mut fio: Child) {
    let status = fio.wait().unwrap();
    let said = std::fs::read_to_string(said_of(bed, name)).unwrap();
    assert!(status.success(), "{name}: {said}");
}

/// fio on a mirror, begun again whenever it is done, until it is told to end.
struct Load<'a> {
    bed: &'a Bed,
    name: String,
    fio: Option<Child>,
    runs: u32,
}

impl<'a> Load<'a> {
    fn begin(bed: &'a Bed, name: &str) -> Load<'a> {
        Load { bed, name: name.to_owned(), fio: Some(load_on(bed, name)), runs: 0 }
    }

    /// Has it at work.
    fn goes_on(&mut self) {
        if self.fio.as_mut().unwrap().try_wait().unwrap().is_some() {
            end(self.bed, &self.name, self.fio.take().unwrap());
            self.runs += 1;
            self.fio = Some(load_on(self.bed, &self.name));
        }
    }

    fn end(mut self) {
        end(self.bed, &self.name, self.fio.take().unwrap());
        println!("{}: {} runs of fio", self.name, self.runs + 1);
    }
}

/// A mirror with legs of its own, which differ everywhere until it is in sync.
struct Mirror {
    name: String,
    legs: [String; 2],
}

/// Mirrors with these names and logs, all of which have everything to copy.
fn create(bed: &Bed, logs: &[(&str, String)]) -> Vec<Mirror> {
    let legs_of =
        |name: &str| ["a", "b"].map(|leg| loop_leg(&bed.rig, &format!("{name}-{leg}"), super::SIZE));
    let prepared = |(name, _): &(&str, String)| {
        let mirror = Mirror { name: (*name).to_owned(), legs: legs_of(name) };
        bed.differ_on(&mirror.legs);
        mirror
    };
    let mirrors: Vec<Mirror> = logs.iter().map(prepared).collect();
    for (mirror, (name, log)) in mirrors.iter().zip(logs) {
        println!("{name}: {log}");
        dm_create(name, &bed.table_on(&mirror.legs, log));
    }
    mirrors
}

fn pause(milliseconds: u64) {
    // Real time has to pass: what is tested is what happens meanwhile.
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// As [`nothing_is_lost`], with the log that has most to lose.
pub(crate) fn nothing_is_lost_shortly() {
    let bed = Bed::new();
    bed.serve();
    let log = format!("disk-k integrated_flush disk {} 1024 sync", bed.log);
    let mirrors = create(&bed, &[("m", log)]);
    kill_under_load(&bed, &mirrors, 3);
}

/// Killed at any moment, back at once or after a while, with every kind of log: writers wait and go on, and nothing is
/// lost. The kernel takes 15 s to ask a dead server's successor again, so all mirrors wait at the same time.
pub(crate) fn nothing_is_lost() {
    let bed = Bed::new();
    bed.serve();
    let other = loop_leg(&bed.rig, "other-log", MIB);
    let mirrors = create(
        &bed,
        &[
            ("core", "core-k clustered-core 1024".to_owned()),
            ("core-f", "core-f-k integrated_flush core 1024".to_owned()),
            ("disk", format!("disk-k clustered-disk {} 1024 sync", bed.log)),
            ("disk-f", format!("disk-f-k integrated_flush disk {other} 1024 sync")),
        ],
    );
    kill_under_load(&bed, &mirrors, 6);
}

fn kill_under_load(bed: &Bed, mirrors: &[Mirror], kills: u64) {
    // While they are resynced ..
    for round in 0..2 {
        bed.kill();
        pause(round * 700);
        bed.serve();
    }
    for mirror in mirrors {
        until_in_sync(&mirror.name);
        bed.assert_same_on(&mirror.legs);
    }
    // .. and while they are written to.
    let mut loads: Vec<Load> = mirrors.iter().map(|mirror| Load::begin(bed, &mirror.name)).collect();
    for round in 0..kills {
        for (load, mirror) in loads.iter_mut().zip(mirrors) {
            load.goes_on();
            let before = sectors_written(&mirror.legs[1]);
            until("it is written to", || {
                load.goes_on();
                sectors_written(&mirror.legs[1]) > before
            });
        }
        pause(137 * round);
        bed.kill();
        pause(if round % 2 == 0 { 0 } else { 500 });
        bed.serve();
    }
    loads.into_iter().for_each(Load::end);
    for mirror in mirrors {
        until_in_sync(&mirror.name);
        assert!(status(&mirror.name).starts_with("64/64 1 AA "), "{}", status(&mirror.name));
        remove(&mirror.name);
        bed.assert_same_on(&mirror.legs);
    }
    bed.rig.ok(&["log", "stop"]);
    bed.reap();
}

/// A minute without a server, stopped or dead.
pub(crate) fn a_minute_without() {
    let bed = Bed::new();
    bed.serve();
    bed.create("m", &format!("disk-k clustered-disk {} 1024 nosync", bed.log));
    for dies in [false, true] {
        let quiet = sectors_written(&bed.b);
        let fio = load_on(&bed, "m");
        until("it is written to", || sectors_written(&bed.b) > quiet);
        if dies {
            bed.kill();
            pause(60_000);
            bed.serve();
        } else {
            bed.signal("-STOP");
            pause(60_000);
            bed.signal("-CONT");
        }
        end(&bed, "m", fio);
    }
    until_in_sync("m");
    remove("m");
    bed.assert_same();
    println!("{}", sh("dmesg", &[]).lines().filter(|line| line.contains("userspace")).count());
}
