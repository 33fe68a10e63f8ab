//! Volumes made larger while they are used, and killed on the way; made smaller while they are not.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::rig::{Rig, have, sh, try_sh, unmount};

const MIB: u64 = 1 << 20;

/// Whether each MiB of the volume holds this byte, and the rest of it zeroes.
fn holds(rig: &Rig, bytes: &[u8]) {
    let file = File::open(rig.volume()).unwrap();
    let mut mib = vec![0; MIB as usize];
    for at in 0..size(rig) / MIB {
        file.read_exact_at(&mut mib, at * MIB).unwrap();
        let byte = bytes.get(at as usize).copied().unwrap_or(0);
        assert!(mib.iter().all(|&found| found == byte), "MiB {at} does not hold {byte}");
    }
}

fn size(rig: &Rig) -> u64 {
    let size = rig.status()["size_bytes"].as_u64().unwrap();
    assert_eq!(fs::metadata(rig.volume()).unwrap().len(), size, "users see it");
    size
}

fn len(rig: &Rig, leg: &str) -> (u64, u64) {
    let metadata = fs::metadata(rig.path(leg)).unwrap();
    (metadata.len(), metadata.blocks())
}

/// In sync, stopped, and the legs alike over so many bytes.
fn end(rig: &Rig, size: u64) {
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", size);
}

#[test]
fn a_volume_grows_with_every_kind_of_log_and_stays_so() {
    for log in ["internal", "core", "disk:log"] {
        let rig = Rig::new();
        // The internal log needs more pages from here on.
        rig.create("64MiB", &["--region-size", "4KiB", "--log", log]);
        rig.write(3, 0x33);
        let said = rig.ok(&["resize", "v", "--size", "200MiB", "--json"]);
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&said["size_bytes"], &said["was_bytes"]), (&(200 * MIB).into(), &(64 * MIB).into()));
        assert_eq!((size(&rig), rig.status()["regions"].as_u64()), (200 * MIB, Some(51200)), "{log}");
        assert_eq!(rig.status()["state"], "in_sync", "nothing is to be copied");
        holds(&rig, &[0, 0, 0, 0x33]);
        rig.write(199, 0x99);
        let mut all = [0; 200];
        (all[3], all[199]) = (0x33, 0x99);
        // By so little that the metadata cannot stay and would overlap itself.
        rig.ok(&["resize", "v", "--size", &(200 * MIB + 512).to_string()]);
        rig.kill();
        rig.ok(&["start", "v"]);
        assert_eq!(size(&rig), 200 * MIB + 512, "{log}");
        rig.wait();
        assert!(rig.ok(&["list", "--json"]).contains(&(200 * MIB + 512).to_string()));
        holds(&rig, &all);
        end(&rig, 200 * MIB + 512);
        rig.ok(&["start", "v"]);
        assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 0, "{log}");
        assert_eq!(size(&rig), 200 * MIB + 512);
        holds(&rig, &all);
        end(&rig, 200 * MIB + 512);
    }
}

