//! What the image is: small, the program and nothing else, the same wherever it is built. And what it costs to run.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::engine::{Site, engine, image, is_podman, ok, said, variable};
use crate::rig::sh;

/// Most bytes that it may have.
const MOST: u64 = 30 << 20;

#[test]
#[ignore = "tests/container/run runs it"]
fn it_is_small_and_holds_the_program_alone() {
    let site = Site::new("image");
    let found: Value = serde_json::from_str(&ok(&["image", "inspect", &image()])).unwrap();
    let config = &found[0]["Config"];
    let size = found[0]["Size"].as_u64().unwrap();
    println!("image: {size} bytes");
    assert!(size < MOST);
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"][0], "mirrord");
    let labels = &config["Labels"];
    for label in ["title", "description", "licenses", "version", "revision"] {
        let value = labels[format!("org.opencontainers.image.{label}")].as_str().unwrap_or_default();
        assert!(!value.is_empty(), "{label}: {labels}");
    }
    let version = format!("mirrord {}", labels["org.opencontainers.image.version"].as_str().unwrap());
    assert_eq!(ok(&["run", "--rm", &image(), "--version"]), version);
    let check = [config, &found[0]].map(|part| &part["Healthcheck"]["Test"]);
    let check = check.into_iter().find(|test| !test.is_null()).unwrap();
    assert_eq!(*check, serde_json::json!(["CMD", "mirrord", "status", "--json"]));

    // All of its files, but those that every container is given.
    let container = ok(&["create", &image(), "--version"]);
    let archive = site.path("all.tar");
    ok(&["export", "--output", archive.to_str().unwrap(), &container]);
    ok(&["rm", "--volumes", &container]);
    let list = sh("tar", &["-tf", archive.to_str().unwrap()]);
    let given = ["dev/", "etc/", "proc/", "run/", "sys/", ".dockerenv"];
    let files: Vec<&str> = list
        .lines()
        .filter(|name| !name.ends_with('/') && !given.iter().any(|at| name.starts_with(at)))
        .collect();
    let licences = "usr/share/doc/mirrord/LICENSE";
    assert_eq!(
        files,
        ["usr/bin/mirrord", &format!("{licences}-APACHE"), &format!("{licences}-MIT")]
            .iter()
            .map(|name| name as &str)
            .collect::<Vec<_>>()
    );
}

/// That the same sources make the same program is shown by `tests/container/reproducible`, which takes minutes.
#[test]
#[ignore = "tests/container/run runs it"]
fn another_checkout_makes_the_same_layers_of_the_same_program() {
    if !is_podman() {
        println!("SKIP: an image made twice is the same: docker keeps the time of the build");
        return;
    }
    let site = Site::new("again");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Copied, so newer, and with another mode.
    let copy = site.path("deep/checkout");
    fs::create_dir_all(copy.join("scripts")).unwrap();
    for file in [
        "Containerfile",
        "Cargo.toml",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "scripts/image",
        "scripts/container-engine",
    ] {
        fs::copy(root.join(file), copy.join(file)).unwrap();
    }
    sh("chmod", &["600", copy.join("LICENSE-MIT").to_str().unwrap()]);
    let binary = root.join(variable("MIRRORD_IMAGE_BINARY"));
    let build = |folder: &Path, mask: &str| {
        let tag = format!("{}-again", image());
        let script = format!("umask {mask}; scripts/image --binary {} {tag}", binary.display());
        let mut shell = Command::new("bash");
        shell.args(["-c", &script]).current_dir(folder).env("SOURCE_DATE_EPOCH", "1700000000");
        shell.env("GIT_CEILING_DIRECTORIES", folder).env("MIRRORD_REVISION", "the-same");
        let output = shell.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let id = ok(&["image", "inspect", "--format", "{{.RootFS.Layers}}", &tag]);
        ok(&["rmi", "--force", &tag]);
        id
    };
    let here = build(root, "022");
    assert!(here.len() > 64);
    assert_eq!(build(&copy, "077"), here);
}

#[test]
#[ignore = "tests/container/run runs it"]
fn what_it_costs_is_measured() {
    let site = Site::new("figures");
    let milliseconds = |work: &dyn Fn()| {
        let begun = Instant::now();
        work();
        begun.elapsed().as_millis()
    };
    let nothing =
        milliseconds(&|| drop(ok(&["run", "--rm", "--read-only", "--cap-drop=ALL", &image(), "--version"])));
    let begun = Instant::now();
    let vol = site.serve(&[], &[]);
    let served = begun.elapsed().as_millis();
    ok(&["stop", &vol.name]);
    let again = milliseconds(&|| vol.start_again());
    println!("a container of the image that prints its version: {nothing} ms");
    println!(
        "from run to a new volume that is served and in sync, as another container's exec sees it: {served} ms"
    );
    println!("from start to the same volume: {again} ms");
    println!("idle: {} resident, of which {} are its own", vol.process("VmRSS"), vol.process("RssAnon"));
    let log = said(&engine(&["logs", &vol.name]));
    println!("in its own words: {}", log.lines().rfind(|line| line.contains("serving name")).unwrap());
    assert_eq!(vol.stop(), "0");
}
