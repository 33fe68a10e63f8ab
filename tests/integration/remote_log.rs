//! Volumes whose log a `mirrord log serve` keeps: crashes of either side, a server that is away, and a log that two want.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use mirrord_log::wire::{Regions, Request};
use zerocopy::little_endian::U64;

use crate::log_serve::client::Client;
use crate::rig::log_server::LogServer;
use crate::rig::{Rig, have, sh, until};

const MIB: u64 = 1 << 20;
const UNIX: &str = "remote:unix:log.sock";

/// A volume of 64 regions of a MiB whose log is with a server.
fn volume(more: &[&str]) -> (Rig, LogServer) {
    let rig = Rig::new();
    let server = LogServer::start(&rig, &["--unix", "log.sock"], 1);
    let mut args = vec!["--log", UNIX, "--region-size", "1MiB"];
    args.extend(more);
    rig.create("64MiB", &args);
    (rig, server)
}

/// Writes a block and has it flushed, on a thread of its own: it may have to wait.
fn write_aside(rig: &Rig, region: u64, byte: u8) -> (mpsc::Receiver<()>, JoinHandle<()>) {
    let (done, is_done) = mpsc::channel();
    let volume = rig.volume();
    let thread = std::thread::spawn(move || {
        let file = File::options().write(true).open(volume).unwrap();
        file.write_all_at(&[byte; 4096], region * MIB).unwrap();
        file.sync_data().unwrap();
        let _ = done.send(());
    });
    (is_done, thread)
}

fn write(rig: &Rig, region: u64, byte: u8) {
    let file = File::options().write(true).open(rig.volume()).unwrap();
    file.write_all_at(&[byte; 4096], region * MIB).unwrap();
    file.sync_data().unwrap();
}

fn byte_at(rig: &Rig, region: u64) -> u8 {
    let mut block = [0; 4096];
    File::open(rig.volume()).unwrap().read_exact_at(&mut block, region * MIB).unwrap();
    assert!(block.iter().all(|&byte| byte == block[0]));
    block[0]
}

/// Whether there was such an event, or is one soon.
fn had_event(rig: &Rig, name: &str) -> bool {
    let plain = rig.command(&["events", "v", "--json", "--since", "0"]);
    let mut command = Command::new("timeout");
    command.arg("30").arg(plain.get_program()).args(plain.get_args());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let is_it = |line: String| {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        event["event"] == name
    };
    let found = lines.map_while(Result::ok).any(is_it);
    let _ = child.kill();
    let _ = child.wait();
    found
}

fn stop_and_compare(rig: &Rig) {
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 64 * MIB);
}

/// Kills the daemon after writes to three regions, and starts it again.
fn crash(rig: &Rig) {
    for region in [3, 33, 63] {
        write(rig, region, 9);
    }
    let status = rig.status();
    assert_eq!(status["log"]["kind"], "remote");
    assert_eq!(status["log"]["connected"], true, "{}", status["log"]);
    assert_eq!(status["log"]["behind"], false);
    rig.kill();
    rig.ok(&["start", "v"]);
    rig.wait();
    let status = rig.status();
    assert_eq!(status["log"]["dirty_regions_at_start"], 3);
    assert_eq!(status["resync"]["copied_regions"], 3);
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 64 * MIB);
    // A clean stop leaves nothing to do, and the log to whoever comes next.
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 0);
    assert_eq!(byte_at(rig, 33), 9);
    rig.ok(&["stop", "v"]);
}

#[test]
fn a_crash_costs_a_resync_of_what_was_dirty() {
    let (rig, _server) = volume(&[]);
    crash(&rig);
}

