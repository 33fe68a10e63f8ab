//! As much of HTTP/1.1 as a scraper needs: one GET or HEAD of `/metrics` per connection, answered and closed.
//!
//! One connection at a time, each bounded in time and in what it may say, so that nobody who connects costs
//! more than the thread that is there anyway. A body is not read: it belongs to no request that is answered.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::text::MEDIA_TYPE;

/// Longest head of a request, in bytes.
const MOST: usize = 8 << 10;

/// How long a connection may take, from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it may take afterwards to take note.
const FAREWELL: Duration = Duration::from_secs(1);

/// Answers one connection, which does not block. `stop` becomes readable when there is no time for it any more.
///
/// # Errors
/// When it ends or is given up before it is answered.
pub(super) fn converse(
    stream: BorrowedFd<'_>,
    stop: BorrowedFd<'_>,
    render: &dyn Fn() -> String,
) -> io::Result<()> {
    let link = Link { stream, stop };
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while !is_whole(&head) && head.len() < MOST {
        match link.read(&mut piece, deadline)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => head.extend_from_slice(&piece[..read]),
        }
    }
    link.write(&answer(&head, render), deadline)?;
    // To close at once would take back the answer from one who is still talking.
    rustix::net::shutdown(stream, Shutdown::Write)?;
    let deadline = Instant::now() + FAREWELL;
    while link.read(&mut piece, deadline).is_ok_and(|read| read > 0) {}
    Ok(())
}

struct Link<'a> {
    stream: BorrowedFd<'a>,
    stop: BorrowedFd<'a>,
}

impl Link<'_> {
    fn read(&self, into: &mut [u8], deadline: Instant) -> io::Result<usize> {
        loop {
            match rustix::io::read(self.stream, &mut *into) {
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, deadline)?,
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn write(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(self.stream, bytes) {
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                Err(Errno::INTR) => {}
                result => bytes = &bytes[result?..],
            }
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut events = [
            PollFd::from_borrowed_fd(self.stream.as_fd(), what),
            PollFd::from_borrowed_fd(self.stop.as_fd(), PollFlags::IN),
        ];
        match poll(&mut events, Some(&left)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) if !events[1].revents().is_empty() => Err(io::ErrorKind::Interrupted.into()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Whether the head of a request has come to its end.
fn is_whole(head: &[u8]) -> bool {
    head.windows(4).any(|end| end == b"\r\n\r\n") || head.windows(2).any(|end| end == b"\n\n")
}

fn answer(head: &[u8], render: &dyn Fn() -> String) -> Vec<u8> {
    let line = head.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    let words: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let short = |status, text: &str| respond(status, "text/plain", text, true);
    let bad = || short("400 Bad Request", "no request\n");
    let [method, target, version] = words[..] else { return bad() };
    if !version.starts_with(b"HTTP/") {
        return bad();
    }
    if !version.starts_with(b"HTTP/1.") {
        return short("505 HTTP Version Not Supported", "HTTP/1.1 it is\n");
    }
    if !is_whole(head) {
        return short("431 Request Header Fields Too Large", "too much\n");
    }
    if !matches!(method, b"GET" | b"HEAD") {
        return short("405 Method Not Allowed\r\nAllow: GET, HEAD", "GET it\n");
    }
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    if path != b"/metrics" {
        return short("404 Not Found", "see /metrics\n");
    }
    respond("200 OK", MEDIA_TYPE, &render(), method == b"GET")
}

fn respond(status: &str, media_type: &str, body: &str, with_body: bool) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let body = if with_body { body } else { "" };
    [head.as_bytes(), body.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_end_waits_for_nobody() {
        let (stream, _silent) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let stop = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let error = converse(stream.as_fd(), stop.as_fd(), &String::new).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "not after its time: {error}");
    }

    #[test]
    fn requests_are_answered() {
        let said = |head: &str| String::from_utf8(answer(head.as_bytes(), &|| "m 1\n".to_owned())).unwrap();
        let good = said("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n") && good.ends_with("\r\n\r\nm 1\n"), "{good}");
        assert!(
            good.contains("Content-Type: text/plain; version=0.0.4") && good.contains("Content-Length: 4")
        );
        let head = said("HEAD /metrics?x=y HTTP/1.0\n\n");
        assert!(head.contains("Content-Length: 4") && head.ends_with("\r\n\r\n"), "{head}");
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("GET /metrics/x HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics HTTP/2\r\n\r\n", "505"),
            ("GET /metrics\r\n\r\n", "400"),
            ("\r\n\r\n", "400"),
            ("\u{16}\u{3}\u{1} of TLS \r\n\r\n", "400"),
            ("GET /metrics HTTP/1.1\r\nHost: x", "431"),
        ] {
            assert!(said(request).starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}");
        }
    }
}
