//! A connection's socket, not blocking, and the TLS over it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustls::ServerConnection;

use crate::socket::Socket;

/// Bytes in and out, encrypted or not.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    tls: Option<Box<ServerConnection>>,
}

/// What a read came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Got {
    /// Something, perhaps only of the handshake.
    Some,
    /// Nothing now.
    Nothing,
    /// Nothing any more.
    End,
}

impl Channel {
    /// Over a socket.
    pub(super) fn new(socket: Socket, tls: Option<Box<ServerConnection>>) -> Channel {
        Channel { socket, tls }
    }

    /// The socket.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Nobody knows yet who is there.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Something encrypted waits to be sent.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Reads what is there, a part of it at most as long as `room`, and adds it to `input`.
    pub(super) fn read(&mut self, room: &mut [u8], input: &mut Vec<u8>) -> io::Result<Got> {
        let Some(tls) = &mut self.tls else {
            return Ok(match unblocked(self.socket.read(room))? {
                None => Got::Nothing,
                Some(0) => Got::End,
                Some(len) => {
                    input.extend_from_slice(&room[..len]);
                    Got::Some
                }
            });
        };
        match unblocked(tls.read_tls(&mut self.socket))? {
            None => return Ok(Got::Nothing),
            Some(0) => return Ok(Got::End),
            Some(_) => {}
        }
        if let Err(error) = tls.process_new_packets() {
            // The other side is told why, if it can be told at once.
            let _ = tls.write_tls(&mut self.socket);
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        loop {
            match unblocked(tls.reader().read(room))? {
                None => return Ok(Got::Some),
                Some(0) => return Ok(Got::End),
                Some(len) => input.extend_from_slice(&room[..len]),
            }
        }
    }

    /// Writes as much as goes now; how many bytes of it are out of the caller's hands.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else {
            return Ok(if bytes.is_empty() { 0 } else { unblocked(self.socket.write(bytes))?.unwrap_or(0) });
        };
        let mut done = 0;
        loop {
            while tls.wants_write() {
                match unblocked(tls.write_tls(&mut self.socket))? {
                    None => return Ok(done),
                    Some(0) => return Err(ErrorKind::WriteZero.into()),
                    Some(_) => {}
                }
            }
            if bytes.is_empty() || tls.is_handshaking() {
                return Ok(done);
            }
            let part = tls.writer().write(&bytes[..bytes.len().min(RECORDS)])?;
            bytes = &bytes[part..];
            done += part;
        }
    }
}

/// What is encrypted at a time, at most: four records.
const RECORDS: usize = 64 << 10;

/// `None`: not now.
fn unblocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(len) => Ok(Some(len)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(error) => Err(error),
    }
}
