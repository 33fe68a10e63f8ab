//! `mirrord log serve` over its sockets: how many marks a second it makes durable, and how long one takes.
//!
//! A request is a FLUSH with one region to mark (integrated flush), as a volume sends for a first write; regions are
//! new each time, so that every request changes the log.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mirrord::tls::make::{TrialNames, make_trial};
use mirrord::tls::{TlsFiles, client_config};
use mirrord_log::wire::{Frame, FrameError, LogName, Regions, Request, encode_request};
use rustls::{ClientConnection, StreamOwned};

use super::{Setting, rate};
use crate::compare::Cell;
use crate::report::{Row, Section, Target, grouped, number};
use crate::stats::{Histogram, Sample};

/// Regions of a log: more than can be marked in a run.
const REGIONS: u64 = 1 << 22;

/// Requests under way.
const DEPTHS: [usize; 2] = [1, 32];

/// Where the server listens, as the tables say it.
const WAYS: [&str; 2] = ["unix socket", "TLS on loopback"];

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// A server of this run.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures the group.
///
/// # Errors
/// When the server cannot be started or does not answer.
pub(crate) fn run(setting: &Setting) -> Result<Section> {
    let (directory, _guard) = setting.directory("log-requests", 64 << 20)?;
    let runtime = tempfile::Builder::new().prefix("mirrord-bench-").tempdir()?;
    let (certs, socket) = (directory.join("tls"), runtime.path().join("s"));
    make_trial(
        &certs,
        &TrialNames { hosts: &["localhost".to_owned()], clients: &["bench".to_owned()], days: 2 },
    )?;
    let mut command = Command::new(&setting.mirrord);
    command.env("MIRRORD_RUNTIME_DIR", runtime.path()).env("MIRRORD_STATE_DIR", runtime.path().join("state"));
    command
        .args(["log", "serve", "--json", "--log-level", "error", "--tcp", "localhost:0", "--unix"])
        .arg(&socket);
    command.arg("--dir").arg(directory.join("logs")).arg("--tls-cert").arg(certs.join("server.pem"));
    command.arg("--tls-key").arg(certs.join("server-key.pem")).arg("--tls-ca").arg(certs.join("ca.pem"));
    let child = command.stdout(Stdio::piped()).spawn().context("cannot start the log server")?;
    let mut server = Server(child);
    let address = tls_address(&mut server.0)?;
    let mut rows = Vec::new();
    let mut log = 0;
    for kind in ["core", "disk"] {
        for depth in DEPTHS {
            let mut samples = vec![Vec::new(); WAYS.len()];
            for _ in 0..setting.plan.rounds {
                for (way, samples) in samples.iter_mut().enumerate() {
                    log += 1;
                    let mut stream: Box<dyn Stream> = match way {
                        0 => Box::new(UnixStream::connect(&socket)?),
                        _ => Box::new(tls(&certs, &address)?),
                    };
                    let seconds = Duration::from_secs(setting.plan.seconds.into());
                    samples.push(marks(&mut *stream, log, kind, depth, seconds)?);
                }
            }
            let cell = Cell::new(samples);
            for (way, name) in WAYS.iter().enumerate() {
                rows.push(row(name, kind, depth, &cell, way));
            }
        }
    }
    let how = vec![format!(
        "`mirrord log serve` on this machine, one client, FLUSH requests with one new region each, of a log of {REGIONS} \
         regions. `disk` is a file in {}: each answer comes after its sector was written and synced; what waits \
         meanwhile shares the next write. Through the kernel (netlink) see the group log-server.",
        "the directory of this run"
    )];
    Ok(Section { title: "Requests to the log server".to_owned(), how, rows, ..Section::default() })
}

