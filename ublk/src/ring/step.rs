//! One leg IO as a sequence of system calls: a state machine without IO, the same for both engines.
//!
//! Guarantees: short reads and writes go on where they stopped, EOF inside a read is an error, a
//! leg that cannot punch holes is zeroed by writing, a zero that keeps its space punches none, one with
//! FUA ends with a sync, and a failed sync is never tried again. No call ends with `ETIMEDOUT`: see [`Errno::GIVEN_UP`].
//!
//! ```text
//! state      call                 done ->                    not supported ->
//! Copy       read / write         Copy (rest) | Sync (fua, page cache) | end
//! Punch      fallocate punch      Sync (fua) | end           ZeroRange
//! ZeroRange  fallocate zero       ZeroRange (rest) | Sync | end  Zeroes
//! Zeroes     write zeroes         Zeroes (rest) | Sync | end
//! Sync       fdatasync            end
//! ```

use mirrord_raid::{Errno, LegIo, LegOp};

use crate::buffer::ZEROES;

/// Bytes of a zero range in one call: a device that has no better way writes them, and a call is to end soon.
const ZERO_RANGE: u64 = 8 << 20;

/// A system call to make on a leg. Offsets and lengths in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Call {
    Read { offset: u64, len: u32, buf_offset: u32 },
    Write { offset: u64, len: u32, buf_offset: u32, dsync: bool },
    WriteZeroes { offset: u64, len: u32 },
    Punch { offset: u64, len: u64 },
    ZeroRange { offset: u64, len: u64 },
    Sync,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Copy,
    Punch,
    ZeroRange,
    Zeroes,
    Sync,
}

/// A leg IO under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) io: LegIo,
    state: State,
    /// Bytes of `Copy`, `ZeroRange` or `Zeroes` behind us.
    done: u64,
    /// A durable write is one call: the page cache is not used, so what the call says is said of this write.
    direct: bool,
}

impl Step {
    pub(super) fn new(io: LegIo, direct: bool) -> Step {
        let state = match io.op {
            LegOp::Read | LegOp::Write { .. } => State::Copy,
            LegOp::Zero { keep: false, .. } => State::Punch,
            LegOp::Zero { keep: true, .. } => State::ZeroRange,
            LegOp::Flush => State::Sync,
        };
        Step { io, state, done: 0, direct }
    }

    /// The call to make now.
    pub(super) fn call(&self) -> Call {
        let offset = self.io.offset + self.done;
        let rest = self.io.len - self.done;
        match self.state {
            State::Copy => {
                let (len, buf_offset) = (rest as u32, self.io.buf_offset + self.done as u32);
                match self.io.op {
                    LegOp::Write { fua } => {
                        Call::Write { offset, len, buf_offset, dsync: fua && self.direct }
                    }
                    _ => Call::Read { offset, len, buf_offset },
                }
            }
            State::Punch => Call::Punch { offset, len: rest },
            State::ZeroRange => Call::ZeroRange { offset, len: rest.min(ZERO_RANGE) },
            State::Zeroes => Call::WriteZeroes { offset, len: rest.min(ZEROES as u64) as u32 },
            State::Sync => Call::Sync,
        }
    }

    /// Takes in what the call returned (bytes or 0, or an errno negated). `None`: make another.
    pub(super) fn advance(&mut self, result: i32) -> Option<Result<(), Errno>> {
        if result < 0 {
            return self.failed(-result);
        }
        match self.state {
            State::Copy | State::Zeroes => {
                if result == 0 && self.done < self.io.len {
                    // The leg lost its end: its blocks are not bad, they are gone.
                    return Some(Err(Errno::ENXIO));
                }
                self.done += result as u64;
                if self.done < self.io.len {
                    return None;
                }
                self.written()
            }
            State::ZeroRange => {
                self.done += (self.io.len - self.done).min(ZERO_RANGE);
                if self.done < self.io.len { None } else { self.written() }
            }
            State::Punch => self.written(),
            State::Sync => Some(Ok(())),
        }
    }

