//! Proofs after RFC 6962, as the sections of an evidence file hold them. Integers are little-endian.
//!
//! | offset | size | field of an inclusion proof |
//! |---|---|---|
//! | 0 | 32 | the leaf's hash: SHA-256 of a zero byte ‖ the leaf |
//! | 32 | 8 | its index |
//! | 40 | 32 n | the audit path, from the leaf up; at most [`PATH_MAX`] hashes |
//!
//! | offset | size | field of a consistency proof |
//! |---|---|---|
//! | 0 | 8 | size of the earlier tree, at least 1 |
//! | 8 | 32 | its root hash |
//! | 40 | 32 n | the proof; at most [`PATH_MAX`] hashes |

use sha2::{Digest, Sha256};
use tlog_tiles::{Hash, check_record, check_tree};

/// Most hashes of a proof: more than any tree of fewer than 2^63 leaves needs.
pub const PATH_MAX: usize = 64;

const HEAD_LEN: usize = 40;
const HASH_LEN: usize = 32;

/// The hash of a leaf.
pub fn leaf_hash(leaf: &[u8]) -> [u8; 32] {
    tlog_tiles::record_hash(leaf).0
}

/// Why bytes are no proof, or prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The length is none that a proof can have.
    #[error("a proof of {0} bytes: the length is wrong")]
    Length(usize),
    /// The hashes lead elsewhere.
    #[error("the proof does not lead to the root of the log's checkpoint")]
    Mismatch,
}

/// That a leaf is in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inclusion {
    /// The leaf's hash.
    pub leaf: [u8; 32],
    /// Its index.
    pub index: u64,
    /// The audit path, from the leaf up.
    pub path: Vec<[u8; 32]>,
}

impl Inclusion {
    /// As a section holds it.
    pub fn encode(&self) -> Vec<u8> {
        [&self.leaf[..], &self.index.to_le_bytes(), self.path.as_flattened()].concat()
    }

    /// The reverse.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProofError> {
        let wrong = ProofError::Length(bytes.len());
        let (leaf, rest) = bytes.split_first_chunk().ok_or(wrong)?;
        let (index, path) = rest.split_first_chunk().ok_or(wrong)?;
        Ok(Self { leaf: *leaf, index: u64::from_le_bytes(*index), path: hashes(path).ok_or(wrong)? })
    }

    /// Whether it holds for the tree of `size` leaves with this root.
    pub fn check(&self, size: u64, root: [u8; 32]) -> Result<(), ProofError> {
        let path: Vec<Hash> = self.path.iter().copied().map(Hash).collect();
        let fits = in_reach(size) && check_record(&path, size, Hash(root), self.index, Hash(self.leaf)).is_ok();
        if fits { Ok(()) } else { Err(ProofError::Mismatch) }
    }
}

/// That a tree begins with an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consistency {
    /// Leaves of the earlier tree.
    pub size: u64,
    /// Its root hash.
    pub root: [u8; 32],
    /// The proof.
    pub path: Vec<[u8; 32]>,
}

impl Consistency {
    /// As a section holds it.
    pub fn encode(&self) -> Vec<u8> {
        [&self.size.to_le_bytes()[..], &self.root, self.path.as_flattened()].concat()
    }

    /// The reverse.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProofError> {
        let wrong = ProofError::Length(bytes.len());
        let (size, rest) = bytes.split_first_chunk().ok_or(wrong)?;
        let (root, path) = rest.split_first_chunk().ok_or(wrong)?;
        Ok(Self { size: u64::from_le_bytes(*size), root: *root, path: hashes(path).ok_or(wrong)? })
    }

    /// Whether the tree of `size` leaves with this root begins with it.
    pub fn check(&self, size: u64, root: [u8; 32]) -> Result<(), ProofError> {
        let path: Vec<Hash> = self.path.iter().copied().map(Hash).collect();
        let fits = in_reach(size) && check_tree(&path, size, Hash(root), self.size, Hash(self.root)).is_ok();
        if fits { Ok(()) } else { Err(ProofError::Mismatch) }
    }
}

/// Whether the arithmetic on positions in a tree stays in 63 bits.
fn in_reach(size: u64) -> bool {
    size <= 1 << 62
}

/// The root of a tree that grows leaf by leaf, in memory for one path.
#[derive(Clone, Debug, Default)]
pub struct Growing {
    size: u64,
    /// Roots of the full subtrees from left to right, each with its number of leaves.
    roots: Vec<(u64, Hash)>,
}

