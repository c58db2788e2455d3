//! Keys through every crash, and what the notary puts into the record.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use breakglass_api::{
    checkpoint::{Kind, PublicKey, Signed, Statement, reason},
    frame::{Frame, Hash, Unpacker},
    v1::{AgentStarted, Alert, SessionClosed, SessionOpened, event::Body},
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{
    keys::{FileKeys, KeyStore, Origin, RENEW},
    notary::Notary,
    state::{FILE_MAX, KeyState},
};
use crate::{
    recorder::{Options, Recorder},
    spool::{
        FileSystem, Limits, Spool,
        fake::{FakeDisk, Faults},
        model::DIR,
    },
};

const KEYS: &str = "/keys";
const HOST: [u8; 16] = [8; 16];
const PATIENCE: Duration = Duration::from_secs(20);
/// More file operations than a change of the key makes.
const STEPS_MAX: u32 = 40;

fn open(disk: &FakeDisk) -> FileKeys {
    FileKeys::open_on(Arc::new(disk.clone()), Path::new(KEYS)).unwrap()
}

fn statement(keys: &FileKeys, kind: Kind, seq: u64) -> Statement {
    Statement {
        kind,
        reasons: reason::ACTIVITY,
        host_id: HOST,
        host_key: keys.host_key(),
        epoch: keys.epoch(),
        stream_id: [4; 16],
        seq,
        hash: [seq as u8; 32],
        boot_id: [0; 16],
        boot_ns: 0,
        wall_ns: 0,
        session: [0; 16],
        session_seq: 0,
        numbers: Vec::new(),
    }
}

fn turn(keys: &mut FileKeys, seq: u64, kind: fn(PublicKey) -> Kind) -> Option<Signed> {
    let next = keys.prepare().ok()?;
    let statement = statement(keys, kind(next), seq);
    let signature = keys.sign(&Statement::signing_input(&statement.encode())).ok()?;
    let link = Signed { statement, signature };
    keys.advance(&link).ok().map(|()| link)
}

/// Checks that the links lead from the host key to the key in use; returns them by epoch.
fn chain(keys: &FileKeys) -> BTreeMap<u64, Signed> {
    let mut key = keys.host_key();
    let links = keys.links(1000).unwrap();
    for (epoch, link) in (0..).zip(&links) {
        assert_eq!(link.statement.epoch, epoch);
        link.verify(&key).unwrap();
        let Kind::NextKey(next) = link.statement.kind else { panic!("{:?}", link.statement.kind) };
        key = next;
    }
    assert_eq!((links.len() as u64, key), (keys.epoch(), keys.public()));
    links.into_iter().map(|link| (link.statement.epoch, link)).collect()
}

#[test]
fn a_key_is_made_once_and_kept() {
    let disk = FakeDisk::default();
    let first = open(&disk);
    assert_eq!((first.origin(), first.epoch(), first.public()), (Origin::FirstStart, 0, first.host_key()));
    let again = open(&disk);
    assert_eq!((again.origin(), again.host_key(), again.epoch()), (Origin::Kept, first.host_key(), 0));
    let public = disk.snapshot().remove(&Path::new(KEYS).join("host-key.pub")).unwrap();
    assert_eq!(public, format!("{}\n", hex::encode(first.host_key())).into_bytes());
}

#[test]
fn an_old_secret_is_in_no_file() {
    let disk = FakeDisk::default();
    let mut keys = open(&disk);
    for seq in 1..5 {
        let file = disk.snapshot().remove(&Path::new(KEYS).join("current")).unwrap();
        let secret = KeyState::decode(&file).unwrap().key.to_bytes();
        assert!(turn(&mut keys, seq, Kind::NextKey).is_some());
        for (path, content) in disk.snapshot() {
            assert!(!content.windows(32).any(|bytes| bytes == secret), "{}", path.display());
        }
    }
    assert_eq!(chain(&keys).len(), 4);
}

