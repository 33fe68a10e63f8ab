//! [`Done`]: the answer a request owes.
//!
//! Owns the way back to the client. Guarantees: the client is answered exactly once; a `Done` that
//! is dropped answers `EIO`, so no client hangs on a request that got lost. Completing allocates
//! nothing. Runs on whatever thread completes the request, usually a queue thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use mirrord_raid::Errno;

use crate::buffer::Buffer;
use crate::fuse::Reply;
use crate::ublk::Answer;

/// The answer that a [`crate::Request`] owes.
pub struct Done(Option<Way>);

enum Way {
    /// A FUSE read of `len` bytes, `skip` bytes into the aligned buffer.
    Read {
        reply: Reply,
        skip: u32,
        len: u32,
    },
    Write {
        reply: Reply,
        len: u32,
    },
    Empty(Reply),
    Ublk(Answer),
    Part(Arc<Group>),
    Call(Callback),
}

type Callback = Box<dyn FnOnce(Result<(), Errno>, Option<&[u8]>) + Send>;

impl Done {
    /// Calls `call` with the result and the request's buffer, if it had one.
    pub fn call(call: impl FnOnce(Result<(), Errno>, Option<&[u8]>) + Send + 'static) -> Done {
        Done(Some(Way::Call(Box::new(call))))
    }

    pub(crate) fn read(reply: Reply, skip: u32, len: u32) -> Done {
        Done(Some(Way::Read { reply, skip, len }))
    }

    pub(crate) fn write(reply: Reply, len: u32) -> Done {
        Done(Some(Way::Write { reply, len }))
    }

    pub(crate) fn empty(reply: Reply) -> Done {
        Done(Some(Way::Empty(reply)))
    }

    pub(crate) fn ublk(answer: Answer) -> Done {
        Done(Some(Way::Ublk(answer)))
    }

    /// Answers. `buf` is the request's buffer, which after a read that went well holds the data.
    pub fn complete(mut self, result: Result<(), Errno>, buf: Option<Buffer>) {
        if let Some(way) = self.0.take() {
            way.go(result, buf);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some(way) = self.0.take() {
            tracing::error!(?way, "a request was dropped unanswered");
            way.go(Err(Errno::EIO), None);
        }
    }
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Way {
    fn go(self, result: Result<(), Errno>, buf: Option<Buffer>) {
        match (self, result) {
            (Way::Read { reply, skip, len }, Ok(())) => {
                let range = skip as usize..skip as usize + len as usize;
                match buf.as_deref().and_then(|buf| buf.get(range)) {
                    Some(data) => reply.data(data),
                    None => reply.error(Errno::EIO),
                }
            }
            (Way::Read { reply, .. }, Err(errno)) => reply.error(errno),
            (Way::Write { reply, len }, Ok(())) => reply.written(len),
            (Way::Write { reply, .. }, Err(errno)) => reply.error(errno),
            (Way::Empty(reply), Ok(())) => reply.ok(),
            (Way::Empty(reply), Err(errno)) => reply.error(errno),
            (Way::Ublk(answer), result) => answer.give(result, buf),
            (Way::Part(group), result) => group.part(result),
            (Way::Call(call), result) => call(result, buf.as_deref()),
        }
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Read { .. } => "read",
            Way::Write { .. } => "write",
            Way::Empty(_) => "empty",
            Way::Ublk(_) => "ublk",
            Way::Part(_) => "part",
            Way::Call(_) => "call",
        })
    }
}

/// Requests answered together: when the last is done, with the first error if there was one.
pub struct Group {
    left: AtomicU32,
    /// 0, or the first error.
    error: AtomicI32,
    whole: Mutex<Option<Done>>,
}

impl Group {
    /// The answers of `parts` requests that together make `whole`.
    ///
    /// # Panics
    /// If there are no parts.
    pub fn split(whole: Done, parts: u32) -> impl Iterator<Item = Done> {
        assert!(parts > 0);
        let group = Arc::new(Group {
            left: AtomicU32::new(parts),
            error: AtomicI32::new(0),
            whole: Mutex::new(Some(whole)),
        });
        (0..parts).map(move |_| Done(Some(Way::Part(Arc::clone(&group)))))
    }

    fn part(&self, result: Result<(), Errno>) {
        if let Err(errno) = result {
            let _ = self.error.compare_exchange(0, errno.0, Ordering::AcqRel, Ordering::Relaxed);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(whole) = whole {
            let error = self.error.load(Ordering::Acquire);
            whole.complete(if error == 0 { Ok(()) } else { Err(Errno(error)) }, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn done() -> (Done, Receiver<Result<(), Errno>>) {
        let (tx, rx) = channel();
        (Done::call(move |result, _| tx.send(result).unwrap()), rx)
    }

    #[test]
    fn a_dropped_done_answers_eio() {
        let (done, answer) = done();
        drop(done);
        assert_eq!(answer.try_recv(), Ok(Err(Errno::EIO)));
    }

    #[test]
    fn a_group_answers_once_with_its_first_error() {
        let (whole, answer) = done();
        let mut parts: Vec<Done> = Group::split(whole, 3).collect();
        parts.pop().unwrap().complete(Ok(()), None);
        parts.pop().unwrap().complete(Err(Errno::ENOSPC), None);
        assert!(answer.try_recv().is_err());
        parts.pop().unwrap().complete(Err(Errno::EIO), None);
        assert_eq!(answer.try_recv(), Ok(Err(Errno::ENOSPC)));
    }

    #[test]
    fn a_group_whose_parts_were_never_made_answers_too() {
        let (whole, answer) = done();
        drop(Group::split(whole, 2));
        assert_eq!(answer.try_recv(), Ok(Err(Errno::EIO)));
    }
}
