//! Random histories of spool and shipping together: a disk that refuses, fills up, tears, forgets and lies, a network that cuts,
//! loses, delays and repeats, and a collector that stops at any moment, against lists of what was committed.
//!
//! Everything runs on one thread in virtual time, so that a history takes well under a millisecond and its seed says all about it.
//! `BREAKGLASS_HISTORIES` says how many are run in all, with those of the spool alone; `BREAKGLASS_SEED` where they begin.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use breakglass_api::{
    frame::{Frame, Hash},
    v1::{Ack, AgentMessage, CollectorMessage, Pong, Refusal, Welcome, agent_message, collector_message::Body},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinHandle},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{Dial, Dialling, Options, Pace, ShipError, Shipper, link::Link};
use crate::spool::{
    Spool,
    fake::{FakeDisk, Faults},
    model::{DIR, LIMITS, Model, histories, number_from, seal_next},
};

/// Of a hundred histories, how many are of each kind; the rest are the spool's own.
const SHIPPING_PERCENT: u64 = 75;
const LYING_PERCENT: u64 = 20;
/// Seeds that found something once.
const REGRESSIONS: &[u64] = &[];
/// What an agent may have under way.
const WINDOW_BYTES: usize = 1500;
const WINDOW_FRAMES: usize = 4;
/// Virtual time in which everything must have arrived once everything works.
const PATIENCE: Duration = Duration::from_secs(600);

