//! Changes to an input that are the same in every run.
//!
//! Small and blind beside libFuzzer; it keeps every reader honest in every run of the tests, in seconds.

/// Bytes and numbers that readers stumble over.
const TOKENS: &[&[u8]] = &[
    b"\0",
    b"\n",
    b"\r\n",
    b" ",
    b"\"",
    b",",
    b"=",
    b"-",
    b"*",
    b"!",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\0\x01",
    b"\xff",
    b"\x80",
    b"\xc2\x80",
    b"\xe2\x80\xae",
    b"\xf0\x9f\x92\xa5",
    b"ssh-ed25519",
    b"-cert-v01@openssh.com",
    b"18446744073709551616",
];

/// A generator of numbers: splitmix64, which needs no seed of quality.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers that depend on the name and on nothing else.
    pub fn named(name: &str) -> Self {
        Self(
            name.bytes()
                .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
        )
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 where there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or(0)
    }
}

/// One to four changes to `input`, with `other` to take pieces from.
pub fn mutate(input: &[u8], other: &[u8], max_len: usize, numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=numbers.below(4) {
        change(&mut bytes, other, numbers);
    }
    bytes.truncate(max_len);
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], numbers: &mut Numbers) {
    let at = numbers.below(bytes.len() + 1);
    let length = numbers.below((bytes.len() - at).min(64) + 1);
    match numbers.below(8) {
        0 | 1 => {
            let bit = 1 << numbers.below(8);
            bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= bit);
        }
        2 => drop(bytes.drain(at..at + length)),
        3 => {
            let piece = bytes[at..at + length].to_vec();
            bytes.splice(at..at, piece);
        }
        4 => {
            let token = TOKENS[numbers.below(TOKENS.len())];
            bytes.splice(at..at, token.iter().copied());
        }
        5 => {
            let token = TOKENS[numbers.below(TOKENS.len())];
            let end = (at + token.len()).min(bytes.len());
            bytes.splice(at..end, token.iter().copied());
        }
        6 => {
            let from = numbers.below(other.len() + 1);
            let piece = &other[from..from + numbers.below(other.len() - from + 1)];
            bytes.splice(at..at + length, piece.iter().copied());
        }
        _ => bytes.truncate(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_in_every_run_and_never_the_same_twice() {
        let run = || {
            let mut numbers = Numbers::named("x");
            (0..200).map(|_| mutate(b"some input", b"another", 64, &mut numbers)).collect::<Vec<_>>()
        };
        let first = run();
        assert_eq!(first, run());
        let distinct: std::collections::HashSet<_> = first.iter().collect();
        assert!(distinct.len() > 150 && first.iter().all(|bytes| bytes.len() <= 64));
    }
}
