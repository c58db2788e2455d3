//! One connection: Hello, what the collector has, then frames out and acknowledgements in.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use breakglass_api::{
    frame::Hash,
    v1::{
        Ack, AgentMessage, CollectorMessage, Hello, Order, OrderDone, Ping, Refusal, Welcome, agent_message,
        collector_message::Body,
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::StreamExt as _;

use super::{
    Options, Shared, ShipError, ShipStatus, aside,
    backoff::Backoff,
    link::{self, Dial, Inbox, Link},
    window::{Acked, Window},
};
use crate::{
    recorder::clock,
    spool::{SpoolError, SpoolReader, Stored, StreamInfo},
};

/// Orders under way at once. People give them, so there is hardly ever a second one.
const ORDERS_MAX: usize = 8;

/// How often what was acknowledged is noted in the spool, which deletes segments, while there is ever more of it.
const NOTE_EVERY: Duration = Duration::from_millis(200);

/// How long a collector that takes nothing more may take to say why.
const LAST_WORDS: Duration = Duration::from_millis(500);

pub struct Connection<'a> {
    pub url: &'a str,
    pub options: &'a Options,
    pub durable: watch::Receiver<(u64, Hash)>,
    pub stopped: watch::Receiver<bool>,
    pub shared: &'a Arc<Shared>,
    pub dial: &'a dyn Dial,
}

/// How a connection ended.
pub enum Ended {
    /// By request.
    Stopped,
    /// A finished stream is at the collector; the next one has to be begun.
    NextStream,
    /// It broke, or could not be made.
    Failed(ShipError),
}

/// Work on a thread that may block, which has the reader meanwhile.
type Blocking<T> = JoinHandle<(SpoolReader, Result<T, SpoolError>)>;

impl Connection<'_> {
    /// Runs until something ends it.
    pub async fn run(self, reader: SpoolReader, backoff: &mut Backoff) -> Ended {
        let stream = reader.oldest_stream();
        let mut stopped = self.stopped.clone();
        let opened = tokio::select! {
            biased;
            opened = self.open(&stream) => opened,
            _ = stopped.wait_for(|stop| *stop) => return Ended::Stopped,
        };
        let (link, welcome) = match opened {
            Ok(opened) => opened,
            Err(error) => return Ended::Failed(error),
        };
        let (reader, begin) = match check(reader, stream, welcome).await {
            Ok(checked) => checked,
            Err(error) => return Ended::Failed(error),
        };
        backoff.reset();
        self.shared.update(|status| status.connect());
        tracing::info!(url = self.url, from = begin.next, "connected to the collector");
        let mut pump = Pump::new(&self, stream, begin, reader, link);
        let ended = pump.run(stopped).await;
        pump.settle().await;
        ended
    }

    async fn open(&self, stream: &StreamInfo) -> Result<(Link, Welcome), ShipError> {
        let hello = Hello {
            host_id: self.options.host_id.clone(),
            hostname: self.options.hostname.clone(),
            stream_id: stream.stream_id.to_vec(),
            boot_id: clock::boot_id().to_vec(),
            agent_version: self.options.agent_version.clone(),
            tier: self.options.tier.clone(),
            oldest_seq: stream.oldest_seq,
            takes_orders: self.options.orders.is_some(),
            keeps_talking: true,
        };
        let hello = AgentMessage { body: Some(agent_message::Body::Hello(hello)) };
        let mut link = self.dial.dial(self.url, self.options, hello).await?;
        let limit = self.options.pace.connect;
        let first = timeout(limit, link.inbox.next()).await.map_err(|_| ShipError::Silent(limit.as_secs()))?;
        match received(first)? {
            Body::Welcome(welcome) => Ok((link, welcome)),
            Body::Refusal(refusal) => Err(refused(refusal)),
            Body::Ack(_) | Body::Pong(_) | Body::Order(_) => {
                Err(ShipError::Protocol("it did not begin with Welcome".into()))
            }
        }
    }
}

