//! The stream thread: all connections of volumes, by epoll, and the clock of the server.
//!
//! A message on a connection is the header and the data of [`mirrord_log::wire`], one after the other, and nothing else.
//! The thread waits for sockets only: disks are waited for by others, which ring the bell of
//! [`Outlets`](super::outlets::Outlets) when there is an answer to send. Once a second the server is told
//! that a second went by; a process that was stopped counts that as one, so that it blames nobody.

mod connection;
mod few;
mod listener;
mod socket;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mirrord_log::server::ClientId;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustls::ServerConnection;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use self::connection::{Connection, End};
use self::few::Few;
use self::socket::Channel;
use super::shared::{Hands, Shared, count};
use crate::failure::describe;

pub use self::listener::ListenError;
pub(super) use self::listener::Listener;

/// Connections at a time; more are turned away.
const MOST_CONNECTIONS: usize = 4096;

/// How many of them may be in a handshake.
const MOST_STRANGERS: usize = 256;

/// Bytes of answers that may wait on all connections before each gets less.
const MOST_WAITING: usize = 64 << 20;

/// Bytes that are read at a time.
const ROOM: usize = 64 << 10;

const SECOND: Duration = Duration::from_secs(1);

/// Numbers of what is waited for that is no connection.
const BELL: u64 = u64::MAX;
const LISTENERS: u64 = 1 << 62;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Streams {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    listeners: Vec<Listener>,
    /// Those that cannot accept now: tried again in a second.
    resting: Vec<usize>,
    connections: HashMap<u64, Connection>,
    next: u64,
    hands: Hands,
    room: Vec<u8>,
    waiting: usize,
    few: Few,
}

impl Streams {
    /// Listens at these.
    pub(super) fn new(shared: &Arc<Shared>, listeners: Vec<Listener>) -> io::Result<Streams> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, shared.outlets.bell(), EventData::new_u64(BELL), EventFlags::IN)?;
        for (index, listener) in listeners.iter().enumerate() {
            let data = EventData::new_u64(LISTENERS + index as u64);
            epoll::add(&epoll, listener.fd(), data, EventFlags::IN)?;
        }
        Ok(Streams {
            shared: Arc::clone(shared),
            epoll,
            listeners,
            resting: Vec::new(),
            connections: HashMap::new(),
            next: ClientId::KERNEL.0 + 1,
            hands: Hands::of_streams(),
            room: vec![0; ROOM],
            waiting: 0,
            few: Few::default(),
        })
    }

    /// Starts the thread.
    pub(super) fn start(self) -> io::Result<()> {
        thread::Builder::new().name("mirrord-streams".to_owned()).spawn(move || self.run()).map(drop)
    }

    fn run(mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(256);
        let mut ready = Vec::new();
        let mut last = Instant::now();
        loop {
            let wait = SECOND.saturating_sub(last.elapsed());
            let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
            events.clear();
            if let Err(errno) = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait))
                && errno != rustix::io::Errno::INTR
            {
                tracing::error!(%errno, "cannot wait for connections");
                thread::sleep(SECOND);
            }
            for event in &events {
                match event.data.u64() {
                    BELL => self.shared.outlets.hear(),
                    listener if listener >= LISTENERS => self.accept((listener - LISTENERS) as usize),
                    client => self.go_on(client),
                }
            }
            self.shared.outlets.take_ready(&mut ready);
            for client in &ready {
                self.go_on(client.0);
            }
            if last.elapsed() >= SECOND {
                last = Instant::now();
                self.tick(last);
            }
        }
    }

    fn accept(&mut self, index: usize) {
        loop {
            let (socket, peer, tls) = match self.listeners[index].accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    count(&self.shared.counters.dropped);
                    self.few.warn(|| "a connection of another user was turned away".to_owned());
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // Out of descriptors, most likely: others will end.
                    self.few.warn(|| format!("cannot accept a connection: {}", describe(&error)));
                    self.resting.push(index);
                    self.listen(index, EventFlags::empty());
                    return;
                }
            };
            let strangers = || self.connections.values().filter(|one| one.is_handshaking()).count();
            let is_full =
                self.connections.len() >= MOST_CONNECTIONS || tls.is_some() && strangers() >= MOST_STRANGERS;
            if is_full {
                count(&self.shared.counters.dropped);
                self.few.warn(|| format!("{peer} was turned away: too many connections"));
                continue;
            }
            let tls = tls.map(ServerConnection::new).transpose();
            let tls = match tls {
                Ok(tls) => tls.map(Box::new),
                Err(error) => {
                    self.few.warn(|| format!("no TLS with {peer}: {error}"));
                    continue;
                }
            };
            let client = ClientId(self.next);
            self.next += 1;
            let channel = Channel::new(socket, tls);
            let data = EventData::new_u64(client.0);
            if let Err(errno) = epoll::add(&self.epoll, channel.fd(), data, EventFlags::IN) {
                self.few.warn(|| format!("cannot wait for {peer}: {errno}"));
                continue;
            }
            let outlet = self.shared.outlets.add(client);
            self.connections.insert(client.0, Connection::new(client, channel, peer, outlet));
            self.shared.counters.connections.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn listen(&self, index: usize, flags: EventFlags) {
        let data = EventData::new_u64(LISTENERS + index as u64);
        if let Err(errno) = epoll::modify(&self.epoll, self.listeners[index].fd(), data, flags) {
            tracing::error!(%errno, "cannot listen any more at {}", self.listeners[index].place());
        }
    }

    fn go_on(&mut self, client: u64) {
        let Some(connection) = self.connections.get_mut(&client) else { return };
        let before = (connection.waiting(), connection.interest);
        let is_tight = self.waiting > MOST_WAITING;
        let result = connection.go_on(&self.shared, &mut self.hands, &mut self.room, is_tight);
        self.waiting = (self.waiting + connection.waiting()).saturating_sub(before.0);
        let result = result.and_then(|()| {
            let interest = connection.interest;
            if interest == before.1 {
                return Ok(());
            }
            let data = EventData::new_u64(client);
            let modified = epoll::modify(&self.epoll, connection.channel().fd(), data, interest);
            modified.map_err(|errno| End::Io(errno.into()))
        });
        if let Err(end) = result {
            self.drop(client, &end);
        }
    }

    fn drop(&mut self, client: u64, end: &End) {
        let Some(connection) = self.connections.remove(&client) else { return };
        let _ = epoll::delete(&self.epoll, connection.channel().fd());
        let id = ClientId(client);
        self.shared.outlets.remove(id);
        self.shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
        if connection.is_known {
            self.shared.act(&mut self.hands, |server, out| server.client_gone(id, out));
        }
        if end.is_fault() {
            count(&self.shared.counters.dropped);
            self.few.warn(|| format!("{} was dropped: {}", connection.peer, describe(end)));
        } else if connection.is_known {
            tracing::info!(peer = connection.peer, "{}", describe(end));
        }
    }

    fn tick(&mut self, now: Instant) {
        self.shared.act(&mut self.hands, |server, out| server.tick(out));
        let late =
            self.connections.iter().filter_map(|(client, one)| Some((*client, one.look_at(now).err()?)));
        for (client, end) in late.collect::<Vec<_>>() {
            self.drop(client, &end);
        }
        // Counted anew: what others leave here is not counted one by one.
        self.waiting = self.connections.values().map(Connection::waiting).sum();
        for index in std::mem::take(&mut self.resting) {
            self.listen(index, EventFlags::IN);
        }
        self.few.tick();
    }
}
