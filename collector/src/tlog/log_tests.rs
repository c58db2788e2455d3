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
        // In memory where there is such a place: hundreds of databases are synced, and none is cut off.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
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
        let some = (0..checkpoint.size()).step_by(16).chain(checkpoint.size().checked_sub(1));
        some.for_each(|index| assert_eq!(tree.leaf(index).unwrap(), leaf(index)));
        for (old, root) in self.roots.range(..=checkpoint.size()) {
            assert_eq!(tree.root_at(*old).unwrap().0.to_vec(), *root, "history changed before {old}");
        }
    }
}

/// How many leaves there are before the machine begins to stop: the next batch fills a tile.
const BEFORE: u64 = 250;

/// Grows the log over the end of a tile while the machine stops after `first_stop` changes of files, once more while it
/// recovers, and then no more. Whether there were that many changes.
async fn crash(bench: &Bench, first_stop: usize) -> bool {
    let mut seen = Seen { published: BEFORE, ..Seen::default() };
    let mut next = BEFORE;
    let mut stopped = false;
    for attempt in 0..3 {
        match attempt {
            0 => bench.disk.stop_after(first_stop),
            1 => bench.disk.stop_after((first_stop * 7) % 23),
            _ => {}
        }
        let opened = bench.open().await;
        if let Err(error) = &opened {
            assert!(
                bench.disk.has_stopped(),
                "attempt {attempt} after {first_stop}: the log cannot be opened: {error}"
            );
        }
        if let Ok(log) = opened {
            for batch in [3, 5, 1, 20] {
                let leaves: Vec<_> = (next.saturating_sub(2)..next + batch).map(leaf).collect();
                let indices = log.append(&leaves).await.unwrap();
                assert_eq!(*indices.last().unwrap(), next + batch - 1);
                next += batch;
                match step(&log).await {
                    Ok(note) => seen.note(&note.unwrap(), &bench.key),
                    Err(error) => {
                        assert!(
                            bench.disk.has_stopped(),
                            "attempt {attempt} after {first_stop}: the log does not go on: {error}"
                        );
                        break;
                    }
                }
            }
            log.close().await;
        }
        stopped |= attempt == 0 && bench.disk.has_stopped();
        bench.disk.restart(|n| (first_stop + n / 2) % n);
        seen.look(bench);
    }
    assert_eq!(seen.published, next, "the last attempt is not disturbed");
    stopped
}

/// Stops at every change there is.
#[tokio::test]
async fn a_crash_anywhere_never_shows_two_histories() {
    let mut bench = Bench::new();
    let log = bench.open().await.unwrap();
    log.append(&(0..BEFORE).map(leaf).collect::<Vec<_>>()).await.unwrap();
    step(&log).await.unwrap();
    log.close().await;
    let disk = bench.disk.fork();
    let database = |suffix: &str| bench.dir.path().join(format!("leaves.db{suffix}"));
    let files = ["", "-wal", "-shm"].map(|suffix| (database(suffix), std::fs::read(database(suffix)).ok()));
    let mut stops = 0;
    while crash(&bench, stops).await {
        stops += 1;
        bench.disk = disk.fork();
        for (path, content) in &files {
            // Another file, not the same one with other content: a connection may have it open still.
            let _ = std::fs::remove_file(path);
            if let Some(content) = content {
                std::fs::write(path, content).unwrap();
            }
        }
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
    let log = bench.open().await.unwrap();
    step(&log).await.unwrap();
    assert_eq!(log.leaf(3).await.unwrap(), leaf(3), "nothing was built on it");
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
