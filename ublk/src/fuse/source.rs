//! Requests straight from the device: what a queue thread reads them with.
//!
//! Owns a descriptor of the connection and the memory that the next request lands in. Guarantees: the
//! data of a write lands page-aligned, in the very buffer that all legs are written from (data longer
//! than a small buffer has its beginning moved once). Runs on the queue's thread.
//!
//! ```text
//! what the kernel copies   | head 40 | args 40 | data of a write or further args ...            |
//! where it lands           | self.head         | self.small           | self.large, from here on |
//! ```

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use zerocopy::FromBytes;

use super::device::{Device, Received, Reply};
use super::volume::Volume;
use super::wire::{InHeader, LEAST_READ, MOST_ARGS, WRITE_HEAD};
use crate::buffer::{Buffer, BufferPool};
use crate::front::{Pulled, Request, Source};
use crate::ring::Ring;

/// Where a queue gets its FUSE requests from.
pub(super) struct FuseSource {
    device: Arc<Device>,
    volume: Arc<Volume>,
    landing: Landing,
    /// Dropped last of all, it says that the session has ended.
    _session: Sender<()>,
}

impl FuseSource {
    pub(super) fn new(device: Arc<Device>, volume: Arc<Volume>, session: Sender<()>) -> FuseSource {
        let landing = Landing::new(&volume.pool, volume.max_io);
        FuseSource { device, volume, landing, _session: session }
    }
}

impl Source for FuseSource {
    fn start(&mut self, ring: &mut Ring) -> io::Result<()> {
        ring.watch(Some(self.device.as_fd().try_clone_to_owned()?));
        Ok(())
    }

    /// With batches of all that is there the legs run dry while the thread works and the thread sleeps while they
    /// do: measured at depth 32, a third of the throughput. With single ones system calls eat the gain.
    fn batch(&self) -> usize {
        4
    }

    fn pull(&mut self, _: &mut Ring, most: usize, out: &mut VecDeque<Request>) -> Pulled {
        for _ in 0..most {
            let len = match self.landing.receive(&self.device) {
                Received::Request(len) => len,
                Received::Nothing => return Pulled::All,
                Received::Ended => return Pulled::Ended,
            };
            let Some(header) = self.landing.header(len) else {
                tracing::error!(len, "the FUSE device gave something that is no request");
                return Pulled::Ended;
            };
            let reply = Reply::new(&self.device, header.unique);
            self.volume.handle(header.opcode, Arrived { landing: &mut self.landing, len }, reply, out);
        }
        Pulled::More
    }
}

/// Memory for the next request.
struct Landing {
    pool: Arc<BufferPool>,
    head: [u8; WRITE_HEAD],
    small: Buffer,
    large: Buffer,
}

impl Landing {
    fn new(pool: &Arc<BufferPool>, max_io: u32) -> Landing {
        let large = pool.take((max_io as usize).max(LEAST_READ));
        let small = pool.take(pool.small_len().min(large.len()));
        Landing { pool: Arc::clone(pool), head: [0; WRITE_HEAD], small, large }
    }

    fn receive(&mut self, device: &Device) -> Received {
        let behind = self.small.len();
        device.receive(&mut [
            IoSliceMut::new(&mut self.head),
            IoSliceMut::new(&mut self.small),
            IoSliceMut::new(&mut self.large[behind..]),
        ])
    }

    fn header(&self, len: usize) -> Option<InHeader> {
        let (header, _) = InHeader::read_from_prefix(&self.head).ok()?;
        (header.len as usize == len && len >= size_of::<InHeader>()).then_some(header)
    }
}

/// A request as it landed: its arguments and data.
pub(super) struct Arrived<'a> {
    landing: &'a mut Landing,
    /// Bytes of all of it.
    len: usize,
}

impl Arrived<'_> {
    /// The arguments; `None` if the request is too short for them.
    pub(super) fn args<T: FromBytes>(&self) -> Option<T> {
        let start = size_of::<InHeader>();
        let here = self.len.min(WRITE_HEAD) - start;
        let there = (self.len - start - here).min(MOST_ARGS - here);
        let mut args = [0; MOST_ARGS];
        args[..here].copy_from_slice(&self.landing.head[start..start + here]);
        args[here..here + there].copy_from_slice(&self.landing.small[..there]);
        T::read_from_prefix(&args[..here + there]).ok().map(|(args, _)| args)
    }

    /// The data of a write, if there are `len` bytes of it.
    pub(super) fn data(self, len: usize) -> Option<Buffer> {
        if self.len != WRITE_HEAD + len {
            return None;
        }
        let Landing { pool, small, large, .. } = self.landing;
        let mut data = if len <= small.len() {
            let next = pool.take(small.len());
            std::mem::replace(small, next)
        } else {
            large[..small.len()].copy_from_slice(small);
            let next = pool.take(large.len());
            std::mem::replace(large, next)
        };
        data.set_len(len);
        Some(data)
    }
}