#[test]
fn the_same_over_tls() {
    let rig = Rig::new();
    rig.ok(&["log", "cert", "tls", "--host", "localhost", "--client", "volume"]);
    let port = crate::rig::way::free_port();
    let listen = format!("127.0.0.1:{port}");
    let server =
        ["--tls-cert", "tls/server.pem", "--tls-key", "tls/server-key.pem", "--tls-ca", "tls/ca.pem"];
    let mut args = vec!["--tcp", &listen];
    args.extend(server);
    let _server = LogServer::start(&rig, &args, 1);
    let log = format!("remote:localhost:{port}");
    rig.refused(
        &["create", "--legs", "a", "b", "--size", "64MiB", "--name", "v", "--log", &log],
        &["--log-tls-cert"],
    );
    assert!(!rig.path("a").exists(), "nothing was made");
    let client = ["--log-tls-cert", "tls/volume.pem", "--log-tls-key", "tls/volume-key.pem"];
    let mut args = vec!["--log", &log, "--region-size", "1MiB", "--log-tls-ca", "tls/ca.pem"];
    args.extend(client);
    rig.create("64MiB", &args);
    crash(&rig);
}

/// Somebody else who knows the volume's UUID takes its log, says that nothing is dirty, and goes.
fn stranger(rig: &Rig, uuid: &str) {
    let stream = UnixStream::connect(rig.path("log.sock")).unwrap();
    let mut client = Client::over(stream);
    let text = format!("131072 disk {uuid} 2048 take_over");
    client.done(uuid, 7, &Request::Ctr { text: text.as_bytes(), again: false });
    client.done(uuid, 7, &Request::Resume);
    let all: Vec<U64> = (0..64).map(U64::new).collect();
    client.done(uuid, 7, &Request::ClearRegion(Regions::new(&all)));
    for request in [Request::Flush(Regions::NONE), Request::Presuspend, Request::Postsuspend, Request::Dtr] {
        client.done(uuid, 7, &request);
    }
}

#[test]
fn a_log_that_somebody_else_had_is_not_believed() {
    let (rig, _server) = volume(&[]);
    let uuid = rig.status()["uuid"].as_str().unwrap().to_owned();
    write(&rig, 33, 9);
    rig.kill_for_good();
    // As a write leaves it that was cut off.
    File::options().write(true).open(rig.path("b")).unwrap().write_all_at(&[8; 4], 33 * MIB).unwrap();
    stranger(&rig, &uuid);
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 64);
    stop_and_compare(&rig);

    // After a clean stop the legs are equal, whatever was done to the log.
    stranger(&rig, &uuid);
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 0);

    // With a leg out the log is not clean at the stop, so all is dirty.
    rig.ok(&["leg", "fail", "v", "b"]);
    write(&rig, 12, 7);
    rig.ok(&["stop", "v"]);
    stranger(&rig, &uuid);
    rig.ok(&["start", "v"]);
    rig.ok(&["leg", "add", "v", "b"]);
    stop_and_compare(&rig);
}

#[test]
fn a_leg_does_not_choose_the_server_that_this_host_connects_to() {
    let (rig, _server) = volume(&[]);
    rig.ok(&["stop", "v"]);
    let known = std::fs::read_to_string(rig.path("state/v.json")).unwrap();
    // Known with a server over TLS: what the legs say is another, without it.
    let mut tls: serde_json::Value = serde_json::from_str(&known).unwrap();
    let place = tls["log"].as_str().unwrap().to_owned();
    tls["log"] = "remote:logs.example.net:7411".into();
    std::fs::write(rig.path("state/v.json"), tls.to_string()).unwrap();
    rig.refused(&["start", "v"], &[&place, "remote:logs.example.net:7411", "--log"]);
    // Known from before places were remembered, with certificates.
    tls["log"] = serde_json::Value::Null;
    tls["serve"]["log_tls"] = serde_json::json!({ "cert": "/c", "key": "/k", "ca": "/a" });
    std::fs::write(rig.path("state/v.json"), tls.to_string()).unwrap();
    rig.refused(&["start", "v"], &[&place, "without TLS", "--log"]);
    // Not known at all.
    std::fs::remove_file(rig.path("state/v.json")).unwrap();
    rig.refused(&["start", "a", "b"], &[&place, "does not know the volume", "--log"]);
    rig.ok(&["start", "a", "b", "--log", UNIX, "--mount", "vol"]);
    rig.ok(&["stop", "v"]);
    rig.ok(&["start", "v"]);
}

