//! How far the durable record reaches, and what in it wants to be signed for: what the notary (`evidence`) goes by.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use breakglass_api::{
    checkpoint::{Number, reason},
    frame::Hash,
    v1::{Event, event::Body},
};
use tokio::sync::watch;
use uuid::Uuid;

/// Openings and closings that wait to be signed for. More than one only while the disk refuses; the oldest ones are then
/// covered without being named.
const MARKS_MAX: usize = 64;

/// The end of the durable record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The stream.
    pub stream_id: [u8; 16],
    /// This boot.
    pub boot_id: [u8; 16],
    /// Last durable frame; 0 if none.
    pub seq: u64,
    /// Its hash; zeros if none.
    pub hash: Hash,
    /// Last frame that holds anything but statements of the notary itself.
    pub content_seq: u64,
    /// Up to which number of each ring and CPU everything is in the record, or declared missing there.
    pub numbers: Arc<[Number]>,
}

/// A session that was opened or closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// [`reason::OPENED`] or [`reason::CLOSED`].
    pub reason: u16,
    /// The session.
    pub session: Uuid,
    /// The frame that says so.
    pub seq: u64,
}

/// What a round held.
#[derive(Default)]
pub struct Noted {
    content_seq: u64,
    reasons: u16,
    marks: Vec<Mark>,
}

impl Noted {
    /// Takes note of an event that lies in frame `seq`.
    pub fn see(&mut self, event: &Event, session: Option<Uuid>, seq: u64) {
        let reason = match &event.body {
            Some(Body::Checkpoint(_) | Body::KeyEvolved(_) | Body::KeyIntroduced(_)) => return,
            Some(Body::SessionOpened(_)) => reason::OPENED,
            Some(Body::SessionClosed(_)) => reason::CLOSED,
            Some(Body::ProofRefused(_)) => reason::REFUSED,
            Some(Body::Alert(_)) => reason::ALERT,
            Some(Body::AgentStarted(_)) => reason::STARTED,
            Some(Body::AgentStopping(_)) => reason::STOPPING,
            _ => 0,
        };
        self.content_seq = seq;
        match session {
            Some(session) if reason & (reason::OPENED | reason::CLOSED) != 0 => {
                self.marks.push(Mark { reason, session, seq });
            }
            _ => self.reasons |= reason & !(reason::OPENED | reason::CLOSED),
        }
    }
}

/// Shared between the recorder's thread, which advances it, and the notary.
pub struct Reached {
    state: Mutex<State>,
    marked: watch::Sender<u64>,
}

struct State {
    reach: Reach,
    reasons: u16,
    marks: VecDeque<Mark>,
}

impl Default for Reached {
    fn default() -> Self {
        let reach = Reach {
            stream_id: [0; 16],
            boot_id: [0; 16],
            seq: 0,
            hash: [0; 32],
            content_seq: 0,
            numbers: Arc::default(),
        };
        let state = State { reach, reasons: 0, marks: VecDeque::new() };
        Self { state: Mutex::new(state), marked: watch::Sender::new(0) }
    }
}

impl Reached {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the spool ends at start. What earlier runs left counts as content: nobody may have signed for it.
    pub fn begin(&self, stream_id: [u8; 16], boot_id: [u8; 16], (seq, hash): (u64, Hash)) {
        let mut state = self.state();
        state.reach = Reach { stream_id, boot_id, seq, hash, content_seq: seq, numbers: Arc::default() };
    }

    /// After a commit.
    pub fn advance(
        &self,
        stream_id: [u8; 16],
        boot_id: [u8; 16],
        (seq, hash): (u64, Hash),
        numbers: Vec<Number>,
        noted: Noted,
    ) {
        let mut state = self.state();
        let content_seq = state.reach.content_seq.max(noted.content_seq);
        state.reach = Reach { stream_id, boot_id, seq, hash, content_seq, numbers: numbers.into() };
        let count = noted.marks.len() + usize::from(noted.reasons != 0);
        state.reasons |= noted.reasons;
        state.marks.extend(noted.marks);
        let excess = state.marks.len().saturating_sub(MARKS_MAX);
        state.marks.drain(..excess);
        drop(state);
        if count > 0 {
            self.marked.send_modify(|marked| *marked += count as u64);
        }
    }

    pub fn now(&self) -> Reach {
        self.state().reach.clone()
    }

    pub fn marks(&self) -> watch::Receiver<u64> {
        self.marked.subscribe()
    }

    pub fn take(&self) -> (u16, Vec<Mark>) {
        let mut state = self.state();
        (std::mem::take(&mut state.reasons), state.marks.drain(..).collect())
    }
}
