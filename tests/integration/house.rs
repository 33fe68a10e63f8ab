//! The rules of ARCHITECTURE.md that can be checked by reading the tree.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file of the tree.
fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        ["src", "raid", "log", "ublk", "bench", "tests", "examples"].map(|name| root().join(name)).into();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 50, "found only {} sources: is the test looking in the right place?", found.len());
    found
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// The mirrord packages that a manifest names under `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(manifest)).unwrap();
    let section = text.split("\n[dependencies]\n").nth(1).unwrap_or("");
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let name = |line: &str| line.split(['.', ' ', '=']).next().unwrap_or("").to_owned();
    lines.map(name).filter(|name| name.starts_with("mirrord")).collect()
}

#[test]
fn crates_depend_one_way() {
    for (manifest, allowed) in [
        ("raid/Cargo.toml", &[][..]),
        ("log/Cargo.toml", &["mirrord-raid"]),
        ("ublk/Cargo.toml", &["mirrord-raid"]),
        ("Cargo.toml", &["mirrord-raid", "mirrord-log", "mirrord-ublk"]),
        ("bench/Cargo.toml", &["mirrord", "mirrord-raid", "mirrord-log", "mirrord-ublk"]),
    ] {
        for edge in dependencies(manifest) {
            assert!(allowed.contains(&edge.as_str()), "{manifest}: the edge to {edge} is not allowed");
        }
    }
}

#[test]
fn unsafe_code_is_in_ublk_alone() {
    for path in sources() {
        let name = relative(&path);
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| line.split("//").next().unwrap_or(""));
        let found = lines.filter(|line| {
            let mut words = line.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            words.any(|word| word == concat!("un", "safe"))
        });
        if !name.starts_with("ublk/") {
            assert_eq!(found.count(), 0, "{name} has code that the compiler cannot check");
        }
    }
}

#[test]
fn the_engine_crate_neither_opens_nor_waits_nor_asks_the_time() {
    let forbidden = ["std::fs", "std::net", "std::thread", "std::time", "Instant", "SystemTime", "Condvar"];
    for path in sources().iter().filter(|path| relative(path).starts_with("raid/src/")) {
        let text = fs::read_to_string(path).unwrap();
        for word in forbidden {
            assert!(!text.contains(word), "{} mentions {word}", relative(path));
        }
    }
}

#[test]
fn nothing_is_left_to_do_and_files_stay_small() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        for mark in marks {
            assert!(!text.contains(mark), "{} has a {mark}", relative(&path));
        }
        let lines = text.lines().count();
        assert!(lines <= 620, "{} has {lines} lines: split it by noun", relative(&path));
    }
}

#[test]
fn every_source_file_says_what_it_is() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} has no module documentation", relative(&path));
    }
}

#[test]
fn tests_that_the_documents_name_exist() {
    let text = fs::read_to_string(root().join("docs/legs.md")).unwrap();
    let cases = fs::read_to_string(root().join("tests/vm/guest/main.rs")).unwrap();
    let named: Vec<&str> = text
        .split('`')
        .filter(|word| word.contains(".rs::") || word.len() > 3 && word.starts_with("vm:"))
        .collect();
    for name in &named {
        let exists = if let Some(case) = name.strip_prefix("vm:") {
            cases.contains(&format!("case(\"{case}\""))
        } else {
            let (file, test) = name.split_once("::").unwrap();
            let source = fs::read_to_string(root().join("tests/integration").join(file)).unwrap_or_default();
            source.contains(&format!("#[test]\nfn {test}()"))
        };
        assert!(exists, "docs/legs.md names {name}, which does not exist");
    }
    assert!(named.len() > 15, "{named:?}");
}
