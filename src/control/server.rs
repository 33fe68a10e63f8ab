//! Answering clients: one thread accepts, one per connection asks the handler.
//!
//! The caller holds the volume's name ([`Dirs::lock`]), so a socket that is there belongs to a dead
//! daemon and is replaced; one that answers all the same is left alone. Connections are bounded in
//! number, those that follow events by themselves, so that others always get their answer; an idle one ends by
//! itself. [`ControlServer::close`] lets answers under way be written, and events until the journal ends; a request
//! that hangs is given up after a while.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::stream::send_events;
use super::{Failure, MAX_LINE, Request, Response};
use crate::events::Reader;
use crate::paths::Dirs;
use crate::peer::Peer;

/// Connections at a time; more are turned away.
const MOST_CONNECTIONS: usize = 16;

/// How many of them may follow events.
const MOST_FOLLOWERS: usize = 8;

/// A connection that asks nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// How long the end waits for requests under way. One that hangs on a file system that does not answer must not
/// keep the process.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks at them.
const LOOK: Duration = Duration::from_millis(2);

/// What a handler has for whoever asked.
pub enum Answer {
    /// One line.
    Once(Response),
    /// One line, and what is to be done once it is sent, or cannot be.
    Then(Response, Box<dyn FnOnce() + Send>),
    /// Events, until there are no more. The journal is closed before the server is, which waits for that.
    Events(Reader),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        Answer::Once(response)
    }
}

/// Answers a request; called on connection threads.
pub type Handler = Arc<dyn Fn(Request) -> Answer + Send + Sync>;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("{} is answered by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The system said no.
    #[error("cannot make the socket {}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A bound socket, served once [`ControlServer::serve`] was called.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    listener: UnixListener,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    closing: AtomicBool,
    followers: AtomicUsize,
    open: Mutex<Vec<(UnixStream, JoinHandle<()>)>>,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Vec<(UnixStream, JoinHandle<()>)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ControlServer {
    /// Binds the socket of `name`. Clients that connect wait until it is served.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(dirs: &Dirs, name: &str) -> Result<ControlServer, BindError> {
        let path = dirs.socket(name);
        let io_error = |source| BindError::Io { path: path.clone(), source };
        match UnixStream::connect(&path) {
            Ok(_) => return Err(BindError::InUse { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => fs::remove_file(&path).map_err(io_error)?,
        }
        // Between bind and chmod the directory's mode keeps others out.
        let listener = UnixListener::bind(&path).map_err(io_error)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(io_error)?;
        Ok(ControlServer { path, listener, shared: Arc::default(), accepting: None })
    }

    /// Begins to answer.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn serve(&mut self, handler: Handler) -> io::Result<()> {
        let (listener, shared) = (self.listener.try_clone()?, Arc::clone(&self.shared));
        let accept = move || accept(&listener, &shared, &handler);
        self.accepting = Some(thread::Builder::new().name("mirrord-control".to_owned()).spawn(accept)?);
        Ok(())
    }

    /// For a process that ends without [`ControlServer::close`].
    pub fn cutter(&self) -> Cutter {
        Cutter { path: self.path.clone(), shared: Arc::clone(&self.shared) }
    }

    /// Stops answering: no new request is taken, answers under way are written, the socket goes.
    pub fn close(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        if let Some(accepting) = self.accepting.take() {
            // Wakes accept; if nobody can connect any more, it has failed already.
            let woken = UnixStream::connect(&self.path);
            if woken.is_ok() {
                let _ = accepting.join();
            }
        }
        let _ = fs::remove_file(&self.path);
        let connections = std::mem::take(&mut *self.shared.open());
        for (stream, _) in &connections {
            let _ = stream.shutdown(Shutdown::Read);
        }
        let begun = Instant::now();
        while begun.elapsed() < ANSWER_PATIENCE && connections.iter().any(|(_, thread)| !thread.is_finished())
        {
            thread::sleep(LOOK);
        }
        for (_, thread) in connections {
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                tracing::error!("a request hangs: it is given up, and ends with this process");
            }
        }
    }
}

/// Cuts clients off, whatever the threads do that answer them: a process in which a system call hangs cannot end, and the
/// kernel keeps its connections open.
#[derive(Clone, Debug)]
pub struct Cutter {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Cutter {
    /// The socket goes, and every connection ends.
    pub fn cut(&self) {
        let _ = fs::remove_file(&self.path);
        self.shared.closing.store(true, Ordering::SeqCst);
        for (stream, _) in self.shared.open().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.end();
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>, handler: &Handler) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if shared.closing.load(Ordering::SeqCst) {
                    return;
                }
                // Out of file descriptors, most likely: others will end.
                tracing::warn!(%error, "cannot accept a control connection");
                thread::sleep(Duration::from_secs(1));
                continue;
            }
        };
        if shared.closing.load(Ordering::SeqCst) {
            return;
        }
        let refused = stream.try_clone();
        if let (Err(error), Ok(refused)) = (admit(stream, shared, handler), refused) {
            tracing::warn!(%error, "control connection refused");
            let _ = send(&refused, &Response::Failed { reason: Failure::Error, message: error.to_string() });
        }
    }
}

