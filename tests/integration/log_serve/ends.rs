//! How a server ends, and how it does not.

use mirrord_log::wire::Request;

use super::client::{Client, Server, messages};
use crate::rig::Rig;

#[test]
fn it_does_not_end_while_logs_are_in_use() {
    let rig = Rig::new();
    let server = Server::start(&rig, &["--unix", "s"]);
    let mut client = Client::unix(&rig);
    client.construct("u", 1, "core", false);
    client.done("u", 1, &Request::Resume);
    rig.refused(&["log", "stop"], &["1 of its logs are in use", "--force"]);
    server.signal("TERM");
    messages(&rig, "going on");
    assert_eq!(client.ask("u", 1, &Request::GetSyncCount).number(), 0);
    server.signal("TERM");
    assert!(server.ended());
    assert!(client.receive().is_none());
}

#[test]
fn it_ends_when_it_is_told_to() {
    let rig = Rig::new();
    let server = Server::start(&rig, &["--unix", "s"]);
    server.signal("INT");
    assert!(server.ended());
    let server = Server::start(&rig, &["--unix", "s"]);
    let mut client = Client::unix(&rig);
    client.construct("u", 1, "core", false);
    client.done("u", 1, &Request::Resume);
    rig.ok(&["log", "stop", "--force"]);
    assert!(server.ended());
}

#[test]
fn what_it_is_not_told_is_asked_for() {
    let rig = Rig::new();
    let code = |args: &[&str]| rig.run(args).status.code();
    assert_eq!(code(&["log", "serve"]), Some(2));
    assert_eq!(code(&["log", "serve", "--unix", "s", "--name", "../x"]), Some(2));
    assert_eq!(code(&["log", "serve", "--unix", "s", "--insecure"]), Some(2));
    assert_eq!(code(&["log", "serve", "--unix", "s", "--single-host"]), Some(2));
    assert_eq!(code(&["log", "serve", "--tcp", "127.0.0.1:0", "--tls-cert", "c"]), Some(2));
    std::fs::write(rig.path("file"), "mine").unwrap();
    rig.refused(&["log", "serve", "--unix", "file"], &["is no socket"]);
    rig.refused(&["log", "dump", "./file"], &["is no disk log", "mirrord inspect"]);
    assert_eq!(std::fs::read(rig.path("file")).unwrap(), b"mine");
}

#[test]
fn a_log_that_lvm_has_just_made_is_one() {
    let rig = Rig::new();
    let mut image = vec![0; 1 << 20];
    image[..16].copy_from_slice(b"rRiM\x02\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
    std::fs::write(rig.path("fresh"), &image).unwrap();
    assert!(rig.ok(&["log", "dump", "./fresh"]).contains("no mirror has used it"));
    let dump: serde_json::Value =
        serde_json::from_str(&rig.ok(&["log", "dump", "./fresh", "--json"])).unwrap();
    assert!(dump["regions"].is_null() && dump["dirty"].as_array().unwrap().is_empty(), "{dump}");
    image[8] = 0;
    std::fs::write(rig.path("other"), &image).unwrap();
    rig.refused(&["log", "dump", "./other"], &["no log has more than"]);
}
