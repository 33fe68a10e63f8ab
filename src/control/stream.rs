//! Sending events to a client that follows them.
//!
//! Runs on the connection's thread, which ends when the client hangs up or the journal does. A client that does
//! not read costs this thread and one line of memory: events that are forgotten meanwhile are counted, and it
//! is told when it reads on.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Response;
use crate::events::{Next, Reader};

/// Between two looks whether the journal has ended, while a client does not read; and how long it may take to read
/// the rest then.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Sends whatever `reader` has until there will be no more.
///
/// # Errors
/// When the client cannot be written to: it has gone, most likely.
pub(super) fn send_events(mut stream: &UnixStream, mut reader: Reader) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    loop {
        let (response, last) = match reader.read() {
            Next::Event(event) => (Response::Event { event: Box::new((*event).clone()) }, false),
            Next::Missed(events) => (Response::Missed { events }, false),
            Next::End => (Response::done(), true),
            Next::Nothing => {
                if await_bell(stream, &reader)? {
                    continue;
                }
                return Ok(());
            }
        };
        let mut line = serde_json::to_vec(&response)?;
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let closed = reader.is_closed();
                    if !await_room(stream)? && closed {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if last {
            return Ok(());
        }
    }
}

/// Waits until there is something to read. False: the client has gone.
fn await_bell(stream: &UnixStream, reader: &Reader) -> io::Result<bool> {
    let bell = reader.bell();
    // That it hangs up is told without being asked for. One that has only nothing more to ask may still read.
    let mut events =
        [PollFd::new(stream, PollFlags::empty()), PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)];
    match poll(&mut events, None) {
        Ok(_) => Ok(events[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits until the client has read something, for a while.
fn await_room(stream: &UnixStream) -> io::Result<bool> {
    match poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&LOOK)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}
