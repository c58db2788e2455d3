//! The frames that were committed last, in memory: whoever keeps up with the writer need not read them back from the disk.

use std::collections::VecDeque;

use super::Stored;

/// Bytes kept; far more than comes up while a frame is on its way to the collector.
const TAIL_BYTES: usize = 256 * 1024;

/// Frames in sequence, all of one stream, all durable.
#[derive(Default)]
pub struct Tail {
    generation: u64,
    frames: VecDeque<Stored>,
    bytes: usize,
}

impl Tail {
    /// Adds frames that are durable now.
    pub fn extend(&mut self, generation: u64, frames: impl Iterator<Item = Stored>) {
        for frame in frames {
            let follows = self.frames.back().is_none_or(|last| last.seq + 1 == frame.seq);
            if generation != self.generation || !follows {
                *self = Self { generation, ..Self::default() };
            }
            self.bytes += frame.bytes.len();
            self.frames.push_back(frame);
        }
        while self.bytes > TAIL_BYTES {
            let Some(oldest) = self.frames.pop_front() else { return };
            self.bytes -= oldest.bytes.len();
        }
    }

    /// The frames from `seq` on, as many as fit `max_bytes` and at least one; none where `seq` is not here.
    pub fn from(&self, generation: u64, seq: u64, max_bytes: usize) -> Vec<Stored> {
        let skip = self.frames.front().and_then(|first| seq.checked_sub(first.seq));
        let Some(skip) = skip.filter(|_| generation == self.generation) else { return Vec::new() };
        let mut total = 0;
        let fits = |frame: &&Stored| {
            total += frame.bytes.len();
            frame.seq == seq || total <= max_bytes
        };
        self.frames.iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).take_while(fits).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(seq: u64, len: usize) -> Stored {
        Stored { seq, prev: [0; 32], hash: [0; 32], bytes: vec![0; len] }
    }

    fn numbers(tail: &Tail, generation: u64, seq: u64, max_bytes: usize) -> Vec<u64> {
        tail.from(generation, seq, max_bytes).iter().map(|frame| frame.seq).collect()
    }

    #[test]
    fn gives_what_follows_and_nothing_else() {
        let mut tail = Tail::default();
        assert!(numbers(&tail, 0, 1, 100).is_empty());
        tail.extend(1, (5..9).map(|seq| frame(seq, 10)));
        assert_eq!(numbers(&tail, 1, 5, 100), [5, 6, 7, 8]);
        assert_eq!(numbers(&tail, 1, 7, 100), [7, 8]);
        assert_eq!(numbers(&tail, 1, 6, 20), [6, 7]);
        assert_eq!(numbers(&tail, 1, 6, 0), [6], "one is always given");
        for (generation, seq) in [(1, 4), (1, 9), (2, 6)] {
            assert!(numbers(&tail, generation, seq, 100).is_empty(), "{generation} {seq}");
        }
    }

    #[test]
    fn another_stream_or_a_hole_begins_anew() {
        let mut tail = Tail::default();
        tail.extend(1, (1..4).map(|seq| frame(seq, 10)));
        tail.extend(2, (1..2).map(|seq| frame(seq, 10)));
        assert_eq!((numbers(&tail, 1, 1, 100), numbers(&tail, 2, 1, 100)), (vec![], vec![1]));
        tail.extend(2, (7..9).map(|seq| frame(seq, 10)));
        assert_eq!((numbers(&tail, 2, 1, 100), numbers(&tail, 2, 7, 100)), (vec![], vec![7, 8]));
    }

    #[test]
    fn bounded() {
        let mut tail = Tail::default();
        tail.extend(1, (1..100).map(|seq| frame(seq, TAIL_BYTES / 10)));
        assert!(tail.bytes <= TAIL_BYTES && numbers(&tail, 1, 99, 0) == [99] && numbers(&tail, 1, 89, 0).is_empty());
        tail.extend(1, std::iter::once(frame(100, TAIL_BYTES + 1)));
        assert_eq!((tail.bytes, tail.frames.len()), (0, 0));
    }
}
