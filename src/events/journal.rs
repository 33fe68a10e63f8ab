//! The events that a daemon remembers, and those who follow them.
//!
//! The journal keeps the last [`KEPT`] events, and a reader is a place in it: whoever adds an event waits for
//! nobody and keeps nothing for anybody. A reader that falls behind further than that is told how many it missed.
//!
//! Numbers begin with the microseconds of the clock when the daemon was started, so that those of one daemon
//! are not taken for another's: to ask for what came after an event of an earlier daemon gives all there is,
//! and that something may be missing.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, eventfd};
use uuid::Uuid;

use super::{Event, What, now};

/// Events that are remembered: about 64 KiB.
const KEPT: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub struct Journal {
    volume: String,
    uuid: Uuid,
    /// Number of the first event.
    first: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    events: VecDeque<Arc<Event>>,
    /// Number of the next event.
    next: u64,
    closed: bool,
    /// One for each reader.
    bells: Vec<Arc<OwnedFd>>,
}

impl State {
    fn oldest(&self) -> u64 {
        self.next - self.events.len() as u64
    }

    fn ring(&self) {
        for bell in &self.bells {
            // A bell that has rung for longer than numbers last rings still.
            let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }
}

impl Journal {
    /// An empty one, for a volume that is about to be served.
    pub fn new(volume: &str, uuid: Uuid) -> Arc<Journal> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64);
        Journal::numbered_from(clock.max(1), volume, uuid)
    }

    fn numbered_from(first: u64, volume: &str, uuid: Uuid) -> Arc<Journal> {
        let state = State { events: VecDeque::new(), next: first, closed: false, bells: Vec::new() };
        Arc::new(Journal { volume: volume.to_owned(), uuid, first, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event. Waits for nobody.
    pub fn add(&self, what: What) {
        let mut state = self.state();
        let event =
            Event { sequence: state.next, time: now(), volume: self.volume.clone(), uuid: self.uuid, what };
        state.next += 1;
        if state.events.len() == KEPT {
            state.events.pop_front();
        }
        state.events.push_back(Arc::new(event));
        state.ring();
    }

    /// No event will come any more.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.ring();
    }

    /// Whether [`Journal::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Reads what comes after event `since`; 0: all there is; `None`: what comes from now on.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn reader(self: &Arc<Journal>, since: Option<u64>) -> io::Result<Reader> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut state = self.state();
        let (next, strange) = match since {
            None => (state.next, false),
            Some(0) => (self.first, false),
            Some(since) if (self.first - 1..state.next).contains(&since) => (since + 1, false),
            // Of another daemon: what came between is not known here.
            Some(_) => (state.oldest(), true),
        };
        state.bells.push(Arc::clone(&bell));
        Ok(Reader { journal: Arc::clone(self), next, strange, bell })
    }
}

/// What comes next for a reader.
#[derive(Clone, PartialEq, Debug)]
pub enum Next {
    /// This.
    Event(Arc<Event>),
    /// Events that are forgotten: how many, if that is known.
    Missed(Option<u64>),
    /// Nothing yet.
    Nothing,
    /// Nothing, for ever.
    End,
}

/// Somebody's place in a journal.
#[derive(Debug)]
pub struct Reader {
    journal: Arc<Journal>,
    next: u64,
    /// It began after an event that this journal does not know.
    strange: bool,
    bell: Arc<OwnedFd>,
}

impl Reader {
    /// What comes next. Does not wait.
    pub fn read(&mut self) -> Next {
        // First of all: what is added from here on rings anew.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        let state = self.journal.state();
        if std::mem::take(&mut self.strange) {
            return Next::Missed(None);
        }
        let oldest = state.oldest();
        if self.next < oldest {
            let missed = oldest - self.next;
            self.next = oldest;
            return Next::Missed(Some(missed));
        }
        match state.events.get((self.next - oldest) as usize) {
            Some(event) => {
                self.next += 1;
                Next::Event(Arc::clone(event))
            }
            None if state.closed => Next::End,
            None => Next::Nothing,
        }
    }

