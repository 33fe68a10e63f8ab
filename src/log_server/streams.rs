//! The thread of all connections, and of the server's clock.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mirrord_log::server::ClientId;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::connection::{Connection, ConnectionError};
use super::listeners::Listener;
use super::{Scratch, Shared, lock};

const SECOND: Duration = Duration::from_secs(1);

/// Descriptors kept for files, whatever connects.
const SPARE_DESCRIPTORS: u64 = 512;

/// Most connections, if there are descriptors for them.
const MOST_CONNECTIONS: usize = 16384;

/// Numbers of what is waited for: the wake, listeners, then clients.
const WAKE: u64 = 0;
const FIRST_CLIENT: u64 = 1 << 32;

/// See the module's documentation.
pub(super) struct Streams {
    shared: Arc<Shared>,
    listeners: Vec<Listener>,
    connections: HashMap<u64, Connection>,
    most: usize,
    epoll: OwnedFd,
    next: u64,
    scratch: Scratch,
}

impl Streams {
    pub(super) fn new(shared: Arc<Shared>, listeners: Vec<Listener>) -> io::Result<Streams> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        for (at, listener) in listeners.iter().enumerate() {
            epoll::add(&epoll, listener, EventData::new_u64(at as u64 + 1), EventFlags::IN)?;
        }
        let (most, scratch) = (most_connections(), Scratch::default());
        let connections = HashMap::new();
        Ok(Streams { shared, listeners, connections, most, epoll, next: FIRST_CLIENT, scratch })
    }

    /// Until the server ends.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        let mut next_tick = Instant::now() + SECOND;
        while !self.shared.end.asked.load(Ordering::SeqCst) {
            let left = next_tick.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "connections cannot be waited for: the server ends");
                    return self.shared.end.ask();
                }
            }
            for event in &events {
                match (event.data.u64(), event.flags) {
                    (WAKE, _) => {
                        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
                    }
                    (listener, _) if listener < FIRST_CLIENT => self.accept(listener as usize - 1),
                    (client, flags) => self.serve(client, flags),
                }
            }
            self.send_answers();
            if Instant::now() >= next_tick {
                next_tick += SECOND;
                self.tick();
            }
        }
    }

    fn accept(&mut self, at: usize) {
        let (socket, peer, tls) = match self.listeners[at].accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return tracing::warn!(%error, "a connection is refused"),
        };
        if self.connections.len() >= self.most {
            return tracing::warn!(peer, "a connection is refused: there are {} already", self.most);
        }
        let client = self.next;
        self.next += 1;
        let connection = Connection::new(ClientId(client), socket, peer, tls);
        let flags = EventFlags::IN;
        if let Err(error) = epoll::add(&self.epoll, &connection.socket, EventData::new_u64(client), flags) {
            return tracing::warn!(%error, "a connection is refused");
        }
        tracing::debug!(peer = connection.peer, "connected");
        lock(&self.shared.outboxes).insert(connection.client, Arc::clone(&connection.outbox));
        let peer = connection.peer.clone();
        self.shared.decide(&mut self.scratch, |server, _| server.connect(ClientId(client), peer));
        self.connections.insert(client, connection);
    }

    /// Reads from a connection, has its requests answered, and writes.
    fn serve(&mut self, id: u64, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut result = Ok(());
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) && connection.wants_read() {
            let client = connection.client;
            // All that came at once is decided at once, and answered with one call.
            self.shared.decide(&mut self.scratch, |server, out| {
                result = connection.read(|frame| server.request(client, frame, out));
            });
        }
        let result = result.and_then(|()| connection.write());
        self.go_on(id, result);
    }

    fn send_answers(&mut self) {
        let mut answered = std::mem::take(&mut *lock(&self.shared.answered));
        answered.sort_unstable();
        answered.dedup();
        for client in answered {
            if let Some(connection) = self.connections.get_mut(&client.0) {
                let result = connection.write();
                self.go_on(client.0, result);
            }
        }
    }

    /// Waits for what a connection waits for, or ends it.
    fn go_on(&mut self, id: u64, result: Result<(), ConnectionError>) {
        let Some(connection) = self.connections.get(&id) else { return };
        if let Err(error) = result {
            return self.end(id, &error);
        }
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, connection.wants_read());
        flags.set(EventFlags::OUT, connection.wants_write());
        let _ = epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(id), flags);
    }

    fn end(&mut self, id: u64, error: &ConnectionError) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let peer = &connection.peer;
        match error {
            ConnectionError::Closed => tracing::debug!(peer, "disconnected"),
            error => tracing::warn!(peer, "connection ended: {}", crate::failure::describe(error)),
        }
        let _ = epoll::delete(&self.epoll, connection.socket.as_fd());
        lock(&self.shared.outboxes).remove(&connection.client);
        self.shared.decide(&mut self.scratch, |server, out| server.client_gone(connection.client, out));
    }

    fn tick(&mut self) {
        self.shared.decide(&mut self.scratch, |server, out| server.tick(out));
        let ended: Vec<_> = self
            .connections
            .iter_mut()
            .filter_map(|(&id, connection)| connection.tick().err().map(|error| (id, error)))
            .collect();
        for (id, error) in ended {
            self.end(id, &error);
        }
    }
}

/// As many as there are descriptors for, after asking for all that may be had.
fn most_connections() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (descriptors.saturating_sub(SPARE_DESCRIPTORS) as usize).clamp(16, MOST_CONNECTIONS)
}
