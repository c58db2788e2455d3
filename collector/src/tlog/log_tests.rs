use std::collections::BTreeMap;

use super::*;
use crate::tlog::fake::FakeDisk;
use crate::tlog::note::KeyType;

fn leaf(n: u64) -> Vec<u8> {
    format!("leaf {n}").into_bytes()
}

/// A log whose files can be stopped at any moment. The database is a real one: a leaf is in it or not.
struct Bench {
    dir: tempfile::TempDir,
    disk: FakeDisk,
    key: NoteKey,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, disk: FakeDisk::default(), key: NoteKey::generate("log.example", KeyType::Note).unwrap() }
    }

    async fn open(&self) -> Result<Arc<Log>> {
        Log::open(Arc::new(self.disk.clone()), Paths::new(self.dir.path()), self.key.clone()).await
    }

    async fn error(&self) -> String {
        self.open().await.err().unwrap().to_string()
    }
}

async fn step(log: &Arc<Log>) -> Result<Option<Vec<u8>>> {
    let Some(checkpoint) = log.advance().await? else { return Ok(None) };
    let note = checkpoint.to_bytes();
    log.publish(note.clone()).await?;
    Ok(Some(note))
}

#[tokio::test]
async fn leaves_in_checkpoints_and_proofs_out() {
    let bench = Bench::new();
    let log = bench.open().await.unwrap();
    assert!(log.advance().await.unwrap().is_none());
    assert_eq!(log.checkpoint().await.unwrap(), None);
    assert_eq!(log.append(&[leaf(0), leaf(1), leaf(0)]).await.unwrap(), [0, 1, 0]);
    let note = step(&log).await.unwrap().unwrap();
    assert_eq!(log.checkpoint().await.unwrap(), Some(note.clone()));
    assert_eq!(log.append(&[leaf(1), leaf(2)]).await.unwrap(), [1, 2]);
    assert_eq!(step(&log).await.unwrap().unwrap(), log.checkpoint().await.unwrap().unwrap());
    drop(log);

    let log = bench.open().await.unwrap();
    assert_eq!((log.len().await.unwrap(), log.signed().unwrap().size), (3, 3));
    assert_eq!(log.leaf(1).await.unwrap(), leaf(1));
    assert_eq!(log.index_of(&leaf(2)).await.unwrap(), Some(2));
    let proof = log.inclusion_proof(2, 3).await.unwrap();
    let root = log.published().unwrap().root;
    tlog_tiles::check_record(&proof, 3, root, 2, tlog_tiles::record_hash(&leaf(2))).unwrap();
    let before = SignedCheckpoint::parse(&note).unwrap();
    let proof = log.consistency_proof(2, 3).await.unwrap();
    tlog_tiles::check_tree(&proof, 3, root, 2, before.root()).unwrap();
}

#[tokio::test]
async fn what_is_too_large_is_refused_whole() {
    let bench = Bench::new();
    let log = bench.open().await.unwrap();
    assert!(log.append(&[leaf(0), vec![0; LEAF_MAX + 1]]).await.is_err());
    assert!(log.append(&vec![leaf(0); APPEND_MAX + 1]).await.is_err());
    assert_eq!(log.len().await.unwrap(), 0);
    assert_eq!(log.append(&[vec![0; LEAF_MAX], vec![]]).await.unwrap(), [0, 1]);
    step(&log).await.unwrap();
    assert_eq!(log.leaf(0).await.unwrap().len(), LEAF_MAX);
    assert!(log.leaf(1).await.unwrap().is_empty());
}

/// Everything that was ever signed or published, by anybody who saw it.
#[derive(Default)]
struct Seen {
    roots: BTreeMap<u64, Vec<u8>>,
    published: u64,
}

impl Seen {
    fn note(&mut self, note: &[u8], key: &NoteKey) {
        let checkpoint = verified(note, Path::new("seen"), key).unwrap();
        let root = checkpoint.root().0.to_vec();
        let before = self.roots.entry(checkpoint.size()).or_insert_with(|| root.clone());
        assert_eq!(*before, root, "two roots for size {}", checkpoint.size());
    }

    fn look(&mut self, bench: &Bench) {
        let paths = Paths::new(bench.dir.path());
        let files = bench.disk.files();
        for path in [paths.signed(), paths.checkpoint()] {
            if let Some(note) = files.get(&path) {
                self.note(note, &bench.key);
            }
        }
        let Some(note) = files.get(&paths.checkpoint()) else { return assert_eq!(self.published, 0) };
        let checkpoint = verified(note, &paths.checkpoint(), &bench.key).unwrap();
        assert!(checkpoint.size() >= self.published, "the published log shrank");
        self.published = checkpoint.size();
        // Whoever fetches it now can check all of it.
        let tree = Tree::new(Arc::new(bench.disk.clone()), &paths.public(), checkpoint.size());
        assert_eq!(tree.root_at(checkpoint.size()).unwrap(), checkpoint.root());
        (0..checkpoint.size()).for_each(|index| assert_eq!(tree.leaf(index).unwrap(), leaf(index)));
        for (old, root) in self.roots.range(..=checkpoint.size()) {
            assert_eq!(tree.root_at(*old).unwrap().0.to_vec(), *root, "history changed before {old}");
        }
    }
}

