//! The background worker's thread: a ring of its own that copies stale regions and flushes legs,
//! at the pace the throttle allows.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mirrord_raid::{
    Action, Background, BackgroundAction, BackgroundEvent, COPY_SLOTS, LegMap, LegOp, WINDOW,
};
use mirrord_ublk::{BufferPool, LegDone, LegFile, Ring, RingConfig};

use super::shared::Shared;
use super::throttle::Pacer;

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
        limit: shared.throttle.limit(),
        paced: Vec::new(),
        slots: [Slot::default(); COPY_SLOTS as usize],
        shared: Arc::clone(shared),
        pool: Arc::clone(pool),
        actions: Vec::new(),
    };
    worker.serve(&mut ring, window);
}

/// What a copy slot is doing.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// It reads this many bytes.
    reading: Option<u64>,
    started: Option<Instant>,
}

struct Worker {
    machine: Background,
    pacer: Pacer,
    /// The limit the pacer last went by.
    limit: Option<u64>,
    /// Slots that wait for their time.
    paced: Vec<(Instant, u32)>,
    slots: [Slot; COPY_SLOTS as usize],
    shared: Arc<Shared>,
    pool: Arc<BufferPool>,
    actions: Vec<BackgroundAction>,
}

impl Worker {
    fn serve(&mut self, ring: &mut Ring, window: u64) {
        let mut done: Vec<LegDone> = Vec::new();
        let mut has_buffers = false;
        while !self.shared.stopping.load(Ordering::SeqCst) {
            done.clear();
            let now = Instant::now();
            let next = self.paced.iter().map(|&(at, _)| at.saturating_duration_since(now)).min();
            let woken = match ring.wait(&mut done, next) {
                Ok(wakeup) => wakeup.woken,
                Err(error) => {
                    tracing::error!(%error, "the resync ring failed; stopping at once");
                    std::process::abort();
                }
            };
            // Copy buffers are held only while there is something to copy.
            if woken && !has_buffers {
                (0..COPY_SLOTS).for_each(|tag| ring.attach(tag, self.pool.take(window as usize)));
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
            }
            self.proceed(ring);
            if has_buffers && self.machine.is_idle() {
                (0..COPY_SLOTS).for_each(|tag| drop(ring.detach(tag)));
                has_buffers = false;
            }
        }
    }

    /// A limit that was changed counts at once, also for slots that wait by the old one.
    fn obey_new_limit(&mut self) {
        let limit = self.shared.throttle.limit();
        if limit != self.limit {
            self.limit = limit;
            let now = Instant::now();
            self.pacer.forget(now);
            self.paced.iter_mut().for_each(|(at, _)| *at = now);
        }
    }

    fn leg_done(&mut self, ring: &mut Ring, done: LegDone) {
        let LegDone { io, leg, result } = done;
        let mut zeroes = false;
        if let Some(slot) = self.slots.get_mut(io as usize)
            && let (Some(len), Ok(())) = (slot.reading.take(), result)
        {
            zeroes = is_zero(&ring.buffer(io)[..len as usize]);
        }
        self.machine.handle(BackgroundEvent::LegDone { io, leg, result, zeroes }, &mut self.actions);
    }

    /// Lets the slots go on whose time has come.
    fn proceed(&mut self, ring: &mut Ring) {
        let now = Instant::now();
        while let Some(at) = self.paced.iter().position(|&(at, _)| at <= now) {
            let (_, io) = self.paced.swap_remove(at);
            self.slots[io as usize].started = Some(now);
            self.machine.handle(BackgroundEvent::Proceed { io }, &mut self.actions);
            self.act(ring);
        }
    }

    fn act(&mut self, ring: &mut Ring) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                BackgroundAction::Pace { io, bytes } => {
                    let now = Instant::now();
                    if let Some(started) = self.slots[io as usize].started.take() {
                        self.pacer.took(now - started);
                    }
                    let at = self.pacer.start_at(now, bytes, self.shared.throttle.limit(), self.requests());
                    self.paced.push((at, io));
                }
                BackgroundAction::Queue(action) => {
                    if let Some(Action::Submit(io)) = self.shared.pass_on(action) {
                        if io.op == LegOp::Read {
                            self.slots[io.io as usize].reading = Some(io.len);
                        }
                        ring.submit(&io);
                    }
                }
            }
        }
        self.actions = actions;
    }

    fn requests(&self) -> u64 {
        let counters = &self.shared.mirror.counters;
        counters.reads.load(Ordering::Relaxed) + counters.writes.load(Ordering::Relaxed)
    }
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
