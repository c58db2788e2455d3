use std::sync::Arc;

use tlog_tiles::Hash;

use super::*;
use crate::tlog::disk::create_dirs;
use crate::tlog::fake::FakeDisk;
use crate::tlog::note::KeyType;
use crate::tlog::tree::Tree;

const NOW: u64 = 1_700_000_000;

/// A log that a witness watches, with all that it ever was.
struct Bench {
    disk: FakeDisk,
    log: NoteKey,
    key: NoteKey,
    tree: Tree,
}

impl Bench {
    fn new() -> Self {
        let disk = FakeDisk::default();
        create_dirs(&disk, Path::new("/state")).unwrap();
        let mut tree = tree("/log");
        tree.extend(&(0..50_u8).map(|n| vec![n]).collect::<Vec<_>>()).unwrap();
        Self {
            disk,
            tree,
            log: NoteKey::generate("log.example", KeyType::Note).unwrap(),
            key: NoteKey::generate("w.example", KeyType::Cosignature).unwrap(),
        }
    }

    fn open(&self) -> Witness {
        let logs = [("log.example".to_owned(), vec![self.log.public().clone()])].into();
        Witness::open(Arc::new(self.disk.clone()), Path::new("/state"), self.key.clone(), logs).unwrap()
    }

    fn note(&self, size: u64) -> Vec<u8> {
        SignedCheckpoint::sign(&self.log, size, self.tree.root_at(size).unwrap()).unwrap().to_bytes()
    }

    fn request(&self, old: u64, size: u64) -> Vec<u8> {
        let proof = self.tree.consistency_proof(old, size).unwrap();
        AddCheckpoint { old, proof, note: &self.note(size) }.to_bytes()
    }

    fn check_line(&self, line: &[u8], size: u64) {
        let note = [self.note(size), line.to_vec()].concat();
        let keys = [self.log.public().clone(), self.key.public().clone()];
        assert_eq!(SignedCheckpoint::parse(&note).unwrap().verify(&keys).unwrap().len(), 2);
    }
}

fn tree(root: &str) -> Tree {
    let disk = FakeDisk::default();
    create_dirs(&disk, Path::new(root)).unwrap();
    Tree::new(Arc::new(disk), Path::new(root), 0)
}

#[test]
fn a_log_that_grows_is_cosigned_over_restarts() {
    let bench = Bench::new();
    for (old, size) in [(0, 3), (3, 3), (3, 20), (20, 50)] {
        let witness = bench.open();
        let line = witness.add_checkpoint(&bench.request(old, size), NOW).unwrap();
        bench.check_line(&line, size);
        let served = witness.checkpoint(&origin_hash("log.example")).unwrap();
        assert!(served.ends_with(&line) && served.starts_with(&bench.note(size)));
        assert_eq!(witness.sizes().collect::<Vec<_>>(), [("log.example", Some(size))]);
    }
    assert_eq!(bench.open().checkpoint(&origin_hash("other")), None);
}

#[test]
fn each_wrong_request_has_its_refusal() {
    let bench = Bench::new();
    let witness = bench.open();
    let refused = |body: &[u8]| witness.add_checkpoint(body, NOW).unwrap_err();
    assert!(matches!(refused(b"old 0\n"), Refusal::Malformed(_)));
    assert!(matches!(refused(b"old 0\n\nno note"), Refusal::Malformed(_)));
    let stranger = NoteKey::generate("stranger.example", KeyType::Note).unwrap();
    let foreign = SignedCheckpoint::sign(&stranger, 1, Hash([1; 32])).unwrap().to_bytes();
    let body = AddCheckpoint { old: 0, proof: vec![], note: &foreign }.to_bytes();
    assert_eq!(refused(&body), Refusal::UnknownLog);
    let impostor = NoteKey::generate("log.example", KeyType::Note).unwrap();
    let forged = SignedCheckpoint::sign(&impostor, 1, Hash([1; 32])).unwrap().to_bytes();
    let body = AddCheckpoint { old: 0, proof: vec![], note: &forged }.to_bytes();
    assert!(matches!(refused(&body), Refusal::Signature(_)));
    let later = AddCheckpoint { old: 9, proof: vec![], note: &bench.note(3) }.to_bytes();
    assert!(matches!(refused(&later), Refusal::Malformed(_)));
    assert_eq!(refused(&bench.request(3, 20)), Refusal::Size(0));
    let empty = SignedCheckpoint::sign(&bench.log, 0, Hash([1; 32])).unwrap().to_bytes();
    let body = AddCheckpoint { old: 0, proof: vec![], note: &empty }.to_bytes();
    assert!(matches!(refused(&body), Refusal::Inconsistent(_)));
    let needless = AddCheckpoint { old: 0, proof: vec![Hash([1; 32])], note: &bench.note(3) }.to_bytes();
    assert!(matches!(refused(&needless), Refusal::Inconsistent(_)));
    assert_eq!(witness.sizes().collect::<Vec<_>>(), [("log.example", None)]);

    witness.add_checkpoint(&bench.request(0, 20), NOW).unwrap();
    assert_eq!(refused(&bench.request(0, 20)), Refusal::Size(20));
    assert_eq!(refused(&bench.request(3, 20)), Refusal::Size(20));
    let mut proof = bench.tree.consistency_proof(20, 50).unwrap();
    proof.swap(0, 1);
    let body = AddCheckpoint { old: 20, proof, note: &bench.note(50) }.to_bytes();
    assert!(matches!(refused(&body), Refusal::Inconsistent(_)));
}

