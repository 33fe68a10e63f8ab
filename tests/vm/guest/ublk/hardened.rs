//! A daemon that serves a block device is protected from its own users: their memory, their mounts.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::{MIB, Volume, begin, mount, pause, refused, verified};
use crate::rig::{sh, try_sh, until};

pub(crate) fn a_daemon_is_protected() {
    let volume = Volume::create(64 * MIB, &[]);
    let rig = &volume.rig;
    let file = std::os::fd::OwnedFd::from(fs::File::create(rig.path("inherited")).unwrap());
    protected(volume.pid());
    sh("mkfs.ext4", &["-q", &volume.device]);
    let mnt = mount(rig, &volume.device);
    // One that takes over finds the mount; it must not be what keeps it.
    volume.replace_daemon();
    rig.ok(&["upgrade", "v"]);
    drop(file);
    protected(volume.pid());
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", volume.pid())).unwrap();
    assert!(!mounts.contains(&volume.device), "{mounts}");
    sh("umount", &[&mnt]);
    // Where mounts are private, it is not what keeps a file served that is stopped.
    sh("mount", &["--make-rprivate", "/"]);
    rig.ok(&["create", "--name", "file", "--size", "64MiB", "--legs", "c", "d", "--mount", "file"]);
    volume.replace_daemon();
    rig.ok(&["stop", "file"]);
    volume.stop();
}

fn protected(pid: u32) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let mounts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt"));
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let task = task.file_name().into_string().unwrap();
        // Threads of the kernel's, for io_uring, come and go.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/task/{task}/stat")) else { continue };
        let Ok(namespace) = mounts(&format!("{pid}/task/{task}")) else { continue };
        assert_ne!(namespace, mounts("self").unwrap(), "{stat}");
        // PF_MEMALLOC_NOIO, as PR_SET_IO_FLUSHER sets it.
        let flags: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(6).unwrap().parse().unwrap();
        assert_eq!(flags & 0x0008_0000, 0x0008_0000, "{stat}");
    }
    assert_eq!(read("oom_score_adj").trim(), "-1000");
    let locked = read("status").lines().find_map(|line| Some(line.strip_prefix("VmLck:")?.trim().to_owned()));
    let locked = locked.unwrap();
    assert!(locked != "0 kB");
    println!("{locked} locked");
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap();
        assert!(!target.ends_with("inherited"), "{}", target.display());
    }
}

/// A stop while the device is used is refused; a forced one ends it, and its users with an error.
pub(crate) fn a_stop_under_load() {
    let volume = Volume::create(64 * MIB, &[]);
    let rig = &volume.rig;
    for _ in 0..3 {
        let more = ["--time_based", "--runtime=120", "--output=/dev/null"];
        let args = verified(&volume.device, 2, 8 * MIB, &more);
        let mut fio = begin("fio", &args.iter().map(String::as_str).collect::<Vec<_>>());
        let writes = || rig.status()["io"]["writes"].as_u64().unwrap();
        until("fio writes", || writes() > 500);
        refused(rig, &["stop", "v"], &["in use", "--force"]);
        assert!(fio.try_wait().unwrap().is_none(), "a refusal disturbs nobody");
        rig.ok(&["stop", "v", "--force"]);
        assert!(!fio.wait().unwrap().success(), "fio goes on without a device");
        assert!(!Path::new(&volume.device).exists());
        volume.compare();
        rig.ok(&["start", "v"]);
        assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 0, "it was a clean stop");
    }

    // A file system that stays mounted on a device that is gone holds nobody up.
    sh("mkfs.ext4", &["-q", &volume.device]);
    let mnt = mount(rig, &volume.device);
    let begin = Instant::now();
    rig.ok(&["stop", "v", "--force"]);
    println!("a mounted volume was stopped in {:?}", begin.elapsed());
    assert!(!Path::new(&volume.device).exists());
    rig.ok(&["start", "v"]);
    sh("umount", &["-l", &mnt]);
    volume.rig.ok(&["stop", "v"]);
    volume.compare();
}

/// A machine that is short of memory writes to the volume to get some back.
pub(crate) fn memory_is_short() {
    sh("mkfs.ext4", &["-q", "/dev/vda"]);
    sh("mount", &["/dev/vda", "/mnt"]);
    let volume = Volume::of_legs(crate::rig::Rig::new(), &["/mnt/a", "/mnt/b"], 600 * MIB, &[]);
    let rig = &volume.rig;
    let pid = volume.pid();
    sh("mkfs.ext4", &["-q", &volume.device]);
    let mnt = mount(rig, &volume.device);
    // Leaves so much for dirty pages that they are soon too many.
    let free = |name: &str| {
        let all = fs::read_to_string("/proc/meminfo").unwrap();
        let line = all.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        line.split(' ').next().unwrap().parse::<u64>().unwrap() << 10
    };
    let hog = free("MemAvailable:").saturating_sub(100 * MIB);
    let mut hog: Vec<u8> = vec![1; hog as usize];
    println!("{} MiB taken, {} MiB left", hog.len() >> 20, free("MemAvailable:") >> 20);
    let file = format!("--filename={mnt}/big");
    let what = [
        "--name=v",
        "--eta=never",
        "--rw=write",
        "--bs=1m",
        "--size=500m",
        "--ioengine=psync",
        "--time_based",
    ];
    let mut fio = begin("fio", &[&what[..], &["--runtime=60", "--end_fsync=1", "--thread", &file]].concat());
    let mut before = 0;
    for second in 0.. {
        if fio.try_wait().unwrap().is_some() {
            break;
        }
        pause(1000);
        // It stays in memory.
        hog.iter_mut().step_by(4096).for_each(|byte| *byte = byte.wrapping_add(1));
        if second % 60 == 59 {
            let written = rig.status()["legs"][0]["written_bytes"].as_u64().unwrap();
            println!("{second} s: {} MiB written, {} MiB left", written >> 20, free("MemFree:") >> 20);
            assert!(written > before, "nothing moves");
            before = written;
        }
    }
    assert!(fio.wait().unwrap().success());
    assert_eq!(volume.pid(), pid);
    drop(hog);
    let said = String::from_utf8_lossy(&try_sh("dmesg", &[]).stdout).into_owned();
    for complaint in ["Out of memory", "oom-kill", "blocked for more than"] {
        assert!(!said.contains(complaint), "{complaint}");
    }
    sh("umount", &[&mnt]);
    volume.stop();
}
