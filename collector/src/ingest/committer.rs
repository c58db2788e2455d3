//! The one writer: checks frames against their chains, makes them durable in groups, then reports.
//!
//! While one group is being written to the disk the next one gathers, so the cost of a flush is shared by whatever came in the
//! meantime and nobody waits for a timer.

use std::collections::HashMap;
use std::sync::Arc;

use breakglass_api::frame::{Hash, Header};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::ledger::{Misfit, Verdict, judge, judge_held};
use crate::store::{Head, NewFrame, Result, Store};
use crate::wall_clock_ns;

/// Frames in one transaction: enough to share a flush, few enough that the first is acknowledged soon.
const GROUP_FRAMES: usize = 256;
/// Bytes in one transaction, so that one of large frames does not take seconds.
const GROUP_BYTES: usize = 16 * 1024 * 1024;
/// Streams whose last frame is remembered. Forgetting one costs a look-up.
const HEADS_MAX: usize = 65_536;

/// How far a connection's frames have come. Only ever moves forward.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Last durable frame of this connection and its hash; `None` before the first.
    pub acked: Option<(u64, Hash)>,
    /// Why no more frames are taken from this connection.
    pub end: Option<End>,
}

/// Why a connection's frames are no longer taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The frame with this number does not fit.
    Misfit(u64, Misfit),
    /// The store cannot take frames now.
    Unavailable(String),
}

/// Reports to one connection. A watch: acknowledgements that nobody has read yet merge into the latest one.
pub type Lane = Arc<watch::Sender<Progress>>;

/// A sound frame on its way to the disk.
pub struct Submission {
    /// Row of the host.
    pub host: i64,
    /// Oldest frame that the agent still had when it connected.
    pub oldest: u64,
    /// The frame's header.
    pub header: Header,
    /// The frame's hash.
    pub hash: Hash,
    /// The whole frame.
    pub bytes: Bytes,
    /// Whom to tell.
    pub lane: Lane,
    /// Room taken in the connection's window and in the queue, given back when this is dropped.
    pub room: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// The writer's own state.
pub struct Committer {
    store: Store,
    heads: HashMap<[u8; 16], Head>,
    /// Arrival number of the newest durable frame, for those who follow.
    durable: watch::Sender<i64>,
}

/// What a group comes to before it is written.
#[derive(Default)]
struct Plan {
    frames: Vec<NewFrame>,
    heads: HashMap<[u8; 16], Head>,
    /// Acknowledgements due once the group is durable.
    acks: Vec<(Lane, u64, Hash)>,
}

impl Committer {
    /// A writer to `store` that announces durable frames on `durable`.
    pub fn new(store: Store, durable: watch::Sender<i64>) -> Self {
        Self { store, heads: HashMap::new(), durable }
    }

    /// Writes what comes in until all senders are gone.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Submission>) {
        while let Some(first) = queue.recv().await {
            let group = gather(first, &mut queue);
            self.commit(group).await;
        }
    }

    async fn commit(&mut self, group: Vec<Submission>) {
        let lanes: Vec<Lane> = group.iter().map(|s| s.lane.clone()).collect();
        if let Err(error) = self.try_commit(group).await {
            tracing::error!(%error, "frames cannot be stored; agents keep them and are told to try again");
            // What the transaction did is unknown in detail; the disk knows.
            self.heads.clear();
            for lane in lanes {
                end(&lane, End::Unavailable(error.to_string()));
            }
        }
    }