    fn failed(&mut self, errno: i32) -> Option<Result<(), Errno>> {
        // That is said of what the ring gives up, and of nothing else.
        let errno = if errno == Errno::GIVEN_UP.0 { libc::EIO } else { errno };
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV);
        match self.state {
            // Whatever the sync behind a write says, it says of all that was written before.
            State::Sync if self.io.op != LegOp::Flush => return Some(Err(Errno::EIO)),
            State::Sync => return Some(Err(Errno(errno))),
            _ if matches!(errno, libc::EINTR | libc::EAGAIN) => {}
            State::Punch if unsupported => self.state = State::ZeroRange,
            State::ZeroRange if unsupported => self.state = State::Zeroes,
            _ => return Some(Err(Errno(errno))),
        }
        None
    }

    fn written(&mut self) -> Option<Result<(), Errno>> {
        let synced = self.state == State::Copy && self.direct;
        if self.io.op.is_durable() && !synced {
            self.state = State::Sync;
            return None;
        }
        Some(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use mirrord_raid::Leg;

    use super::*;

    fn step(op: LegOp, len: u64) -> Step {
        Step::new(LegIo { io: 1, tag: 2, leg: Leg::new(0), op, offset: 4096, len, buf_offset: 512 }, true)
    }

    #[test]
    fn a_short_read_goes_on() {
        let mut read = step(LegOp::Read, 4096);
        assert_eq!(read.call(), Call::Read { offset: 4096, len: 4096, buf_offset: 512 });
        assert_eq!(read.advance(1024), None);
        assert_eq!(read.call(), Call::Read { offset: 5120, len: 3072, buf_offset: 1536 });
        assert_eq!(read.advance(-libc::EINTR), None);
        assert_eq!(read.advance(3072), Some(Ok(())));
    }

    #[test]
    fn end_of_file_is_an_error() {
        let mut read = step(LegOp::Read, 4096);
        assert_eq!(read.advance(1024), None);
        assert_eq!(read.advance(0), Some(Err(Errno::ENXIO)));
    }

    #[test]
    fn a_leg_without_holes_is_written() {
        let len = ZEROES as u64 + 512;
        let mut zero = step(LegOp::Zero { fua: true, keep: false }, len);
        assert_eq!(zero.call(), Call::Punch { offset: 4096, len });
        assert_eq!(zero.advance(-libc::EOPNOTSUPP), None);
        assert_eq!(zero.call(), Call::ZeroRange { offset: 4096, len });
        assert_eq!(zero.advance(-libc::EOPNOTSUPP), None);
        assert_eq!(zero.call(), Call::WriteZeroes { offset: 4096, len: ZEROES as u32 });
        assert_eq!(zero.advance(ZEROES as i32), None);
        assert_eq!(zero.call(), Call::WriteZeroes { offset: 4096 + ZEROES as u64, len: 512 });
        assert_eq!(zero.advance(512), None);
        assert_eq!(zero.call(), Call::Sync);
        assert_eq!(zero.advance(0), Some(Ok(())));
    }

    #[test]
    fn space_that_is_to_stay_is_not_given_back() {
        let mut zero = step(LegOp::Zero { fua: false, keep: true }, 8192);
        assert_eq!(zero.call(), Call::ZeroRange { offset: 4096, len: 8192 });
        assert_eq!(zero.advance(-libc::EOPNOTSUPP), None);
        assert_eq!(zero.call(), Call::WriteZeroes { offset: 4096, len: 8192 });
        assert_eq!(zero.advance(8192), Some(Ok(())));
    }

    #[test]
    fn a_failed_sync_is_final() {
        for errno in [libc::EIO, libc::EINTR, libc::EAGAIN, libc::EOPNOTSUPP] {
            assert_eq!(step(LegOp::Flush, 0).advance(-errno), Some(Err(Errno(errno))));
        }
    }

    #[test]
    fn without_direct_io_a_durable_write_is_synced_by_a_call_of_its_own() {
        let io = LegIo { op: LegOp::Write { fua: true }, ..step(LegOp::Read, 4096).io };
        let mut write = Step::new(io, false);
        assert_eq!(write.call(), Call::Write { offset: 4096, len: 4096, buf_offset: 512, dsync: false });
        assert_eq!(write.advance(4096), None);
        assert_eq!(write.call(), Call::Sync);
        assert_eq!(write.advance(-libc::ENOSPC), Some(Err(Errno::EIO)), "not of this write alone");
    }

    #[test]
    fn no_space_is_reported_as_such() {
        let mut write = step(LegOp::Write { fua: true }, 4096);
        assert_eq!(write.call(), Call::Write { offset: 4096, len: 4096, buf_offset: 512, dsync: true });
        assert_eq!(write.advance(-libc::ENOSPC), Some(Err(Errno::ENOSPC)));
    }
}
