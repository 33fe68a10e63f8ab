//! Figures for Prometheus: fetched, understood and compared with status; and addresses that are refused.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use crate::rig::{Rig, can_serve, sh};
use crate::snapshot::refused;
use serde_json::Value;

/// Whether volumes can be served here; prints the skip if not.
fn fuse() -> bool {
    can_serve("metrics of a running volume")
}

/// Asks, and reads the whole answer: its head and its body.
fn ask(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let length: usize =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
    assert_eq!(length, body.len());
    (head.to_owned(), body.to_owned())
}

fn scrape(stream: impl Read + Write) -> BTreeMap<String, f64> {
    let (head, body) = ask(stream, "GET /metrics HTTP/1.1\r\nHost: here\r\nAccept: */*\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    samples(&body)
}

/// Samples by name and labels, as the format has them: every metric in one piece, after its help and type.
fn samples(body: &str) -> BTreeMap<String, f64> {
    assert!(body.ends_with('\n'));
    let (mut samples, mut seen, mut now) = (BTreeMap::new(), Vec::new(), (String::new(), String::new()));
    let mut lines = body.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert!(text.ends_with('.') && !seen.contains(&name.to_owned()), "{line}");
            seen.push(name.to_owned());
            now = (name.to_owned(), kind.to_owned());
            continue;
        }
        let (key, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = key.split_once('{').unwrap();
        let suffixes: &[&str] = if now.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(suffixes.iter().any(|suffix| name == format!("{}{suffix}", now.0)), "{line} below {now:?}");
        assert_eq!(name.ends_with("_total"), now.1 == "counter", "{line}");
        assert!(labels.starts_with("volume=\"v\"") && labels.ends_with('}'), "{line}");
        assert!(samples.insert(key.to_owned(), value.parse().unwrap()).is_none(), "{line} twice");
    }
    samples
}

fn thread_names(rig: &Rig) -> String {
    sh("sh", &["-c", &format!("cat /proc/{}/task/*/comm", rig.status()["pid"])])
}