fn received(message: Option<Result<CollectorMessage, tonic::Status>>) -> Result<Body, ShipError> {
    match message.transpose() {
        Ok(Some(message)) => message.body.ok_or_else(|| ShipError::Protocol("an empty message".into())),
        Ok(None) => Err(ShipError::Stream("closed".into())),
        Err(status) => Err(ShipError::Stream(link::sentence(&status))),
    }
}

fn refused(refusal: Refusal) -> ShipError {
    let Refusal { code, message, seq } = refusal;
    match code.as_str() {
        "fork" | "broken-chain" => ShipError::Fork(format!("{code} at frame {seq}: {message}")),
        _ => ShipError::Refused { code, message, seq },
    }
}

/// Where shipping begins.
struct Begin {
    /// Last frame that the collector has.
    acked: u64,
    hash: Hash,
    /// First frame to send.
    next: u64,
}

/// Compares what the collector has with what was recorded.
async fn check(
    mut reader: SpoolReader,
    stream: StreamInfo,
    welcome: Welcome,
) -> Result<(SpoolReader, Begin), ShipError> {
    let seq = welcome.last_seq;
    if seq == 0 {
        return Ok((reader, Begin { acked: 0, hash: [0; 32], next: stream.oldest_seq.max(1) }));
    }
    let looked = aside(move || {
        let hash = reader.hash_of(stream.generation, seq);
        (reader, hash)
    });
    let (reader, found) = looked.await.map_err(|_| interrupted())?;
    Ok((reader, compare(&stream, seq, &welcome.last_hash, found?)?))
}

fn interrupted() -> ShipError {
    ShipError::Stream("reading the spool was interrupted".into())
}

fn compare(stream: &StreamInfo, seq: u64, theirs: &[u8], ours: Option<Hash>) -> Result<Begin, ShipError> {
    match ours {
        Some(hash) if hash == theirs => Ok(Begin { acked: seq, hash, next: (seq + 1).max(stream.oldest_seq) }),
        Some(_) => Err(ShipError::Fork(format!("its frame {seq} has another hash"))),
        // Deleted here because a collector had it; this one has less, and says so or takes what there is.
        None if seq < stream.oldest_seq => Ok(Begin { acked: 0, hash: [0; 32], next: stream.oldest_seq }),
        None => Err(ShipError::Fork(format!("it has frame {seq}, which was never recorded here"))),
    }
}

/// The running stream.
struct Pump<'a> {
    options: &'a Options,
    shared: &'a Arc<Shared>,
    durable: watch::Receiver<(u64, Hash)>,
    /// Whether the recorder still runs.
    recording: bool,
    stream: StreamInfo,
    outbox: mpsc::Sender<AgentMessage>,
    inbox: Inbox,
    window: Window,
    /// Next frame to read from the spool.
    next: u64,
    /// Read and not sent.
    backlog: VecDeque<Stored>,
    reader: Option<SpoolReader>,
    busy: Option<Busy>,
    /// Frames that became durable before this are sent then.
    rest_until: Instant,
    /// Acknowledged and not noted in the spool.
    to_note: Option<(u64, Hash)>,
    last_note: Instant,
    last_heard: Instant,
    /// When something was last said.
    last_said: Instant,
    pings: u64,
    /// Where nothing more can be handed to the transport: until when the collector may say why.
    closing: Option<Instant>,
    /// Where the answers to orders come from.
    answers: mpsc::Receiver<OrderDone>,
    answer: mpsc::Sender<OrderDone>,
    /// Answered and not sent.
    done: Option<OrderDone>,
}

enum Busy {
    Reading(Blocking<Vec<Stored>>),
    Noting(Blocking<()>),
}

