//! Whole lives of logs, and what is left of them when the server is killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use mirrord_log::wire::{Regions, Request};
use mirrord_raid::Errno;
use serde_json::Value;
use zerocopy::little_endian::U64;

use super::client::{Client, Server, messages};
use crate::rig::{Rig, have, sh, until};

const ESRCH: Errno = Errno(3);

fn json(rig: &Rig, args: &[&str]) -> Value {
    serde_json::from_str(&rig.ok(&[args, &["--json"]].concat())).unwrap()
}

fn flush(client: &mut Client, luid: u64, marks: &[u64]) {
    let marks: Vec<U64> = marks.iter().map(|&region| region.into()).collect();
    client.done("u", luid, &Request::Flush(Regions::new(&marks)));
}

fn clear(client: &mut Client, luid: u64, regions: &[u64]) {
    let regions: Vec<U64> = regions.iter().map(|&region| region.into()).collect();
    client.done("u", luid, &Request::ClearRegion(Regions::new(&regions)));
}

/// A log on disk that is live and clean.
fn clean_log(client: &mut Client, luid: u64) {
    client.construct("u", luid, "disk v.log", false);
    client.done("u", luid, &Request::Resume);
    assert_eq!(client.resync("u", luid), (0..16).collect::<Vec<u32>>());
    clear(client, luid, &(0..16).collect::<Vec<u64>>());
    flush(client, luid, &[]);
}

fn whole_life(rig: &Rig, client: &mut Client) {
    clean_log(client, 7);
    assert_eq!(client.ask("u", 7, &Request::GetRegionSize).number(), 64);
    assert_eq!(client.ask("u", 7, &Request::GetSyncCount).number(), 16);
    flush(client, 7, &[3, 4, 9]);
    let file = rig.path("logs/v.log");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let dump = json(rig, &["log", "dump", file.to_str().unwrap()]);
    assert_eq!(dump["dirty"], serde_json::json!([[3, 4], [9, 9]]), "{dump}");
    assert_eq!((dump["regions"].as_u64(), dump["owner"].as_str()), (Some(16), Some("7")), "{dump}");
    let live = json(rig, &["log", "dump", "u"]);
    assert_eq!((&live["dirty"], &live["state"]), (&dump["dirty"], &"live".into()), "{live}");
    let list = json(rig, &["log", "list"]);
    assert_eq!((&list[0]["uuid"], &list[0]["dirty_regions"]), (&"u".into(), &3.into()), "{list}");
    assert_eq!(json(rig, &["log", "status", "--server"])["live"], 1);
    rig.refused(&["log", "stop"], &["in use", "--force"]);
    rig.refused(&["log", "forget", "u"], &["log u", "it is live", "--force"]);
    rig.refused(&["log", "forget", "none"], &["there is no log none", "mirrord log list"]);
    client.done("u", 7, &Request::Presuspend);
    client.done("u", 7, &Request::Postsuspend);
    client.done("u", 7, &Request::Dtr);
    client.fails("u", 7, &Request::InSync(0), ESRCH);
    let dump = json(rig, &["log", "dump", file.to_str().unwrap()]);
    assert_eq!((dump["dirty_regions"].as_u64(), &dump["released"]), (Some(3), &true.into()), "{dump}");
    // What is dirty is what the next life resyncs.
    client.construct("u", 8, "disk v.log", false);
    client.done("u", 8, &Request::Resume);
    assert_eq!(client.resync("u", 8), [3, 4, 9]);
    client.done("u", 8, &Request::Postsuspend);
    client.done("u", 8, &Request::Dtr);
}

#[test]
fn a_log_lives_over_a_socket_of_the_machine() {
    let rig = Rig::new();
    let server = Server::start(&rig, &["--unix", "s", "--dir", "logs"]);
    assert_eq!(fs::metadata(rig.path("s")).unwrap().permissions().mode() & 0o777, 0o600);
    whole_life(&rig, &mut Client::unix(&rig));
    rig.ok(&["log", "stop"]);
    assert!(server.ended());
    assert!(!rig.path("s").exists());
    rig.refused(&["log", "list"], &["no log server default is running", "mirrord log serve"]);
}