/// Starts the thread of a connection, if whoever connected may ask.
fn admit(stream: UnixStream, shared: &Arc<Shared>, handler: &Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let peer = Peer::of(&stream)?;
    if !peer.is_own() {
        return Err(io::Error::other(format!("user {} may not ask", peer.uid.as_raw())));
    }
    let mut open = shared.open();
    open.retain(|(_, thread)| !thread.is_finished());
    if open.len() >= MOST_CONNECTIONS {
        return Err(io::Error::other("too many connections"));
    }
    let (kept, handler, followed) = (stream.try_clone()?, Arc::clone(handler), Arc::clone(shared));
    let body = move || {
        if let Err(error) = converse(&stream, &followed, &handler) {
            tracing::debug!(%error, "control connection ended");
        }
        // The other half would keep the client waiting.
        let _ = stream.shutdown(Shutdown::Both);
    };
    let thread = thread::Builder::new().name("mirrord-client".to_owned()).spawn(body)?;
    open.push((kept, thread));
    Ok(())
}

fn converse(stream: &UnixStream, shared: &Shared, handler: &Handler) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let response = match serde_json::from_str(&line) {
            Ok(request) => match handler(request) {
                Answer::Once(response) => response,
                Answer::Then(response, then) => {
                    let sent = send(stream, &response);
                    then();
                    return sent;
                }
                Answer::Events(reader) => return follow(stream, shared, reader),
            },
            Err(error) => Response::Failed { reason: Failure::BadRequest, message: error.to_string() },
        };
        send(stream, &response)?;
    }
}

fn follow(stream: &UnixStream, shared: &Shared, reader: Reader) -> io::Result<()> {
    let before = shared.followers.fetch_add(1, Ordering::SeqCst);
    let result = if before < MOST_FOLLOWERS {
        send_events(stream, reader)
    } else {
        let message = format!("{MOST_FOLLOWERS} others follow its events already");
        send(stream, &Response::Failed { reason: Failure::Busy, message })
    };
    shared.followers.fetch_sub(1, Ordering::SeqCst);
    result
}