impl Growing {
    /// Adds the hash of the next leaf.
    pub fn push(&mut self, leaf: [u8; 32]) {
        self.size += 1;
        let (mut width, mut root) = (1, Hash(leaf));
        while let Some((left_width, left)) = self.roots.pop_if(|(other, _)| *other == width) {
            root = tlog_tiles::node_hash(left, root);
            width += left_width;
        }
        self.roots.push((width, root));
    }

    /// Leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root hash.
    pub fn root(&self) -> [u8; 32] {
        let mut roots = self.roots.iter().rev().map(|(_, root)| *root);
        match roots.next() {
            Some(last) => roots.fold(last, |right, left| tlog_tiles::node_hash(left, right)).0,
            None => Sha256::digest([]).into(),
        }
    }
}

fn hashes(bytes: &[u8]) -> Option<Vec<[u8; 32]>> {
    let (hashes, rest) = bytes.as_chunks::<HASH_LEN>();
    (rest.is_empty() && hashes.len() <= PATH_MAX).then(|| hashes.to_vec())
}

const _: () = assert!(HEAD_LEN == HASH_LEN + 8, "both proofs begin with a hash and a number");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Merkle tree hash, by the definition in RFC 6962 section 2.1.
    fn root(leaves: &[[u8; 32]]) -> [u8; 32] {
        match leaves {
            [] => Sha256::digest([]).into(),
            [one] => *one,
            many => {
                let (left, right) = many.split_at(split(many.len()));
                Sha256::digest([&[1][..], &root(left), &root(right)].concat()).into()
            }
        }
    }

    fn split(n: usize) -> usize {
        1 << (usize::BITS - 1 - (n - 1).leading_zeros())
    }

    /// Section 2.1.1.
    fn audit_path(leaves: &[[u8; 32]], at: usize) -> Vec<[u8; 32]> {
        if leaves.len() < 2 {
            return Vec::new();
        }
        let (left, right) = leaves.split_at(split(leaves.len()));
        let (mut path, sibling) = match at < left.len() {
            true => (audit_path(left, at), root(right)),
            false => (audit_path(right, at - left.len()), root(left)),
        };
        path.push(sibling);
        path
    }

    /// Section 2.1.2.
    fn consistency(leaves: &[[u8; 32]], size: usize, whole: bool) -> Vec<[u8; 32]> {
        if size == leaves.len() {
            return if whole { Vec::new() } else { vec![root(leaves)] };
        }
        let (left, right) = leaves.split_at(split(leaves.len()));
        let (mut path, sibling) = match size <= left.len() {
            true => (consistency(left, size, whole), root(right)),
            false => (consistency(right, size - left.len(), false), root(left)),
        };
        path.push(sibling);
        path
    }

    fn leaves(n: usize) -> Vec<[u8; 32]> {
        (0..n).map(|n| leaf_hash(&n.to_le_bytes())).collect()
    }

    #[test]
    fn proofs_by_the_definition_of_the_rfc_hold_and_changed_ones_do_not() {
        let mut growing = Growing::default();
        assert_eq!(growing.root(), root(&[]));
        for n in 1..40 {
            let leaves = leaves(n);
            let (size, head) = (n as u64, root(&leaves));
            growing.push(leaves[n - 1]);
            assert_eq!((growing.size(), growing.root()), (size, head));
            for (index, leaf) in leaves.iter().enumerate() {
                let proof = Inclusion { leaf: *leaf, index: index as u64, path: audit_path(&leaves, index) };
                assert_eq!(proof.check(size, head), Ok(()), "leaf {index} of {n}");
                assert_eq!(Inclusion::parse(&proof.encode()), Ok(proof.clone()));
                let elsewhere = Inclusion { index: proof.index + 1, ..proof.clone() };
                assert!(elsewhere.check(size, head).is_err() && proof.check(size, [7; 32]).is_err());
                assert!(Inclusion { leaf: [7; 32], ..proof.clone() }.check(size, head).is_err());
                assert!(Inclusion { path: [&proof.path[..], &[[7; 32]]].concat(), ..proof }.check(size, head).is_err());
            }
            for old in 1..=n {
                let path = consistency(&leaves, old, true);
                let proof = Consistency { size: old as u64, root: root(&leaves[..old]), path };
                assert_eq!(proof.check(size, head), Ok(()), "{old} of {n}");
                assert_eq!(Consistency::parse(&proof.encode()), Ok(proof.clone()));
                assert!(Consistency { root: [7; 32], ..proof }.check(size, head).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn noise_proves_nothing(bytes in prop::collection::vec(any::<u8>(), 0..300), size: u64) {
            prop_assert!(Inclusion::parse(&bytes).map_or(true, |proof| proof.check(size, [7; 32]).is_err()));
            prop_assert!(Consistency::parse(&bytes).map_or(true, |proof| proof.check(size, [7; 32]).is_err()));
        }
    }
}
