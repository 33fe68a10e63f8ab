//! One connection to a log server: made by a thread that may wait, then used without waiting.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use mirrord_log::wire::{Frame, FrameError};
use rustix::event::PollFlags;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::Address;
use crate::socket::Socket;

/// How long connecting may take, for each address of a host, and then TLS.
const CONNECT: Duration = Duration::from_secs(5);

/// A server that says nothing for so long is asked whether it is there; each time so often, so many times.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVES: u32 = 3;

/// Milliseconds in which what is sent has to be taken by the other host.
const USER_TIMEOUT: u32 = 15_000;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// No answer, or a refusal.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// The name of the host leads nowhere.
    #[error("cannot find the host")]
    Host(#[source] io::Error),
    /// The server cannot show who it is, or does not heed this side's certificate.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
    /// The server ended it.
    #[error("the server closed the connection")]
    Closed,
    /// The system said so.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// What comes is no message.
    #[error("the server sends what is no message")]
    Frame(#[from] FrameError),
}

/// See the module's documentation.
pub(super) struct Link {
    socket: Socket,
    tls: Option<Box<ClientConnection>>,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Link {
    /// Connects, and shows and sees certificates. Waits.
    pub(super) fn connect(address: &Address, tls: Option<&Arc<ClientConfig>>) -> Result<Link, LinkError> {
        let (mut socket, tls) = match address {
            Address::Unix(path) => {
                (Socket::Unix(UnixStream::connect(path).map_err(LinkError::Connect)?), None)
            }
            Address::Tcp { host, port, .. } => {
                let stream = connect_tcp(host, *port)?;
                let name = ServerName::try_from(host.clone())
                    .map_err(|error| LinkError::Host(io::Error::other(error)))?;
                let tls = tls.map(|config| ClientConnection::new(Arc::clone(config), name)).transpose()?;
                stream.set_read_timeout(Some(CONNECT))?;
                stream.set_write_timeout(Some(CONNECT))?;
                (Socket::Tcp(stream), tls.map(Box::new))
            }
        };
        let mut tls = tls;
        if let Some(tls) = &mut tls {
            while tls.is_handshaking() {
                tls.complete_io(&mut socket).map_err(handshake_error)?;
            }
        }
        match &socket {
            Socket::Unix(stream) => stream.set_nonblocking(true)?,
            Socket::Tcp(stream) => stream.set_nonblocking(true)?,
        }
        Ok(Link { socket, tls, input: Vec::new(), output: Vec::new() })
    }

    /// Adds bytes to be sent by [`Link::write`].
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// What to wait for.
    pub(super) fn flags(&self) -> PollFlags {
        let wants_write = !self.output.is_empty() || self.tls.as_ref().is_some_and(|tls| tls.wants_write());
        if wants_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN }
    }

    /// Sends what can be sent.
    pub(super) fn write(&mut self) -> Result<(), LinkError> {
        let mut sent = 0;
        let result = self.write_some(&mut sent);
        self.output.drain(..sent);
        match result {
            Err(error) if is_nothing(&error) => Ok(()),
            result => Ok(result?),
        }
    }

    fn write_some(&mut self, sent: &mut usize) -> io::Result<()> {
        let Some(tls) = &mut self.tls else {
            while *sent < self.output.len() {
                *sent += self.socket.write(&self.output[*sent..])?;
            }
            return Ok(());
        };
        loop {
            while tls.wants_write() {
                tls.write_tls(&mut self.socket)?;
            }
            let rest = &self.output[*sent..];
            if rest.is_empty() {
                return Ok(());
            }
            *sent += tls.writer().write(&rest[..rest.len().min(CHUNK)])?;
        }
    }

    /// Reads what is there.
    pub(super) fn read(&mut self) -> Result<(), LinkError> {
        let before = self.input.len();
        let Some(tls) = &mut self.tls else {
            self.input.resize(before + CHUNK, 0);
            let read = self.socket.read(&mut self.input[before..]);
            self.input.truncate(before + *read.as_ref().unwrap_or(&0));
            return match read {
                Ok(0) => Err(LinkError::Closed),
                Ok(_) => Ok(()),
                Err(error) if is_nothing(&error) => Ok(()),
                Err(error) => Err(error.into()),
            };
        };
        let is_open = match tls.read_tls(&mut self.socket) {
            Ok(count) => count > 0,
            Err(error) if is_nothing(&error) => true,
            Err(error) => return Err(error.into()),
        };
        if let Err(error) = tls.process_new_packets() {
            let _ = tls.write_tls(&mut self.socket);
            return Err(error.into());
        }
        let mut chunk = [0; 4096];
        loop {
            match tls.reader().read(&mut chunk) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(error) if is_nothing(&error) && is_open => return Ok(()),
                Err(error) if is_nothing(&error) => return Err(LinkError::Closed),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives each whole message that was read to `each`.
    pub(super) fn messages(&mut self, mut each: impl FnMut(Frame<'_>)) -> Result<(), LinkError> {
        let mut from = 0;
        let result = loop {
            match Frame::parse(&self.input[from..]) {
                Ok((frame, len)) => {
                    each(frame);
                    from += len;
                }
                Err(FrameError::Short { .. }) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        self.input.drain(..from);
        result
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, LinkError> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs().map_err(LinkError::Host)? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                sockopt::set_socket_keepalive(&stream, true).map_err(io::Error::from)?;
                sockopt::set_tcp_keepidle(&stream, KEEPALIVE).map_err(io::Error::from)?;
                sockopt::set_tcp_keepintvl(&stream, KEEPALIVE).map_err(io::Error::from)?;
                sockopt::set_tcp_keepcnt(&stream, KEEPALIVES).map_err(io::Error::from)?;
                sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT).map_err(io::Error::from)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(LinkError::Connect(last))
}

fn handshake_error(error: io::Error) -> LinkError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => LinkError::Tls(tls.clone()),
        None => LinkError::Connect(error),
    }
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