fn send(mut stream: &UnixStream, response: &Response) -> io::Result<()> {
    let mut answer = serde_json::to_string(response)?;
    answer.push('\n');
    stream.write_all(answer.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::{Client, ClientError};
    use super::*;
    use crate::events::{Journal, What};

    fn bed() -> (tempfile::TempDir, Dirs) {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::new(dir.path().join("run"), dir.path().join("state"));
        dirs.prepare("a").unwrap();
        (dir, dirs)
    }

    fn echo() -> Handler {
        Arc::new(|request| {
            let response = match request {
                Request::Ping => Response::Pong { name: "a".to_owned(), pid: 7 },
                Request::Stop { force: false } => {
                    Response::Failed { reason: Failure::Busy, message: "in use".to_owned() }
                }
                _ => Response::done(),
            };
            response.into()
        })
    }

    /// A server whose events are those of the journal.
    fn eventful(dirs: &Dirs) -> (ControlServer, Arc<Journal>) {
        let journal = Journal::new("a", uuid::Uuid::nil());
        let mut server = ControlServer::bind(dirs, "a").unwrap();
        let source = Arc::clone(&journal);
        let handler = move |request| match request {
            Request::Events { since } => Answer::Events(source.reader(since).unwrap()),
            _ => Response::Pong { name: "a".to_owned(), pid: 7 }.into(),
        };
        server.serve(Arc::new(handler)).unwrap();
        (server, journal)
    }

    fn until(mut there: impl FnMut() -> bool) {
        let begun = std::time::Instant::now();
        while !there() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn clients_are_answered() {
        let (_dir, dirs) = bed();
        let mut server = ControlServer::bind(&dirs, "a").unwrap();
        server.serve(echo()).unwrap();
        let mode = fs::metadata(dirs.socket("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut one = Client::connect(&dirs, "a").unwrap();
        let mut other = Client::connect(&dirs, "a").unwrap();
        for client in [&mut one, &mut other] {
            for _ in 0..3 {
                assert!(matches!(client.ask(&Request::Ping), Ok(Response::Pong { pid: 7, .. })));
            }
            let refused = client.ask(&Request::Stop { force: false }).unwrap_err();
            assert!(matches!(refused, ClientError::Refused { reason: Failure::Busy, .. }), "{refused}");
        }
        assert!(matches!(one.status(), Err(ClientError::Unexpected { .. })));
        server.close();
        assert!(!dirs.socket("a").exists());
        assert!(matches!(one.ask(&Request::Ping), Err(ClientError::NotRunning { .. })));
        assert!(matches!(Client::connect(&dirs, "a"), Err(ClientError::NotRunning { .. })));
    }

    #[test]
    fn nonsense_is_answered_too() {
        let (_dir, dirs) = bed();
        let mut server = ControlServer::bind(&dirs, "a").unwrap();
        server.serve(echo()).unwrap();
        let mut stream = UnixStream::connect(dirs.socket("a")).unwrap();
        stream.write_all(b"{\"verb\":\"dance\"}\n").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("bad_request"), "{line}");
    }

    #[test]
    fn too_many_clients_are_told_so() {
        let (_dir, dirs) = bed();
        let mut server = ControlServer::bind(&dirs, "a").unwrap();
        server.serve(echo()).unwrap();
        let mut clients: Vec<Client> =
            (0..=MOST_CONNECTIONS).map(|_| Client::connect(&dirs, "a").unwrap()).collect();
        let mut last = clients.pop().unwrap();
        assert!(clients.iter_mut().all(|client| client.ask(&Request::Ping).is_ok()));
        let error = last.ask(&Request::Ping).unwrap_err();
        assert!(error.to_string().contains("too many"), "{error}");
    }

    #[test]
    fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let (_dir, dirs) = bed();
        drop(UnixListener::bind(dirs.socket("a")).unwrap());
        assert!(matches!(Client::connect(&dirs, "a"), Err(ClientError::NotRunning { .. })));
        let mut server = ControlServer::bind(&dirs, "a").unwrap();
        server.serve(echo()).unwrap();
        assert!(matches!(ControlServer::bind(&dirs, "a"), Err(BindError::InUse { .. })));
        assert!(Client::connect(&dirs, "a").unwrap().ask(&Request::Ping).is_ok());
    }

    #[test]
    fn events_are_followed_to_the_end() {
        let (_dir, dirs) = bed();
        let (server, journal) = eventful(&dirs);
        journal.add(What::LogFailed);
        let mut following = Client::connect(&dirs, "a").unwrap().follow(Some(0)).unwrap();
        let mut next = || following.next_line().unwrap();
        assert!(matches!(next(), Some(Response::Event { event }) if event.what == What::LogFailed));
        journal.add(What::Stopping { handed_over: false });
        journal.close();
        assert!(matches!(next(), Some(Response::Event { .. })));
        assert!(next().is_none());
        server.close();
    }

    #[test]
    fn a_reader_that_goes_leaves_nothing_behind() {
        let (_dir, dirs) = bed();
        let (server, journal) = eventful(&dirs);
        for _ in 0..3 {
            let clients: Vec<_> = (0..MOST_FOLLOWERS)
                .map(|_| Client::connect(&dirs, "a").unwrap().follow(None).unwrap())
                .collect();
            until(|| server.shared.followers.load(Ordering::SeqCst) == MOST_FOLLOWERS);
            let mut one_more = Client::connect(&dirs, "a").unwrap().follow(None).unwrap();
            let error = one_more.next_line().unwrap_err();
            assert!(matches!(error, ClientError::Refused { reason: Failure::Busy, .. }), "{error}");
            assert!(Client::connect(&dirs, "a").unwrap().ask(&Request::Ping).is_ok(), "others are answered");
            drop(clients);
            // Without any event.
            until(|| server.shared.open().iter().all(|(_, thread)| thread.is_finished()));
        }
        journal.close();
        server.close();
    }

    #[test]
    fn a_reader_that_does_not_read_misses_some_and_holds_up_nobody() {
        let (_dir, dirs) = bed();
        let (server, journal) = eventful(&dirs);
        let mut slow = Client::connect(&dirs, "a").unwrap().follow(Some(0)).unwrap();
        let count = 20_000;
        for stale_regions in 0..count {
            journal.add(What::ResyncStarted { stale_regions });
        }
        let (mut seen, mut missed) = (0, 0);
        while seen + missed < count {
            match slow.next_line().unwrap().unwrap() {
                Response::Event { event } => {
                    assert_eq!(event.what, What::ResyncStarted { stale_regions: seen + missed });
                    seen += 1;
                }
                Response::Missed { events } => missed += events.unwrap(),
                other => panic!("{other:?}"),
            }
        }
        assert!(missed > 0, "{seen} seen");
        // And one that never does, at the end.
        let _dead = Client::connect(&dirs, "a").unwrap().follow(Some(0)).unwrap();
        (0..count).for_each(|stale_regions| journal.add(What::ResyncStarted { stale_regions }));
        journal.close();
        server.close();
    }

    #[test]
    fn an_answer_under_way_is_written_before_the_end() {
        let (_dir, dirs) = bed();
        let mut server = ControlServer::bind(&dirs, "a").unwrap();
        let (begun, began) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let handler = move |_| {
            begun.send(()).unwrap();
            wait.lock().unwrap().recv().unwrap();
            Response::done().into()
        };
        server.serve(Arc::new(handler)).unwrap();
        let mut client = Client::connect(&dirs, "a").unwrap();
        let asked = thread::spawn(move || client.ask(&Request::Stop { force: true }));
        began.recv().unwrap();
        let closing = thread::spawn(move || server.close());
        go.send(()).unwrap();
        closing.join().unwrap();
        assert!(matches!(asked.join().unwrap(), Ok(Response::Done { .. })));
    }
}