#[test]
fn legs_with_data_are_resynced_where_they_have_some() {
    let rig = Rig::new();
    let _server = LogServer::start(&rig, &["--unix", "log.sock"], 1);
    for leg in ["a", "b"] {
        let file = File::create(rig.path(leg)).unwrap();
        file.set_len(64 * MIB).unwrap();
        if leg == "a" {
            file.write_all_at(&[7; 4096], 5 * MIB).unwrap();
        }
    }
    rig.create_of(["a", "b"], "64MiB", &["--log", UNIX, "--region-size", "1MiB", "--source", "a"]);
    rig.wait();
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 1);
    assert_eq!(byte_at(&rig, 5), 7);
    stop_and_compare(&rig);
}

#[test]
fn a_server_that_cannot_be_reached_stops_a_create_before_it_begins() {
    let rig = Rig::new();
    let args = ["create", "--legs", "a", "b", "--size", "64MiB", "--name", "v", "--log", UNIX];
    rig.refused(&args, &["log server unix:", "cannot be reached", "No such file"]);
    assert!(!rig.path("a").exists() && !rig.path("b").exists());
}

#[test]
fn a_write_to_a_clean_region_waits_for_the_server_and_one_to_a_dirty_region_does_not() {
    let (rig, mut server) = volume(&[]);
    write(&rig, 3, 1);
    server.kill();
    until("the loss is noticed", || rig.status()["log"]["connected"] == false);
    write(&rig, 3, 2);
    let (is_done, writer) = write_aside(&rig, 40, 3);
    until("the write waits", || rig.status()["log"]["behind"] == true);
    assert!(is_done.try_recv().is_err(), "no mark of it is durable");
    server.again(&rig);
    is_done.recv_timeout(Duration::from_secs(300)).expect("the write goes on");
    writer.join().unwrap();
    let status = rig.status();
    assert_eq!(status["log"]["connected"], true);
    assert!(status["log"]["reconnects"].as_u64().unwrap() > 0);
    assert!(had_event(&rig, "log_lost") && had_event(&rig, "log_back"));
    rig.kill();
    rig.ok(&["start", "v"]);
    rig.wait();
    let dirty = rig.status()["log"]["dirty_regions_at_start"].as_u64().unwrap();
    assert!((1..=2).contains(&dirty), "{dirty}");
    assert_eq!((byte_at(&rig, 3), byte_at(&rig, 40)), (2, 3));
    stop_and_compare(&rig);
}

