//! What is made durable together, and how it is divided into frames.

use std::ops::Range;

use breakglass_api::{
    frame::{FrameError, Header, RAW_MAX, Sealed, Sealer},
    v1::{Alert, Batch, Event, Gap, event::Body},
};
use prost::Message;
use uuid::Uuid;

use super::{clock::Now, ticket::Ticket};
use crate::spool::{GROUP_FRAMES_MAX, Next};

/// Raw size at which a frame is ended, bytes: enough to compress well, little enough to hold several in memory.
const FRAME_TARGET: usize = 1 << 20;
/// What an event costs beside its own encoding, and what a batch costs beside its events, bytes: keys, lengths, sessions,
/// position. Generous.
const EVENT_OVERHEAD: usize = 32;
const BATCH_OVERHEAD: usize = 64 * 1024;
/// Largest event that fits a frame, bytes.
pub const EVENT_MAX: usize = RAW_MAX - BATCH_OVERHEAD - EVENT_OVERHEAD;
/// Sessions named in one frame; each costs 18 bytes of `BATCH_OVERHEAD`.
const SESSIONS_MAX: usize = 1024;

/// One event on its way to the disk.
pub struct Item {
    pub event: Event,
    pub session: Option<Uuid>,
    pub ticket: Option<Ticket>,
    /// Encoded length, bytes.
    pub len: usize,
}

impl Item {
    pub fn new(event: Event, session: Option<Uuid>, ticket: Option<Ticket>) -> Self {
        let len = event.encoded_len() + EVENT_OVERHEAD;
        Self { event, session, ticket, len }
    }

    /// An alert of the recorder's own.
    pub fn alert(boot_ns: u64, code: &str, message: String) -> Self {
        let alert = Alert { code: code.into(), message, process: None };
        Self::new(Event { boot_ns, body: Some(Body::Alert(alert)), ..Event::default() }, None, None)
    }

    /// In place of an event that no frame can hold.
    pub fn too_large(event: &Event, session: Option<Uuid>) -> Self {
        let origin = event.origin.unwrap_or_default();
        let gap = Gap {
            ring: origin.ring,
            cpu: origin.cpu,
            first_seq: origin.seq,
            records: u64::from(origin.more) + 1,
            cause: "too-large".into(),
            bytes: event.encoded_len() as u64,
        };
        let body = Some(Body::Gap(gap));
        Self::new(Event { boot_ns: event.boot_ns, origin: event.origin, body, ..Event::default() }, session, None)
    }
}

/// Divides items into frames: none above the target but for a single large event, never more frames than a group may have.
pub fn divide(items: &[Item]) -> Vec<Range<usize>> {
    let total: usize = items.iter().map(|item| item.len).sum();
    // Two neighbouring frames together exceed the target, so that there are at most twice total/target of them.
    let target = FRAME_TARGET.max(total / (GROUP_FRAMES_MAX / 2 - 1)).min(EVENT_MAX);
    let mut frames = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (at, item) in items.iter().enumerate() {
        if at > start && used + item.len > target {
            frames.push(start..at);
            (start, used) = (at, 0);
        }
        used += item.len;
    }
    // Also without any item: a frame that only carries the source's position.
    frames.push(start..items.len());
    frames
}

/// Seals items into one frame. They are as before afterwards.
pub fn seal(
    sealer: &mut Sealer,
    items: &mut [Item],
    next: &Next,
    boot_id: [u8; 16],
    now: &Now,
    resume: Vec<u8>,
) -> Result<Sealed, FrameError> {
    let first_boot_ns = items.iter().map(|item| item.event.boot_ns).min().unwrap_or(now.boot_ns);
    let last_boot_ns = items.iter().map(|item| item.event.boot_ns).max().unwrap_or(now.boot_ns);
    let mut batch = Batch { sessions: Vec::new(), events: Vec::with_capacity(items.len()), resume };
    let mut sessions: Vec<Uuid> = Vec::new();
    for item in items.iter_mut() {
        item.event.session = item.session.map_or(0, |session| number_of(&mut sessions, session));
        batch.events.push(std::mem::take(&mut item.event));
    }
    batch.sessions = sessions.iter().map(|session| session.as_bytes().to_vec()).collect();
    let header = Header {
        stream_id: next.stream_id,
        boot_id,
        seq: next.seq,
        prev: next.prev,
        first_boot_ns,
        last_boot_ns,
        wall_offset_ns: now.wall_offset_ns,
        events: 0,
    };
    let sealed = sealer.seal(header, &mut batch, next.room);
    for (item, event) in items.iter_mut().zip(batch.events) {
        item.event = event;
    }
    sealed
}

/// Index plus one; 0 where there is no room for another session, which no host has so many of at once.
fn number_of(sessions: &mut Vec<Uuid>, session: Uuid) -> u32 {
    let known = sessions.iter().position(|known| *known == session);
    let at = known.unwrap_or_else(|| {
        sessions.push(session);
        sessions.len() - 1
    });
    if at < SESSIONS_MAX { u32::try_from(at + 1).unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use breakglass_api::v1::TerminalOutput;
    use proptest::prelude::*;

    use super::*;

    fn item(len: usize) -> Item {
        let output = TerminalOutput { data: vec![7; len], ..TerminalOutput::default() };
        Item::new(Event { body: Some(Body::TerminalOutput(output)), ..Event::default() }, None, None)
    }

    #[test]
    fn a_huge_event_gets_a_frame_of_its_own() {
        let items = [item(10), item(6 << 20), item(10), item(20)];
        assert_eq!(divide(&items), [0..1, 1..2, 2..4]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn frames_cover_everything_in_order_within_bounds(lens in prop::collection::vec(0usize..400_000, 0..300)) {
            let items: Vec<Item> = lens.into_iter().map(item).collect();
            let frames = divide(&items);
            prop_assert!(frames.len() <= GROUP_FRAMES_MAX);
            prop_assert_eq!(frames.iter().cloned().flatten().collect::<Vec<_>>(), (0..items.len()).collect::<Vec<_>>());
            for frame in frames {
                let size: usize = items[frame.clone()].iter().map(|item| item.len).sum();
                prop_assert!(size <= EVENT_MAX || frame.len() == 1);
            }
        }
    }
}