/// Numbers that look random and come again with the same seed.
#[derive(Clone)]
struct Chance(Arc<Mutex<u64>>);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    }

    fn below(&self, bound: usize) -> usize {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize % bound.max(1)
    }

    fn one_in(&self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

thread_local! {
    /// What decides how long work beside shipping takes, and pauses; present while a history runs on this thread.
    static ASIDE: RefCell<Option<Chance>> = const { RefCell::new(None) };
}

/// Where a history runs on this thread: how many turns of the other tasks pass before work that is begun now is done.
pub fn turns() -> Option<usize> {
    ASIDE.with_borrow(|chance| chance.as_ref().map(|chance| chance.below(4)))
}

/// Where a history runs on this thread: how much of a pause is waited.
pub fn share() -> Option<f64> {
    ASIDE.with_borrow(|chance| chance.as_ref().map(|chance| 0.5 + chance.below(50) as f64 / 100.0))
}

/// What a collector holds of a stream.
#[derive(Default)]
struct Held {
    frames: Vec<(u64, Hash)>,
    /// How many of them are on its disk.
    durable: usize,
}

#[derive(Default)]
struct Collector {
    streams: BTreeMap<Vec<u8>, Held>,
    /// Order of first contact.
    order: Vec<Vec<u8>>,
    /// Whether it and its network behave.
    calm: bool,
    /// Ends every connection of before.
    epoch: u64,
    /// The connections, which panic over what an agent must not do.
    serving: Vec<JoinHandle<Option<()>>>,
}

/// Collector and network; clones are the same.
#[derive(Clone)]
struct World {
    collector: Arc<Mutex<Collector>>,
    chance: Chance,
}

impl World {
    /// The collector stops and starts: what was not on its disk is gone.
    fn crash_collector(&self) {
        let mut collector = self.collector.lock().unwrap();
        collector.epoch += 1;
        for held in collector.streams.values_mut() {
            held.frames.truncate(held.durable);
        }
    }

    fn calm(&self) {
        self.collector.lock().unwrap().calm = true;
    }

    fn is_calm(&self) -> bool {
        self.collector.lock().unwrap().calm
    }

    /// What an agent must not do was not done on any connection.
    async fn expect_no_complaint(&self) {
        let serving = std::mem::take(&mut self.collector.lock().unwrap().serving);
        for connection in serving {
            connection.abort();
            let complained = connection.await.is_err_and(|ended| ended.is_panic());
            assert!(!complained, "a connection found a fault; it is printed above");
        }
    }

    /// Frames on the collector's disk, of all streams in the order of first contact.
    fn durable(&self) -> Vec<(u64, Hash)> {
        let collector = self.collector.lock().unwrap();
        let of = |id: &Vec<u8>| collector.streams[id].frames[..collector.streams[id].durable].to_vec();
        collector.order.iter().flat_map(of).collect()
    }

    /// Takes a frame as a collector does. False where it does not fit the chain.
    fn take(&self, stream: &[u8], bytes: &[u8]) -> bool {
        let frame = Frame::parse(bytes).expect("what is sent is whole");
        let (seq, prev) = (frame.header.seq, frame.header.prev);
        assert_eq!(frame.header.stream_id, stream, "a frame of another stream than announced");
        let mut collector = self.collector.lock().unwrap();
        let frames = &mut collector.streams.get_mut(stream).unwrap().frames;
        let (last, hash) = frames.last().copied().unwrap_or_default();
        if seq <= last {
            return frames[seq as usize - 1] == (seq, frame.hash);
        }
        if (seq, prev) != (last + 1, hash) {
            return false;
        }
        frames.push((seq, frame.hash));
        true
    }

    /// Makes durable what it has of a stream; returns the end.
    fn commit(&self, stream: &[u8]) -> Option<(u64, Hash)> {
        let mut collector = self.collector.lock().unwrap();
        let held = collector.streams.get_mut(stream)?;
        held.durable = held.frames.len();
        held.frames.last().copied()
    }

    /// One connection.
    async fn serve(self, mut inbox: mpsc::Receiver<AgentMessage>, out: Out) -> Option<()> {
        let epoch = self.collector.lock().unwrap().epoch;
        let Some(agent_message::Body::Hello(hello)) = inbox.recv().await?.body else { panic!("no Hello") };
        let stream = hello.stream_id;
        let welcome = {
            let mut collector = self.collector.lock().unwrap();
            if !collector.streams.contains_key(&stream) {
                collector.order.push(stream.clone());
                collector.streams.insert(stream.clone(), Held::default());
            }
            // A collector tells of what is on its disk.
            let held = &collector.streams[&stream];
            held.frames[..held.durable].last().copied().unwrap_or_default()
        };
        let (last_seq, last_hash) = welcome;
        say(&out, Body::Welcome(Welcome { last_seq, last_hash: last_hash.to_vec() })).await?;
        let mut said = Vec::new();
        // Sent on this connection, and not known to have been acknowledged.
        let (mut under_way, mut told) = (VecDeque::new(), 0);
        loop {
            let message = inbox.recv().await?;
            let stale = self.collector.lock().unwrap().epoch != epoch;
            if stale || (!self.is_calm() && self.chance.one_in(12)) {
                return None;
            }
            let ping = match message.body? {
                agent_message::Body::Frame(bytes) => {
                    let seq = Frame::parse(&bytes).expect("what is sent is whole").header.seq;
                    // Some was acknowledged before it was taken from the transport: a connection before had brought it.
                    if seq > told {
                        under_way.push_back((seq, bytes.len()));
                        expect_within_window(&under_way);
                    }
                    if !self.take(&stream, &bytes) {
                        let refusal = Refusal { code: "fork".into(), message: "another frame is held".into(), seq: 0 };
                        return say(&out, Body::Refusal(refusal)).await;
                    }
                    None
                }
                agent_message::Body::Ping(ping) => Some(ping),
                _ => None,
            };
            // A group of a size of its own, so that many frames share an acknowledgement.
            if (self.is_calm() || ping.is_some() || self.chance.one_in(3))
                && let Some(end) = self.commit(&stream)
            {
                said.push(end);
                if self.acknowledge(&said, &out).await? {
                    told = end.0;
                    under_way.retain(|(seq, _)| *seq > told);
                }
            }
            if let Some(ping) = ping {
                say(&out, Body::Pong(Pong { nonce: ping.nonce })).await?;
            }
        }
    }

    /// Says the newest, loses it, repeats it, or says an old one after it. False if it is lost.
    async fn acknowledge(&self, said: &[(u64, Hash)], out: &Out) -> Option<bool> {
        let ack = |(seq, hash): (u64, Hash)| Body::Ack(Ack { seq, hash: hash.to_vec() });
        let newest = *said.last()?;
        let old = said[self.chance.below(said.len())];
        let fate = if self.is_calm() { 0 } else { self.chance.below(5) };
        if fate == 1 {
            return Some(false);
        }
        say(out, ack(newest)).await?;
        match fate {
            2 => say(out, ack(newest)).await?,
            3 => say(out, ack(old)).await?,
            _ => {}
        }
        Some(true)
    }
}

/// However slow a collector is, an agent has no more under way than its window: that is all of the record that it holds in memory.
fn expect_within_window(under_way: &VecDeque<(u64, usize)>) {
    let bytes: usize = under_way.iter().map(|(_, len)| len).sum();
    assert!(under_way.len() <= WINDOW_FRAMES, "{} frames are under way", under_way.len());
    // A frame above the window goes alone.
    assert!(bytes <= WINDOW_BYTES || under_way.len() == 1, "{bytes} bytes are under way");
}

type Out = mpsc::Sender<Result<CollectorMessage, tonic::Status>>;

async fn say(out: &Out, body: Body) -> Option<()> {
    out.send(Ok(CollectorMessage { body: Some(body) })).await.ok()
}

impl Dial for World {
    fn dial<'a>(&'a self, _: &'a str, _: &'a Options, hello: AgentMessage) -> Dialling<'a> {
        Box::pin(async move {
            if !self.is_calm() && self.chance.one_in(4) {
                return Err(ShipError::Connect { url: "fake".into(), reason: "refused".into() });
            }
            let (outbox, inbox) = mpsc::channel(4);
            let (out, answers) = mpsc::channel(16);
            outbox.send(hello).await.map_err(|_| ShipError::Stream("closed".into()))?;
            let serving = tokio::spawn(self.clone().serve(inbox, out));
            self.collector.lock().unwrap().serving.push(serving);
            Ok(Link { outbox, inbox: Box::pin(ReceiverStream::new(answers)) })
        })
    }
}