#[test]
fn a_new_host_key_is_vouched_for_by_the_old_one() {
    let disk = FakeDisk::default();
    let mut keys = open(&disk);
    turn(&mut keys, 1, Kind::NextKey).unwrap();
    let (old_host, old_key) = (keys.host_key(), keys.public());
    assert!(!keys.wants_renewal());
    disk.create(&Path::new(KEYS).join(RENEW)).unwrap();
    assert!(keys.wants_renewal());
    let link = turn(&mut keys, 2, Kind::NewHostKey).unwrap();
    turn(&mut keys, 3, Kind::NextKey).unwrap();
    let keys = open(&disk);
    assert!(!keys.wants_renewal());
    assert_eq!((link.statement.host_key, link.verify(&old_key)), (old_host, Ok(())));
    assert_eq!((keys.renewal(), keys.epoch()), (Some(link.clone()), 1));
    assert_eq!(link.statement.kind, Kind::NewHostKey(keys.host_key()));
    assert_eq!(chain(&keys).len(), 1);
}

#[test]
fn a_damaged_key_is_set_aside_and_replaced() {
    let disk = FakeDisk::default();
    let first = open(&disk).host_key();
    disk.damage(&Path::new(KEYS).join("current"), |content| content[50] ^= 1);
    let keys = open(&disk);
    assert_eq!(keys.origin(), Origin::Lost);
    assert_ne!(keys.host_key(), first);
    assert!(disk.files().contains(&Path::new(KEYS).join("damaged-1")));
}

/// The links of a lost chain, or of one that was renewed, stay before those of the next.
#[test]
fn chains_follow_one_another() {
    let disk = FakeDisk::default();
    let mut keys = open(&disk);
    for seq in 1..4 {
        turn(&mut keys, seq, Kind::NextKey).unwrap();
    }
    disk.damage(&Path::new(KEYS).join("current"), |content| content[50] ^= 1);
    let mut keys = open(&disk);
    for seq in 1..4 {
        turn(&mut keys, seq, Kind::NextKey).unwrap();
        assert_eq!(chain(&keys).len() as u64, seq, "after a lost key");
    }
    disk.create(&Path::new(KEYS).join(RENEW)).unwrap();
    turn(&mut keys, 4, Kind::NewHostKey).unwrap();
    for seq in 1..4 {
        turn(&mut keys, seq, Kind::NextKey).unwrap();
        assert_eq!(chain(&keys).len() as u64, seq, "after a renewed one");
    }
}

#[test]
fn a_full_disk_leaves_a_key_that_signs() {
    for after in 0..STEPS_MAX {
        let disk = FakeDisk::default();
        let mut keys = open(&disk);
        disk.set_faults(Faults { after: Some(after), count: u32::MAX, errno: libc_enospc(), ..Faults::default() });
        let turned = turn(&mut keys, 1, Kind::NextKey);
        disk.set_faults(Faults::default());
        assert_eq!(keys.mend().unwrap(), turned.is_none());
        assert!(turn(&mut keys, 2, Kind::NextKey).is_some());
        chain(&keys);
        if turned.is_some() {
            return;
        }
    }
    panic!("a change makes more than {STEPS_MAX} file operations");
}

fn libc_enospc() -> i32 {
    nix::errno::Errno::ENOSPC as i32
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Stops the machine at every step of a change, however the disk tears what was not synced.
    #[test]
    fn any_crash_leaves_one_usable_key(seed: u64, before in 0u64..3) {
        for after in 0..STEPS_MAX {
            let mut random = seed;
            let mut chance = |n: usize| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) as usize % n
            };
            let disk = FakeDisk::default();
            let mut keys = open(&disk);
            for seq in 1..=before {
                turn(&mut keys, seq, Kind::NextKey).unwrap();
            }
            let known = chain(&keys);
            let (host_key, old) = (keys.host_key(), keys.public());
            disk.set_faults(Faults { after: Some(after), count: u32::MAX, errno: 5, ..Faults::default() });
            let turned = turn(&mut keys, 9, Kind::NextKey);
            disk.crash(&mut chance);
            let mut keys = open(&disk);
            prop_assert_eq!(keys.host_key(), host_key);
            let found = chain(&keys);
            prop_assert!(known.iter().all(|(epoch, link)| found.get(epoch) == Some(link)));
            // What was reported done is done; a key that is out of use never comes back.
            prop_assert!(turned.is_none() || keys.public() != old);
            if let Some(link) = &turned {
                prop_assert_eq!(found.get(&before), Some(link));
            }
            turn(&mut keys, 10, Kind::NextKey).unwrap();
            let later = chain(&keys);
            prop_assert!(found.iter().all(|(epoch, link)| later.get(epoch) == Some(link)), "two successors of one key");
            if turned.is_some() {
                break;
            }
            prop_assert!(after + 1 < STEPS_MAX);
        }
    }

    #[test]
    fn noise_is_no_key(bytes in proptest::collection::vec(any::<u8>(), 0..FILE_MAX)) {
        prop_assert!(KeyState::decode(&bytes).is_none());
    }
}

