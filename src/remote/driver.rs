//! The thread `mirrord-remote`: runs the session on one connection after the other.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirrord_log::remote::{Action, Event, Session, SessionConfig};
use mirrord_raid::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConfig;

use super::link::{Link, LinkError};
use super::{Address, FALLBACK_PATIENCE, Inner, Order, Told, lock};
use crate::failure::describe;

const TICK: Duration = Duration::from_secs(1);

/// Between two tries to connect: twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(3);

/// A commit that the server could not take in time.
const TIMED_OUT: Errno = Errno(110);

enum Connection {
    /// Try again at this time.
    Away(Instant),
    Connecting,
    Up(Box<Link>),
}

/// See the module's documentation.
pub(super) struct Driver {
    inner: Arc<Inner>,
    address: Address,
    tls: Option<Arc<ClientConfig>>,
    session: Session,
    fallback: bool,
    connection: Connection,
    pause: Duration,
    next_tick: Option<Instant>,
    /// When the commit came that waits.
    committing: Option<Instant>,
    /// Commits were answered with an error, and the log does not hold them yet.
    failed: bool,
    /// It was told that the server is away.
    is_lost: bool,
    was_ready: bool,
    /// What waits for the server does so no longer than this.
    hurry: Option<Instant>,
    stopping: bool,
    over: bool,
    /// For the session, in order.
    actions: Vec<Action>,
}

impl Driver {
    pub(super) fn new(
        inner: Arc<Inner>,
        address: Address,
        tls: Option<Arc<ClientConfig>>,
        config: SessionConfig,
        fallback: bool,
    ) -> Driver {
        let mut actions = Vec::new();
        let session = Session::new(config, &mut actions);
        actions.clear();
        Driver {
            inner,
            address,
            tls,
            session,
            fallback,
            connection: Connection::Away(Instant::now()),
            pause: FIRST_PAUSE,
            next_tick: None,
            committing: None,
            failed: false,
            is_lost: false,
            was_ready: false,
            hurry: None,
            stopping: false,
            over: false,
            actions,
        }
    }

    /// Until goodbye was said, or need not be.
    pub(super) fn run(mut self) {
        loop {
            let orders = std::mem::take(&mut *lock(&self.inner.orders));
            for order in orders {
                self.order(order);
            }
            self.look_at_the_clock();
            self.show();
            if self.stopping && self.over {
                return;
            }
            self.wait();
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Commit(changes) if self.over => {
                drop(changes);
                self.tell(Told::Committed(Err(Errno::EIO)));
            }
            Order::Commit(changes) => {
                self.committing = Some(Instant::now());
                self.handle(Event::Commit(&changes));
                if self.failed && !self.session.is_serving() {
                    self.abandon(Err(TIMED_OUT));
                }
            }
            Order::Connected(Ok(link)) if !self.over => {
                self.connection = Connection::Up(link);
                self.handle(Event::Connected);
            }
            Order::Connected(Ok(_)) => {}
            Order::Connected(Err(error)) => self.lose(&error),
            Order::TakeAllForDirty => {
                if !self.was_ready {
                    self.was_ready = true;
                    (self.failed, self.is_lost) = (true, true);
                    self.session.take_all_for_dirty();
                    let dirty = self.session.dirty().collect();
                    self.tell(Told::Ready(dirty));
                }
            }
            Order::Hurry(until) => self.hurry = until,
            Order::Stop => {
                self.stopping = true;
                self.handle(Event::Stop);
            }
        }
    }