fn options() -> Options {
    Options {
        urls: vec!["one".into(), "two".into()],
        server_name: String::new(),
        enrolment: PathBuf::new(),
        host_id: "id".into(),
        hostname: "web1".into(),
        agent_version: "0".into(),
        tier: "basic".into(),
        orders: None,
        pace: Pace { window_bytes: WINDOW_BYTES, window_frames: WINDOW_FRAMES, ..Pace::default() },
    }
}

/// The agent's end: a spool with its model, and a shipper.
struct Agent {
    world: World,
    shipper: Option<Shipper>,
    task: Option<AbortHandle>,
    durable: watch::Sender<(u64, Hash)>,
}

impl Agent {
    fn new(world: &World) -> Self {
        Self { world: world.clone(), shipper: None, task: None, durable: watch::channel((0, [0; 32])).0 }
    }

    fn ship(&mut self, spool: &Spool) {
        let end = spool.durable();
        self.durable = watch::channel((end.seq, end.hash)).0;
        let dial = Arc::new(self.world.clone());
        let (shipper, task) = Shipper::start_here(dial, options(), self.durable.subscribe(), spool.reader());
        (self.shipper, self.task) = (Some(shipper), Some(task));
    }

    fn publish(&self, spool: &Spool) {
        let end = spool.durable();
        self.durable.send_replace((end.seq, end.hash));
    }

    /// As by kill -9: the task is gone at the next time that it would run.
    async fn kill(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.shipper = None;
        quiet().await;
    }
}

/// Lets the other tasks run until all of them wait: virtual time stands still while a thread works.
async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Lets the other tasks run for a moment of virtual time.
async fn pass(chance: &Chance) {
    tokio::time::sleep(Duration::from_millis(chance.below(300) as u64)).await;
}

/// How many steps a history has. Most faults need few, and some need many; many short ones and some long ones find both soonest.
fn length(chance: &Chance) -> usize {
    if chance.one_in(8) { 8 + chance.below(17) } else { 1 + chance.below(6) }
}