/// What woke the pump.
enum Event {
    Message(Option<Result<CollectorMessage, tonic::Status>>),
    Worked(Option<(SpoolReader, Result<Vec<Stored>, SpoolError>)>),
    MaySend(Option<mpsc::OwnedPermit<AgentMessage>>),
    Durable(bool),
    Done(OrderDone),
    Tick,
    Stop,
}

impl<'a> Pump<'a> {
    fn new(connection: &Connection<'a>, stream: StreamInfo, begin: Begin, reader: SpoolReader, link: Link) -> Self {
        let pace = &connection.options.pace;
        let now = Instant::now();
        let (answer, answers) = mpsc::channel(ORDERS_MAX);
        let mut pump = Self {
            options: connection.options,
            shared: connection.shared,
            durable: connection.durable.clone(),
            recording: true,
            stream,
            outbox: link.outbox,
            inbox: link.inbox,
            window: Window::new(pace.window_frames, pace.window_bytes, begin.acked),
            next: begin.next,
            backlog: VecDeque::new(),
            reader: Some(reader),
            busy: None,
            rest_until: now,
            to_note: None,
            last_note: now,
            last_heard: now,
            last_said: now,
            pings: 0,
            closing: None,
            answers,
            answer,
            done: None,
        };
        if begin.acked > 0 {
            pump.advance(begin.acked, begin.hash);
            if pump.next > pump.readable() {
                pump.agreed();
            }
        }
        pump
    }

    async fn run(&mut self, mut stopped: watch::Receiver<bool>) -> Ended {
        loop {
            if self.stream_is_done() {
                return Ended::NextStream;
            }
            self.begin_work();
            let event = self.wait(&mut stopped).await;
            match self.handle(event) {
                Ok(true) => {}
                Ok(false) => return Ended::Stopped,
                Err(error) => return Ended::Failed(error),
            }
        }
    }

    /// Whether a finished stream is at the collector entirely, and that is noted.
    fn stream_is_done(&self) -> bool {
        let sent_all = self.next > self.stream.last_seq && self.backlog.is_empty() && self.window.is_empty();
        !self.stream.current && sent_all && self.busy.is_none() && self.to_note.is_none()
    }

    /// Last frame that may be read.
    fn readable(&self) -> u64 {
        if self.stream.current { self.durable.borrow().0 } else { self.stream.last_seq }
    }

    /// Gives the reader something to do, if it is here and there is something. Frames go before housekeeping.
    fn begin_work(&mut self) {
        let generation = self.stream.generation;
        let mut wants_frames =
            !self.rests() && self.backlog.is_empty() && self.window.room() > 0 && self.next <= self.readable();
        if wants_frames && let Some(reader) = &self.reader {
            // Most often they were written a moment ago.
            let recent = reader.recent(generation, self.next, self.window.room());
            wants_frames = recent.is_empty();
            self.adopt(recent);
        }
        if !wants_frames && !self.must_note() {
            return;
        }
        let Some(mut reader) = self.reader.take() else { return };
        if wants_frames {
            let (from, bytes) = (self.next, self.window.room());
            self.busy = Some(Busy::Reading(aside(move || {
                let frames = reader.read(generation, from, bytes);
                (reader, frames)
            })));
        } else if let Some((seq, hash)) = self.to_note.take() {
            self.last_note = Instant::now();
            self.busy = Some(Busy::Noting(aside(move || {
                let noted = reader.acknowledge(generation, seq, hash);
                (reader, noted)
            })));
        }
    }

    /// Whether what becomes durable is left to gather.
    fn rests(&self) -> bool {
        self.recording && self.stream.current && Instant::now() < self.rest_until
    }

    /// Whether what was acknowledged is to be noted now. The end of a finished stream waits for nothing.
    fn must_note(&self) -> bool {
        self.to_note.is_some() && (!self.stream.current || self.last_note.elapsed() >= NOTE_EVERY)
    }

