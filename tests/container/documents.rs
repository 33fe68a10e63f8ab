//! The commands of docs/containers.md and examples/, run as they stand. Changed are only names: those of
//! containers and volumes, which a user may have, and of images that no registry is asked for here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::engine::{Site, image, is_podman, said, tools, variable};
use crate::rig::{have, try_sh};

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Runs a script in a folder that has what a clone has, as bash runs what is typed. `podman` is the engine under test.
fn run(site: &Site, script: &str) -> Output {
    let bin = site.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["packaging", "examples"] {
        let _ = std::os::unix::fs::symlink(root.join(folder), site.path(folder));
    }
    // There is no other user here to become root from, and nothing to build or install.
    for (name, body) in [
        ("sudo", "exec \"$@\"".to_owned()),
        (
            "make",
            format!(
                "[ \"$1\" = image ] && {} tag {} localhost/mirrord",
                variable("CONTAINER_ENGINE"),
                image()
            ),
        ),
        ("apt-get", "command -v fio >/dev/null".to_owned()),
    ] {
        fs::write(bin.join(name), format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-x", "-c", script]).current_dir(site.path("")).env("PATH", path);
    shell.stdin(Stdio::null()).output().unwrap()
}

/// The blocks of a document that are in this language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    text.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
#[ignore = "tests/container/run runs it"]
fn the_commands_of_the_document_work() {
    if !is_podman() {
        println!("SKIP: commands of docs/containers.md: they are podman's");
        return;
    }
    let site = Site::new("document");
    let document = text("docs/containers.md");
    let blocks = blocks(&document, "sh");
    assert!(blocks.len() >= 8, "{blocks:?}");
    // Names that a user's own volumes and containers may have here.
    let mut script = blocks.concat();
    for name in ["legs-of-root:", "legs:", "control:"] {
        script = script.replace(&format!("--volume {name}"), &format!("--volume mirrord-doc-{name}"));
    }
    let mut script = script.replace(" vol ", " mirrord-doc ").replace(" vol\n", " mirrord-doc\n");
    script = script.replace(" busybox ", &format!(" {} ", tools()));
    let clean = "podman rm --force --time 0 mirrord-doc >/dev/null 2>&1 || true
        podman volume rm --force mirrord-doc-legs mirrord-doc-control mirrord-doc-legs-of-root >/dev/null 2>&1 || true
        umount --recursive volumes 2>/dev/null || true\n";
    run(&site, clean);
    let output = run(&site, &script);
    run(&site, clean);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for words in [
        "mirrord-doc in_sync",
        "healthy",
        "takes FUSE",
        "split off and tracked",
        "scrub finished",
        "io_uring",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
#[ignore = "tests/container/run runs it"]
fn the_ci_job_passes_and_fails_if_legs_differ() {
    if !have("fio", "the example of a CI job") || !is_podman() {
        return;
    }
    let site = Site::new("ci");
    let job = crate::rig::yaml::load(&text("examples/ci.yml"));
    let steps = job["jobs"]["fio"]["steps"].as_array().unwrap();
    let step = |name: &str| {
        let step = steps.iter().find(|step| step["name"] == name).unwrap();
        step["run"].as_str().unwrap().replace(" vol ", " mirrord-ci ").replace(" vol\n", " mirrord-ci\n")
    };
    let clean = "podman rm --force --time 0 --volumes mirrord-ci >/dev/null 2>&1 || true
        umount --recursive volumes 2>/dev/null || true\n";
    run(&site, clean);
    for name in ["Install", "Serve a mirrored volume", "Use it", "Legs are equal"] {
        // What is built and moved to root's store is there already.
        let script = step(name).replace("podman save localhost/mirrord | sudo podman load", "true");
        let output = run(&site, &script);
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
    // A byte of one leg changes behind the volume's back: that is what the job is for.
    let spoil = "pid=$(podman inspect --format '{{.State.Pid}}' mirrord-ci)
        printf x | dd of=/proc/$pid/root/data/b.img bs=1 seek=200000000 conv=notrunc status=none";
    let output = run(&site, spoil);
    assert!(output.status.success(), "{}", said(&output));
    let output = run(&site, &step("Legs are equal"));
    assert!(!output.status.success() && said(&output).contains("differed"), "{}", said(&output));
    let output = run(&site, &step("Stop"));
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
#[ignore = "tests/container/run runs it"]
fn the_compose_file_works() {
    if !is_podman() || !have("podman-compose", "examples/compose.yml") {
        return;
    }
    let site = Site::new("compose");
    fs::write(site.path("compose.yml"), text("examples/compose.yml")).unwrap();
    let volumes = site.shared("volumes");
    let compose = |args: &str| {
        let compose = "podman-compose --no-ansi -p mirrordcompose -f compose.yml";
        run(&site, &format!("make image; export SERVICE_IMAGE={0} FIO_IMAGE={0}; {compose} {args}", tools()))
    };
    let down = "down --volumes";
    compose(down);
    let up = compose("up --detach mirrord service");
    let file = volumes.join("vol.img");
    let written =
        || try_sh("sh", &["-c", &format!("head -c 4096 {} | grep -aq 20", file.display())]).status.success();
    crate::rig::until("the service writes", written);
    let fio = compose("run --rm fio");
    let logs = compose("logs mirrord");
    let ended = compose(down);
    assert!(up.status.success(), "{}", said(&up));
    assert!(fio.status.success() && said(&fio).contains("write:"), "{}\n{}", said(&fio), said(&logs));
    assert!(ended.status.success() && !file.exists(), "{}", said(&ended));
}