#[test]
fn a_log_lives_over_tcp_on_the_machine() {
    let rig = Rig::new();
    let server = Server::start(&rig, &["--tcp", "127.0.0.1:0", "--dir", "logs"]);
    whole_life(&rig, &mut Client::tcp(&server));
    let output = rig.run(&["log", "serve", "--tcp", "127.0.0.1:0"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("runs already"));
    rig.refused(&["log", "serve", "--name", "b", "--tcp", "0.0.0.0:0"], &["without TLS", "--insecure"]);
}

/// What was durable is there for the volume that comes back, and nobody else gets its log before.
#[test]
fn a_killed_servers_logs_go_on() {
    let rig = Rig::new();
    let args = ["--unix", "s", "--dir", "logs"];
    let server = Server::start(&rig, &args);
    let mut client = Client::unix(&rig);
    clean_log(&mut client, 7);
    flush(&mut client, 7, &[1, 15]);
    client.construct("c", 9, "core", false);
    server.kill();
    assert!(client.receive().is_none());

    let server = Server::start(&rig, &args);
    let mut stranger = Client::unix(&rig);
    stranger.construct("u", 8, "disk v.log", false);
    stranger.fails("u", 8, &Request::Resume, Errno(16));
    let mut client = Client::unix(&rig);
    client.fails("u", 7, &Request::InSync(0), ESRCH);
    client.construct("u", 7, "disk v.log", true);
    client.done("u", 7, &Request::Resume);
    assert_eq!(client.ask("u", 7, &Request::GetSyncCount).number(), 14);
    assert_eq!(client.resync("u", 7), [1, 15]);
    // In memory there is nothing left.
    client.construct("c", 9, "core", true);
    client.done("c", 9, &Request::Resume);
    assert_eq!(client.ask("c", 9, &Request::GetSyncCount).number(), 0);
    drop(server);
}

#[test]
fn a_thousand_logs_have_one_connection_or_one_each() {
    let rig = Rig::new();
    let server = Server::start(&rig, &["--unix", "s", "--dir", "logs"]);
    let mut client = Client::unix(&rig);
    let names: Vec<String> = (0..1000).map(|number| format!("log-{number}")).collect();
    let text = |name: &String| format!("1024 disk {name} 64");
    for (luid, name) in names.iter().enumerate() {
        client.send(name, luid as u64, &Request::Ctr { text: text(name).as_bytes(), again: false });
    }
    names.iter().for_each(|_| assert_eq!(client.receive().unwrap().error, 0));
    for (luid, name) in names.iter().enumerate() {
        client.send(name, luid as u64, &Request::Resume);
    }
    names.iter().for_each(|_| assert_eq!(client.receive().unwrap().error, 0));
    let list = json(&rig, &["log", "list"]);
    assert_eq!(list.as_array().unwrap().len(), 1000);
    assert!(list.as_array().unwrap().iter().all(|log| log["state"] == "live"));

    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
    let mut clients: Vec<Client> = (0..1000).map(|_| Client::unix(&rig)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.send("core", 5000 + number as u64, &Request::Ctr { text: b"1024 core 64", again: false });
    }
    for client in &mut clients {
        assert_eq!(client.receive().unwrap().error, 0);
    }
    until("all are connected", || json(&rig, &["log", "status", "--server"])["clients"] == 1001);
    assert!(server.memory() < 256 << 10, "{} KiB", server.memory());
    drop(clients);
    until("they are gone", || json(&rig, &["log", "status", "--server"])["clients"] == 1);
}

/// One log is on a file system that stands still.
#[test]
fn a_log_whose_disk_hangs_holds_up_no_other() {
    let rig = Rig::new();
    let Some(mount) = rig.file_system("fs", 16 << 20) else { return };
    if !have("fsfreeze", "a disk that hangs") {
        return;
    }
    fs::create_dir(rig.path("logs")).unwrap();
    let (hung, place) = (mount.join("hung"), rig.path("logs/hung"));
    for path in [&hung, &place] {
        fs::write(path, []).unwrap();
    }
    sh("mount", &["--bind", hung.to_str().unwrap(), place.to_str().unwrap()]);
    rig.at_end(&["umount", "-l", place.to_str().unwrap()]);
    let server = Server::start(&rig, &["--unix", "s", "--dir", "logs"]);
    let mut client = Client::unix(&rig);
    for (luid, name) in [(1, "hung"), (2, "other")] {
        client.construct(name, luid, &format!("disk {name}"), false);
        client.done(name, luid, &Request::Resume);
    }
    let thaw = ["fsfreeze", "-u", mount.to_str().unwrap()];
    rig.at_end(&thaw);
    sh("fsfreeze", &["-f", mount.to_str().unwrap()]);
    let marks = [U64::from(1)];
    let cleared = Request::ClearRegion(Regions::new(&marks));
    client.done("hung", 1, &cleared);
    let waiting = client.send("hung", 1, &Request::Flush(Regions::NONE));
    for _ in 0..20 {
        client.done("other", 2, &cleared);
        client.done("other", 2, &Request::Flush(Regions::new(&marks)));
    }
    // Also of the log itself what needs no disk.
    assert_eq!(client.ask("hung", 1, &Request::GetRegionSize).number(), 64);
    sh(thaw[0], &thaw[1..]);
    let answer = client.receive().unwrap();
    assert_eq!((answer.seq, answer.error), (waiting, 0));
    drop(server);
}

#[test]
fn names_that_lead_elsewhere_get_no_log() {
    let rig = Rig::new();
    let _server = Server::start(&rig, &["--unix", "s", "--dir", "logs"]);
    let mut client = Client::unix(&rig);
    fs::write(rig.path("logs/letter"), "dear all").unwrap();
    for (name, errno) in [("../x", 22), ("/etc/passwd", 22), (".", 22), ("..", 22), ("letter", 17)] {
        let text = format!("1024 disk {name} 64");
        client.fails("u", 1, &Request::Ctr { text: text.as_bytes(), again: false }, Errno(errno));
    }
    messages(&rig, "is no log: remove it");
    assert!(!rig.path("x").exists());
    assert_eq!(fs::read(rig.path("logs/letter")).unwrap(), b"dear all");
}
