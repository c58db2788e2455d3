//! Consumer of a kernel ring that gives nothing back until it is told to.
//!
//! The kernel overwrites only what lies before the consumer's position, which is kept in the ring itself. So a record stays
//! readable, for this process or the next, until [`Ring::release`], which the recorder calls when it is durable.

use std::{io, os::fd::BorrowedFd};

use crate::sys::RingMemory;

/// Bit of a length word: the record is still being written.
const BUSY: u32 = 1 << 31;
/// Bit of a length word: the record was given up.
const DISCARDED: u32 = 1 << 30;
/// Bytes in front of every record.
const RECORD_HEADER: u64 = 8;

/// One ring.
pub struct Ring {
    memory: RingMemory,
    /// Where the next record begins.
    next: u64,
}

/// What lies at the reading position.
pub enum Next<'a> {
    /// A record; the reader is past it now.
    Record(&'a [u8]),
    /// Nothing yet.
    Empty,
    /// A length that cannot be: the ring is not what it should be. The reader skips to the producer's position.
    Broken {
        /// Where, bytes since the ring was made.
        at: u64,
    },
}

impl Ring {
    /// Maps the ring; reading begins where the last consumer stopped.
    pub fn new(fd: BorrowedFd<'_>, size: usize) -> io::Result<Self> {
        let memory = RingMemory::map(fd, size)?;
        let next = memory.consumer();
        Ok(Self { memory, next })
    }

    /// Reads the next complete record.
    pub fn next(&mut self) -> Next<'_> {
        loop {
            let produced = self.memory.producer();
            if self.next >= produced {
                return Next::Empty;
            }
            let word = self.memory.length_word(self.next);
            if word & BUSY != 0 {
                return Next::Empty;
            }
            let at = self.next;
            let len = (word & !(BUSY | DISCARDED)) as usize;
            let whole = (len as u64 + RECORD_HEADER).next_multiple_of(8);
            if whole > self.memory.size() as u64 || at + whole > produced {
                self.next = produced;
                return Next::Broken { at };
            }
            self.next = at + whole;
            if word & DISCARDED != 0 {
                continue;
            }
            return match self.memory.data(at + RECORD_HEADER, len) {
                Some(bytes) => Next::Record(bytes),
                None => Next::Broken { at },
            };
        }
    }

    /// Whether there is anything past the reading position, complete or not.
    pub fn has_more(&self) -> bool {
        self.next < self.memory.producer()
    }

    /// Whether records were read that have not been released.
    pub fn holds(&self) -> bool {
        self.memory.consumer() < self.next
    }

    /// Where the next record begins.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Goes on from a position of an earlier reader. One outside of what the ring holds is refused.
    pub fn seek(&mut self, position: u64) -> bool {
        let held = self.memory.consumer()..=self.memory.producer();
        let possible = held.contains(&position) && position.is_multiple_of(8);
        if possible {
            self.next = position;
        }
        possible
    }

    /// Gives everything read back to the kernel.
    pub fn release(&mut self) {
        let position = self.next;
        self.memory.set_consumer(position);
    }
}
