//! Page-aligned buffers and the pool they come from.
//!
//! Owns: one mapping of small buffers, which every ring may register with the kernel, and large
//! buffers mapped on demand. Guarantees: `take` never waits; memory is zeroed when it is mapped and
//! never uninitialised; a buffer belongs to one owner until it is dropped, and then goes back to
//! the pool. Runs on any thread: small buffers come from a lock-free stack, large ones from a list
//! under a short lock.

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Alignment of every buffer, in bytes. A page: enough for O_DIRECT on any device in use.
pub(crate) const ALIGN: usize = 4096;

/// Largest piece written at once when a leg can only be zeroed by writing zeroes, in bytes.
pub(crate) const ZEROES: usize = 128 * 1024;

/// No buffer: end of the free stack.
const NONE: u32 = u32::MAX;

/// Sizes of a [`BufferPool`].
#[derive(Clone, Copy, Debug)]
pub struct PoolConfig {
    /// Bytes of a small buffer, rounded up to whole pages. Default 16 KiB: holds most requests of a
    /// file system or database whole.
    pub small_len: usize,
    /// How many small buffers. Default 512, that is 8 MiB: what an unprivileged process may lock.
    pub small_count: u32,
    /// Bytes of the largest request. Default 1 MiB. Buffers have room for two blocks more, which an
    /// unaligned request of this size covers.
    pub max_io: usize,
    /// How many unused large buffers are kept. Default 32.
    pub large_kept: usize,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig { small_len: 16 * 1024, small_count: 512, max_io: 1024 * 1024, large_kept: 32 }
    }
}

/// Where buffers come from. Shared by front end and rings.
pub struct BufferPool {
    small: Mapping,
    small_len: usize,
    /// Top of the stack of free small buffers: index, and a count above it against ABA.
    head: AtomicU64,
    next: Box<[AtomicU32]>,
    large_len: usize,
    large_kept: usize,
    large: Mutex<Vec<Mapping>>,
    zeroes: Mapping,
}

impl BufferPool {
    /// A pool of these sizes. Maps the small buffers; pages are used as they are touched.
    ///
    /// # Errors
    /// `ENOMEM` if the address space does not hold them.
    pub fn new(config: PoolConfig) -> std::io::Result<Arc<BufferPool>> {
        let small_len = config.small_len.max(1).next_multiple_of(ALIGN);
        let count = config.small_count.max(1);
        let next = (1..=count).map(|i| AtomicU32::new(if i == count { NONE } else { i })).collect();
        Ok(Arc::new(BufferPool {
            small: Mapping::new(small_len * count as usize)?,
            small_len,
            head: AtomicU64::new(0),
            next,
            large_len: config.max_io.next_multiple_of(ALIGN) + 2 * ALIGN,
            large_kept: config.large_kept,
            large: Mutex::new(Vec::with_capacity(config.large_kept)),
            zeroes: Mapping::new(ZEROES)?,
        }))
    }

    /// A buffer of `len` bytes. Its contents are zeroes or left from an earlier buffer of this
    /// pool: show none of it that was not written since. Aborts the process when the system is out
    /// of memory, as any allocation does.
    pub fn take(self: &Arc<Self>, len: usize) -> Buffer {
        if len <= self.small_len
            && let Some(index) = self.pop()
        {
            // SAFETY: `index` is below the count of small buffers, so the offset is inside the mapping.
            let ptr = unsafe { self.small.ptr.add(index as usize * self.small_len) };
            return Buffer { ptr, len, home: Home::Small(index), head: 0, pool: Arc::clone(self) };
        }
        let kept = (len <= self.large_len).then(|| self.kept().pop()).flatten();
        let mapping = kept.unwrap_or_else(|| {
            let size = if len <= self.large_len { self.large_len } else { len.next_multiple_of(ALIGN) };
            Mapping::new(size).unwrap_or_else(|_| {
                handle_alloc_error(Layout::from_size_align(size, ALIGN).unwrap_or(Layout::new::<u64>()))
            })
        });
        Buffer { ptr: mapping.ptr, len, home: Home::Large(Some(mapping)), head: 0, pool: Arc::clone(self) }
    }

    /// Bytes of a small buffer.
    pub(crate) fn small_len(&self) -> usize {
        self.small_len
    }

    /// The mapping of all small buffers, for a ring to register: start and length in bytes.
    pub(crate) fn small_region(&self) -> (*mut u8, usize) {
        (self.small.ptr.as_ptr(), self.small.len)
    }

    /// [`ZEROES`] bytes of zeroes that nobody writes to.
    pub(crate) fn zeroes(&self) -> *const u8 {
        self.zeroes.ptr.as_ptr()
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Mapping>> {
        self.large.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pop(&self) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let index = head as u32;
            if index == NONE {
                return None;
            }
            let next = self.next[index as usize].load(Ordering::Relaxed);
            let to = bump(head) | u64::from(next);
            match self.head.compare_exchange_weak(head, to, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(index),
                Err(now) => head = now,
            }
        }
    }

    fn push(&self, index: u32) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            self.next[index as usize].store(head as u32, Ordering::Relaxed);
            let to = bump(head) | u64::from(index);
            match self.head.compare_exchange_weak(head, to, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPool")
            .field("small_len", &self.small_len)
            .field("small_count", &self.next.len())
            .finish_non_exhaustive()
    }
}

