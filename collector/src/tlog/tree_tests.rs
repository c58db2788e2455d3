use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use tlog_tiles::{check_record, check_tree, node_hash};

use super::*;
use crate::tlog::fake::FakeDisk;

/// RFC 6962, section 2.1, word for word.
struct Naive {
    leaves: Vec<Hash>,
    known: BTreeMap<(usize, usize), Hash>,
}

impl Naive {
    fn new(leaves: &[Vec<u8>]) -> Self {
        Self { leaves: leaves.iter().map(|leaf| record_hash(leaf)).collect(), known: BTreeMap::new() }
    }

    fn split(n: usize) -> usize {
        let mut k = 1;
        while k * 2 < n {
            k *= 2;
        }
        k
    }

    fn mth(&mut self, from: usize, to: usize) -> Hash {
        if let Some(known) = self.known.get(&(from, to)) {
            return *known;
        }
        let hash = match to - from {
            0 => tlog_tiles::EMPTY_HASH,
            1 => self.leaves[from],
            n => {
                let middle = from + Self::split(n);
                node_hash(self.mth(from, middle), self.mth(middle, to))
            }
        };
        self.known.insert((from, to), hash);
        hash
    }

    fn path(&mut self, m: usize, from: usize, to: usize) -> Vec<Hash> {
        if to - from == 1 {
            return Vec::new();
        }
        let middle = from + Self::split(to - from);
        if m < middle {
            let mut path = self.path(m, from, middle);
            path.push(self.mth(middle, to));
            path
        } else {
            let mut path = self.path(m, middle, to);
            path.push(self.mth(from, middle));
            path
        }
    }

    fn subproof(&mut self, m: usize, from: usize, to: usize, complete: bool) -> Vec<Hash> {
        if m == to {
            return if complete { Vec::new() } else { vec![self.mth(from, to)] };
        }
        let middle = from + Self::split(to - from);
        if m <= middle {
            let mut proof = self.subproof(m, from, middle, complete);
            proof.push(self.mth(middle, to));
            proof
        } else {
            let mut proof = self.subproof(m, middle, to, false);
            proof.push(self.mth(from, middle));
            proof
        }
    }
}

fn leaves(count: u64) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("leaf {n}").into_bytes()).collect()
}

fn empty(disk: &FakeDisk) -> Tree {
    create_dirs(disk, Path::new("/log")).unwrap();
    Tree::new(Arc::new(disk.clone()), Path::new("/log"), 0)
}

/// The sizes up to which every size and every proof is compared.
const ALL: u64 = 300;

#[test]
fn every_size_and_proof_is_that_of_the_rfc() {
    let leaves = leaves(ALL);
    let mut naive = Naive::new(&leaves);
    let mut tree = empty(&FakeDisk::default());
    for (size, leaf) in (1..=ALL).zip(&leaves) {
        tree.extend(std::slice::from_ref(leaf)).unwrap();
        assert_eq!(tree.root_at(size).unwrap(), naive.mth(0, size as usize), "{size}");
    }
    for size in 1..=ALL {
        let (root, n) = (naive.mth(0, size as usize), size as usize);
        assert_eq!(tree.root_at(size).unwrap(), root, "{size}");
        for index in 0..size {
            let proof = tree.inclusion_proof(index, size).unwrap();
            assert_eq!(proof, naive.path(index as usize, 0, n), "{index} in {size}");
            check_record(&proof, size, root, index, naive.leaves[index as usize]).unwrap();
        }
        for old in 1..=size {
            let proof = tree.consistency_proof(old, size).unwrap();
            assert_eq!(proof, naive.subproof(old as usize, 0, n, true), "{old} to {size}");
            check_tree(&proof, size, root, old, naive.mth(0, old as usize)).unwrap();
        }
    }
    assert_eq!(tree.root_at(0).unwrap(), tlog_tiles::EMPTY_HASH);
    assert!(tree.consistency_proof(0, ALL).unwrap().is_empty());
    for (index, leaf) in (0..).zip(&leaves) {
        assert_eq!(&tree.leaf(index).unwrap(), leaf);
    }
}

#[test]
fn what_is_outside_is_an_error() {
    let mut tree = empty(&FakeDisk::default());
    tree.extend(&leaves(5)).unwrap();
    assert_eq!(tree.leaf(5).unwrap_err().to_string(), "leaf 5 is not in a log of 5 leaves");
    assert!(tree.root_at(6).is_err());
    assert!(tree.inclusion_proof(3, 3).is_err());
    assert!(tree.inclusion_proof(0, u64::MAX).is_err());
    assert!(tree.consistency_proof(4, 3).is_err());
    assert!(tree.consistency_proof(5, 6).is_err());
}

