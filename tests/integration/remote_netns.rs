//! Two network namespaces as two hosts: a volume in one, its log server in the other, and the link between them cut at every
//! phase, and slow. Needs root.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use crate::rig::log_server::LogServer;
use crate::rig::way::{free_port, way};
use crate::rig::{Rig, is_root, sh, try_sh, until};

const MIB: u64 = 1 << 20;
const SERVER: &str = "10.213.0.2:7411";
const LOG: &str = "remote:insecure:10.213.0.2:7411";

/// Two hosts, the log server running on one.
struct Hosts {
    rig: Rig,
    server: LogServer,
    volume: String,
}

impl Hosts {
    fn new(tag: &str) -> Option<Hosts> {
        if !is_root() || !try_sh("ip", &["netns", "list"]).status.success() {
            println!("SKIP: a remote log between hosts: needs root and network namespaces");
            return None;
        }
        let id = std::process::id();
        let (volume, log) = (format!("mrv{tag}{id}"), format!("mrl{tag}{id}"));
        if !try_sh("ip", &["netns", "add", &volume]).status.success() {
            println!("SKIP: a remote log between hosts: network namespaces cannot be made");
            return None;
        }
        let rig = Rig::new();
        rig.at_end(&["ip", "netns", "del", &volume]);
        sh("ip", &["netns", "add", &log]);
        rig.at_end(&["ip", "netns", "del", &log]);
        sh(
            "ip",
            &["-n", &volume, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &log],
        );
        for (host, address) in [(&volume, "10.213.0.1/24"), (&log, "10.213.0.2/24")] {
            sh("ip", &["-n", host, "address", "add", address, "dev", "eth0"]);
            sh("ip", &["-n", host, "link", "set", "eth0", "up"]);
            sh("ip", &["-n", host, "link", "set", "lo", "up"]);
        }
        let listen = ["--tcp", SERVER, "--insecure"];
        let server = LogServer::start_behind(&rig, &["ip", "netns", "exec", &log], &listen, 2);
        Some(Hosts { rig, server, volume })
    }

    /// The program on the volume's host.
    fn command(&self, args: &[&str]) -> Command {
        let plain = self.rig.command(args);
        // Not `ip netns exec`, whose mount namespace would keep the FUSE file from others.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.volume)).arg(plain.get_program()).args(args);
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.current_dir(plain.get_current_dir().unwrap()).stdin(Stdio::null());
        command
    }

    fn ok(&self, args: &[&str]) {
        let output = self.command(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn create(&self, log: &str) {
        let args = ["create", "--legs", "a", "b", "--size", "64MiB", "--region-size", "1MiB", "--name", "v"];
        self.ok(&[&args[..], &["--mount", "vol", "--log", log]].concat());
    }

    fn cut(&self, cut: bool) {
        let state = if cut { "down" } else { "up" };
        sh("ip", &["-n", &self.volume, "link", "set", "eth0", state]);
    }

    fn connected(&self) -> bool {
        self.rig.status()["log"]["connected"] == true
    }

    fn write(&self, region: u64, byte: u8) {
        let file = File::options().write(true).open(self.rig.volume()).unwrap();
        file.write_all_at(&[byte; 4096], region * MIB).unwrap();
        file.sync_data().unwrap();
    }

    fn write_aside(&self, region: u64) -> mpsc::Receiver<()> {
        let (done, is_done) = mpsc::channel();
        let volume: PathBuf = self.rig.volume();
        std::thread::spawn(move || {
            let file = File::options().write(true).open(volume).unwrap();
            file.write_all_at(&[5; 4096], region * MIB).unwrap();
            file.sync_data().unwrap();
            let _ = done.send(());
        });
        is_done
    }

    fn kill_and_compare(self) {
        self.rig.kill();
        self.ok(&["start", "v"]);
        self.rig.wait();
        self.ok(&["stop", "v"]);
        self.rig.assert_same("a", "b", 64 * MIB);
        drop(self.server);
    }
}

const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn the_link_is_cut_while_nothing_goes_on_and_before_a_commit() {
    let Some(hosts) = Hosts::new("i") else { return };
    hosts.create(LOG);
    hosts.write(1, 1);
    hosts.cut(true);
    // Dirty already.
    hosts.write(1, 2);
    let is_done = hosts.write_aside(20);
    until("the commit waits", || hosts.rig.status()["log"]["commits"].as_u64().unwrap() >= 2);
    assert!(is_done.try_recv().is_err());
    hosts.cut(false);
    is_done.recv_timeout(PATIENCE).expect("the write goes on");
    until("the server is there", || hosts.connected());
    hosts.kill_and_compare();
}

#[test]
fn a_link_that_stays_cut_is_noticed_and_another_connection_made() {
    let Some(hosts) = Hosts::new("c") else { return };
    hosts.create(LOG);
    hosts.write(1, 1);
    hosts.cut(true);
    let is_done = hosts.write_aside(20);
    until("the loss is noticed", || !hosts.connected());
    assert!(is_done.try_recv().is_err());
    // Cut while it connects, too.
    hosts.cut(false);
    hosts.cut(true);
    hosts.cut(false);
    is_done.recv_timeout(PATIENCE).expect("the write goes on");
    assert!(hosts.rig.status()["log"]["reconnects"].as_u64().unwrap() > 0);
    hosts.kill_and_compare();
}

#[test]
fn a_start_over_a_cut_link_is_refused_and_a_stop_is_not() {
    let Some(hosts) = Hosts::new("s") else { return };
    hosts.create(LOG);
    hosts.write(1, 1);
    hosts.cut(true);
    hosts.ok(&["stop", "v"]);
    let refused = hosts.command(&["start", "v"]).output().unwrap();
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("cannot be reached"), "{said}");
    hosts.cut(false);
    hosts.ok(&["start", "v"]);
    let dirty = hosts.rig.status()["log"]["dirty_regions_at_start"].as_u64().unwrap();
    assert!(dirty <= 1, "{dirty}");
    hosts.rig.wait();
    hosts.kill_and_compare();
}

/// Passes bytes on, each piece so much later.
fn slowly(mut from: &TcpStream, mut to: &TcpStream, delay: Duration) {
    let mut piece = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        std::thread::sleep(delay);
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
}

#[test]
fn a_slow_way_to_the_server_costs_time_and_nothing_else() {
    let rig = Rig::new();
    let server = format!("127.0.0.1:{}", free_port());
    let _server = LogServer::start(&rig, &["--tcp", &server, "--insecure"], 1);
    let delay = Duration::from_millis(40);
    let slow = way(&server, move |from, to| slowly(from, to, delay));
    let log = format!("remote:insecure:127.0.0.1:{slow}");
    let volume = rig.create("64MiB", &["--log", &log, "--region-size", "1MiB"]);
    let file = File::options().write(true).open(&volume).unwrap();
    for region in 0..64 {
        file.write_all_at(&[region as u8 + 1; 4096], region * MIB).unwrap();
    }
    file.sync_data().unwrap();
    drop(file);
    let log = rig.status()["log"].clone();
    assert!(log["round_trip_microseconds"].as_u64().unwrap() >= 2 * delay.as_micros() as u64, "{log}");
    assert!(log["commits"].as_u64().unwrap() < 32, "regions in a row are marked ahead: {log}");
    rig.kill();
    rig.ok(&["start", "v"]);
    rig.wait();
    rig.ok(&["stop", "v"]);
    rig.assert_same("a", "b", 64 * MIB);
}