async fn history(seed: u64) {
    let chance = Chance::new(seed);
    ASIDE.set(Some(chance.clone()));
    let world = World { collector: Arc::default(), chance: chance.clone() };
    let mut model = Model::new();
    let mut agent = Agent::new(&world);
    agent.ship(model.spool());
    for _ in 0..length(&chance) {
        quiet().await;
        match chance.below(12) {
            0 => model.disk().set_faults(Faults {
                after: Some(chance.below(12) as u32),
                count: 1 + chance.below(4) as u32,
                errno: if chance.one_in(2) { nix::libc::ENOSPC } else { nix::libc::EIO },
                short_writes: chance.one_in(2),
                ..Faults::default()
            }),
            1 => model.disk().set_faults(Faults { full: true, ..Faults::default() }),
            2 => model.disk().set_faults(Faults::default()),
            3 | 4 => {
                agent.kill().await;
                let torn = chance.one_in(2).then(|| chance.below(600));
                model.crash(torn, chance.below(usize::MAX) as u64);
                agent.ship(model.spool());
            }
            5 => world.crash_collector(),
            6 => pass(&chance).await,
            _ => {
                let fills: Vec<usize> = (0..1 + chance.below(3)).map(|_| chance.below(500)).collect();
                model.group(&fills);
                agent.publish(model.spool());
                if chance.one_in(2) {
                    pass(&chance).await;
                }
            }
        }
        model.note_acked();
    }
    // Everything works again: everything arrives, once, in order.
    quiet().await;
    world.calm();
    model.disk().set_faults(Faults::default());
    model.group(&[10]);
    agent.publish(model.spool());
    arrive(&agent, model.spool()).await;
    model.note_acked();
    let committed: Vec<(u64, Hash)> = (1..).zip(model.committed()).collect();
    assert_eq!(world.durable(), committed, "what was committed, and nothing else, once, in order");
    if let Some(shipper) = agent.shipper.take() {
        shipper.stop().await;
    }
    world.expect_no_complaint().await;
    assert_eq!(model.spool().reader().backlog().0, 0, "what is acknowledged does not wait");
}

async fn arrive(agent: &Agent, spool: &Spool) {
    let Some(shipper) = &agent.shipper else { return };
    let end = spool.durable().seq;
    assert!(shipper.wait_acked(end, PATIENCE).await, "frame {end} did not arrive: {:?}", shipper.status());
}

/// A disk whose syncs do nothing. What it forgets cannot be kept, but it is noticed: either everything that is there arrives, or
/// the status says that the collector holds something else. Nothing is damaged without a word, and nothing panics.
async fn lying_history(seed: u64) {
    let chance = Chance::new(seed);
    ASIDE.set(Some(chance.clone()));
    let world = World { collector: Arc::default(), chance: chance.clone() };
    let disk = FakeDisk::default();
    let open = || Spool::open_on(Arc::new(disk.clone()), Path::new(DIR), LIMITS).expect("it can always be opened").0;
    let mut spool = open();
    let mut agent = Agent::new(&world);
    let mut marks = 0;
    agent.ship(&spool);
    for _ in 0..length(&chance) {
        quiet().await;
        disk.set_lying(chance.one_in(2));
        match chance.below(4) {
            0 => {
                agent.kill().await;
                drop(spool);
                let luck = chance.clone();
                disk.crash(|below| luck.below(below));
                disk.set_lying(false);
                spool = open();
                agent.ship(&spool);
            }
            1 => pass(&chance).await,
            _ => {
                marks += 1;
                let sealed = seal_next(&spool, marks, chance.below(400), true);
                // It may be full.
                let _ = spool.append(&sealed).and_then(|()| spool.commit().map(drop));
                agent.publish(&spool);
            }
        }
    }
    world.calm();
    disk.set_lying(false);
    let end = spool.durable().seq;
    let shipper = agent.shipper.take().unwrap();
    let arrived = shipper.wait_acked(end, PATIENCE).await;
    let status = shipper.status();
    assert!(arrived || status.fork.is_some(), "neither arrived nor noticed: {status:?}");
    shipper.stop().await;
    world.expect_no_complaint().await;
}

/// Runs histories on as many threads as there are processors.
fn run_all(count: u64, run: fn(u64) -> std::pin::Pin<Box<dyn Future<Output = ()>>>) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let begin = number_from("BREAKGLASS_SEED", 1);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let fixed = REGRESSIONS.iter().copied().filter(|_| thread == 0);
                for seed in fixed.chain((begin..begin + count).filter(|seed| seed % threads == thread)) {
                    // One each: nothing of the history before goes on in it.
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
                    let outcome =
                        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(run(seed))));
                    assert!(outcome.is_ok(), "to see it again: BREAKGLASS_SEED={seed} BREAKGLASS_HISTORIES=1");
                }
            });
        }
    });
}

#[test]
fn what_is_committed_arrives_once_and_in_order_over_any_history() {
    run_all(histories(SHIPPING_PERCENT), |seed| Box::pin(history(seed)));
}

#[test]
fn a_disk_that_lies_is_noticed() {
    run_all(histories(LYING_PERCENT), |seed| Box::pin(lying_history(seed)));
}
