//! One agent's connection, from Hello to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use breakglass_api::frame::Frame;
use breakglass_api::v1::agent_message::Body as Up;
use breakglass_api::v1::collector_message::Body as Down;
use breakglass_api::v1::{Ack, AgentMessage, CollectorMessage, Hello, Order, OrderDone, Pong, Refusal, Welcome};
use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::{Status, Streaming};

use super::committer::{End, Lane, Progress, Submission};
use super::{FRAME_COST_MIN, QUEUE_BYTES, Shared, WINDOW};
use crate::pki::Peer;
use crate::presence::{Called, Visit};
use crate::quote::cut;
use crate::store::{Head, HostRecord};
use crate::wall_clock_ns;

/// How long an agent may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long acknowledgements may take to go out after the agent has sent its last frame.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames above this size are hashed off the threads that serve everybody, bytes. About a millisecond of hashing.
const HASH_INLINE_MAX: usize = 1024 * 1024;
/// Most events that one frame may claim. Decoded, each takes some 600 bytes.
const EVENTS_MAX: u32 = 131_072;
/// Longest text taken from a Hello, bytes.
const HELLO_TEXT_MAX: usize = 256;
/// Longest code and message taken from a host's answer to an order, bytes.
const CODE_MAX: usize = 64;
const MESSAGE_MAX: usize = 1024;

type Replies = mpsc::Sender<Result<CollectorMessage, Status>>;

/// How a connection ends, other than by the agent being done.
enum Close {
    /// The stream or a frame is not acceptable; the agent is told and has to change something.
    Refuse(Refusal),
    /// The agent should come again later.
    Fail(Status),
    /// Nobody is listening any more.
    Gone,
}

impl From<Status> for Close {
    fn from(status: Status) -> Self {
        Close::Fail(status)
    }
}

/// Serves one connection to its end and tells the agent why it ended.
pub(super) async fn run(
    shared: Arc<Shared>,
    peer: Peer,
    from: Option<SocketAddr>,
    inbound: Streaming<AgentMessage>,
    replies: Replies,
) {
    match serve(&shared, &peer, from, inbound, &replies).await {
        Ok(()) => tracing::info!(host = %peer.name, "agent disconnected"),
        Err(Close::Gone) => tracing::info!(host = %peer.name, "agent is gone"),
        Err(Close::Refuse(refusal)) => {
            tracing::warn!(host = %peer.name, code = %refusal.code, message = %refusal.message, "refused the agent's stream");
            let _ = replies.send(Ok(down(Down::Refusal(refusal)))).await;
        }
        Err(Close::Fail(status)) => {
            tracing::warn!(host = %peer.name, message = %status.message(), "ended the agent's stream");
            let _ = replies.send(Err(status)).await;
        }
    }
}

