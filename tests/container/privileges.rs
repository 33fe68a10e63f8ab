//! Which privileges each documented way has, as the kernel sees them, and what happens without.

use std::fs;

use serde_json::Value;

use crate::engine::{Container, SERVE, Site, USER, engine, image, is_podman, ok, said};
use crate::rig::{sh, try_sh};

/// Number of CAP_SYS_ADMIN and CAP_DAC_OVERRIDE in sets of capabilities.
const SYS_ADMIN: u64 = 21;
const DAC_OVERRIDE: u64 = 1;

const PROFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/container/seccomp.json");

/// Writes and reads back what is mounted in the container, as root: of its user namespace, or it is not let in.
fn use_volume(site: &Site, vol: &Container) {
    let (pid, status) = (vol.inspect(".State.Pid"), vol.status());
    let path = format!("/proc/{pid}/root{}", status["device"].as_str().unwrap());
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    let enter = match namespace(&pid) == namespace("self") {
        true => String::new(),
        false => format!("nsenter --target {pid} --user"),
    };
    let fresh: Vec<u8> = (0..4u32 << 20).map(|n| ((n * 31) >> 3) as u8).collect();
    let (input, output) = (site.path("fresh"), site.path("back"));
    fs::write(&input, &fresh).unwrap();
    let script = format!(
        "{enter} dd of={path} bs=128k seek=64 conv=notrunc,fsync iflag=fullblock <{}
         {enter} dd if={path} bs=128k skip=64 count=32 >{}",
        input.display(),
        output.display()
    );
    sh("bash", &["-euc", &script]);
    assert!(fs::read(output).unwrap() == fresh);
}

#[test]
#[ignore = "tests/container/run runs it"]
fn a_volume_has_the_privileges_that_are_documented() {
    let site = Site::new("least");
    let vol = site.serve(&[], &[]);
    let sets = |field: &str| u64::from_str_radix(&vol.process(field), 16).unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(sets(set) & !(1 << SYS_ADMIN), 0, "{set}");
    }
    assert_eq!(sets("CapEff"), 1 << SYS_ADMIN);
    assert_eq!((vol.process("NoNewPrivs").as_str(), vol.process("Seccomp").as_str()), ("1", "2"));
    assert!(vol.process("Uid").split_whitespace().all(|uid| uid == USER.to_string()));
    use_volume(&site, &vol);
    // Nothing of the image can be written to.
    let pid = vol.inspect(".State.Pid");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{root}");
    assert_eq!(vol.stop(), "0");
    site.legs_are_equal();
}

#[test]
#[ignore = "tests/container/run runs it"]
fn as_docker_gives_it_to_root() {
    let site = Site::new("root");
    let vol = site.serve(&["--user=0", "--cap-add=DAC_OVERRIDE", "--tmpfs=/run"], &[]);
    let effective = u64::from_str_radix(&vol.process("CapEff"), 16).unwrap();
    assert_eq!(effective, 1 << SYS_ADMIN | 1 << DAC_OVERRIDE);
    use_volume(&site, &vol);
    vol.kill();
    vol.start_again();
    assert_eq!(vol.stop(), "0");
}

/// What the root of a rootless engine is: nobody, outside of its user namespace.
#[test]
#[ignore = "tests/container/run runs it"]
fn in_a_user_namespace_nothing_of_the_host_is_given_away() {
    if !is_podman() {
        println!("SKIP: a volume in a user namespace: podman's way to ask for one");
        return;
    }
    let site = Site::new("userns");
    let vol = site.serve(&["--uidmap=0:100000:65536", "--gidmap=0:100000:65536"], &[]);
    let pid = vol.inspect(".State.Pid");
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert!(map.split_whitespace().eq(["0", "100000", "65536"]), "{map}");
    assert!(vol.process("Uid").starts_with(&(100_000 + USER).to_string()));
    use_volume(&site, &vol);
    let path = format!("/proc/{pid}/root{}", vol.status()["device"].as_str().unwrap());
    assert!(
        !try_sh("head", &["-c", "1", &path]).status.success(),
        "it is nothing of the host, not even of its root"
    );
    vol.kill();
    vol.start_again();
    use_volume(&site, &vol);
    assert_eq!(vol.stop(), "0");
}

#[test]
#[ignore = "tests/container/run runs it"]
fn without_io_uring_threads_do_the_io() {
    let site = Site::new("seccomp");
    let profile: Value = serde_json::from_str(&fs::read_to_string(PROFILE).unwrap()).unwrap();
    let mut without = profile.clone();
    let names = without["syscalls"][0]["names"].as_array_mut().unwrap();
    names.retain(|name| !name.as_str().unwrap().starts_with("io_uring_"));
    let forbidding = site.path("without.json");
    fs::write(&forbidding, without.to_string()).unwrap();
    let forbidding = format!("--security-opt=seccomp={}", forbidding.display());
    let allowing = format!("--security-opt=seccomp={PROFILE}");

    for (flags, what) in [
        (&[][..], "the engine's default"),
        (&[&forbidding[..]], "without io_uring"),
        (&[&allowing], "packaging/container/seccomp.json"),
    ] {
        let vol = site.serve(flags, &[]);
        let status = vol.status();
        let used = status["engine"].as_str().unwrap();
        println!("leg IO with the profile {what}: {used}");
        match what {
            "without io_uring" => {
                assert_eq!(used, "threads");
                assert!(!status["engine_note"].is_null(), "{status}");
                assert!(
                    said(&engine(&["logs", &vol.name])).contains("no io_uring: leg IO goes through threads")
                );
            }
            "packaging/container/seccomp.json" => assert_eq!(used, "io_uring", "{status}"),
            _ => {}
        }
        use_volume(&site, &vol);
        vol.mirrord_ok(&["split", "vol", "--leg", "1", "--track", "--yes", "--serve"]);
        vol.mirrord_ok(&["stop", "vol-1"]);
        use_volume(&site, &vol);
        vol.mirrord_ok(&["merge", "vol", "1"]);
        vol.mirrord_ok(&["wait", "vol"]);
        vol.mirrord_ok(&["scrub", "vol", "--wait"]);
        assert_eq!(vol.stop(), "0");
        site.legs_are_equal();
        ok(&["rm", &vol.name]);
    }
}

#[test]
#[ignore = "tests/container/run runs it"]
fn what_is_missing_is_said() {
    let site = Site::new("missing");
    let fuse = "--device=/dev/fuse";
    let (code, said) = site.start("device", &["--cap-add=SYS_ADMIN"], &SERVE).ended();
    assert!(code == "1" && said.contains("/dev/fuse") && said.contains("pass /dev/fuse"), "{said}");
    let (code, said) = site.start("mount", &["--cap-drop=ALL", fuse], &SERVE).ended();
    assert!(code == "1" && said.contains("--cap-add SYS_ADMIN"), "{said}");
    let said = self::said(&engine(&["run", "--rm", &image(), "doctor"]));
    assert!(
        said.contains("give") || said.contains("--device /dev/fuse") || said.contains("modprobe fuse"),
        "{said}"
    );
    let all = self::said(&engine(&["run", "--rm", fuse, "--cap-add=SYS_ADMIN", &image(), "doctor"]));
    assert!(all.contains("--front auto takes FUSE: a file, mounted by the daemon itself"), "{all}");
}