/// One host: a spool and keys on a disk that can crash.
struct Host {
    disk: FakeDisk,
    recorder: Recorder,
    notary: Notary,
}

impl Host {
    fn start(disk: FakeDisk) -> Self {
        let limits = Limits { max_bytes: 64 << 20, segment_bytes: 1 << 20 };
        let (spool, recovery) = Spool::open_on(Arc::new(disk.clone()), Path::new(DIR), limits).unwrap();
        let recorder = Recorder::start(None, spool, &recovery, &[], Options::default()).unwrap();
        let notary = Notary::start(Box::new(open(&disk)), recorder.clone(), HOST);
        Self { disk, recorder, notary }
    }

    async fn stop(self) -> FakeDisk {
        self.notary.finish().await;
        self.recorder.stop().await;
        self.disk
    }

    /// Waits until the notary has nothing to do.
    async fn settled(&self, what: impl Fn(&[Found]) -> bool) -> Vec<Found> {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = statements(&self.disk);
            if what(&found) {
                return found;
            }
            assert!(Instant::now() < until, "it did not come about: {found:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A statement in the record: the frame that holds it, and what it says.
type Found = (u64, Signed);

/// All frames of the spool in order.
fn frames(disk: &FakeDisk) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (path, content) in disk.snapshot() {
        if path.starts_with(DIR) && path.extension().is_some_and(|end| end == "seg") {
            let mut rest = content.as_slice();
            while let Ok(len) = breakglass_api::frame::frame_len(rest) {
                let Some((frame, after)) = rest.split_at_checked(len) else { break };
                all.push(frame.to_vec());
                rest = after;
            }
        }
    }
    all
}

fn bodies(disk: &FakeDisk) -> Vec<(u64, Body)> {
    let (mut all, mut unpacker) = (Vec::new(), Unpacker::default());
    for bytes in frames(disk) {
        // The last one may be half written just now.
        let Ok(frame) = Frame::parse(&bytes) else { break };
        let batch = unpacker.batch(&frame).unwrap();
        all.extend(batch.events.into_iter().filter_map(|event| Some((frame.header.seq, event.body?))));
    }
    all
}

fn statements(disk: &FakeDisk) -> Vec<Found> {
    let signed = |(seq, body)| match body {
        Body::Checkpoint(checkpoint) => Some((seq, Signed::from_message(checkpoint.signed.as_ref()).unwrap())),
        Body::KeyEvolved(evolved) => Some((seq, Signed::from_message(evolved.signed.as_ref()).unwrap())),
        _ => None,
    };
    bodies(disk).into_iter().filter_map(signed).collect()
}

/// Checks every statement in the record: by the right key, about frames before it, in order.
fn verify(disk: &FakeDisk) {
    let hashes: BTreeMap<u64, Hash> = frames(disk)
        .iter()
        .map(|bytes| Frame::parse(bytes).unwrap())
        .map(|frame| (frame.header.seq, frame.hash))
        .collect();
    let mut keys: Vec<PublicKey> = Vec::new();
    for (seq, signed) in statements(disk) {
        let statement = &signed.statement;
        if keys.is_empty() {
            keys.push(statement.host_key);
        }
        signed.verify(&keys[statement.epoch as usize]).unwrap();
        assert!(statement.seq < seq);
        assert_eq!(hashes.get(&statement.seq).copied().unwrap_or_default(), statement.hash);
        if let Kind::NextKey(next) = statement.kind {
            assert_eq!(statement.epoch as usize + 1, keys.len(), "an old key signed after its successor");
            keys.push(next);
        } else {
            assert_eq!(statement.epoch as usize + 1, keys.len(), "an old key signed");
        }
    }
}

fn alert() -> Body {
    Body::Alert(Alert { code: "x".into(), ..Alert::default() })
}

#[tokio::test]
async fn a_session_is_signed_for_when_it_opens_and_when_it_closes() {
    let host = Host::start(FakeDisk::default());
    let session = Uuid::from_u128(7);
    host.recorder.record(None, Body::AgentStarted(AgentStarted::default())).await.unwrap();
    let turns = |found: &[Found]| found.iter().filter(|(_, s)| matches!(s.statement.kind, Kind::NextKey(_))).count();
    host.settled(|found| turns(found) == 1).await;
    let opened = host.recorder.record(Some(session), Body::SessionOpened(SessionOpened::default())).await.unwrap();
    let marked =
        |found: &[Found], what| found.iter().any(|(_, signed)| signed.statement.marks(what, *session.as_bytes()));
    let found = host.settled(|found| marked(found, reason::OPENED) && turns(found) == 2).await;
    let mark = &found.iter().find(|(_, s)| s.statement.reasons & reason::OPENED != 0).unwrap().1.statement;
    assert_eq!(mark.session_seq, opened);
    let closed = host.recorder.record(Some(session), Body::SessionClosed(SessionClosed::default())).await.unwrap();
    let found = host.settled(|found| marked(found, reason::CLOSED) && turns(found) == 3).await;
    let mark = &found.iter().find(|(_, s)| s.statement.reasons & reason::CLOSED != 0).unwrap().1.statement;
    assert_eq!(mark.session_seq, closed);
    verify(&host.stop().await);
}

#[tokio::test]
async fn at_rest_nothing_is_signed() {
    let host = Host::start(FakeDisk::default());
    host.recorder.record(None, alert()).await.unwrap();
    host.settled(|found| found.len() >= 2).await;
    host.recorder.barrier().await.unwrap();
    let reach = host.recorder.reach();
    let mut durable = host.recorder.durable();
    durable.borrow_and_update();
    let more = tokio::time::timeout(super::notary::PACE * 2, durable.changed()).await;
    assert!(more.is_err(), "{:?} after {reach:?}", host.recorder.reach());
    host.stop().await;
}

#[tokio::test]
async fn many_events_share_a_checkpoint_and_the_end_is_signed_for() {
    let host = Host::start(FakeDisk::default());
    for _ in 0..200 {
        let changed = breakglass_api::v1::AccountChanged::default();
        host.recorder.record(None, Body::AccountChanged(changed)).await.unwrap();
    }
    let disk = host.stop().await;
    verify(&disk);
    let (content, found) = (bodies(&disk), statements(&disk));
    let last = content.iter().rev().find(|(_, body)| matches!(body, Body::AccountChanged(_))).unwrap().0;
    assert!(found.iter().any(|(_, signed)| signed.statement.seq >= last));
    assert!(found.len() < 20, "{} statements", found.len());
}

#[tokio::test]
async fn a_restart_goes_on_with_the_same_chain_of_keys() {
    let mut disk = FakeDisk::default();
    for _ in 0..3 {
        let host = Host::start(disk);
        host.recorder.record(None, alert()).await.unwrap();
        disk = host.stop().await;
    }
    verify(&disk);
    let introduced: Vec<_> = bodies(&disk)
        .into_iter()
        .filter_map(|(_, body)| if let Body::KeyIntroduced(key) = body { Some((key.reason, key.epoch)) } else { None })
        .collect();
    let expected = [("first-start", 0), ("agent-started", 1), ("agent-started", 2)];
    assert_eq!(introduced, expected.map(|(reason, epoch)| (reason.to_owned(), epoch)));
}

#[tokio::test]
async fn a_new_stream_is_told_the_links_of_the_old_one() {
    let host = Host::start(FakeDisk::default());
    host.recorder.record(None, alert()).await.unwrap();
    let disk = host.stop().await;
    let spool: Vec<_> = disk.files().into_iter().filter(|path| path.starts_with(DIR)).collect();
    for path in spool {
        disk.remove(&path).unwrap();
    }
    let host = Host::start(disk);
    host.recorder.record(None, alert()).await.unwrap();
    let disk = host.stop().await;
    let introduced = bodies(&disk).into_iter().find_map(|(_, body)| match body {
        Body::KeyIntroduced(introduced) => Some(introduced),
        _ => None,
    });
    let introduced = introduced.unwrap();
    assert_eq!((introduced.reason.as_str(), introduced.epoch, introduced.links.len()), ("new-stream", 1, 1));
}