/// Stops the machine at every change of a file, with different outcomes of what was not synced, in the middle of growing a
/// log over the end of a tile; and once more while it recovers.
#[tokio::test]
async fn a_crash_anywhere_never_shows_two_histories() {
    let mut stops = 0;
    for first_stop in 0.. {
        let mut stopped = false;
        for luck in 0..3_usize {
            let bench = Bench::new();
            let mut seen = Seen::default();
            let mut next = 0_u64;
            let chance = |n: usize| (luck + n / 2) % n;
            for attempt in 0..3 {
                match attempt {
                    0 => bench.disk.stop_after(first_stop),
                    1 => bench.disk.stop_after((first_stop * 7 + luck * 3) % 23),
                    _ => {}
                }
                if let Ok(log) = bench.open().await {
                    for batch in [250, 5, 1, 3] {
                        let leaves: Vec<_> = (next.saturating_sub(2)..next + batch).map(leaf).collect();
                        let indices = log.append(&leaves).await.unwrap();
                        assert_eq!(*indices.last().unwrap(), next + batch - 1);
                        next += batch;
                        match step(&log).await {
                            Ok(note) => seen.note(&note.unwrap(), &bench.key),
                            Err(_) => break,
                        }
                    }
                }
                stopped |= bench.disk.has_stopped();
                bench.disk.restart(chance);
                seen.look(&bench);
            }
            assert!(!bench.disk.has_stopped());
            assert_eq!(seen.published, next, "the last attempt is not disturbed");
        }
        if !stopped || first_stop > 400 {
            break;
        }
        stops += 1;
    }
    assert!(stops > 50, "only {stops} places to stop at");
}

#[tokio::test]
async fn a_rolled_back_database_is_noticed() {
    let bench = Bench::new();
    let log = bench.open().await.unwrap();
    log.append(&[leaf(0), leaf(1)]).await.unwrap();
    step(&log).await.unwrap();
    log.close().await;
    for name in ["leaves.db", "leaves.db-wal", "leaves.db-shm"] {
        let _ = std::fs::remove_file(bench.dir.path().join(name));
    }
    let error = bench.error().await;
    assert!(error.contains("leaves.db holds 0 leaves, but 2 were signed"), "{error}");
}

#[tokio::test]
async fn changed_tiles_stop_the_log() {
    let bench = Bench::new();
    let paths = Paths::new(bench.dir.path());
    let log = bench.open().await.unwrap();
    log.append(&[leaf(0), leaf(1)]).await.unwrap();
    step(&log).await.unwrap();
    let tile = paths.public().join("tile/0/000.p/2");
    let before = bench.disk.files();
    bench.disk.plant(&tile, &[7; 64]);
    log.append(&[leaf(2)]).await.unwrap();
    let error = step(&log).await.unwrap_err();
    assert!(matches!(error, LogError::Inconsistent(_)), "{error}");
    assert_eq!(log.append(&[leaf(3)]).await.unwrap(), [3], "ingest goes on");
    assert_eq!(log.published().unwrap().size, 2);
    log.close().await;
    assert!(bench.error().await.contains("root"), "a start does not hide it");
    bench.disk.plant(&tile, &before[&tile]);
    // What was built on the changed tile is in the way, and is not replaced in silence either.
    let log = bench.open().await.unwrap();
    assert!(matches!(step(&log).await, Err(LogError::Inconsistent(_))));
}

#[tokio::test]
async fn what_does_not_follow_is_not_published() {
    let bench = Bench::new();
    let log = bench.open().await.unwrap();
    log.append(&[leaf(0), leaf(1)]).await.unwrap();
    let old = step(&log).await.unwrap().unwrap();
    log.append(&[leaf(2)]).await.unwrap();
    let new = step(&log).await.unwrap().unwrap();
    let sign = |size, root| SignedCheckpoint::sign(&bench.key, size, root).unwrap().to_bytes();
    let stranger = NoteKey::generate("log.example", KeyType::Note).unwrap();
    let foreign = SignedCheckpoint::sign(&stranger, 3, log.signed().unwrap().root).unwrap().to_bytes();
    for note in [old, sign(3, Hash([1; 32])), sign(4, Hash([1; 32])), foreign, b"noise".to_vec()] {
        assert!(log.publish(note).await.is_err());
        assert_eq!(log.checkpoint().await.unwrap().unwrap(), new);
    }
}

#[tokio::test]
async fn another_key_is_not_taken() {
    let mut bench = Bench::new();
    let log = bench.open().await.unwrap();
    log.append(&[leaf(0)]).await.unwrap();
    step(&log).await.unwrap();
    log.close().await;
    bench.key = NoteKey::generate("log.example", KeyType::Note).unwrap();
    assert!(bench.error().await.contains("is not a checkpoint of this log"));
}