    async fn wait(&mut self, stopped: &mut watch::Receiver<bool>) -> Event {
        let can_send = self.closing.is_none() && (self.done.is_some() || self.may_send());
        // While frames gather nobody need be woken by each.
        let all_read = self.stream.current && self.next > self.readable() && !self.rests();
        let tick = self.next_tick();
        let (outbox, busy) = (self.outbox.clone(), &mut self.busy);
        tokio::select! {
            // In order, so that the same history of a collector and a disk always comes out the same. Nothing starves: what stands
            // further up needs something that only what stands below brings, except messages that a collector sends unasked.
            biased;
            _ = stopped.wait_for(|stop| *stop) => Event::Stop,
            worked = work(busy), if busy.is_some() => Event::Worked(worked),
            permit = outbox.reserve_owned(), if can_send => Event::MaySend(permit.ok()),
            message = self.inbox.next() => Event::Message(message),
            changed = self.durable.changed(), if all_read && self.recording => Event::Durable(changed.is_ok()),
            // This side holds a sender as well, so that it never closes.
            Some(done) = self.answers.recv(), if self.done.is_none() => Event::Done(done),
            () = sleep_until(tick) => Event::Tick,
        }
    }

    /// Returns false to end.
    fn handle(&mut self, event: Event) -> Result<bool, ShipError> {
        match event {
            Event::Message(message) => self.message(received(message)?)?,
            Event::Worked(None) => {
                self.busy = None;
                return Err(interrupted());
            }
            Event::Worked(Some((reader, result))) => {
                self.reader = Some(reader);
                self.busy = None;
                self.adopt(result?);
            }
            // Why may still be to be read.
            Event::MaySend(None) => self.closing = Some(Instant::now() + LAST_WORDS),
            Event::MaySend(Some(permit)) => {
                self.send(permit);
                self.send_more();
            }
            // Once the recorder has ended nothing more comes; what was sent may still be acknowledged.
            Event::Durable(alive) => self.recording = alive,
            Event::Done(done) => self.done = Some(done),
            Event::Stop => return Ok(false),
            Event::Tick => self.tick()?,
        }
        Ok(true)
    }

    /// Whether the next frame may go out.
    fn may_send(&self) -> bool {
        self.backlog.front().is_some_and(|frame| self.window.admits(frame.bytes.len()))
    }

    fn adopt(&mut self, frames: Vec<Stored>) {
        if let Some(last) = frames.last() {
            self.next = last.seq + 1;
            self.backlog.extend(frames);
        }
    }

    fn send(&mut self, permit: mpsc::OwnedPermit<AgentMessage>) {
        // Answers first: somebody waits for them.
        let body = match self.done.take() {
            Some(done) => agent_message::Body::OrderDone(done),
            None => {
                let Some(Stored { seq, hash, bytes, .. }) = self.backlog.pop_front() else { return };
                self.window.sent(seq, hash, bytes.len());
                if self.backlog.is_empty() && self.next > self.readable() {
                    self.rest_until = Instant::now() + self.options.pace.gather;
                }
                agent_message::Body::Frame(bytes.into())
            }
        };
        self.last_said = Instant::now();
        permit.send(AgentMessage { body: Some(body) });
    }

    /// Sends what else can go at once. Frames that gathered meanwhile then leave as one write, where one after the other each would wake
    /// the transport.
    fn send_more(&mut self) {
        while self.may_send() {
            let Ok(permit) = self.outbox.clone().try_reserve_owned() else { return };
            self.send(permit);
        }
    }

    fn message(&mut self, body: Body) -> Result<(), ShipError> {
        self.last_heard = Instant::now();
        match body {
            Body::Ack(Ack { seq, hash }) => match self.window.acknowledge(seq, &hash) {
                Acked::Advanced(seq, hash) => {
                    self.advance(seq, hash);
                    self.agreed();
                }
                Acked::Known => {}
                Acked::NotSent => {
                    return Err(ShipError::Fork(format!("it acknowledged frame {seq}, which was not sent")));
                }
                Acked::OtherHash => {
                    return Err(ShipError::Fork(format!("it acknowledged frame {seq} with another hash")));
                }
            },
            Body::Pong(_) => {}
            Body::Order(order) => self.order(order),
            Body::Refusal(refusal) => return Err(refused(refusal)),
            Body::Welcome(_) => return Err(ShipError::Protocol("a second Welcome".into())),
        }
        Ok(())
    }

