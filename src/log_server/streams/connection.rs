//! One connection: messages in, answers out, and no more of either in memory than is fair.
//!
//! What is not read stays with the sender. Nothing is read while more than [`MOST_WAITING`] bytes of answers wait or
//! [`MOST_OPEN`] requests are not answered; then one chunk of input is in memory at most. Whoever sends what is no message,
//! does not finish a message, a handshake or the reading of its answers, is dropped.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirrord_log::server::ClientId;
use mirrord_log::wire::{Frame, FrameError};
use rustix::event::epoll::EventFlags;

use super::super::outlets::Outlet;
use super::super::shared::{Hands, Shared, count};
use super::socket::{Channel, Got};

/// Bytes of answers that may wait.
const MOST_WAITING: usize = 1 << 20;

/// The same, while all connections together have too many.
const FEW_WAITING: usize = 16 << 10;

/// A buffer for answers that was once larger than this is given back.
const ROOMY: usize = 64 << 10;

/// Requests that may be unanswered.
const MOST_OPEN: usize = 4096;

/// Messages that are passed on at a time: the kernel's wait meanwhile.
const BATCH: usize = 32;

/// Chunks read before others have their turn.
const TURN: usize = 16;

/// For a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// For a message, from its first byte to its last.
const MESSAGE: Duration = Duration::from_secs(30);

/// For reading some of the answers that wait.
const READING: Duration = Duration::from_secs(60);

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    /// The other side closed it.
    #[error("it was closed")]
    Closed,
    /// The system said no, or TLS did.
    #[error("it failed")]
    Io(#[from] io::Error),
    /// It sent what is no message.
    #[error("what it sent is no message")]
    Frame(#[from] FrameError),
    /// It began something and did not go on.
    #[error("it did not finish {what} in {} seconds", limit.as_secs())]
    Slow {
        /// What.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
}

impl End {
    /// Whether the other side is to blame.
    pub(super) fn is_fault(&self) -> bool {
        match self {
            End::Closed => false,
            End::Io(error) => error.kind() == io::ErrorKind::InvalidData,
            End::Frame(_) | End::Slow { .. } => true,
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Connection {
    client: ClientId,
    channel: Channel,
    /// What to call it.
    pub(super) peer: String,
    outlet: Arc<Outlet>,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// The server was told of it.
    pub(super) is_known: bool,
    begun: Instant,
    /// When the message began that is not whole yet.
    message_since: Option<Instant>,
    /// Since when nothing of what waits could be sent.
    stuck_since: Option<Instant>,
    /// What is waited for.
    pub(super) interest: EventFlags,
}

impl Connection {
    /// A connection that was just accepted.
    pub(super) fn new(client: ClientId, channel: Channel, peer: String, outlet: Arc<Outlet>) -> Connection {
        Connection {
            client,
            channel,
            peer,
            outlet,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            is_known: false,
            begun: Instant::now(),
            message_since: None,
            stuck_since: None,
            interest: EventFlags::IN,
        }
    }

    /// The socket, for epoll.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Nobody knows yet who is there.
    pub(super) fn is_handshaking(&self) -> bool {
        self.channel.is_handshaking()
    }

    fn unsent(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Bytes of answers that wait.
    pub(super) fn waiting(&self) -> usize {
        self.unsent() + self.outlet.waiting()
    }

    fn is_full(&self, is_tight: bool) -> bool {
        let most = if is_tight { FEW_WAITING } else { MOST_WAITING };
        self.waiting() > most || self.outlet.open() >= MOST_OPEN
    }

    /// Reads, asks, sends: as much as goes now. `room` is what is read at a time; `is_tight`: memory is short.
    pub(super) fn go_on(
        &mut self,
        shared: &Arc<Shared>,
        hands: &mut Hands,
        room: &mut [u8],
        is_tight: bool,
    ) -> Result<(), End> {
        let mut left = TURN;
        loop {
            self.pass_on(shared, hands, is_tight)?;
            self.send()?;
            if self.is_full(is_tight) {
                self.message_since = None;
                break;
            }
            if left == 0 {
                break;
            }
            left -= 1;
            match self.channel.read(room, &mut self.input)? {
                Got::Some => {}
                Got::Nothing if self.next_is_whole()? => {}
                Got::Nothing => break,
                Got::End => {
                    self.pass_on(shared, hands, false)?;
                    let _ = self.send();
                    return Err(End::Closed);
                }
            }
        }
        let is_full = self.is_full(is_tight);
        let reads = if is_full { EventFlags::empty() } else { EventFlags::IN };
        // Room to write comes at once to whom something is left to ask, but not in this turn.
        let writes = self.unsent() > 0 || self.channel.wants_write() || !is_full && self.next_is_whole()?;
        self.interest = reads | if writes { EventFlags::OUT } else { EventFlags::empty() };
        Ok(())
    }

    fn next_is_whole(&self) -> Result<bool, End> {
        match Frame::parse(&self.input) {
            Ok(_) => Ok(true),
            Err(FrameError::Short { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Asks the server what is whole.
    fn pass_on(&mut self, shared: &Arc<Shared>, hands: &mut Hands, is_tight: bool) -> Result<(), End> {
        if self.channel.is_handshaking() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.is_known, true) {
            let peer = self.peer.clone();
            shared.act(hands, |server, _| server.connect(self.client, peer));
            tracing::info!(peer = self.peer, "connected");
        }
        let mut used = 0;
        let mut found = Ok(true);
        while matches!(found, Ok(true)) && !self.is_full(is_tight) {
            let (client, input, outlet) = (self.client, &self.input, &self.outlet);
            let before = used;
            shared.act(hands, |server, out| {
                for _ in 0..BATCH {
                    match Frame::parse(&input[used..]) {
                        Ok((frame, len)) => {
                            used += len;
                            outlet.asked();
                            count(&shared.counters.stream_requests);
                            server.request(client, &frame, out);
                        }
                        Err(FrameError::Short { .. }) => {
                            found = Ok(false);
                            break;
                        }
                        Err(error) => {
                            found = Err(error);
                            break;
                        }
                    }
                }
            });
            if used == before && matches!(found, Ok(true)) {
                // The server has ended.
                break;
            }
        }
        self.input.drain(..used);
        if self.input.is_empty() {
            self.message_since = None;
        } else if used > 0 || self.message_since.is_none() {
            self.message_since = Some(Instant::now());
        }
        found.map(drop).map_err(End::from)
    }

    /// Sends what waits.
    fn send(&mut self) -> Result<(), End> {
        loop {
            if self.sent == self.output.len() {
                self.output.clear();
                self.sent = 0;
                if self.output.capacity() > ROOMY {
                    self.output = Vec::new();
                }
                self.outlet.take(&mut self.output);
            }
            let before = self.unsent();
            self.sent += self.channel.write(&self.output[self.sent..])?;
            if self.unsent() < before {
                self.stuck_since = None;
            } else {
                if before == 0 {
                    self.stuck_since = None;
                } else if self.stuck_since.is_none() {
                    self.stuck_since = Some(Instant::now());
                }
                return Ok(());
            }
        }
    }

    /// Whether it took too long.
    pub(super) fn look_at(&self, now: Instant) -> Result<(), End> {
        let over = |since: Option<Instant>, what, limit| match since {
            Some(since) if now.saturating_duration_since(since) >= limit => Err(End::Slow { what, limit }),
            _ => Ok(()),
        };
        let handshake = self.channel.is_handshaking().then_some(self.begun);
        over(handshake, "its handshake", HANDSHAKE)?;
        over(self.message_since, "a message", MESSAGE)?;
        over(self.stuck_since, "reading answers", READING)
    }
}