/// Where it listens, of what it prints.
fn tls_address(server: &mut Child) -> Result<String> {
    let mut output = server.stdout.take().context("no output")?;
    let mut text = String::new();
    while !text.ends_with("}\n") {
        let mut byte = [0];
        ensure!(output.read(&mut byte)? == 1, "the log server did not start: {text}");
        text.push(byte[0].into());
    }
    let said: serde_json::Value = serde_json::from_str(&text)?;
    let places = said["listens"].as_array().context("it listens nowhere")?;
    let found = places.iter().find_map(|place| place.as_str()?.strip_prefix("tls:"));
    Ok(found.context("it does not listen with TLS")?.to_owned())
}

fn tls(certs: &Path, address: &str) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let files = TlsFiles {
        cert: certs.join("bench.pem"),
        key: certs.join("bench-key.pem"),
        ca: certs.join("ca.pem"),
    };
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let connection = ClientConnection::new(Arc::clone(&client_config(&files)?), "localhost".try_into()?)?;
    Ok(StreamOwned::new(connection, stream))
}

/// Marks regions of a new log for a while.
fn marks(stream: &mut dyn Stream, log: u64, kind: &str, depth: usize, time: Duration) -> Result<Sample> {
    let uuid = format!("bench-{log}");
    let name = LogName { uuid: uuid.as_bytes(), luid: log };
    let table = match kind {
        "core" => format!("{} core 2 nosync", 2 * REGIONS),
        _ => format!("{} disk {uuid} 2 nosync", 2 * REGIONS),
    };
    let (mut input, mut output) = (Vec::new(), Vec::new());
    for request in [Request::Ctr { text: table.as_bytes(), again: false }, Request::Resume] {
        output.clear();
        encode_request(name, 0, &request, &mut output);
        stream.write_all(&output)?;
        ensure!(answer(stream, &mut input)?.1 == 0, "the log was refused");
    }
    let mut histogram = Histogram::new();
    let (begun, mut count, mut under_way) = (Instant::now(), 0u32, VecDeque::new());
    loop {
        output.clear();
        while under_way.len() < depth && begun.elapsed() < time && u64::from(count) < REGIONS {
            let region = [u64::from(count).into()];
            encode_request(name, count, &Request::Flush(Regions::new(&region)), &mut output);
            under_way.push_back((count, Instant::now()));
            count += 1;
        }
        stream.write_all(&output)?;
        stream.flush()?;
        if under_way.is_empty() {
            break;
        }
        // All that came at once.
        loop {
            let (seq, error) = answer(stream, &mut input)?;
            ensure!(error == 0, "a mark failed: {error}");
            let at = under_way.iter().position(|&(other, _)| other == seq).context("an answer to nothing")?;
            let (_, since) = under_way.remove(at).context("it is there")?;
            histogram.add(since.elapsed());
            if !matches!(Frame::parse(&input), Ok(_)) {
                break;
            }
        }
    }
    let per_second = f64::from(count) / begun.elapsed().as_secs_f64();
    output.clear();
    encode_request(name, 0, &Request::Postsuspend, &mut output);
    encode_request(name, 0, &Request::Dtr, &mut output);
    stream.write_all(&output)?;
    Ok(Sample { per_second, p99_us: histogram.quantile_us(0.99), ..Sample::default() })
}

/// The next answer: its number and error.
fn answer(stream: &mut dyn Stream, input: &mut Vec<u8>) -> Result<(u32, i32)> {
    let mut chunk = [0; 16384];
    loop {
        match Frame::parse(input) {
            Ok((frame, len)) => {
                let answer = (frame.seq(), frame.error());
                input.drain(..len);
                return Ok(answer);
            }
            Err(FrameError::Short { .. }) => {
                let count = stream.read(&mut chunk)?;
                ensure!(count > 0, "the log server hung up");
                input.extend_from_slice(&chunk[..count]);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn row(way: &str, kind: &str, depth: usize, cell: &Cell, number_of: usize) -> Row {
    let p99 = cell.spread(number_of, |sample| sample.p99_us).median;
    Row {
        what: format!("{kind} log, {depth} under way: {way}"),
        ours: format!("{}/s, p99 {} us", grouped(cell.spread(number_of, rate).median), number(p99)),
        theirs: String::new(),
        judged: None,
        target: Target::None,
    }
}
