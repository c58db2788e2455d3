//! Whether kernel records are missing that nobody declared missing.
//!
//! Every CPU numbers its records on every ring without holes. What the session's frames hold and what they declare missing must
//! together cover every number, from where the statement over the opening says that the record stood to where the one over
//! the closing does.

use std::collections::BTreeMap;

use breakglass_api::{
    checkpoint::Number,
    v1::{Gap, KernelRef},
};

/// Stretches of numbers kept apart, over all rings and CPUs. A whole record has one a ring and CPU, and events that overtake each
/// other make a few more for a while.
const STRETCHES_MAX: usize = 1 << 16;

/// A ring and a CPU.
type Key = (i32, u32);

/// Numbers that are missing without anybody having said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The ring's number in the protocol.
    pub ring: i32,
    /// The CPU.
    pub cpu: u32,
    /// The first that is missing.
    pub first: u64,
    /// The last.
    pub last: u64,
}

impl Hole {
    /// The ring, for people.
    pub fn ring_name(&self) -> String {
        match self.ring {
            0 => "audit".to_owned(),
            1 => "witness".to_owned(),
            2 => "bulk".to_owned(),
            other => format!("{other}th"),
        }
    }
}

/// Numbers of which something is known.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Stretches that are there, by first number: the last of each.
    seen: BTreeMap<Key, BTreeMap<u64, u64>>,
    stretches: usize,
    /// Up to where everything is from before the session.
    before: BTreeMap<Key, u64>,
    /// Up to where everything must be there.
    until: BTreeMap<Key, u64>,
    records: u64,
    declared: u64,
    holes: Vec<Hole>,
    overflowed: bool,
}

impl Numbers {
    /// What the statements over the opening and the closing say.
    pub fn bound(&mut self, opening: &[Number], closing: &[Number]) {
        let map = |numbers: &[Number]| numbers.iter().map(|n| ((i32::from(n.ring), n.cpu), n.upto)).collect();
        (self.before, self.until) = (map(opening), map(closing));
    }

    /// An event that was made of kernel records.
    pub fn see(&mut self, origin: &KernelRef) {
        let last = origin.seq.saturating_add(origin.more.into());
        self.records = self.records.saturating_add(u64::from(origin.more) + 1);
        self.add((origin.ring, origin.cpu), origin.seq, last);
    }

    /// Records that are declared missing.
    pub fn declare(&mut self, gap: &Gap) {
        if gap.records > 0 {
            self.declared = self.declared.saturating_add(gap.records);
            self.add((gap.ring, gap.cpu), gap.first_seq, gap.first_seq.saturating_add(gap.records - 1));
        }
    }

    /// Other kernel programs begin, and number from 1.
    pub fn restart(&mut self) {
        self.settle(false);
        self.before.clear();
    }

    /// Holes, at the end of the session; `None` where there was too much to keep apart.
    pub fn finish(&mut self) -> Option<&[Hole]> {
        self.settle(true);
        (!self.overflowed).then_some(&self.holes)
    }

    /// Kernel records in events, and records declared missing.
    pub fn counts(&self) -> (u64, u64) {
        (self.records, self.declared)
    }

    /// Whether a statement said how far the record stood.
    pub fn is_bounded(&self) -> bool {
        !self.until.is_empty()
    }

    fn add(&mut self, key: Key, first: u64, last: u64) {
        if self.stretches >= STRETCHES_MAX {
            self.overflowed = true;
            return;
        }
        let seen = self.seen.entry(key).or_default();
        let (mut first, mut last) = (first, last);
        // Joins every stretch that touches this one.
        let reach = last.saturating_add(1);
        while let Some((start, end)) = seen.range(..=reach).next_back().map(|(start, end)| (*start, *end)) {
            if end.saturating_add(1) < first {
                break;
            }
            seen.remove(&start);
            self.stretches -= 1;
            (first, last) = (first.min(start), last.max(end));
        }
        seen.insert(first, last);
        self.stretches += 1;
    }

    fn settle(&mut self, to_the_end: bool) {
        let mut seen = std::mem::take(&mut self.seen);
        self.stretches = 0;
        if to_the_end {
            for key in self.until.keys().filter(|key| self.before.contains_key(key)) {
                seen.entry(*key).or_default();
            }
        }
        for (key, stretches) in seen {
            let begin = stretches.keys().next().map_or(0, |first| first.saturating_sub(1));
            let mut upto = self.before.get(&key).copied().unwrap_or(begin);
            for (first, last) in stretches {
                self.hole(key, upto, first.saturating_sub(1));
                upto = upto.max(last);
            }
            if let Some(until) = self.until.get(&key).filter(|_| to_the_end) {
                self.hole(key, upto, *until);
            }
        }
    }

    /// Everything after `upto` up to `last` is missing.
    fn hole(&mut self, (ring, cpu): Key, upto: u64, last: u64) {
        if last > upto {
            self.holes.push(Hole { ring, cpu, first: upto + 1, last });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(upto: u64) -> Number {
        Number { ring: 0, cpu: 1, upto }
    }

    fn origin(seq: u64, more: u32) -> KernelRef {
        KernelRef { ring: 0, cpu: 1, seq, more }
    }

    fn holes(numbers: &mut Numbers) -> Vec<(u64, u64)> {
        numbers.finish().unwrap().iter().map(|hole| (hole.first, hole.last)).collect()
    }

    #[test]
    fn holes_are_found_at_either_end_and_between() {
        let mut numbers = Numbers::default();
        numbers.bound(&[number(4)], &[number(20)]);
        for origin in [origin(7, 1), origin(3, 1), origin(12, 0), origin(10, 0)] {
            numbers.see(&origin);
        }
        numbers.declare(&Gap { cpu: 1, first_seq: 13, records: 3, ..Gap::default() });
        assert_eq!(holes(&mut numbers), [(5, 6), (9, 9), (11, 11), (16, 20)]);
        assert_eq!(numbers.counts(), (6, 3));
    }

    #[test]
    fn a_silent_cpu_is_noticed() {
        let mut numbers = Numbers::default();
        numbers.bound(&[number(4)], &[number(6)]);
        assert_eq!(holes(&mut numbers), [(5, 6)]);
    }

    #[test]
    fn other_programs_number_anew() {
        let mut numbers = Numbers::default();
        numbers.bound(&[number(4)], &[number(2)]);
        numbers.see(&origin(5, 0));
        numbers.restart();
        numbers.see(&origin(1, 1));
        assert_eq!(holes(&mut numbers), []);
    }

    proptest! {
        #[test]
        fn as_a_set_would(seqs in proptest::collection::vec((1u64..60, 0u32..4), 0..40), from in 0u64..10, to in 0u64..70) {
            let mut numbers = Numbers::default();
            numbers.bound(&[number(from)], &[number(to)]);
            let mut set = std::collections::BTreeSet::new();
            for (seq, more) in seqs {
                numbers.see(&origin(seq, more));
                set.extend(seq..=seq + u64::from(more));
            }
            let end = set.last().copied().unwrap_or(0).max(to);
            let missing: Vec<u64> = (from + 1..=end).filter(|n| !set.contains(n)).collect();
            let found: Vec<u64> = holes(&mut numbers).into_iter().flat_map(|(first, last)| first..=last).collect();
            prop_assert_eq!(found, missing);
        }

        #[test]
        fn absurd_numbers_do_no_harm(seq: u64, more: u32, first_seq: u64, records: u64) {
            let mut numbers = Numbers::default();
            numbers.see(&origin(seq, more));
            numbers.declare(&Gap { first_seq, records, ..Gap::default() });
            let _ = numbers.finish();
        }
    }
}