    async fn try_commit(&mut self, group: Vec<Submission>) -> Result<()> {
        let mut plan = Plan::default();
        // Held to the end: their room in the queue is theirs until they are written.
        let mut rooms = Vec::with_capacity(group.len());
        for submission in group {
            let Submission { host, oldest, header, hash, bytes, lane, room } = submission;
            rooms.push(room);
            // A frame behind a refused one would be judged against a chain that it does not continue.
            if lane.borrow().end.is_some() {
                continue;
            }
            match self.place(&mut plan, host, oldest, &header, hash, bytes).await? {
                Ok(()) => plan.acks.push((lane, header.seq, hash)),
                Err(misfit) => end(&lane, End::Misfit(header.seq, misfit)),
            }
        }
        if !plan.frames.is_empty() {
            let last = self.store.append(&plan.frames).await?;
            self.heads.extend(plan.heads);
            self.durable.send_replace(last);
        }
        for (lane, seq, hash) in plan.acks {
            lane.send_if_modified(|progress| {
                let newer = progress.acked.is_none_or(|(acked, _)| acked < seq);
                if newer {
                    progress.acked = Some((seq, hash));
                }
                newer
            });
        }
        Ok(())
    }

    /// Adds a frame to the plan if it fits its chain as it will be after the plan so far.
    async fn place(
        &mut self,
        plan: &mut Plan,
        host: i64,
        oldest: u64,
        header: &Header,
        hash: Hash,
        bytes: Bytes,
    ) -> Result<std::result::Result<(), Misfit>> {
        let stream_id = header.stream_id;
        let head = match plan.heads.get(&stream_id) {
            Some(head) => Some(*head),
            None => self.head(stream_id).await?,
        };
        match judge(head.as_ref(), host, oldest, header) {
            Verdict::Append { missing_before } => {
                if missing_before > 0 {
                    tracing::warn!(host, seq = header.seq, missing_before, "the agent lost frames before this one");
                }
                plan.heads.insert(stream_id, Head { host, seq: header.seq, hash });
                plan.frames.push(NewFrame {
                    host,
                    stream_id,
                    seq: header.seq,
                    hash,
                    events: header.events,
                    missing_before,
                    received_ns: wall_clock_ns(),
                    bytes,
                });
                Ok(Ok(()))
            }
            Verdict::Held => {
                let planned = plan.frames.iter().find(|f| f.stream_id == stream_id && f.seq == header.seq);
                let held = match planned {
                    Some(frame) => Some(frame.hash),
                    None => self.store.held(stream_id, header.seq).await?,
                };
                Ok(judge_held(held, header.seq, &hash))
            }
            Verdict::Refuse(misfit) => Ok(Err(misfit)),
        }
    }

    async fn head(&mut self, stream_id: [u8; 16]) -> Result<Option<Head>> {
        if let Some(head) = self.heads.get(&stream_id) {
            return Ok(Some(*head));
        }
        let head = self.store.head(stream_id).await?;
        if let Some(head) = head {
            if self.heads.len() >= HEADS_MAX {
                self.heads.clear();
            }
            self.heads.insert(stream_id, head);
        }
        Ok(head)
    }
}

fn gather(first: Submission, queue: &mut mpsc::Receiver<Submission>) -> Vec<Submission> {
    let mut bytes = first.bytes.len();
    let mut group = vec![first];
    while group.len() < GROUP_FRAMES && bytes < GROUP_BYTES {
        let Ok(next) = queue.try_recv() else { break };
        bytes += next.bytes.len();
        group.push(next);
    }
    group
}

fn end(lane: &Lane, why: End) {
    lane.send_if_modified(|progress| {
        let first = progress.end.is_none();
        progress.end.get_or_insert(why);
        first
    });
}

#[cfg(test)]
mod tests {
    use breakglass_api::frame::{Frame, seal};
    use breakglass_api::v1::Batch;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::store::HostRecord;

    struct Rig {
        _dir: tempfile::TempDir,
        store: Store,
        committer: Committer,
        host: i64,
        last: Header,
    }

