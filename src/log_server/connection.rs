//! One connection of a volume: bytes in, requests out; answers in, bytes out. Never waits.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use mirrord_log::server::ClientId;
use mirrord_log::wire::{Frame, FrameError, HEADER, MAX_DATA};
use rustls::ServerConnection;

use super::lock;

/// A connection is not read from while so many bytes of answers wait to be taken ...
const MOST_BYTES: usize = 1 << 20;
/// ... or so many requests to be answered.
const MOST_REQUESTS: usize = 4096;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// Seconds until a connection has shown who it is.
const HANDSHAKE: u32 = 10;
/// Seconds in which a message has to come that has begun, and answers have to be taken.
const PATIENCE: u32 = 30;

/// Answers to one client, from whatever thread.
#[derive(Debug, Default)]
pub(super) struct Outbox(Mutex<Answers>);

#[derive(Debug, Default)]
struct Answers {
    bytes: Vec<u8>,
    count: usize,
}

impl Outbox {
    /// Adds an answer.
    pub(super) fn add(&self, message: &[u8]) {
        let mut answers = lock(&self.0);
        answers.bytes.extend_from_slice(message);
        answers.count += 1;
    }

    /// Moves what is there behind `bytes`; how many answers that were.
    fn take(&self, bytes: &mut Vec<u8>) -> usize {
        let mut answers = lock(&self.0);
        bytes.append(&mut answers.bytes);
        std::mem::take(&mut answers.count)
    }
}

/// A socket of either kind.
#[derive(Debug)]
pub(super) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Unix(stream) => stream.as_fd(),
            Socket::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.read(buffer),
            Socket::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Unix(stream) => stream.write(buffer),
            Socket::Tcp(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a connection is closed by this side.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The other side closed it.
    #[error("it was closed")]
    Closed,
    /// The system said so.
    #[error("it broke")]
    Io(#[from] io::Error),
    /// Whoever it is cannot show that he may connect.
    #[error("its TLS is refused")]
    Tls(#[from] rustls::Error),
    /// What comes is no message, and what follows cannot be told.
    #[error("it sends what is no message")]
    Frame(#[from] FrameError),
    /// It began something and does not go on.
    #[error("it does not {0}")]
    Slow(&'static str),
}

/// See the module's documentation.
pub(super) struct Connection {
    pub(super) client: ClientId,
    pub(super) socket: Socket,
    pub(super) peer: String,
    pub(super) outbox: std::sync::Arc<Outbox>,
    tls: Option<Box<ServerConnection>>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// How much of the output is sent.
    sent: usize,
    /// Requests without an answer.
    open: usize,
    /// Seconds since it began something that it did not go on with.
    waiting: u32,
}

impl Connection {
    /// A connection that is not blocking.
    pub(super) fn new(
        client: ClientId,
        socket: Socket,
        peer: String,
        tls: Option<ServerConnection>,
    ) -> Connection {
        let (outbox, input, output, tls) = (Default::default(), Vec::new(), Vec::new(), tls.map(Box::new));
        Connection { client, socket, peer, outbox, tls, input, output, sent: 0, open: 0, waiting: 0 }
    }

    /// Whether it is read from: its buffers have room.
    pub(super) fn wants_read(&self) -> bool {
        self.output.len() - self.sent < MOST_BYTES && self.open < MOST_REQUESTS
    }

    /// Whether something is to be written.
    pub(super) fn wants_write(&self) -> bool {
        self.sent < self.output.len() || self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Reads what is there, and gives each whole message to `each`.
    pub(super) fn read(&mut self, mut each: impl FnMut(&Frame<'_>)) -> Result<(), ConnectionError> {
        let got = self.fill()?;
        let mut from = 0;
        while let Some(rest) = self.input.get(from..) {
            match Frame::parse(rest) {
                Ok((frame, len)) => {
                    each(&frame);
                    self.open += 1;
                    from += len;
                    self.waiting = 0;
                }
                Err(FrameError::Short { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.input.drain(..from);
        if got { Ok(()) } else { Err(ConnectionError::Closed) }
    }

    /// Reads once. False: there will be no more.
    fn fill(&mut self) -> Result<bool, ConnectionError> {
        let before = self.input.len();
        debug_assert!(before < HEADER + MAX_DATA);
        let Some(tls) = &mut self.tls else {
            self.input.resize(before + CHUNK, 0);
            let read = self.socket.read(&mut self.input[before..]);
            self.input.truncate(before + *read.as_ref().unwrap_or(&0));
            return match read {
                Ok(0) => Ok(false),
                Ok(_) => Ok(true),
                Err(error) if is_nothing(&error) => Ok(true),
                Err(error) => Err(error.into()),
            };
        };
        let more = match tls.read_tls(&mut self.socket) {
            Ok(count) => count > 0,
            Err(error) if is_nothing(&error) => true,
            Err(error) => return Err(error.into()),
        };
        let state = tls.process_new_packets();
        if let Err(error) = state {
            // Whoever it is should know why.
            let _ = tls.write_tls(&mut self.socket);
            return Err(error.into());
        }
        let mut chunk = [0; 4096];
        loop {
            match tls.reader().read(&mut chunk) {
                Ok(0) => return Ok(false),
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if is_nothing(&error) => return Ok(more),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends what can be sent.
    pub(super) fn write(&mut self) -> Result<(), ConnectionError> {
        self.open -= self.outbox.take(&mut self.output).min(self.open);
        let before = self.sent;
        if let Some(tls) = &mut self.tls {
            loop {
                while tls.wants_write() {
                    match tls.write_tls(&mut self.socket) {
                        Ok(_) => self.waiting = 0,
                        Err(error) if is_nothing(&error) => return Ok(()),
                        Err(error) => return Err(error.into()),
                    }
                }
                let rest = &self.output[self.sent..];
                if rest.is_empty() {
                    break;
                }
                self.sent += tls.writer().write(&rest[..rest.len().min(CHUNK)])?;
            }
        } else {
            while self.sent < self.output.len() {
                match self.socket.write(&self.output[self.sent..]) {
                    Ok(count) => self.sent += count,
                    Err(error) if is_nothing(&error) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if self.sent > before {
            self.waiting = 0;
        }
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        } else if self.sent > MOST_BYTES {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }

    /// A second went by.
    pub(super) fn tick(&mut self) -> Result<(), ConnectionError> {
        let handshaking = self.tls.as_ref().is_some_and(|tls| tls.is_handshaking());
        let (what, patience) = if handshaking {
            ("show who it is", HANDSHAKE)
        } else if self.wants_write() {
            ("take its answers", PATIENCE)
        } else if !self.input.is_empty() {
            ("end a message that it began", PATIENCE)
        } else {
            self.waiting = 0;
            return Ok(());
        };
        self.waiting += 1;
        if self.waiting > patience { Err(ConnectionError::Slow(what)) } else { Ok(()) }
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