#[test]
fn growth_under_load_loses_nothing() {
    if !have("fio", "growth under load") {
        return;
    }
    let rig = Rig::new();
    let volume = rig.create("64MiB", &["--region-size", "64KiB"]);
    let mut fio = std::process::Command::new("fio");
    let filename = format!("--filename={}", volume.display());
    fio.args(["--name=load", &filename, "--size=64M", "--rw=randwrite", "--bs=4k", "--ioengine=psync"]);
    fio.args([
        "--numjobs=1",
        "--loops=3",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--output-format=terse",
    ]);
    let mut fio = fio.current_dir(rig.path("")).stdout(Stdio::null()).spawn().unwrap();
    let mut mib = 64;
    while fio.try_wait().unwrap().is_none() {
        mib += 1;
        if mib < 200 {
            rig.ok(&["resize", "v", "--size", &format!("{mib}MiB")]);
            rig.write(mib - 1, mib as u8);
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(fio.wait().unwrap().success(), "fio found what it did not write");
    println!("grown {} times", mib - 64);
    let grown = size(&rig);
    assert!(mib > 70 && grown == mib.min(199) * MIB);
    end(&rig, grown);
}

#[test]
fn a_file_system_on_a_loop_device_grows_with_it() {
    let rig = Rig::new();
    let volume = rig.create("64MiB", &[]);
    if !have("resize2fs", "growth of a file system") {
        return;
    }
    let Some(device) = rig.loop_device(&volume) else { return };
    let mount = rig.path("mnt");
    fs::create_dir(&mount).unwrap();
    sh("mkfs.ext4", &["-q", &device]);
    sh("mount", &[&device, mount.to_str().unwrap()]);
    rig.at_end(&["umount", "-l", mount.to_str().unwrap()]);
    fs::write(mount.join("kept"), vec![0x5a; 20 << 20]).unwrap();
    rig.ok(&["resize", "v", "--size", "256MiB"]);
    sh("losetup", &["-c", &device]);
    assert_eq!(sh("blockdev", &["--getsize64", &device]).trim(), (256 * MIB).to_string());
    // Without CAP_SYS_RESOURCE it cannot grow while it is mounted.
    if !try_sh("resize2fs", &[&device]).status.success() {
        unmount(mount.to_str().unwrap());
        try_sh("e2fsck", &["-f", "-p", &device]);
        sh("resize2fs", &[&device]);
        sh("mount", &[&device, mount.to_str().unwrap()]);
    }
    fs::write(mount.join("more"), vec![0xa5; 120 << 20]).unwrap();
    unmount(mount.to_str().unwrap());
    sh("e2fsck", &["-f", "-n", &device]);
    sh("mount", &[&device, mount.to_str().unwrap()]);
    assert!(fs::read(mount.join("kept")).unwrap().iter().all(|&byte| byte == 0x5a));
    assert!(fs::read(mount.join("more")).unwrap().iter().all(|&byte| byte == 0xa5));
    unmount(mount.to_str().unwrap());
    sh("losetup", &["-d", &device]);
    end(&rig, 256 * MIB);
}

#[test]
fn a_daemon_killed_while_it_grows_leaves_the_old_size_or_the_new() {
    let rig = Rig::new();
    rig.create("16MiB", &["--region-size", "64KiB"]);
    let mut bytes = vec![0; 16];
    let (mut grown, mut cut, mut known) = (0, 0, 16);
    for round in 0..24u64 {
        let next = known + 1 + round % 3;
        rig.write(round % known, round as u8 + 1);
        bytes[(round % known) as usize] = round as u8 + 1;
        let daemon = rig.daemon();
        let resize = rig.command(&["resize", "v", "--size", &format!("{next}MiB")]);
        let mut resize = { resize }.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // From before it asks to after it was answered, which takes 10 ms or so.
        thread::sleep(Duration::from_micros(500 + round * 700));
        daemon.kill();
        let answered = resize.wait().unwrap().success();
        rig.ok(&["start", "v"]);
        let now = size(&rig) / MIB;
        assert!(now == known || now == next, "{known} or {next} MiB became {now}");
        assert!(now == next || !answered, "it was answered that there are {next} MiB, there are {now}");
        (grown, cut) = (grown + u32::from(now == next), cut + u32::from(now == known));
        known = now;
        bytes.resize(known as usize, 0);
        holds(&rig, &bytes);
        if round % 4 == 3 {
            end(&rig, known * MIB);
            rig.ok(&["start", "v"]);
        }
    }
    println!("{grown} times it had grown, {cut} times it had not");
    end(&rig, known * MIB);
}

#[test]
fn a_leg_made_longer_without_a_footer_is_the_leg_it_was() {
    let rig = Rig::new();
    rig.create("16MiB", &[]);
    rig.write(1, 0x11);
    rig.ok(&["stop", "v"]);
    for leg in ["a", "b"] {
        let file = File::options().write(true).open(rig.path(leg)).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_len(len(&rig, leg).0 + 40 * MIB + 4096).unwrap();
        // As a crash leaves it: nobody else wrote to it.
        file.set_modified(modified).unwrap();
    }
    assert!(rig.ok(&["inspect", "b"]).contains("clean"));
    rig.ok(&["start", "v"]);
    assert_eq!((size(&rig), &rig.status()["state"]), (16 * MIB, &"in_sync".into()));
    rig.write(2, 0x22);
    rig.kill();
    rig.ok(&["start", "a", "b"]);
    holds(&rig, &[0, 0x11, 0x22]);
    rig.ok(&["resize", "v", "--size", "20MiB"]);
    assert!(len(&rig, "a").0 < 21 * MIB, "no longer than it has to be");
    holds(&rig, &[0, 0x11, 0x22]);
    end(&rig, 20 * MIB);
    // Something at the end is not overlooked.
    let file = File::options().write(true).open(rig.path("b")).unwrap();
    file.write_all_at(b"mine", len(&rig, "b").0 + 8192).unwrap();
    rig.refused(&["start", "v"], &["b", "footer"]);
}

#[test]
fn where_one_leg_has_no_room_nothing_changes() {
    let rig = Rig::new();
    let Some(small) = rig.file_system("small", 16 << 20) else { return };
    rig.create_of(["a", "small/b"], "64MiB", &[]);
    rig.write(0, 0x77);
    let mut fill = File::create(small.join("fill")).unwrap();
    let full = std::io::copy(&mut std::io::repeat(1), &mut fill).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    drop(fill);
    sh("sync", &["-f", small.to_str().unwrap()]);
    let before = (len(&rig, "a"), len(&rig, "small/b"));
    rig.refused(&["resize", "v", "--size", "1GiB"], &["small/b", "room for its metadata", "No space"]);
    assert_eq!((len(&rig, "a"), len(&rig, "small/b")), before, "nothing was set aside");
    assert_eq!((size(&rig), &rig.status()["state"]), (64 * MIB, &"in_sync".into()));
    fs::remove_file(small.join("fill")).unwrap();
    rig.ok(&["resize", "v", "--size", "1GiB"]);
    assert_eq!(size(&rig), 1 << 30);
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "small/b", 1 << 30);
}

#[test]
fn what_cannot_be_resized_is_refused_and_stays_as_it_is() {
    let rig = Rig::new();
    rig.create("64MiB", &["--region-size", "4KiB"]);
    rig.write(5, 0x55);
    let before = (len(&rig, "a"), len(&rig, "b"));
    let resize = |size: &str, words: &[&str]| rig.refused(&["resize", "v", "--size", size], words);
    resize("64MiB", &["that size already"]);
    resize("32MiB", &["running volume can only grow", "--force"]);
    rig.refused(&["resize", "v", "--size", "32MiB", "--force"], &["running volume can only grow"]);
    resize("70000001", &["no multiple of"]);
    resize("17GiB", &["16GiB", "--region-size"]);
    resize("2GiB", &["1GiB", "stop it, start it"]);
    resize("nothing", &["size"]);
    rig.refused(&["resize", "w", "--size", "1GiB"], &["w"]);

    rig.ok(&["leg", "fail", "v", "b"]);
    resize("65MiB", &["/b", "it is failed", "mirrord leg add"]);
    rig.ok(&["resync", "v", "--pause"]);
    rig.write(6, 0x66);
    rig.ok(&["leg", "add", "v", "b"]);
    resize("65MiB", &["/b", "it is syncing", "mirrord wait"]);
    rig.ok(&["resync", "v", "--resume"]);
    rig.wait();
    rig.ok(&["split", "v", "--leg", "b", "--track", "--yes"]);
    resize("65MiB", &["/b", "tracked", "mirrord merge"]);
    rig.ok(&["merge", "v", "b"]);
    rig.wait();
    assert_eq!((len(&rig, "a").0, len(&rig, "b").0), (before.0.0, before.1.0));
    assert_eq!(size(&rig), 64 * MIB);

    // While nobody serves it.
    rig.kill();
    resize("32MiB", &["not stopped cleanly", "stop it"]);
    // The same while its daemon dies, which takes connections and answers none.
    let socket = rig.path("run/v.sock");
    fs::remove_file(&socket).unwrap();
    let dying = UnixListener::bind(&socket).unwrap();
    let dies = thread::spawn(move || drop(dying.accept()));
    resize("32MiB", &["not stopped cleanly", "stop it"]);
    dies.join().unwrap();
    rig.ok(&["start", "v"]);
    end(&rig, 64 * MIB);
    let legs = [fs::read(rig.path("a")).unwrap(), fs::read(rig.path("b")).unwrap()];
    resize("64MiB", &["that size already"]);
    resize("128MiB", &["grows while it runs", "mirrord start"]);
    resize("32MiB", &["64MiB", "cut off", "--force"]);
    rig.refused(&["resize", "v", "--size", "33000001", "--force"], &["no multiple of"]);
    fs::rename(rig.path("b"), rig.path("away")).unwrap();
    rig.refused(&["resize", "v", "--size", "32MiB", "--force"], &["/b"]);
    fs::rename(rig.path("away"), rig.path("b")).unwrap();
    assert!(
        legs == [fs::read(rig.path("a")).unwrap(), fs::read(rig.path("b")).unwrap()],
        "nothing was written"
    );
    // With a leg out it is not clean, and which leg counts is not for this to say.
    rig.ok(&["start", "v"]);
    rig.ok(&["leg", "fail", "v", "b"]);
    rig.ok(&["stop", "v"]);
    rig.refused(&["resize", "v", "--size", "32MiB", "--force"], &["leg 1", "not in sync"]);
}

#[test]
fn a_stopped_volume_is_cut_off_and_what_was_behind_never_comes_back() {
    let rig = Rig::new();
    rig.create("64MiB", &["--region-size", "64KiB"]);
    let bytes: Vec<u8> = (0..64).map(|mib| 0x40 + mib).collect();
    (0..64).for_each(|mib| rig.write(mib, bytes[mib as usize]));
    end(&rig, 64 * MIB);
    let said = rig.ok(&["resize", "v", "--size", &(20 * MIB + 512).to_string(), "--force"]);
    assert!(said.contains("was 64MiB"), "{said}");
    assert!(rig.ok(&["list", "--json"]).contains(&(20 * MIB + 512).to_string()));
    rig.ok(&["start", "a", "b"]);
    assert_eq!((size(&rig), &rig.status()["state"]), (20 * MIB + 512, &"in_sync".into()));
    holds(&rig, &bytes);
    // Where the metadata is there is room for this, and old data.
    rig.ok(&["resize", "v", "--size", "50MiB"]);
    let file = File::open(rig.volume()).unwrap();
    let mut cut = vec![1; 30 * MIB as usize - 512];
    file.read_exact_at(&mut cut, 20 * MIB + 512).unwrap();
    assert!(cut.iter().all(|&byte| byte == 0), "what was cut off is back");
    let mut kept = [0; 512];
    file.read_exact_at(&mut kept, 20 * MIB).unwrap();
    assert_eq!(kept, [bytes[20]; 512]);
    drop(file);
    end(&rig, 50 * MIB);
}

#[test]
fn devices_have_to_be_larger_first() {
    let rig = Rig::new();
    for name in ["one", "two"] {
        File::create(rig.path(name)).unwrap().set_len(80 * MIB).unwrap();
    }
    let Some(a) = rig.loop_device(&rig.path("one")) else { return };
    let Some(b) = rig.loop_device(&rig.path("two")) else { return };
    rig.create_of([&a, &b], "64MiB", &["--region-size", "64KiB"]);
    rig.write(63, 0x63);
    // There is room before the metadata.
    rig.ok(&["resize", "v", "--size", "70MiB"]);
    rig.write(69, 0x69);
    let larger = |name: &str, device: &str, mib: u64| {
        // What the device gets is not zero.
        let file = File::options().write(true).open(rig.path(name)).unwrap();
        let len = file.metadata().unwrap().len();
        file.write_all_at(&vec![0xee; (mib * MIB - len) as usize], len).unwrap();
        sh("losetup", &["-c", device]);
    };
    rig.refused(&["resize", "v", "--size", "100MiB"], &[&a, "80MiB", "make it larger first"]);
    larger("one", &a, 120);
    rig.refused(&["resize", "v", "--size", "100MiB"], &[&b, "80MiB", "make it larger first"]);
    assert_eq!(size(&rig), 70 * MIB);
    larger("two", &b, 120);
    rig.ok(&["resize", "v", "--size", "100MiB"]);
    let mut all = [0; 100];
    (all[63], all[69]) = (0x63, 0x69);
    holds(&rig, &all);
    rig.kill();
    rig.ok(&["start", "v"]);
    assert_eq!(size(&rig), 100 * MIB);
    holds(&rig, &all);
    rig.wait();
    rig.ok(&["stop", "v"]);
    sh("cmp", &["-n", &(100 * MIB).to_string(), &a, &b]);
    // One that grew while nobody served it says what to do.
    larger("two", &b, 140);
    rig.refused(&["start", "v"], &[&b, "grew", "as long as it was"]);
}