#[test]
fn the_files_are_those_of_the_specification() {
    let disk = FakeDisk::default();
    let mut tree = empty(&disk);
    tree.extend(&leaves(100)).unwrap();
    tree.extend(&leaves(70_000)[100..]).unwrap();
    let files = disk.files();
    let size = |name: &str| files.get(Path::new(&format!("/log/tile/{name}"))).map(Vec::len);
    // The example of tlog-tiles: 273 full tiles and 112 more hashes, one full and 17, and one.
    assert_eq!(size("0/272"), Some(8192));
    assert_eq!(size("0/273.p/112"), Some(112 * 32));
    assert_eq!(size("1/000"), Some(8192));
    assert_eq!(size("1/001.p/17"), Some(17 * 32));
    assert_eq!(size("2/000.p/1"), Some(32));
    assert!(size("entries/272").is_some() && size("entries/273.p/112").is_some());
    assert_eq!((size("0/273"), size("3/000.p/1"), size("0/274.p/1")), (None, None, None));
    // What was partial is gone when it is full.
    assert_eq!((size("0/000.p/100"), size("entries/000.p/100")), (None, None));
    assert!(files.keys().all(|path| !path.to_string_lossy().ends_with(".tmp")));
    assert_eq!(tree.leaf(69_999).unwrap(), b"leaf 69999");
    let mut naive = Naive::new(&leaves(70_000));
    assert_eq!(tree.root_at(70_000).unwrap(), naive.mth(0, 70_000));
    assert_eq!(tree.inclusion_proof(12_345, 65_537).unwrap(), naive.path(12_345, 0, 65_537));
    assert_eq!(tree.consistency_proof(255, 65_536).unwrap(), naive.subproof(255, 0, 65_536, true));
}

#[test]
fn another_content_is_never_written_over_a_tile() {
    let disk = FakeDisk::default();
    let mut tree = empty(&disk);
    tree.extend(&leaves(3)).unwrap();
    let mut again = empty(&disk);
    again.extend(&leaves(3)).unwrap();
    let mut other = empty(&disk);
    let before = disk.files();
    let error = other.extend(&[b"x".to_vec(), b"y".to_vec(), b"z".to_vec()]).unwrap_err();
    assert!(matches!(error, TreeError::Conflict(_)), "{error}");
    assert_eq!(disk.files(), before);
}

#[test]
fn damage_is_named() {
    let disk = FakeDisk::default();
    let mut tree = empty(&disk);
    tree.extend(&leaves(5)).unwrap();
    let whole = disk.files();
    for (file, content) in [("entries/000.p/5", &b"\0\x06leaf 0"[..]), ("0/000.p/5", b"short")] {
        let path = Path::new("/log/tile").join(file);
        disk.plant(&path, content);
        let error = tree.leaf(2).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("damaged"), "{error}");
        disk.plant(&path, &whole[&path]);
        tree.leaf(2).unwrap();
    }
    disk.plant(Path::new("/log/tile/0/000.p/5"), b"short");
    assert!(tree.root_at(5).unwrap_err().to_string().contains("0/000.p/5"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However the leaves come, the tree is the same, and a tree that grew later proves what an earlier one was.
    #[test]
    fn batches_do_not_matter(batches in prop::collection::vec(1_u64..400, 1..6), from in 0_u64..2000) {
        let total: u64 = batches.iter().sum();
        let all = leaves(total);
        let disk = FakeDisk::default();
        let mut tree = empty(&disk);
        let mut naive = Naive::new(&all);
        for batch in batches {
            let done = tree.size();
            tree.extend(&all[done as usize..(done + batch) as usize]).unwrap();
            prop_assert_eq!(tree.root_at(tree.size()).unwrap(), naive.mth(0, (done + batch) as usize));
        }
        let old = 1 + from % total;
        prop_assert_eq!(tree.consistency_proof(old, total).unwrap(), naive.subproof(old as usize, 0, total as usize, true));
        let index = from % total;
        prop_assert_eq!(tree.leaf(index).unwrap(), &all[index as usize][..]);
    }

    /// Proofs from anybody: no panic, no wrong verdict, whatever the sizes.
    #[test]
    fn foreign_proofs_never_panic(
        proof in prop::collection::vec(any::<[u8; 32]>(), 0..64), new: u64, old: u64, root: [u8; 32], before: [u8; 32],
    ) {
        let proof: Vec<Hash> = proof.into_iter().map(Hash).collect();
        let checked = check_tree(&proof, new, Hash(root), old, Hash(before));
        prop_assert!(checked.is_err() || (old == new && root == before));
        let _ = check_record(&proof, new, Hash(root), old, Hash(before));
    }
}