async fn serve(
    shared: &Shared,
    peer: &Peer,
    from: Option<SocketAddr>,
    mut inbound: Streaming<AgentMessage>,
    replies: &Replies,
) -> Result<(), Close> {
    let hello = tokio::time::timeout(HELLO_TIMEOUT, inbound.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
    let Some(Up::Hello(hello)) = hello.and_then(|message| message.body) else {
        return Err(Status::invalid_argument("the first message must be Hello").into());
    };
    let stream_id = check_hello(peer, &hello)?;
    let record = host_record(peer, &hello);
    let host = shared.store.greet(&record).await.map_err(unavailable)?;
    let head = shared.store.head(stream_id).await.map_err(unavailable)?;
    if head.is_some_and(|head| head.host != host) {
        return Err(refuse("not-this-host", "this stream belongs to another host".to_owned(), 0));
    }
    tracing::info!(host = %peer.name, name = ?peer.dns, ?from, tier = ?record.tier, version = ?record.agent_version,
        held = head.map_or(0, |h| h.seq), oldest = hello.oldest_seq, "agent connected");
    send(replies, Down::Welcome(welcome(head))).await?;

    let (visit, called) = shared.presence.arrive(&peer.name, hello.takes_orders, hello.keeps_talking);
    let Called { superseded, orders } = called;
    let (progress, watched) = watch::channel(Progress::default());
    let reader = Reader {
        shared,
        visit: &visit,
        host,
        oldest: hello.oldest_seq,
        stream_id,
        lane: Arc::new(progress),
        window: Arc::new(Semaphore::new(WINDOW)),
        replies,
    };
    let mut shutdown = shared.shutdown.clone();
    tokio::select! {
        ended = converse(reader, inbound, watched, replies) => ended,
        ended = pass_on(orders, replies) => ended,
        _ = superseded => Err(Status::aborted("the same host has connected again").into()),
        _ = shutdown.wait_for(|down| *down) => Err(Status::unavailable("the collector is shutting down").into()),
    }
}

/// Passes on what people ask of the host.
async fn pass_on(mut orders: mpsc::Receiver<Order>, replies: &Replies) -> Result<(), Close> {
    while let Some(order) = orders.recv().await {
        send(replies, Down::Order(order)).await?;
    }
    // An agent that takes none; or the visit is over, which another branch says.
    std::future::pending().await
}

/// Reads frames and writes acknowledgements until either side is done.
async fn converse(
    reader: Reader<'_>,
    inbound: Streaming<AgentMessage>,
    watched: watch::Receiver<Progress>,
    replies: &Replies,
) -> Result<(), Close> {
    let mut acknowledger = Acknowledger { watched, sent: 0, replies };
    let last = tokio::select! {
        last = reader.read(inbound) => last,
        ended = acknowledger.until(u64::MAX) => return ended,
    };
    // Also after a bad frame: those before it are good and may already be durable.
    let last_good = match &last {
        Ok(seq) => *seq,
        Err((seq, _)) => *seq,
    };
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, acknowledger.until(last_good)).await;
    match last {
        Err((_, close)) => Err(close),
        Ok(_) => drained.unwrap_or(Err(Close::Gone)),
    }
}

/// The incoming half.
struct Reader<'a> {
    shared: &'a Shared,
    visit: &'a Visit,
    host: i64,
    oldest: u64,
    stream_id: [u8; 16],
    lane: Lane,
    window: Arc<Semaphore>,
    replies: &'a Replies,
}

impl Reader<'_> {
    /// Reads until the agent is done; returns the number of the last frame handed on.
    async fn read(self, mut inbound: Streaming<AgentMessage>) -> Result<u64, (u64, Close)> {
        let mut last = 0;
        loop {
            let message = match inbound.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(last),
                Err(status) => {
                    tracing::debug!(message = %status.message(), "the agent's stream broke");
                    return Err((last, Close::Gone));
                }
            };
            self.visit.seen();
            let handled = match message.body {
                Some(Up::Frame(bytes)) => self.submit(bytes).await.map(|seq| last = seq),
                Some(Up::Ping(ping)) => send(self.replies, Down::Pong(Pong { nonce: ping.nonce })).await,
                Some(Up::OrderDone(done)) => {
                    self.visit.done(bounded_done(done));
                    Ok(())
                }
                Some(Up::Hello(_)) => Err(Status::invalid_argument("Hello may be sent only once").into()),
                // A kind of message from a later version.
                None => Ok(()),
            };
            if let Err(close) = handled {
                return Err((last, close));
            }
        }
    }

    async fn submit(&self, bytes: Bytes) -> Result<u64, Close> {
        let (header, hash, bytes) = check_frame(bytes).await?;
        let seq = header.seq;
        if header.stream_id != self.stream_id {
            return Err(refuse("bad-frame", "the frame belongs to another stream than Hello said".to_owned(), seq));
        }
        let closed = |_| Status::unavailable("the collector is shutting down");
        let slot = self.window.clone().acquire_owned().await.map_err(closed)?;
        let cost = bytes.len().clamp(FRAME_COST_MIN, QUEUE_BYTES);
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        let room = self.shared.room.clone().acquire_many_owned(cost).await.map_err(closed)?;
        let submission = Submission {
            host: self.host,
            oldest: self.oldest,
            header,
            hash,
            bytes,
            lane: self.lane.clone(),
            room: (slot, room),
        };
        self.shared.queue.send(submission).await.map_err(|_| Status::unavailable("the collector is shutting down"))?;
        Ok(seq)
    }
}

