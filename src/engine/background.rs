//! The background worker's thread: a ring of its own that copies stale regions, flushes legs and scrubs,
//! at the pace the throttle allows.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mirrord_raid::{
    Action, Background, BackgroundAction, BackgroundEvent, COPY_SLOTS, Difference, Errno, Leg, LegMap, LegOp,
    LegSet, SCRUB_IO, SCRUB_TAGS, SECTOR, WINDOW, differences,
};
use mirrord_ublk::{BufferPool, LegDone, LegFile, Ring, RingConfig};

use super::shared::Shared;
use super::throttle::{Load, Pacer};

/// Runs the background worker until the volume stops.
pub(super) fn run(
    shared: &Arc<Shared>,
    config: RingConfig,
    pool: &Arc<BufferPool>,
    legs: LegMap<Option<Arc<LegFile>>>,
    ready: &dyn Fn(io::Result<()>),
) {
    let mut ring = match Ring::new(config, legs) {
        Ok(ring) => ring,
        Err(error) => return ready(Err(error)),
    };
    ready(Ok(()));
    let window = WINDOW.min(shared.mirror.geometry().region_size());
    let mut worker = Worker {
        machine: Background::new(Arc::clone(&shared.mirror), window),
        pacer: Pacer::new(Instant::now()),
        limits: limits(shared),
        paced: Vec::new(),
        slots: [Slot::default(); SLOTS],
        scrub_buffers: LegSet::EMPTY,
        scrub_shown: false,
        window,
        shared: Arc::clone(shared),
        pool: Arc::clone(pool),
        actions: Vec::new(),
    };
    worker.serve(&mut ring);
}

/// Copies, the flush and the scrub.
const SLOTS: usize = SCRUB_IO as usize + 1;

/// Of resync and of scrubs.
fn limits(shared: &Shared) -> [Option<u64>; 2] {
    [shared.throttle.limit(), shared.throttle.scrub_limit()]
}

/// What a slot is doing.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// It reads this many bytes.
    reading: Option<u64>,
    /// When its window began.
    started: Option<Instant>,
}

struct Worker {
    machine: Background,
    pacer: Pacer,
    /// The limits the pacer last went by.
    limits: [Option<u64>; 2],
    /// Slots that wait for their time.
    paced: Vec<(Instant, u32)>,
    slots: [Slot; SLOTS],
    /// Legs that have a buffer for a scrub.
    scrub_buffers: LegSet,
    /// A window of a scrub was under way when that was last shown.
    scrub_shown: bool,
    /// Largest window, in bytes.
    window: u64,
    shared: Arc<Shared>,
    pool: Arc<BufferPool>,
    actions: Vec<BackgroundAction>,
}

impl Worker {
    fn serve(&mut self, ring: &mut Ring) {
        let mut done: Vec<LegDone> = Vec::new();
        let mut has_buffers = false;
        while !self.shared.stopping.load(Ordering::SeqCst) {
            done.clear();
            let now = Instant::now();
            let next = self.paced.iter().map(|&(at, _)| at.saturating_duration_since(now)).min();
            let next = next.into_iter().chain(self.pacer.looks(now)).min();
            let woken = match ring.wait(&mut done, next) {
                Ok(wakeup) => wakeup.woken,
                Err(error) => {
                    tracing::error!(%error, "the resync ring failed; stopping at once");
                    std::process::abort();
                }
            };
            self.look();
            // Copy buffers are held only while there is something to copy.
            if woken && !has_buffers {
                (0..COPY_SLOTS).for_each(|tag| ring.attach(tag, self.pool.take(self.window as usize)));
                has_buffers = true;
            }
            for leg_done in &done {
                self.leg_done(ring, *leg_done);
                self.act(ring);
            }
            if woken {
                self.obey_new_limit();
                self.shared.change_legs(self.shared.inboxes.len(), ring);
                self.machine.handle(BackgroundEvent::Woken, &mut self.actions);
                self.act(ring);
                let commands = self.shared.scrub.take_commands();
                // Whoever gave them may wait for what comes of it.
                self.scrub_shown |= !commands.is_empty();
                for command in commands {
                    self.machine.handle(BackgroundEvent::Scrub(command), &mut self.actions);
                    self.act(ring);
                }
            }
            self.proceed(ring);
            self.show_scrub();
            if has_buffers && self.machine.is_idle() {
                (0..COPY_SLOTS).for_each(|tag| drop(ring.detach(tag)));
                has_buffers = false;
                self.detach_scrub_buffers(ring);
                self.pacer.forget_load();
            }
        }
    }

    /// A limit that was changed counts at once, also for slots that wait by the old one.
    fn obey_new_limit(&mut self) {
        let limits = limits(&self.shared);
        if limits != self.limits {
            self.limits = limits;
            let now = Instant::now();
            self.pacer.forget(now);
            self.paced.iter_mut().for_each(|(at, _)| *at = now);
        }
    }

    fn leg_done(&mut self, ring: &mut Ring, done: LegDone) {
        let LegDone { io, leg, mut result } = done;
        let mut zeroes = false;
        if let Some(slot) = self.slots[..COPY_SLOTS as usize].get_mut(io as usize)
            && let (Some(len), Ok(())) = (slot.reading.take(), result)
        {
            zeroes = is_zero(&ring.buffer(io)[..len as usize]);
            if zeroes && !self.shared.places.is_whole(&self.shared, leg) {
                (zeroes, result) = (false, Err(Errno::ENXIO));
            }
        }
        self.machine.handle(BackgroundEvent::LegDone { io, leg, result, zeroes }, &mut self.actions);
    }

