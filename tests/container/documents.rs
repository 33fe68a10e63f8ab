//! The commands of docs/containers.md and examples/, run as they stand. Changed are only names: those of
//! containers and volumes, which a user may have, and of images that no registry is asked for here.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::engine::{Site, image, is_podman, said, tools};
use crate::rig::{have, try_sh};

/// A file of the tree, with the image under test in it.
fn text(path: &str) -> String {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    text.replace("localhost/mirrord", &image())
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
    for (name, body) in
        [("sudo", "exec \"$@\""), ("make", "[ \"$1\" = image ]"), ("apt-get", "command -v fio >/dev/null")]
    {
        fs::write(bin.join(name), format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-x", "-c", script]).current_dir(site.path("")).env("PATH", path);
    shell.stdin(Stdio::null()).output().unwrap()
}

/// What a test calls its own.
fn own(name: &str) -> String {
    format!("mirrord-{name}-{}", std::process::id())
}

/// A script with another name for its container and volume.
fn named(script: &str, name: &str) -> String {
    script.replace(" vol ", &format!(" {name} ")).replace(" vol\n", &format!(" {name}\n"))
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
    let own = own("doc");
    let mut script = blocks.concat();
    for name in ["legs-of-root:", "legs:", "control:"] {
        script = script.replace(&format!("--volume {name}"), &format!("--volume {own}-{name}"));
    }
    let mut script = named(&script, &own);
    script = script.replace(" busybox ", &format!(" {} ", tools()));
    site.has(&own, &["legs", "control", "legs-of-root"].map(|name| format!("{own}-{name}")), "volumes");
    let output = run(&site, &script);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for words in [
        &format!("{own} in_sync"),
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
    let (site, own) = (Site::new("ci"), own("ci"));
    site.has(&own, &[], "volumes");
    let job = crate::rig::yaml::load(&text("examples/ci.yml"));
    let steps = job["jobs"]["fio"]["steps"].as_array().unwrap();
    let step = |name: &str| {
        let step = steps.iter().find(|step| step["name"] == name).unwrap();
        named(step["run"].as_str().unwrap(), &own)
    };
    for name in ["Install", "Serve a mirrored volume", "Use it", "Legs are equal"] {
        // What is built and moved to root's store is there already.
        let script = step(name).replace(&format!("podman save {} | sudo podman load", image()), "true");
        let output = run(&site, &script);
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
    // A byte of one leg changes behind the volume's back: that is what the job is for.
    let spoil = "pid=$(podman inspect --format '{{.State.Pid}}' vol )
        printf x | dd of=/proc/$pid/root/data/b.img bs=1 seek=200000000 conv=notrunc status=none";
    let output = run(&site, &named(spoil, &own));
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
        let compose = format!("podman-compose --no-ansi -p {} -f compose.yml", own("compose"));
        run(&site, &format!("export SERVICE_IMAGE={0} FIO_IMAGE={0}; {compose} {args}", tools()))
    };
    let down = "down --volumes";
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