/// The count in the upper half of the stack's head, one further.
fn bump(head: u64) -> u64 {
    (head >> 32).wrapping_add(1) << 32
}

/// Page-aligned memory of a request. Dropped, it goes back to its pool.
pub struct Buffer {
    ptr: NonNull<u8>,
    len: usize,
    home: Home,
    /// What a ring has registered its beginning as; 0: none has.
    head: u16,
    pool: Arc<BufferPool>,
}

enum Home {
    Small(u32),
    Large(Option<Mapping>),
}

// SAFETY: a `Buffer` is the only owner of its memory, as a `Box<[u8]>` is.
unsafe impl Send for Buffer {}
// SAFETY: `&Buffer` gives shared reads only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Start of the memory, for the ring. Writing through it needs the buffer owned and unborrowed.
    pub(crate) fn as_raw(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// Bytes that it has room for.
    pub(crate) fn room(&self) -> usize {
        match &self.home {
            Home::Small(_) => self.pool.small_len,
            Home::Large(mapping) => mapping.as_ref().map_or(0, |mapping| mapping.len),
        }
    }

    /// Copies these bytes to the same place in `other`. Others may be written to by the kernel meanwhile.
    ///
    /// # Panics
    /// If either is shorter.
    pub(crate) fn copy_to(&self, other: &mut Buffer, range: std::ops::Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len.min(other.len));
        // SAFETY: the range lies in both buffers, which are two; no reference to the source's other bytes is
        // made.
        unsafe {
            let (from, to) = (self.ptr.add(range.start), other.ptr.add(range.start));
            to.copy_from_nonoverlapping(from, range.len());
        }
    }

    /// Makes it `len` bytes long.
    ///
    /// # Panics
    /// If it has no room for them.
    pub(crate) fn set_len(&mut self, len: usize) {
        let room = self.room();
        assert!(len <= room, "{len} bytes in a buffer of {room}");
        self.len = len;
    }

    /// Whether it lies in the region that rings register.
    pub(crate) fn is_small(&self) -> bool {
        matches!(self.home, Home::Small(_))
    }

    /// Whether it came from `pool`.
    pub(crate) fn is_of(&self, pool: &Arc<BufferPool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// What the one ring that it is used with has registered its beginning as, if it has.
    pub(crate) fn head(&self) -> Option<u16> {
        (self.head > 0).then_some(self.head)
    }

    /// A ring has registered its beginning as number `head`, which is not 0.
    pub(crate) fn set_head(&mut self, head: u16) {
        self.head = head;
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len` bytes at `ptr` are mapped, initialised and owned by `self`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the borrow the only one.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &mut self.home {
            Home::Small(index) => self.pool.push(*index),
            Home::Large(mapping) => {
                let Some(mapping) = mapping.take() else { return };
                if mapping.len == self.pool.large_len {
                    let mut kept = self.pool.kept();
                    if kept.len() < self.pool.large_kept {
                        kept.push(mapping);
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes at {:p})", self.len, self.ptr)
    }
}

/// Anonymous private memory: zeroed, page-aligned, unmapped when dropped.
struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a `Mapping` is the only owner of its memory.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` gives out its address only.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize) -> std::io::Result<Mapping> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
        let ptr = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE) }?;
        let ptr = NonNull::new(ptr.cast()).expect("the kernel maps nothing at address 0 unasked");
        Ok(Mapping { ptr, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what `new` mapped, and its only owner goes away.
        if let Err(errno) = unsafe { munmap(self.ptr.as_ptr().cast(), self.len) } {
            tracing::warn!(%errno, "unmapping a buffer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Arc<BufferPool> {
        BufferPool::new(PoolConfig { small_len: 4096, small_count: 3, max_io: 65536, large_kept: 1 }).unwrap()
    }

    #[test]
    fn buffers_are_aligned_distinct_and_come_back() {
        let pool = pool();
        let mut taken: Vec<Buffer> = (0..5).map(|_| pool.take(4096)).collect();
        assert_eq!(taken.iter().filter(|b| b.is_small()).count(), 3, "then large ones stand in");
        for (i, buffer) in taken.iter_mut().enumerate() {
            assert_eq!(buffer.as_raw() as usize % ALIGN, 0);
            assert!(buffer.iter().all(|&b| b == 0));
            buffer.fill(i as u8 + 1);
        }
        for (i, buffer) in taken.iter().enumerate() {
            assert!(buffer.iter().all(|&b| b == i as u8 + 1));
        }
        drop(taken);
        assert_eq!(pool.kept().len(), 1, "the free list is bounded");
        let again: Vec<Buffer> = (0..3).map(|_| pool.take(1)).collect();
        assert!(again.iter().all(Buffer::is_small));
    }

    #[test]
    fn a_request_of_any_size_is_served() {
        let pool = pool();
        assert_eq!(pool.take(0).len(), 0);
        assert_eq!(pool.take(65536 + 8192).len(), 65536 + 8192);
        assert_eq!(pool.take(1 << 20).len(), 1 << 20);
    }

    #[test]
    fn threads_never_share_a_buffer() {
        let pool = pool();
        std::thread::scope(|scope| {
            for id in 0..4u8 {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..5000 {
                        let mut buffer = pool.take(64);
                        buffer.fill(id);
                        assert!(buffer.iter().all(|&b| b == id));
                    }
                });
            }
        });
    }
}
