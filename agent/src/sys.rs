//! The only module that may use `unsafe`. Each use says why it is sound; nothing here decides anything.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use nix::{
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    unistd::{SysconfVar, sysconf},
};

/// A range of mapped memory, unmapped when dropped.
struct Mapping {
    start: NonNull<core::ffi::c_void>,
    len: NonZeroUsize,
}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, len: usize, offset: usize, protection: ProtFlags) -> io::Result<Self> {
        let len = NonZeroUsize::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing that exists.
        let start = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, fd, offset)? };
        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours from `mmap`, and whoever borrowed from it borrowed from `self`. Failure would leave it mapped,
        // which harms nobody.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}

/// The memory of a BPF ring buffer: a page with the consumer's position, a page with the producer's, and the data, mapped
/// twice in a row so that a record that wraps is contiguous (kernel/bpf/ringbuf.c).
pub struct RingMemory {
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    size: usize,
}

impl RingMemory {
    /// Maps the ring of `size` bytes behind `fd`. Fails with the kernel's error if `fd` is no ring buffer of that size.
    pub fn map(fd: BorrowedFd<'_>, size: usize) -> io::Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|page| usize::try_from(page).ok()).unwrap_or(4096);
        if !size.is_power_of_two() || size < page {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a ring of {size} bytes")));
        }
        let consumer = Mapping::new(fd, page, 0, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let producer = Mapping::new(fd, page + 2 * size, page, ProtFlags::PROT_READ)?;
        Ok(Self { consumer, producer, page, size })
    }

    /// Bytes that the ring holds.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Up to where the kernel has reserved, bytes since the ring was made.
    pub fn producer(&self) -> u64 {
        // SAFETY: the first eight bytes of the producer's page are its position, aligned, alive as long as `self`, and only ever
        // accessed atomically.
        unsafe { self.producer.start.cast::<AtomicU64>().as_ref() }.load(Ordering::Acquire)
    }

    /// Up to where the ring may be overwritten.
    pub fn consumer(&self) -> u64 {
        self.consumer_cell().load(Ordering::Acquire)
    }

    /// Gives everything before `position` back to the kernel. Takes `&mut`, so that no slice of [`Self::data`] is still there.
    pub fn set_consumer(&mut self, position: u64) {
        self.consumer_cell().store(position, Ordering::Release);
    }

    /// The length word of the record at `position`, with the bits that say whether it is complete.
    pub fn length_word(&self, position: u64) -> u32 {
        let at = self.page + (position as usize & (self.size - 1) & !7);
        // SAFETY: `at` is below `page + size`, eight-byte aligned, within the mapping of `page + 2 * size` bytes; the kernel
        // stores to the word atomically when it commits the record.
        unsafe { self.producer.start.byte_add(at).cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire)
    }

    /// `len` bytes at `position`; `None` if they are not all between consumer and producer.
    pub fn data(&self, position: u64, len: usize) -> Option<&[u8]> {
        let end = position.checked_add(len as u64)?;
        if len > self.size || position < self.consumer() || end > self.producer() {
            return None;
        }
        let at = self.page + (position as usize & (self.size - 1));
        // SAFETY: `at + len` is at most `page + 2 * size`, the length of the mapping. The bytes lie between consumer and producer:
        // the kernel does not write to committed records there until the consumer moves past them, for which
        // `set_consumer` needs `&mut self`. Whether the record is committed the caller has read from its length word; were it
        // not, the bytes would be those of a record under way, which are plain bytes all the same.
        Some(unsafe { std::slice::from_raw_parts(self.producer.start.byte_add(at).cast::<u8>().as_ptr(), len) })
    }

    fn consumer_cell(&self) -> &AtomicU64 {
        // SAFETY: as in `producer`, for the consumer's page.
        unsafe { self.consumer.start.cast::<AtomicU64>().as_ref() }
    }
}

/// Heaps of the C library's allocator. It would make eight for each processor, and what one thread frees stays in its heap.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// Lets all threads share a few heaps. To be called before there are any (mallopt(3), `M_ARENA_MAX`).
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers are involved; a value that the allocator does not like is ignored.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives memory that was freed back to the system (malloc_trim(3)): after work that needed much of it and comes up rarely.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time from any thread, and moves nothing that is in use.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