/// The outgoing half.
struct Acknowledger<'a> {
    watched: watch::Receiver<Progress>,
    /// Number of the last acknowledgement sent.
    sent: u64,
    replies: &'a Replies,
}

impl Acknowledger<'_> {
    /// Sends acknowledgements until that of frame `last` is out, or no more will come.
    async fn until(&mut self, last: u64) -> Result<(), Close> {
        loop {
            let progress = self.watched.borrow_and_update().clone();
            if let Some((seq, hash)) = progress.acked
                && seq > self.sent
            {
                send(self.replies, Down::Ack(Ack { seq, hash: hash.to_vec() })).await?;
                self.sent = seq;
            }
            match progress.end {
                Some(End::Misfit(seq, misfit)) => return Err(refuse(misfit.code(), misfit.to_string(), seq)),
                Some(End::Unavailable(why)) => {
                    return Err(Status::unavailable(format!("the collector cannot store frames now: {why}")).into());
                }
                None => {}
            }
            if self.sent >= last || self.watched.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

fn check_hello(peer: &Peer, hello: &Hello) -> Result<[u8; 16], Close> {
    if hello.host_id != peer.name {
        let said = cut(&hello.host_id, HELLO_TEXT_MAX);
        let message = format!("the certificate is that of host {}, Hello says {said:?}", peer.name);
        return Err(refuse("not-this-host", message, 0));
    }
    let stream_id = hello.stream_id.as_slice().try_into();
    stream_id.map_err(|_| Status::invalid_argument("Hello.stream_id must be 16 bytes").into())
}

/// The name is the one in the certificate, which the host cannot choose.
fn host_record(peer: &Peer, hello: &Hello) -> HostRecord {
    HostRecord {
        host_id: peer.name.clone(),
        hostname: cut(peer.dns.as_deref().unwrap_or(&hello.hostname), HELLO_TEXT_MAX),
        tier: cut(&hello.tier, HELLO_TEXT_MAX),
        agent_version: cut(&hello.agent_version, HELLO_TEXT_MAX),
        last_seen_ns: wall_clock_ns(),
    }
}

/// What a host says of an order, no longer than people read: it is written down, logged and passed on.
fn bounded_done(OrderDone { number, code, message }: OrderDone) -> OrderDone {
    OrderDone { number, code: cut(&code, CODE_MAX), message: cut(&message, MESSAGE_MAX) }
}

fn welcome(head: Option<Head>) -> Welcome {
    match head {
        Some(head) => Welcome { last_seq: head.seq, last_hash: head.hash.to_vec() },
        None => Welcome::default(),
    }
}

type Checked = (breakglass_api::frame::Header, breakglass_api::frame::Hash, Bytes);

/// Checks structure, hash and limits; not the chain.
async fn check_frame(bytes: Bytes) -> Result<Checked, Close> {
    let checked = if bytes.len() <= HASH_INLINE_MAX {
        parse(bytes)
    } else {
        let parsed = tokio::task::spawn_blocking(move || parse(bytes)).await;
        parsed.map_err(|error| Status::internal(format!("checking a frame failed: {error}")))?
    };
    checked.map_err(|message| refuse("bad-frame", message, 0))
}

fn parse(bytes: Bytes) -> Result<Checked, String> {
    let frame = Frame::parse(&bytes).map_err(|error| error.to_string())?;
    let (header, hash) = (frame.header, frame.hash);
    if header.events > EVENTS_MAX {
        return Err(format!("frame {} claims {} events, the limit is {EVENTS_MAX}", header.seq, header.events));
    }
    Ok((header, hash, bytes))
}

async fn send(replies: &Replies, body: Down) -> Result<(), Close> {
    replies.send(Ok(down(body))).await.map_err(|_| Close::Gone)
}

fn down(body: Down) -> CollectorMessage {
    CollectorMessage { body: Some(body) }
}

fn refuse(code: &str, message: String, seq: u64) -> Close {
    Close::Refuse(Refusal { code: code.to_owned(), message, seq })
}

fn unavailable(error: crate::store::StoreError) -> Close {
    tracing::error!(%error, "the store does not answer");
    Close::Fail(Status::unavailable(format!("the collector's store does not answer: {error}")))
}
