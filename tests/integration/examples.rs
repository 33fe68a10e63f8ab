//! What examples/ and docs/containers.md say to mirrord is what it understands. Whether it works is seen in containers:
//! tests/container.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::rig::{Rig, yaml};
use serde_json::Value;

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Words of a command line without quotes in it.
fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Runs it where nothing of what it names exists: it may fail, but not because it was used wrongly.
fn is_understood(rig: &Rig, args: &[String]) {
    let mut args: Vec<String> = args.iter().filter(|arg| *arg != "--foreground").cloned().collect();
    for at in 0..args.len() {
        if args[at] == "--startup" {
            args[at + 1] = "0".to_owned();
        } else if args[at] == "--startup=30" {
            args[at] = "--startup=0".to_owned();
        } else if args[at].ends_with(".img") && !args[at].starts_with("--") {
            // No legs are made: the folder that they would be in is not there.
            args[at].insert_str(0, "/nonexistent/");
        }
    }
    let output = rig.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{args:?}: {}: {said}", output.status);
}

#[test]
fn what_yaml_says_is_understood() {
    let rig = Rig::new();
    let compose = yaml::load(&text("examples/compose.yml"));
    let mirrord = &compose["services"]["mirrord"];
    is_understood(&rig, &words(mirrord["command"].as_str().unwrap()));
    let test = strings(&mirrord["healthcheck"]["test"]);
    assert_eq!(test[..2], ["CMD", "mirrord"]);
    is_understood(&rig, &test[2..]);
    for name in ["service", "fio"] {
        assert_eq!(compose["services"][name]["depends_on"]["mirrord"]["condition"], "service_healthy");
    }

    let pod = yaml::load(&text("examples/pod.yml"));
    assert_eq!((&pod["kind"], &pod["apiVersion"]), (&"Pod".into(), &"v1".into()));
    let sidecar = &pod["spec"]["initContainers"][0];
    assert_eq!(sidecar["restartPolicy"], "Always");
    is_understood(&rig, &strings(&sidecar["args"]));
    for place in ["/startupProbe", "/livenessProbe", "/lifecycle/preStop"] {
        let command = strings(&sidecar.pointer(place).unwrap()["exec"]["command"]);
        assert_eq!(command[0], "mirrord", "{place}");
        is_understood(&rig, &command[1..]);
    }
    // Every volume that is mounted is there, and its users see what mirrord mounts.
    let names = |list: &Value| -> BTreeSet<String> {
        list.as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut mounted = names(&sidecar["volumeMounts"]);
    mounted.extend(names(&pod["spec"]["containers"][0]["volumeMounts"]));
    assert_eq!(mounted, names(&pod["spec"]["volumes"]));
    let propagation = |mounts: &Value| {
        let mounts = mounts.as_array().unwrap().clone();
        mounts.into_iter().find(|mount| mount["name"] == "volumes").unwrap()["mountPropagation"].clone()
    };
    assert_eq!(propagation(&sidecar["volumeMounts"]), "Bidirectional");
    assert_eq!(propagation(&pod["spec"]["containers"][0]["volumeMounts"]), "HostToContainer");

    let job = yaml::load(&text("examples/ci.yml"));
    let steps = job["jobs"]["fio"]["steps"].as_array().unwrap();
    let scripts: Vec<&str> = steps.iter().filter_map(|step| step["run"].as_str()).collect();
    assert!(scripts.len() >= 5);
    assert!(in_scripts(&rig, &scripts.join("\n")) >= 4);
}

#[test]
fn what_the_document_says_is_understood() {
    let rig = Rig::new();
    let document = text("docs/containers.md");
    let blocks = document.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    assert!(in_scripts(&rig, &blocks.collect::<String>()) > 15);
    for link in document.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
        let path = link.split('#').next().unwrap();
        let there = path.is_empty() || Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(path).exists();
        assert!(there, "docs/containers.md leads to {link}");
    }
}

/// Tries each command of shell scripts that mirrord or a container of its image is given. How many there were.
fn in_scripts(rig: &Rig, scripts: &str) -> usize {
    let mut count = 0;
    for line in scripts.replace("\\\n", " ").lines() {
        let line = line.split(" # ").next().unwrap().split([';', '|', '&']).next().unwrap();
        let words = words(line);
        // What is a line of its own, behind `exec NAME mirrord`, or behind the image's name.
        let image = |word: &String| word == "mirrord" || word == "localhost/mirrord";
        let is_run =
            ["run", "exec", "mirrord"].iter().any(|verb| words.iter().take(3).any(|word| word == verb));
        let Some(at) = words.iter().position(image).filter(|_| is_run) else { continue };
        let args = &words[at + 1..];
        if args.is_empty() || args[0].starts_with('"') {
            continue;
        }
        is_understood(rig, args);
        count += 1;
    }
    count
}

#[test]
fn the_seccomp_profile_adds_io_uring_and_no_more_than_containers_have() {
    let profile: Value = serde_json::from_str(&text("packaging/container/seccomp.json")).unwrap();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let rules = profile["syscalls"].as_array().unwrap();
    assert_eq!(rules.len(), 1);
    let names: BTreeSet<String> = strings(&rules[0]["names"]).into_iter().collect();
    for name in
        ["io_uring_setup", "io_uring_enter", "io_uring_register", "mount", "umount2", "flock", "mlockall"]
    {
        assert!(names.contains(name), "{name}");
    }
    for name in
        ["bpf", "ptrace", "keyctl", "setns", "kexec_load", "init_module", "open_by_handle_at", "userfaultfd"]
    {
        assert!(!names.contains(name), "{name}");
    }
}
