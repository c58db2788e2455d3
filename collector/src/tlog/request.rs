//! The body of `add-checkpoint`, after C2SP tlog-witness: what a log sends and a witness reads.

use std::fmt::Write;

use tlog_tiles::Hash;

use super::note::NOTE_MAX;

/// Hashes of the longest proof that may be sent.
pub const PROOF_MAX: usize = 63;
/// Largest request, bytes: the line with the old size, the proof, the empty line and the note.
pub const REQUEST_MAX: usize = 32 + PROOF_MAX * 45 + NOTE_MAX;
/// Type of the answer that names the witness's size.
pub const SIZE_TYPE: &str = "text/x.tlog.size";

/// A request.
#[derive(Debug, PartialEq)]
pub struct AddCheckpoint<'a> {
    /// Size that the proof starts from.
    pub old: u64,
    /// That the checkpoint's tree begins with the old one.
    pub proof: Vec<Hash>,
    /// The signed checkpoint.
    pub note: &'a [u8],
}

impl<'a> AddCheckpoint<'a> {
    /// Parses a body; `None` if it is none.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        if body.len() > REQUEST_MAX {
            return None;
        }
        let (line, mut rest) = split_line(body)?;
        let old = parse_size(line.strip_prefix("old ")?)?;
        let mut proof = Vec::new();
        loop {
            let (line, after) = split_line(rest)?;
            rest = after;
            if line.is_empty() {
                return Some(Self { old, proof, note: rest });
            }
            if proof.len() == PROOF_MAX {
                return None;
            }
            proof.push(Hash::parse_hash(line).ok()?);
        }
    }

    /// The body.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("old {}\n", self.old);
        for hash in &self.proof {
            // Writing to a string does not fail.
            let _ = writeln!(head, "{hash}");
        }
        head.push('\n');
        [head.as_bytes(), self.note].concat()
    }
}

fn split_line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = bytes.split_at_checked(end)?;
    Some((std::str::from_utf8(line).ok()?, rest.get(1..)?))
}

/// A decimal number in its one spelling.
pub fn parse_size(text: &str) -> Option<u64> {
    let size: u64 = text.parse().ok()?;
    (size.to_string() == text).then_some(size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wrong_forms_are_refused() {
        let hash = Hash([7; 32]);
        let good = format!("old 3\n{hash}\n\nnote");
        assert_eq!(AddCheckpoint::parse(good.as_bytes()).unwrap().proof, [hash]);
        let long = format!("old 3\n{}\nnote", format!("{hash}\n").repeat(64));
        for body in [
            "",
            "old",
            "old 3",
            "old 3\n",
            "old 03\n\nx",
            "old +3\n\nx",
            "old -1\n\nx",
            "old  3\n\nx",
            "new 3\n\nx",
            "old 3\r\n\nx",
            "old 3\nAAAA\n\nx",
            "old 18446744073709551616\n\nx",
            long.as_str(),
        ] {
            assert!(AddCheckpoint::parse(body.as_bytes()).is_none(), "{body:?}");
        }
    }

    proptest! {
        #[test]
        fn requests_round_trip(old: u64, proof in prop::collection::vec(any::<[u8; 32]>(), 0..=63), note: Vec<u8>) {
            let sent = AddCheckpoint { old, proof: proof.into_iter().map(Hash).collect(), note: &note };
            let bytes = sent.to_bytes();
            prop_assert_eq!(AddCheckpoint::parse(&bytes), Some(sent));
        }

        #[test]
        fn noise_never_panics(noise in "(old [0-9]{0,21}\n)?([A-Za-z0-9+/=\n]{0,100}){0,5}.{0,50}") {
            let _ = AddCheckpoint::parse(noise.as_bytes());
        }

        #[test]
        fn bytes_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = AddCheckpoint::parse(&noise);
        }
    }
}