#[test]
fn figures_are_those_of_status() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.path("metrics.sock");
    for address in ["localhost:0", "unix:metrics.sock"] {
        let volume = rig.create("4M", &["--metrics", address, "--force"]);
        let said = rig.status()["metrics"].as_str().unwrap().to_owned();
        let fetch = || match said.strip_prefix("unix:") {
            Some(path) => scrape(UnixStream::connect(path).unwrap()),
            None => scrape(TcpStream::connect(&said).unwrap()),
        };
        let volume = File::options().read(true).write(true).open(volume).unwrap();
        volume.write_all_at(&[5; 65536], 0).unwrap();
        volume.sync_all().unwrap();
        drop(volume);
        // At one moment: the kernel may have something to ask in between.
        let (status, now) = loop {
            let (before, now) = (rig.status(), fetch());
            if rig.status()["io"] == before["io"] {
                break (before, now);
            }
        };
        let is = |key: &str, value: &Value| {
            let value = value.as_f64().unwrap();
            assert_eq!(now.get(key), Some(&value), "{key} of {now:#?}");
        };
        is(r#"mirrord_volume_size_bytes{volume="v"}"#, &(4 << 20).into());
        is(r#"mirrord_volume_state{volume="v",state="in_sync"}"#, &1.into());
        is(r#"mirrord_volume_state{volume="v",state="degraded"}"#, &0.into());
        is(r#"mirrord_requests_total{volume="v",op="write"}"#, &status["io"]["writes"]);
        is(r#"mirrord_request_errors_total{volume="v"}"#, &0.into());
        is(r#"mirrord_leg_written_bytes_total{volume="v",leg="1"}"#, &status["legs"][1]["written_bytes"]);
        is(r#"mirrord_leg_state{volume="v",leg="0",state="in_sync"}"#, &1.into());
        is(r#"mirrord_leg_state{volume="v",leg="0",state="failed"}"#, &0.into());
        is(r#"mirrord_leg_errors_total{volume="v",leg="1",op="flush"}"#, &0.into());
        is(r#"mirrord_leg_stale_regions{volume="v",leg="1"}"#, &0.into());
        is(r#"mirrord_resync_active{volume="v"}"#, &0.into());
        is(r#"mirrord_log_failed{volume="v"}"#, &0.into());
        assert!(status["legs"][1]["written_bytes"].as_u64() >= Some(65536));
        let leg = rig.path("b");
        let info = format!(
            r#"mirrord_leg_info{{volume="v",leg="1",uuid={},path="{}"}}"#,
            status["legs"][1]["uuid"],
            leg.display()
        );
        is(&info, &1.into());
        for (op, key) in [("read", "reads"), ("write", "writes"), ("flush", "flushes")] {
            let name = |rest: &str| format!("mirrord_request_duration_seconds{rest}");
            is(&name(&format!(r#"_count{{volume="v",op="{op}"}}"#)), &status["io"][key]);
            let bucket = name(&format!(r#"_bucket{{volume="v",op="{op}",le="#));
            let mut buckets: Vec<(f64, f64)> = now
                .iter()
                .filter_map(|(key, &count)| {
                    let limit = key.strip_prefix(&bucket)?.trim_matches(['"', '}']);
                    Some((limit.parse().unwrap(), count))
                })
                .collect();
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert_eq!((buckets.len(), buckets[0].0, buckets[25].0), (26, 1e-6, f64::INFINITY));
            assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{buckets:?}");
            assert_eq!(Some(buckets[25].1), status["io"][key].as_f64());
        }
        assert!(now[r#"mirrord_request_duration_seconds_sum{volume="v",op="write"}"#] > 0.0);

        // Remembered, and not any more.
        rig.ok(&["stop", "v"]);
        assert!(!path.exists());
        rig.ok(&["start", "v"]);
        assert!(!rig.status()["metrics"].is_null());
        rig.ok(&["stop", "v"]);
        rig.ok(&["start", "v", "--metrics", "none"]);
        assert!(rig.status()["metrics"].is_null());
        assert!(!thread_names(&rig).contains("mirrord-metrics"));
        rig.ok(&["stop", "v"]);
        fs::remove_file(rig.path("a")).unwrap();
        fs::remove_file(rig.path("b")).unwrap();
    }
}

#[test]
fn other_requests_and_connections_that_say_nothing() {
    if !fuse() {
        return;
    }
    let rig = Rig::new();
    rig.create("1M", &["--metrics", "unix:metrics.sock"]);
    let connect = || UnixStream::connect(rig.path("metrics.sock")).unwrap();
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "404"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 4\r\n\r\nmore".to_owned(), "405"),
        ("what\r\n\r\n".to_owned(), "400"),
        (format!("GET /metrics HTTP/1.1\r\nCookie: {}", "x".repeat(100_000)), "431"),
    ] {
        let mut stream = connect();
        // It may be cut short: nobody listens to the end of what is too long.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes(), "{}", &request[..20]);
    }
    // Whoever does not say all is not waited for, by the next nor at the end.
    let mut slow = connect();
    slow.write_all(b"GET /met").unwrap();
    assert!(scrape(connect()).len() > 30);
    let silent = [slow, connect(), connect()];
    rig.ok(&["stop", "v"]);
    drop(silent);
}

#[test]
fn addresses_that_are_refused() {
    let rig = Rig::new();
    fs::write(rig.path("file"), "text").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let with = |address| ["create", "--legs", "a", "b", "--size", "1M", "--metrics", address];
    for address in ["9100", "example.org:9100", "unix:", "localhost:http", ":9100"] {
        refused(&rig, &with(address), 2, &["--metrics", "unix:PATH"]);
    }
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9100"] {
        refused(&rig, &with(address), 2, &["--metrics", address, "other machines", "--metrics-anywhere"]);
    }
    let elsewhere = [&with("192.0.2.1:9100")[..], &["--metrics-anywhere"]].concat();
    refused(&rig, &elsewhere, 1, &["192.0.2.1:9100", "cannot be listened on", "Cannot assign"]);
    refused(&rig, &with(&taken), 1, &["--metrics", &taken, "in use"]);
    refused(&rig, &with("unix:file"), 1, &["/file", "no socket"]);
    refused(&rig, &with("unix:no/where"), 1, &["no/where", "No such file"]);
    let long = format!("unix:{}", "x".repeat(200));
    refused(&rig, &with(&long), 1, &["--metrics", "cannot be listened on"]);
    if !fuse() {
        return;
    }
    rig.create("1M", &["--metrics", "unix:sock", "--metrics-anywhere"]);
    rig.ok(&["stop", "v"]);
    refused(&rig, &["start", "v", "--metrics", &taken], 1, &["in use"]);
    // What was remembered and is taken by now is no reason not to serve.
    fs::write(rig.path("sock"), "text").unwrap();
    let output = rig.run(&["start", "v"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && error.contains("note: --metrics unix:"), "{error}");
    assert!(rig.status()["metrics"].is_null());
    assert_eq!(fs::read(rig.path("sock")).unwrap(), b"text");
}