#[test]
fn a_rewritten_log_is_refused_and_its_signature_kept() {
    let bench = Bench::new();
    let witness = bench.open();
    witness.add_checkpoint(&bench.request(0, 20), NOW).unwrap();
    let mut rewritten = tree("/log");
    rewritten.extend(&(100..150_u8).map(|n| vec![n]).collect::<Vec<_>>()).unwrap();
    for size in [20, 50] {
        let note = SignedCheckpoint::sign(&bench.log, size, rewritten.root_at(size).unwrap()).unwrap().to_bytes();
        let proof = rewritten.consistency_proof(20, size).unwrap();
        let body = AddCheckpoint { old: 20, proof, note: &note }.to_bytes();
        assert!(matches!(witness.add_checkpoint(&body, NOW), Err(Refusal::Inconsistent(_))), "{size}");
    }
    let path = Path::new("/state").join(origin_hash("log.example")).with_extension("conflict");
    let evidence = bench.disk.read(&path, REQUEST_MAX).unwrap().unwrap();
    let kept = SignedCheckpoint::parse(AddCheckpoint::parse(&evidence).unwrap().note).unwrap();
    assert_eq!(kept.size(), 20, "the first is kept");
    witness.add_checkpoint(&bench.request(20, 50), NOW).unwrap();
}

#[test]
fn no_cosignature_without_its_state_on_disk() {
    let bench = Bench::new();
    bench.open().add_checkpoint(&bench.request(0, 3), NOW).unwrap();
    let mut cosigned = 3;
    for stop in 0..12 {
        for chance in 0..3 {
            let witness = bench.open();
            bench.disk.stop_after(stop);
            let answer = witness.add_checkpoint(&bench.request(cosigned, 20), NOW);
            bench.disk.restart(|n| chance % n);
            let kept = bench.open().sizes().next().unwrap().1.unwrap();
            match answer {
                Ok(_) => assert_eq!(kept, 20),
                Err(refusal) => assert_eq!(refusal, Refusal::Storage),
            }
            assert!(kept >= cosigned);
            cosigned = kept;
        }
    }
    assert_eq!(cosigned, 20);
}

#[test]
fn a_clock_set_back_and_too_many_requests_are_refused() {
    let bench = Bench::new();
    let witness = bench.open();
    witness.add_checkpoint(&bench.request(0, 3), NOW).unwrap();
    assert_eq!(witness.add_checkpoint(&bench.request(3, 4), NOW - 1), Err(Refusal::Clock));
    let mut turn = Turn { last: None, tokens: BURST, counted: Instant::now() };
    let start = turn.counted;
    let granted = (0..100).filter(|_| turn.take_token(start)).count();
    assert_eq!(granted, BURST as usize);
    assert!(!turn.take_token(start + REFILL / 2));
    assert!(turn.take_token(start + REFILL));
    assert!(!turn.take_token(start + REFILL));
    let later = start + REFILL * 1000;
    assert_eq!((0..100).filter(|_| turn.take_token(later)).count(), BURST as usize);
}

#[test]
fn lost_or_foreign_state_is_not_taken() {
    let bench = Bench::new();
    bench.open().add_checkpoint(&bench.request(0, 3), NOW).unwrap();
    let open = |key: &NoteKey, dir: &str| {
        let logs = [("log.example".to_owned(), vec![bench.log.public().clone()])].into();
        let opened = Witness::open(Arc::new(bench.disk.clone()), Path::new(dir), key.clone(), logs);
        format!("{:#}", opened.err().unwrap())
    };
    let other = NoteKey::generate("w.example", KeyType::Cosignature).unwrap();
    assert!(open(&other, "/state").contains("was not cosigned with witness.key"));
    assert!(open(&bench.key, "/gone").contains("/gone is missing"));
    let path = Path::new("/state").join(origin_hash("log.example"));
    bench.disk.plant(&path, b"noise");
    assert!(open(&bench.key, "/state").contains("not a checkpoint"));
}