    /// Readable once there is something after [`Next::Nothing`].
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Whether the journal ends: what it has is all there is.
    pub fn is_closed(&self) -> bool {
        self.journal.is_closed()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.journal.state().bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn journal() -> Arc<Journal> {
        Journal::numbered_from(1000, "v", Uuid::nil())
    }

    /// Adds `count` events, each with its number.
    fn fill(journal: &Journal, count: u64) {
        (0..count).for_each(|stale_regions| journal.add(What::ResyncStarted { stale_regions }));
    }

    /// Numbers of events and of what is missed, until there is nothing.
    fn read(reader: &mut Reader) -> (Vec<u64>, Vec<Option<u64>>) {
        let (mut events, mut missed) = (Vec::new(), Vec::new());
        loop {
            match reader.read() {
                Next::Event(event) => events.push(event.sequence),
                Next::Missed(count) => missed.push(count),
                Next::Nothing | Next::End => return (events, missed),
            }
        }
    }

    fn rings(reader: &Reader) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(reader.bell(), PollFlags::IN)], Some(&now)).unwrap() > 0
    }

    #[test]
    fn readers_begin_where_they_ask_to() {
        let journal = journal();
        fill(&journal, 3);
        for (since, events, missed) in [
            (None, vec![], vec![]),
            (Some(0), vec![1000, 1001, 1002], vec![]),
            (Some(999), vec![1000, 1001, 1002], vec![]),
            (Some(1001), vec![1002], vec![]),
            (Some(1002), vec![], vec![]),
            // Other daemons'.
            (Some(7), vec![1000, 1001, 1002], vec![None]),
            (Some(1003), vec![1000, 1001, 1002], vec![None]),
        ] {
            let mut reader = journal.reader(since).unwrap();
            assert_eq!(read(&mut reader), (events, missed), "{since:?}");
        }
    }

    #[test]
    fn what_is_forgotten_is_said() {
        let journal = journal();
        let mut slow = journal.reader(None).unwrap();
        let kept = KEPT as u64;
        fill(&journal, kept + 10);
        assert_eq!(slow.read(), Next::Missed(Some(10)));
        let (events, missed) = read(&mut slow);
        assert_eq!((events.len(), events[0], missed), (KEPT, 1010, vec![]));
        let mut late = journal.reader(Some(0)).unwrap();
        assert_eq!(late.read(), Next::Missed(Some(10)));
        let mut later = journal.reader(Some(1003)).unwrap();
        assert_eq!(later.read(), Next::Missed(Some(6)));
        // The one falls behind again in the middle.
        fill(&journal, 5);
        assert_eq!(late.read(), Next::Missed(Some(5)));
        assert!(matches!(late.read(), Next::Event(event) if event.sequence == 1015));
        assert_eq!(journal.state().events.len(), KEPT, "no more is kept, whoever reads");
    }

    #[test]
    fn the_bell_rings_once_there_is_something() {
        let journal = journal();
        let mut reader = journal.reader(None).unwrap();
        assert_eq!((reader.read(), rings(&reader)), (Next::Nothing, false));
        fill(&journal, 2);
        assert!(rings(&reader));
        assert_eq!(read(&mut reader).0, [1000, 1001]);
        assert!(!rings(&reader));
        journal.close();
        assert!(rings(&reader) && journal.is_closed());
        assert_eq!(reader.read(), Next::End);
        drop(reader);
        assert!(journal.state().bells.is_empty());
    }

    #[test]
    fn a_closed_journal_is_read_to_its_end() {
        let journal = journal();
        let mut reader = journal.reader(None).unwrap();
        fill(&journal, 1);
        journal.close();
        assert!(matches!(reader.read(), Next::Event(_)));
        assert_eq!(reader.read(), Next::End);
    }
}