    /// Hands an order on. One too many is answered at once.
    fn order(&self, order: Order) {
        let number = order.number;
        let refused = match &self.options.orders {
            Some(desk) => desk.try_send((order, self.answer.clone())).err().map(|_| "failed"),
            None => Some("unknown"),
        };
        if let Some(code) = refused {
            let message = "the agent cannot take this order now".to_owned();
            // Full: so many answers are waiting that this one is not missed.
            let _ = self.answer.try_send(OrderDone { number, code: code.to_owned(), message });
        }
    }

    fn advance(&mut self, seq: u64, hash: Hash) {
        self.to_note = Some((seq, hash));
        if self.stream.current {
            let now = clock::now().boot_ns;
            self.shared.update(|status| (status.acked_seq, status.acked_boot_ns) = (seq, now));
            self.shared.acked.send_replace(seq);
        }
    }

    /// The collector has what it was sent: what is wrong no longer is.
    fn agreed(&self) {
        self.shared.update(ShipStatus::agree);
    }

    fn next_tick(&self) -> Instant {
        let pace = &self.options.pace;
        let mut tick = (self.last_said + pace.talk).min(self.last_heard + pace.silence);
        if let Some(closing) = self.closing {
            tick = tick.min(closing);
        }
        if self.rests() {
            tick = tick.min(self.rest_until);
        }
        // Where the reader is away, its return wakes the pump.
        let notes = self.to_note.is_some() && self.reader.is_some();
        if notes { tick.min(self.last_note + NOTE_EVERY) } else { tick }
    }

    fn tick(&mut self) -> Result<(), ShipError> {
        if self.closing.is_some_and(|closing| Instant::now() >= closing) {
            return Err(ShipError::Stream("closed".into()));
        }
        let silence = self.options.pace.silence;
        if self.last_heard.elapsed() >= silence {
            return Err(ShipError::Silent(silence.as_secs()));
        }
        if self.last_said.elapsed() < self.options.pace.talk {
            return Ok(());
        }
        self.last_said = Instant::now();
        self.pings += 1;
        let ping = AgentMessage { body: Some(agent_message::Body::Ping(Ping { nonce: self.pings })) };
        // With frames waiting to go out, they ask as well as a ping does.
        let _ = self.outbox.try_send(ping);
        Ok(())
    }

    /// Finishes what is under way and notes what was acknowledged last.
    async fn settle(mut self) {
        if self.busy.is_some()
            && let Some((reader, _)) = work(&mut self.busy).await
        {
            self.reader = Some(reader);
        }
        let (Some(mut reader), Some((seq, hash))) = (self.reader.take(), self.to_note) else { return };
        let generation = self.stream.generation;
        let noted = aside(move || reader.acknowledge(generation, seq, hash)).await;
        if let Ok(Err(error)) = noted {
            tracing::warn!(%error, "what the collector has could not be noted");
        }
    }
}

/// Waits for the work under way. `None` if it panicked or there is none.
async fn work(busy: &mut Option<Busy>) -> Option<(SpoolReader, Result<Vec<Stored>, SpoolError>)> {
    match busy {
        Some(Busy::Reading(handle)) => Pin::new(handle).await.ok(),
        Some(Busy::Noting(handle)) => {
            let (reader, noted) = Pin::new(handle).await.ok()?;
            // Deleting is tried again with the next acknowledgement; shipping goes on.
            if let Err(error) = noted {
                tracing::warn!(%error, "acknowledged frames could not be deleted");
            }
            Some((reader, Ok(Vec::new())))
        }
        None => None,
    }
}