#[test]
fn nothing_is_lost_when_the_server_is_killed_again_and_again() {
    let (rig, mut server) = volume(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writer = {
        let (stop, written, path) = (Arc::clone(&stop), Arc::clone(&written), rig.volume());
        std::thread::spawn(move || {
            let file = File::options().write(true).open(path).unwrap();
            let mut n = 0u64;
            while !stop.load(Ordering::SeqCst) {
                let place = n.wrapping_mul(2_654_435_761) % (64 * 256);
                file.write_all_at(&[(n % 250) as u8 + 1; 4096], place * 4096).unwrap();
                n += 1;
                if n.is_multiple_of(16) {
                    file.sync_data().unwrap();
                }
                written.store(n, Ordering::SeqCst);
            }
        })
    };
    for _ in 0..4 {
        let before = written.load(Ordering::SeqCst);
        until("writes go on", || written.load(Ordering::SeqCst) > before + 50);
        server.kill();
        server.again(&rig);
    }
    until("the server is back", || rig.status()["log"]["connected"] == true);
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    assert_eq!(rig.status()["io"]["errors"], 0);
    rig.kill();
    rig.ok(&["start", "v"]);
    stop_and_compare(&rig);
}

#[test]
fn with_core_as_fallback_the_volume_goes_on_and_says_so() {
    let (rig, mut server) = volume(&["--log-fallback", "core"]);
    write(&rig, 3, 1);
    server.kill();
    write(&rig, 40, 2);
    let log = rig.status()["log"].clone();
    assert_eq!((&log["failed"], &log["behind"]), (&true.into(), &true.into()), "{log}");
    // A crash now costs everything.
    rig.kill();
    server.again(&rig);
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 64);
    rig.wait();
    // And none of it once the server is back.
    until("all is clean", || rig.status()["log"]["dirty_regions"] == 0);
    server.kill();
    write(&rig, 41, 4);
    server.again(&rig);
    until("the note is gone", || rig.status()["log"]["failed"] == false);
    assert_eq!(rig.status()["log"]["behind"], false);
    rig.kill();
    rig.ok(&["start", "v"]);
    let dirty = rig.status()["log"]["dirty_regions_at_start"].as_u64().unwrap();
    assert!(dirty < 5, "{dirty}");
    assert_eq!((byte_at(&rig, 40), byte_at(&rig, 41)), (2, 4));
    stop_and_compare(&rig);
}

#[test]
fn a_start_without_the_server_is_refused_or_takes_all_for_dirty() {
    let (rig, mut server) = volume(&[]);
    write(&rig, 3, 1);
    rig.ok(&["stop", "v"]);
    server.kill();
    rig.refused(&["start", "v"], &["cannot be reached"]);
    rig.ok(&["start", "v", "--log-fallback", "core"]);
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 64);
    assert_eq!(rig.status()["log"]["failed"], true);
    write(&rig, 50, 5);
    server.again(&rig);
    until("the server has the log", || rig.status()["log"]["failed"] == false);
    rig.wait();
    until("all is clean", || rig.status()["log"]["dirty_regions"] == 0);
    write(&rig, 51, 6);
    rig.kill();
    rig.ok(&["start", "v"]);
    assert_eq!(rig.status()["log"]["dirty_regions_at_start"], 1);
    stop_and_compare(&rig);
}

#[test]
fn a_stop_without_the_server_goes_through_and_loses_nothing() {
    let (rig, mut server) = volume(&[]);
    write(&rig, 3, 1);
    server.kill();
    rig.ok(&["stop", "v"]);
    server.again(&rig);
    rig.ok(&["start", "v"]);
    // Bits that could not be unset any more are no harm.
    let log = rig.status()["log"].clone();
    assert!(log["dirty_regions_at_start"].as_u64().unwrap() <= 1 && log["failed"] == false, "{log}");
    rig.wait();
    assert_eq!(byte_at(&rig, 3), 1);
    stop_and_compare(&rig);
}

#[test]
fn a_write_that_waits_for_the_server_does_not_hold_a_forced_stop_up() {
    let (rig, mut server) = volume(&[]);
    write(&rig, 3, 1);
    server.kill();
    let volume = rig.volume();
    let writer = std::thread::spawn(move || {
        let file = File::options().write(true).open(volume).unwrap();
        // Its volume is taken away from it.
        let _ = file.write_all_at(&[2; 4096], 40 * MIB).and_then(|()| file.sync_data());
    });
    until("the write waits", || rig.status()["log"]["behind"] == true);
    rig.ok(&["stop", "v", "--force"]);
    writer.join().unwrap();
    server.again(&rig);
    rig.ok(&["start", "v"]);
    rig.wait();
    assert_eq!(byte_at(&rig, 3), 1);
    stop_and_compare(&rig);
}

/// Where the log is, for a host that has to be told.
fn log_of(rig: &Rig) -> String {
    format!("remote:unix:{}", rig.path("log.sock").display())
}

