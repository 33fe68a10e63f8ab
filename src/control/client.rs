//! Asking a daemon.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{Failure, MAX_LINE, Request, Response};
use crate::map::VolumeMap;
use crate::paths::Dirs;
use crate::peer::Peer;
use crate::status::VolumeStatus;

/// How long an answer may take. A daemon answers at once or is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a stop may take: legs are flushed first.
const STOP_PATIENCE: Duration = Duration::from_secs(600);

/// How long the process of a volume that is stopped may take to end: it gives up requests that hang, and its event
/// hook, before.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// How long a resize may take: legs that cannot be told to be zero are written.
const RESIZE_PATIENCE: Duration = Duration::from_secs(86_400);

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon: none was started, or it was killed.
    #[error("volume {name} is not running")]
    NotRunning {
        /// The volume.
        name: String,
    },
    /// Talking to it failed.
    #[error("cannot talk to the daemon of {name} at {}", socket.display())]
    Io {
        /// The volume.
        name: String,
        /// Its socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It answers, but not in this protocol.
    #[error("the daemon of {name} gave an answer that makes no sense: is it of another version?")]
    Protocol {
        /// The volume.
        name: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It answered something else than was asked.
    #[error("the daemon of {name} answered another question")]
    Unexpected {
        /// The volume.
        name: String,
    },
    /// It said no.
    #[error("{message}")]
    Refused {
        /// Why, for programs.
        reason: Failure,
        /// Why, for people.
        message: String,
    },
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    name: String,
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon of `name`.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] if there is none, [`ClientError::Io`] for anything else.
    pub fn connect(dirs: &Dirs, name: &str) -> Result<Client, ClientError> {
        let socket = dirs.socket(name);
        let error = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { name: name.to_owned() }
            }
            _ => ClientError::Io { name: name.to_owned(), socket: socket.clone(), source },
        };
        let stream = UnixStream::connect(&socket).map_err(error)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(error)?;
        let stream = BufReader::new(stream);
        Ok(Client { name: name.to_owned(), socket, stream })
    }

    /// Connects to the daemon of `name`, and asks how its volume is: while a daemon dies the kernel still takes
    /// connections for it, and only the answer tells that it runs.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] if there is none, or none that lives. See [`Client::ask`].
    pub fn reach(dirs: &Dirs, name: &str) -> Result<(Client, VolumeStatus), ClientError> {
        let mut client = Client::connect(dirs, name)?;
        let status = client.status()?;
        Ok((client, status))
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the daemon says no, others if it does not answer.
    pub fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let is_stop = matches!(request, Request::Stop { .. } | Request::HandOver);
        let patience = match request {
            Request::Resize { .. } => RESIZE_PATIENCE,
            _ if is_stop => STOP_PATIENCE,
            _ => PATIENCE,
        };
        let line = self.exchange(request, patience).map_err(|error| self.failed(error))?;
        self.understand(&line)
    }

    /// How the volume is.
    ///
    /// # Errors
    /// See [`Client::ask`].
    pub fn status(&mut self) -> Result<VolumeStatus, ClientError> {
        match self.ask(&Request::Status)? {
            Response::Status { status } => Ok(*status),
            _ => Err(ClientError::Unexpected { name: self.name.clone() }),
        }
    }

    /// How its regions are, in at most `cells` cells, or region by region: as many answers as that takes.
    ///
    /// # Errors
    /// See [`Client::ask`].
    pub fn map(&mut self, cells: Option<NonZeroU32>) -> Result<VolumeMap, ClientError> {
        let mut map = self.map_from(cells, 0)?;
        while let Some(from) = map.next {
            map.append(self.map_from(cells, from)?);
        }
        Ok(map)
    }

    fn map_from(&mut self, cells: Option<NonZeroU32>, from: u32) -> Result<VolumeMap, ClientError> {
        match self.ask(&Request::Map { cells, from })? {
            Response::Map { map } => Ok(*map),
            _ => Err(ClientError::Unexpected { name: self.name.clone() }),
        }
    }

    /// The process that answers here, to wait for its end; `None` where it cannot be seen.
    pub fn daemon(&self) -> Option<Daemon> {
        let pid = Peer::of(self.stream.get_ref()).ok()?.pid?;
        pidfd_open(pid, PidfdFlags::empty()).ok().map(|descriptor| Daemon { pid, descriptor })
    }

    /// Follows what happens to the volume; first what came after event `since`, if that is given.
    ///
    /// # Errors
    /// When it cannot be asked. See [`Client::ask`].
    pub fn follow(mut self, since: Option<u64>) -> Result<Following, ClientError> {
        self.send(&Request::Events { since }, None).map_err(|error| self.failed(error))?;
        Ok(Following(self))
    }

    fn exchange(&mut self, request: &Request, patience: Duration) -> io::Result<String> {
        self.send(request, Some(patience))?;
        self.receive()
    }

    /// Sends a request whose answers may take so long.
    fn send(&mut self, request: &Request, patience: Option<Duration>) -> io::Result<()> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let stream = self.stream.get_mut();
        stream.set_read_timeout(patience)?;
        match stream.write_all(line.as_bytes()) {
            // Whoever hung up may have said why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    fn receive(&mut self) -> io::Result<String> {
        let mut answer = String::new();
        self.stream.by_ref().take(MAX_LINE).read_line(&mut answer)?;
        if !answer.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(answer)
    }

    fn failed(&self, source: io::Error) -> ClientError {
        match source.kind() {
            // It was there a moment ago.
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                ClientError::NotRunning { name: self.name.clone() }
            }
            _ => ClientError::Io { name: self.name.clone(), socket: self.socket.clone(), source },
        }
    }

    fn understand(&self, line: &str) -> Result<Response, ClientError> {
        match serde_json::from_str(line) {
            Ok(Response::Failed { reason, message }) => Err(ClientError::Refused { reason, message }),
            Ok(response) => Ok(response),
            Err(source) => Err(ClientError::Protocol { name: self.name.clone(), source }),
        }
    }
}

/// A connection on which events come.
#[derive(Debug)]
pub struct Following(Client);

impl Following {
    /// Waits for the next [`Response::Event`] or [`Response::Missed`]; `None`: the volume is stopped.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] if the daemon ended without saying so. See [`Client::ask`].
    pub fn next_line(&mut self) -> Result<Option<Response>, ClientError> {
        let line = self.0.receive().map_err(|error| self.0.failed(error))?;
        match self.0.understand(&line)? {
            response @ (Response::Event { .. } | Response::Missed { .. }) => Ok(Some(response)),
            Response::Done { .. } => Ok(None),
            _ => Err(ClientError::Unexpected { name: self.0.name.clone() }),
        }
    }
}

/// A daemon's process.
#[derive(Debug)]
pub struct Daemon {
    /// Its id.
    pub pid: Pid,
    descriptor: OwnedFd,
}

impl Daemon {
    /// Waits until it has ended, a while at most. Whether it has.
    pub fn wait_ended(&self) -> bool {
        let ended = PollFd::new(&self.descriptor, PollFlags::IN);
        let patience = Timespec { tv_sec: END_PATIENCE.as_secs() as i64, tv_nsec: 0 };
        // An interrupted wait is a short one.
        poll(&mut [ended], Some(&patience)).is_ok_and(|ended| ended > 0)
    }
}