    impl Rig {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("frames.db")).await.unwrap();
            let host = HostRecord {
                host_id: "h".into(),
                hostname: "web1".into(),
                tier: "basic".into(),
                agent_version: "0".into(),
                last_seen_ns: 1,
            };
            let host = store.greet(&host).await.unwrap();
            let committer = Committer::new(store.clone(), watch::channel(0).0);
            let last = Header {
                stream_id: [1; 16],
                boot_id: [2; 16],
                seq: 0,
                prev: [0; 32],
                first_boot_ns: 0,
                last_boot_ns: 0,
                wall_offset_ns: 0,
                events: 0,
            };
            Self { _dir: dir, store, committer, host, last }
        }

        /// The next frame, of about `size` bytes.
        fn next(&mut self, size: usize) -> Bytes {
            let noise = (0..size).scan(1u32, |x, _| {
                *x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Some((*x >> 24) as u8)
            });
            let batch = Batch { resume: noise.collect(), ..Batch::default() };
            self.last.seq += 1;
            let sealed = seal(self.last, &batch, 1).unwrap();
            self.last.prev = sealed.hash;
            sealed.bytes.into()
        }

        fn submission(&self, bytes: &Bytes, lane: &Lane) -> Submission {
            let frame = Frame::parse(bytes).unwrap();
            let permit = || Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
            Submission {
                host: self.host,
                oldest: 0,
                header: frame.header,
                hash: frame.hash,
                bytes: bytes.clone(),
                lane: lane.clone(),
                room: (permit(), permit()),
            }
        }
    }

    fn lane() -> Lane {
        Arc::new(watch::channel(Progress::default()).0)
    }

    async fn limit_pages(store: &Store, pages: u64) {
        let pragma = format!("PRAGMA max_page_count = {pages}");
        sqlx::query(&pragma).execute(store.writer()).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_store_acknowledges_nothing_and_goes_on_when_there_is_room() {
        let mut rig = Rig::new().await;
        limit_pages(&rig.store, 64).await;
        let (small, large, after) = (rig.next(10), rig.next(1 << 20), rig.next(10));
        let first = lane();
        rig.committer.commit(vec![rig.submission(&small, &first)]).await;
        assert_eq!(first.borrow().acked.unwrap().0, 1);
        rig.committer.commit(vec![rig.submission(&large, &first), rig.submission(&after, &first)]).await;
        let progress = first.borrow().clone();
        assert_eq!(progress.acked.unwrap().0, 1);
        assert!(matches!(progress.end, Some(End::Unavailable(why)) if why.contains("full")));
        assert_eq!(rig.store.last_arrival().await.unwrap(), 1);

        limit_pages(&rig.store, 1 << 20).await;
        let second = lane();
        let again = [&small, &large, &after].map(|bytes| rig.submission(bytes, &second));
        rig.committer.commit(again.into()).await;
        let progress = second.borrow().clone();
        assert_eq!((progress.acked.unwrap().0, progress.end), (3, None));
    }

    #[tokio::test]
    async fn what_is_acknowledged_is_durable_whatever_a_failed_transaction_left_behind() {
        let mut rig = Rig::new().await;
        // As after a second full disk, seen in a virtual machine: a savepoint that nobody ends.
        let mut connection = rig.store.writer().acquire().await.unwrap();
        sqlx::query("SAVEPOINT left").execute(&mut *connection).await.unwrap();
        drop(connection);
        let (frame, lane) = (rig.next(10), lane());
        rig.committer.commit(vec![rig.submission(&frame, &lane)]).await;
        assert_eq!(lane.borrow().acked.map(|(seq, _)| seq), Some(1));
        assert_eq!(rig.store.last_arrival().await.unwrap(), 1, "acknowledged, and not where readers see it");
    }

    #[tokio::test]
    async fn a_misfit_ends_its_own_connection_only() {
        let mut rig = Rig::new().await;
        let (one, two, three) = (rig.next(1), rig.next(1), rig.next(1));
        let (good, bad) = (lane(), lane());
        let group = vec![
            rig.submission(&one, &good),
            rig.submission(&three, &bad),
            rig.submission(&two, &bad),
            rig.submission(&two, &good),
        ];
        rig.committer.commit(group).await;
        assert_eq!(good.borrow().acked.unwrap().0, 2);
        let progress = bad.borrow().clone();
        assert_eq!((progress.acked, progress.end), (None, Some(End::Misfit(3, Misfit::Missing { got: 3, want: 2 }))));
    }
}