#[test]
fn copies_of_a_volume_do_not_share_its_log_and_one_can_take_it_from_the_other() {
    let (rig, _server) = volume(&[]);
    write(&rig, 3, 1);
    for leg in ["a", "b"] {
        let (from, to) = (rig.path(leg), rig.path(&format!("{leg}-copy")));
        sh("cp", &["--sparse=always", from.to_str().unwrap(), to.to_str().unwrap()]);
    }
    let other = Rig::new();
    let legs = ["a-copy", "b-copy"].map(|leg| rig.path(leg).to_str().unwrap().to_owned());
    let log = log_of(&rig);
    let start = ["start", &legs[0], &legs[1], "--mount", "vol", "--log", &log];
    other.refused(&start, &["in use by another daemon", "--log-take-over"]);
    write(&rig, 4, 1);
    let mut taking = start.to_vec();
    taking.push("--log-take-over");
    other.ok(&taking);
    // The first is over as soon as it needs the log.
    let file = File::options().write(true).open(rig.volume()).unwrap();
    let _ = file.write_all_at(&[1; 4096], 50 * MIB).and_then(|()| file.sync_data());
    until("the first volume failed", || rig.status()["state"] == "failed");
    assert_eq!(rig.status()["log"]["taken_over"], true);
    assert!(file.write_all_at(&[1; 4096], 3 * MIB).and_then(|()| file.sync_data()).is_err());
    assert!(had_event(&rig, "log_taken_over"));
    drop(file);
    write(&other, 8, 8);
    other.ok(&["stop", "v"]);
    rig.ok(&["stop", "v", "--force"]);
}

#[test]
fn another_host_goes_on_with_the_legs_of_one_that_died() {
    let (rig, _server) = volume(&[]);
    for region in [3, 33] {
        write(&rig, region, 9);
    }
    rig.kill_for_good();
    let other = Rig::new();
    let legs = ["a", "b"].map(|leg| rig.path(leg).to_str().unwrap().to_owned());
    other.ok(&["start", &legs[0], &legs[1], "--mount", "vol", "--log", &log_of(&rig)]);
    other.wait();
    assert_eq!(other.status()["resync"]["copied_regions"], 2);
    assert_eq!(byte_at(&other, 33), 9);
    other.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 64 * MIB);
}

#[test]
fn a_volume_with_a_log_elsewhere_does_not_grow_without_a_word() {
    let (rig, _server) = volume(&[]);
    rig.refused(&["resize", "v", "--size", "128MiB"], &["log server"]);
    let inspected = rig.ok(&["inspect", "a"]);
    assert!(inspected.contains("remote") && inspected.contains("log.sock"), "{inspected}");
    rig.ok(&["stop", "v"]);
}

#[test]
fn fio_finds_what_it_wrote_across_kills_of_both() {
    if !have("fio", "verified data across kills with a remote log") {
        return;
    }
    let (rig, mut server) = volume(&[]);
    let fio = |more: &[&str]| {
        let mut command = Command::new("fio");
        command.args([
            "--name=v",
            "--bs=4k",
            "--size=64m",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=16",
        ]);
        command.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]).args(more);
        command.arg(format!("--filename={}", rig.volume().display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut load = fio(&["--rw=randwrite", "--do_verify=0", "--loops=3"]).spawn().unwrap();
    for _ in 0..3 {
        let before = rig.status()["io"]["writes"].as_u64().unwrap();
        until("the load goes on", || {
            rig.status()["io"]["writes"].as_u64().unwrap() > before + 200
                || load.try_wait().unwrap().is_some()
        });
        server.kill();
        server.again(&rig);
    }
    assert!(load.wait().unwrap().success());
    rig.kill();
    rig.ok(&["start", "v"]);
    let verify = fio(&["--rw=randread", "--verify_only"]).output().unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stdout));
    stop_and_compare(&rig);
}
