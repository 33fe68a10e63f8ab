//! A server of the test's own, and a small client that says what it is told to.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use mirrord_log::wire::{Frame, FrameError, LogName, Request, encode_request};
use mirrord_raid::Errno;

use crate::rig::{Rig, sh, until};

/// A server that ends with the test.
pub(crate) struct Server {
    child: Child,
    messages: PathBuf,
    /// What it said that it listens to.
    pub(crate) listens: Vec<String>,
}

impl Server {
    /// Starts `mirrord log serve` and waits until it serves. Messages go to `messages`.
    pub(crate) fn start(rig: &Rig, args: &[&str]) -> Server {
        let mut command = rig.command(&["log", "serve", "--log-to", "file:messages"]);
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let listens = line.split_whitespace().skip(1).map(str::to_owned).collect();
        assert!(line.starts_with("default "), "it did not start: {line:?}");
        Server { child, messages: rig.path("messages"), listens }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first address of a kind, such as `tls`.
    pub(crate) fn address(&self, kind: &str) -> &str {
        let found = self.listens.iter().find_map(|place| place.strip_prefix(kind)?.strip_prefix(':'));
        found.unwrap_or_else(|| panic!("no {kind} in {:?}", self.listens))
    }

    /// Resident memory in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Kills it without warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        sh("kill", &["-s", name, &self.pid().to_string()]);
    }

    /// Waits for its end; whether that was a success.
    pub(crate) fn ended(mut self) -> bool {
        self.child.wait().unwrap().success()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(&self.messages).unwrap_or_default());
        }
    }
}

/// Bytes both ways.
pub(crate) trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// What an answer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) seq: u32,
    pub(crate) error: i32,
    pub(crate) data: Vec<u8>,
}

impl Answer {
    pub(crate) fn number(&self) -> u64 {
        assert_eq!(self.error, 0);
        u64::from_le_bytes(self.data[..8].try_into().unwrap())
    }
}

/// A connection.
pub(crate) struct Client {
    pub(crate) stream: Box<dyn Stream + Send>,
    input: Vec<u8>,
    seq: u32,
}

/// A test that gets no answer fails instead of waiting.
const PATIENCE: Duration = Duration::from_secs(120);

impl Client {
    pub(crate) fn over(stream: impl Stream + Send + 'static) -> Client {
        Client { stream: Box::new(stream), input: Vec::new(), seq: 0 }
    }

    pub(crate) fn unix(rig: &Rig) -> Client {
        let stream = UnixStream::connect(rig.path("s")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::over(stream)
    }

    pub(crate) fn tcp(server: &Server) -> Client {
        let stream = TcpStream::connect(server.address("tcp")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client::over(stream)
    }

    /// Sends a request; gives its number.
    pub(crate) fn send(&mut self, uuid: &str, luid: u64, request: &Request<'_>) -> u32 {
        self.seq += 1;
        let mut bytes = Vec::new();
        encode_request(LogName { uuid: uuid.as_bytes(), luid }, self.seq, request, &mut bytes);
        self.stream.write_all(&bytes).unwrap();
        self.seq
    }

    /// The next answer; `None`: the server hung up.
    pub(crate) fn receive(&mut self) -> Option<Answer> {
        loop {
            match Frame::parse(&self.input) {
                Ok((frame, len)) => {
                    let answer =
                        Answer { seq: frame.seq(), error: frame.error(), data: frame.data().to_vec() };
                    self.input.drain(..len);
                    return Some(answer);
                }
                Err(FrameError::Short { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(len) => self.input.extend_from_slice(&chunk[..len]),
                // With a time-out it is, when a machine is short of time.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer: {error}"),
                Err(_) => return None,
            }
        }
    }

    /// Asks and waits for the answer.
    pub(crate) fn ask(&mut self, uuid: &str, luid: u64, request: &Request<'_>) -> Answer {
        let seq = self.send(uuid, luid, request);
        let answer = self.receive().expect("the server hung up");
        assert_eq!(answer.seq, seq);
        answer
    }

    /// Asks for what must be done.
    pub(crate) fn done(&mut self, uuid: &str, luid: u64, request: &Request<'_>) {
        let answer = self.ask(uuid, luid, request);
        assert_eq!((answer.error, answer.data.len()), (0, 0), "{request:?}");
    }

    /// Asks for what must fail so.
    pub(crate) fn fails(&mut self, uuid: &str, luid: u64, request: &Request<'_>, errno: Errno) {
        assert_eq!(self.ask(uuid, luid, request).error, -errno.0, "{request:?}");
    }

    /// Constructs a log of 16 regions of 32 KiB, or again.
    pub(crate) fn construct(&mut self, uuid: &str, luid: u64, kind: &str, again: bool) {
        let text = format!("1024 {kind} 64");
        self.done(uuid, luid, &Request::Ctr { text: text.as_bytes(), again });
    }

    /// The regions that there are to resync, in order, each said to be done.
    pub(crate) fn resync(&mut self, uuid: &str, luid: u64) -> Vec<u32> {
        let mut done = Vec::new();
        loop {
            let answer = self.ask(uuid, luid, &Request::GetResyncWork);
            if answer.number() == 0 {
                return done;
            }
            let region = u64::from_le_bytes(answer.data[8..].try_into().unwrap());
            self.done(uuid, luid, &Request::SetRegionSync { region, in_sync: true });
            done.push(region as u32);
        }
    }

    /// Waits until the server hung up.
    pub(crate) fn is_hung_up_on(&mut self) {
        while self.receive().is_some() {}
    }
}

/// What a server has written, once it has all these words.
pub(crate) fn messages(rig: &Rig, words: &str) {
    let read = || fs::read_to_string(rig.path("messages")).unwrap_or_default();
    until(&format!("{words:?} is in the messages"), || read().contains(words));
}
