//! The proof that nothing is missing: each CPU numbers its records on each ring from 1 without holes.
//!
//! By set, not by "last + 1": a program at a function exit can be overtaken on its own CPU between taking a number and taking
//! its place. A number is missing once a later one of its CPU was there and a whole further round over the ring did not bring it.

use std::collections::{BTreeMap, BTreeSet};

/// Most numbers held back behind a hole per ring and CPU. Programs that overtake each other are a handful; with more the hole
/// is a loss.
const HELD_MAX: usize = 4096;

/// Numbers of one ring and CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Track {
    /// Everything up to and with this is accounted for.
    upto: u64,
    /// Beyond a hole.
    held: BTreeSet<u64>,
    /// Whether the hole was there at the end of the last round.
    suspect: bool,
}

/// Numbers that did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Track {
    /// A track of which everything up to `upto` is accounted for.
    pub fn from(upto: u64, held: impl IntoIterator<Item = u64>) -> Self {
        let mut track = Self { upto, held: held.into_iter().filter(|seq| *seq > upto).collect(), suspect: false };
        track.advance();
        track
    }

    /// Everything up to this number is accounted for.
    pub fn upto(&self) -> u64 {
        self.upto
    }

    /// Numbers seen beyond a hole.
    pub fn held(&self) -> impl Iterator<Item = u64> + '_ {
        self.held.iter().copied()
    }

    /// Takes a number. `false`: it was there before.
    pub fn see(&mut self, seq: u64) -> bool {
        if seq <= self.upto {
            return false;
        }
        if seq == self.upto + 1 && self.held.is_empty() {
            self.upto = seq;
            return true;
        }
        let new = self.held.insert(seq);
        self.advance();
        new
    }

    /// At the end of a round over the whole ring: what is missing for good.
    pub fn settle(&mut self) -> Vec<Missing> {
        if self.held.is_empty() {
            self.suspect = false;
            return Vec::new();
        }
        if !self.suspect && self.held.len() < HELD_MAX {
            self.suspect = true;
            return Vec::new();
        }
        self.suspect = false;
        self.close_holes()
    }

    /// Everything up to `seq` was taken by the kernel before the last two rounds began: what is not there is missing.
    pub fn settle_upto(&mut self, seq: u64) -> Vec<Missing> {
        let mut missing = Vec::new();
        let highest = self.held.last().copied().unwrap_or(self.upto);
        if seq > highest {
            missing = self.close_holes();
            missing.push(Missing { first: self.upto + 1, count: seq - self.upto });
            self.upto = seq;
        }
        missing
    }

    fn close_holes(&mut self) -> Vec<Missing> {
        let mut missing = Vec::new();
        while let Some(first) = self.held.first().copied() {
            missing.push(Missing { first: self.upto + 1, count: first - self.upto - 1 });
            self.upto = first - 1;
            self.advance();
        }
        missing
    }

    fn advance(&mut self) {
        while self.held.first().is_some_and(|first| *first == self.upto + 1) {
            self.held.pop_first();
            self.upto += 1;
        }
    }
}

/// Index of a ring, and a CPU: what numbers its records by itself.
pub type Lane = (u8, u32);

/// The tracks of all rings and CPUs.
pub type Tracks = BTreeMap<Lane, Track>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn missing(track: &mut Track) -> Vec<(u64, u64)> {
        track.settle().into_iter().map(|m| (m.first, m.count)).collect()
    }

    #[test]
    fn a_hole_is_a_loss_only_after_a_further_round() {
        let mut track = Track::default();
        track.see(1);
        track.see(4);
        assert_eq!(missing(&mut track), []);
        assert_eq!(missing(&mut track), [(2, 2)]);
        assert_eq!(missing(&mut track), []);
        assert!(track.see(5));
        assert_eq!(track.upto(), 5);
    }

    #[test]
    fn overtaking_is_no_loss_and_a_repeat_is_seen() {
        let mut track = Track::default();
        for seq in [2, 1, 3] {
            assert!(track.see(seq));
        }
        assert!(!track.see(2));
        assert_eq!(missing(&mut track), []);
        assert_eq!(missing(&mut track), []);
        assert_eq!(track.upto(), 3);
    }

    #[test]
    fn a_loss_at_the_end_is_found_by_the_kernels_own_count() {
        let mut track = Track::default();
        track.see(1);
        assert_eq!(track.settle_upto(1), []);
        assert_eq!(track.settle_upto(5), [Missing { first: 2, count: 4 }]);
        assert_eq!(track.settle_upto(5), []);
    }

    proptest! {
        #[test]
        fn what_is_seen_and_what_is_missing_make_up_everything(seen in proptest::collection::btree_set(1u64..300, 1..200), chunk in 1usize..20) {
            let mut order: Vec<u64> = seen.iter().copied().collect();
            for part in order.chunks_mut(chunk) {
                part.reverse();
            }
            let mut track = Track::default();
            let mut lost = BTreeSet::new();
            for seq in order {
                prop_assert!(track.see(seq));
            }
            for _ in 0..2 {
                for gap in track.settle() {
                    for seq in gap.first..gap.first + gap.count {
                        prop_assert!(lost.insert(seq));
                    }
                }
            }
            let last = *seen.last().unwrap();
            prop_assert_eq!(track.upto(), last);
            let expected: BTreeSet<u64> = (1..=last).filter(|seq| !seen.contains(seq)).collect();
            prop_assert_eq!(lost, expected);
        }
    }
}