    /// Lets the slots go on whose time has come.
    fn proceed(&mut self, ring: &mut Ring) {
        let now = Instant::now();
        while let Some(at) = self.paced.iter().position(|&(at, _)| at <= now) {
            let (_, io) = self.paced.swap_remove(at);
            self.slots[io as usize].started = Some(now);
            self.pacer.begins();
            self.machine.handle(BackgroundEvent::Proceed { io }, &mut self.actions);
            self.act(ring);
        }
    }

    fn act(&mut self, ring: &mut Ring) {
        let mut actions = std::mem::take(&mut self.actions);
        let mut compare = None;
        for action in actions.drain(..) {
            match action {
                BackgroundAction::Pace { io, bytes } => {
                    let now = Instant::now();
                    self.end_window(io, now);
                    let at = self.pacer.start_at(now, bytes, self.limits[usize::from(io == SCRUB_IO)]);
                    self.paced.push((at, io));
                }
                BackgroundAction::Unpace { io } => self.paced.retain(|&(_, paced)| paced != io),
                BackgroundAction::Compare { legs, offset, len } => {
                    let mut found = compare_buffers(ring, legs, offset, len);
                    if !found.is_empty() {
                        // What a leg that became shorter says is not what was on it: it is failed now.
                        let whole = |&leg: &Leg| self.shared.places.is_whole(&self.shared, leg);
                        found = compare_buffers(ring, legs.iter().filter(whole).collect(), offset, len);
                    }
                    compare = Some(found);
                }
                BackgroundAction::Patch { from, to, at, len } => {
                    let bytes = at as usize..(at + len) as usize;
                    let good = ring.buffer(scrub_tag(from))[bytes.clone()].to_vec();
                    ring.buffer_mut(scrub_tag(to))[bytes].copy_from_slice(&good);
                }
                BackgroundAction::Scrub(report) => self.shared.scrub.report(&report),
                BackgroundAction::Queue(action) => {
                    if let Some(Action::Submit(io)) = self.shared.pass_on(action) {
                        if io.io == SCRUB_IO {
                            self.attach_scrub_buffer(ring, io.leg);
                        } else if io.op == LegOp::Read {
                            self.slots[io.io as usize].reading = Some(io.len);
                        }
                        ring.submit(&io);
                    }
                }
            }
        }
        self.actions = actions;
        if let Some(found) = compare {
            self.machine.handle(BackgroundEvent::Compared(found), &mut self.actions);
            self.act(ring);
        }
        self.end_windows();
    }

    /// Tells the pacer of windows that have ended.
    fn end_windows(&mut self) {
        let ended = |&io: &u32| self.slots[io as usize].started.is_some() && !self.machine.has_window(io);
        let ended: Vec<u32> = (0..SLOTS as u32).filter(ended).collect();
        let now = Instant::now();
        ended.into_iter().for_each(|io| self.end_window(io, now));
    }

    fn end_window(&mut self, io: u32, now: Instant) {
        if let Some(started) = self.slots[io as usize].started.take() {
            self.pacer.took(now - started);
        }
    }

    /// Looks at what users do, as long as there is something to pace.
    fn look(&mut self) {
        if self.machine.is_idle() {
            return;
        }
        let (now, counters) = (Instant::now(), &self.shared.mirror.counters);
        let answered = [&counters.reads, &counters.writes, &counters.flushes];
        let answered = answered.map(|counter| counter.load(Ordering::Relaxed)).iter().sum();
        let in_flight = self.shared.in_flight.load(Ordering::Relaxed);
        self.pacer.look(now, Load { in_flight, answered });
        // A limit on either means that somebody knows better for both: they seldom meet.
        let limit = self.limits[0].or(self.limits[1]);
        self.machine.set_window(self.pacer.window(now, limit, self.window));
    }

    fn show_scrub(&mut self) {
        let busy = !self.machine.scrub_is_idle();
        if busy != self.scrub_shown {
            self.scrub_shown = busy;
            self.shared.scrub.show_busy(busy);
        }
    }

    fn attach_scrub_buffer(&mut self, ring: &mut Ring, leg: Leg) {
        if !self.scrub_buffers.contains(leg) {
            self.scrub_buffers.insert(leg);
            ring.attach(scrub_tag(leg), self.pool.take(self.window as usize));
        }
    }

    fn detach_scrub_buffers(&mut self, ring: &mut Ring) {
        let legs = std::mem::take(&mut self.scrub_buffers);
        legs.iter().for_each(|leg| drop(ring.detach(scrub_tag(leg))));
    }
}

fn scrub_tag(leg: Leg) -> u32 {
    SCRUB_TAGS + leg.index() as u32
}

/// What differs between what the legs were read to say.
fn compare_buffers(ring: &Ring, legs: LegSet, offset: u64, len: u64) -> Vec<Difference> {
    let bytes = |leg: Leg| &ring.buffer(scrub_tag(leg))[..len as usize];
    let Some(first) = legs.lowest() else { return Vec::new() };
    if legs.iter().all(|leg| bytes(leg) == bytes(first)) {
        return Vec::new();
    }
    let sector = |leg: Leg, sector: u64| &bytes(leg)[(sector * SECTOR) as usize..][..SECTOR as usize];
    differences(legs, offset, len, |one, other, at| sector(one, at) == sector(other, at))
}

/// Whether all bytes are zero. Word by word: copies are looked at whole.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<32>();
    words.iter().all(|word| *word == [0; 32]) && rest.iter().all(|&byte| byte == 0)
}

/// How long the engine waits for its threads to come up.
pub(super) const READY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn zeroes_are_told_from_data() {
        let mut bytes = vec![0u8; 4099];
        assert!(is_zero(&bytes));
        for at in [0, 31, 32, 4095, 4098] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }
}