    // ---- time

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        if let Connection::Away(at) = self.connection
            && at <= now
            && !self.over
        {
            self.connect();
        }
        if let Some(at) = self.next_tick
            && at <= now
        {
            self.next_tick = None;
            self.handle(Event::Tick);
        }
        if self.session.wants_tick() && self.next_tick.is_none() {
            self.next_tick = Some(now + TICK);
        } else if !self.session.wants_tick() {
            self.next_tick = None;
        }
        let since = self.committing;
        if self.hurry.is_some_and(|until| until <= now) {
            if since.is_some() && (self.stopping || !self.session.is_serving()) {
                // Bits that stay set cost a resync of their regions and no more.
                let is_marking = self.session.is_marking();
                self.abandon(if is_marking { Err(TIMED_OUT) } else { Ok(()) });
            }
            if self.stopping {
                self.over = true;
                self.connection = Connection::Away(now);
            }
        } else if self.fallback && since.is_some_and(|since| now - since >= FALLBACK_PATIENCE) {
            self.abandon(Err(TIMED_OUT));
            // What was sent and not answered is said again.
            if matches!(self.connection, Connection::Up(_)) {
                self.lose(&LinkError::Closed);
            }
        }
    }

    /// When to look again.
    fn deadline(&self) -> Option<Instant> {
        let retry = match self.connection {
            Connection::Away(at) if !self.over => Some(at),
            _ => None,
        };
        let patience = self.committing.filter(|_| self.fallback).map(|since| since + FALLBACK_PATIENCE);
        let waits = self.committing.is_some() || self.stopping;
        let hurry = self.hurry.filter(|&until| waits && !self.over && until > Instant::now());
        [retry, self.next_tick, patience, hurry].into_iter().flatten().min()
    }

    fn wait(&mut self) {
        let timeout = self.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout
            .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let (is_woken, flags) = {
            let mut fds = vec![PollFd::new(&self.inner.wake, PollFlags::IN)];
            if let Connection::Up(link) = &self.connection {
                fds.push(PollFd::from_borrowed_fd(link.as_fd(), link.flags()));
            }
            if poll(&mut fds, timeout.as_ref()).is_err() {
                return;
            }
            (!fds[0].revents().is_empty(), fds.get(1).map_or(PollFlags::empty(), PollFd::revents))
        };
        if is_woken {
            let _ = rustix::io::read(&self.inner.wake, &mut [0; 8]);
        }
        if !flags.is_empty() {
            self.serve(flags);
        }
    }

    // ---- the connection

    fn connect(&mut self) {
        self.connection = Connection::Connecting;
        let (inner, address, tls) = (Arc::clone(&self.inner), self.address.clone(), self.tls.clone());
        let run = move || {
            let result = Link::connect(&address, tls.as_ref()).map(Box::new);
            inner.order(Order::Connected(result));
        };
        let spawned = std::thread::Builder::new().name("mirrord-connect".to_owned()).spawn(run);
        if let Err(error) = spawned {
            self.lose(&error.into());
        }
    }

    fn serve(&mut self, flags: PollFlags) {
        let Connection::Up(mut link) = std::mem::replace(&mut self.connection, Connection::Connecting) else {
            return;
        };
        let mut result = Ok(());
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            result = link.read();
        }
        let session = &mut self.session;
        let actions = &mut self.actions;
        let heard = link.messages(|frame| session.handle(Event::Received(frame), actions));
        self.connection = Connection::Up(link);
        self.act();
        if let Connection::Up(link) = &mut self.connection {
            let result = result.and(heard).and_then(|()| link.write());
            if let Err(error) = result {
                self.lose(&error);
            }
        }
    }

    /// The connection is gone, or could not be had.
    fn lose(&mut self, error: &LinkError) {
        if self.over {
            return;
        }
        self.was_lost(describe(error));
        self.handle(Event::Lost);
    }

    fn was_lost(&mut self, error: String) {
        tracing::debug!(server = %self.address, error, "no connection to the log server");
        if self.was_ready && !std::mem::replace(&mut self.is_lost, true) && !self.stopping {
            tracing::warn!(server = %self.address, error, "the log server is away");
            self.tell(Told::Lost(error.clone()));
        }
        lock(&self.inner.status).last_error = Some(error);
    }

    fn handle(&mut self, event: Event<'_>) {
        self.session.handle(event, &mut self.actions);
        self.act();
    }

    fn act(&mut self) {
        for action in std::mem::take(&mut self.actions) {
            match action {
                Action::Connect => {
                    self.connection = Connection::Away(Instant::now() + self.pause);
                    self.pause = (2 * self.pause).min(LAST_PAUSE);
                }
                Action::Disconnect => {
                    if let (Some(error), false) = (self.session.last_error(), self.stopping) {
                        self.was_lost(error.to_string());
                    }
                    self.connection = Connection::Away(Instant::now());
                }
                Action::Send(bytes) => self.send(&bytes),
                Action::Ready => {
                    self.pause = FIRST_PAUSE;
                    self.was_ready = true;
                    let dirty = self.session.dirty().collect();
                    self.tell(Told::Ready(dirty));
                }
                Action::Back => {
                    self.pause = FIRST_PAUSE;
                    lock(&self.inner.status).reconnects += 1;
                    let failed = std::mem::take(&mut self.failed);
                    if std::mem::take(&mut self.is_lost) {
                        tracing::info!(server = %self.address, "the log server is back");
                        self.tell(Told::Back { failed });
                    }
                }
                Action::Busy => self.tell(Told::Busy),
                Action::Committed => {
                    if let Some(since) = self.committing.take() {
                        lock(&self.inner.status).round_trip = Some(since.elapsed());
                    }
                    self.tell(Told::Committed(Ok(())));
                }
                Action::Refused(error) => {
                    self.over = true;
                    self.tell(Told::Refused(error));
                    if self.committing.take().is_some() {
                        self.tell(Told::Committed(Err(Errno::EIO)));
                    }
                }
                Action::Stopped => self.over = true,
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        if let Connection::Up(link) = &mut self.connection {
            link.send(bytes);
            // What cannot be sent now, or not at all, is seen when the connection is waited for.
            let _ = link.write();
        }
    }

    /// The commit is answered, whatever the server does.
    fn abandon(&mut self, result: Result<(), Errno>) {
        self.committing = None;
        self.failed |= result.is_err();
        self.session.abandon_commit();
        self.tell(Told::Committed(result));
    }

    fn tell(&self, told: Told) {
        lock(&self.inner.sink)(told);
    }

    fn show(&self) {
        let mut status = lock(&self.inner.status);
        status.connected = self.session.is_serving();
        status.behind = self.failed || self.committing.is_some() && !status.connected;
    }
}
