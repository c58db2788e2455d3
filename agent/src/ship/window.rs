//! What was sent and is not acknowledged. Pure.

use std::collections::VecDeque;

use breakglass_api::frame::Hash;

/// A frame on its way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: u64,
    hash: Hash,
    bytes: usize,
}

/// Bounded by frames and by bytes; one frame is always let through.
pub struct Window {
    max_frames: usize,
    max_bytes: usize,
    sent: VecDeque<Sent>,
    bytes: usize,
    acked: u64,
}

/// What an acknowledgement says.
#[derive(Debug, PartialEq, Eq)]
pub enum Acked {
    /// Everything up to here is at the collector, for the first time.
    Advanced(u64, Hash),
    /// Known already.
    Known,
    /// Never sent.
    NotSent,
    /// Sent, but with another hash.
    OtherHash,
}

impl Window {
    /// Begins behind the frame `acked`.
    pub fn new(max_frames: usize, max_bytes: usize, acked: u64) -> Self {
        Self { max_frames, max_bytes, sent: VecDeque::new(), bytes: 0, acked }
    }

    /// Bytes for which there is room; 0 if for no frame. With nothing on its way it is never 0.
    pub fn room(&self) -> usize {
        if self.sent.len() >= self.max_frames { 0 } else { self.max_bytes.saturating_sub(self.bytes) }
    }

    /// Whether a frame of so many bytes may be sent now. With nothing on its way any may.
    pub fn admits(&self, bytes: usize) -> bool {
        self.sent.is_empty() || bytes <= self.room()
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    pub fn sent(&mut self, seq: u64, hash: Hash, bytes: usize) {
        self.bytes += bytes;
        self.sent.push_back(Sent { seq, hash, bytes });
    }

    /// Checks an acknowledgement before anything is taken out.
    pub fn acknowledge(&mut self, seq: u64, hash: &[u8]) -> Acked {
        if seq <= self.acked {
            return Acked::Known;
        }
        let Some(found) = self.sent.iter().find(|sent| sent.seq == seq).copied() else { return Acked::NotSent };
        if found.hash != hash {
            return Acked::OtherHash;
        }
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.seq <= seq) {
            self.bytes -= sent.bytes;
        }
        self.acked = seq;
        Acked::Advanced(seq, found.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(seq: u64) -> Hash {
        [seq as u8; 32]
    }

    #[test]
    fn bounds_hold_and_one_frame_always_passes() {
        let mut window = Window::new(3, 100, 0);
        assert_eq!(window.room(), 100);
        assert!(window.admits(1000));
        window.sent(1, hash(1), 1000);
        assert_eq!((window.room(), window.admits(1)), (0, false));
        assert_eq!(window.acknowledge(1, &hash(1)), Acked::Advanced(1, hash(1)));
        for seq in 2..5 {
            assert!(window.room() > 0);
            window.sent(seq, hash(seq), 30);
            assert_eq!((window.admits(10), window.admits(101)), (seq < 4, false), "no other beside one on its way");
        }
        assert_eq!(window.room(), 0, "three frames");
    }

    #[test]
    fn only_what_was_sent_is_acknowledged_and_only_forward() {
        let mut window = Window::new(10, 100, 4);
        for seq in 5..9 {
            window.sent(seq, hash(seq), 10);
        }
        assert_eq!(window.acknowledge(9, &hash(9)), Acked::NotSent);
        assert_eq!(window.acknowledge(6, &hash(7)), Acked::OtherHash);
        assert_eq!(window.acknowledge(6, &[]), Acked::OtherHash);
        assert_eq!(window.acknowledge(7, &hash(7)), Acked::Advanced(7, hash(7)));
        assert_eq!(window.acknowledge(6, &hash(0)), Acked::Known);
        assert_eq!(window.room(), 90);
        assert_eq!(window.acknowledge(8, &hash(8)), Acked::Advanced(8, hash(8)));
        assert!(window.is_empty());
    }
}
