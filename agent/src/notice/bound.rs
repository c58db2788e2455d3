//! No flood of refusals or alerts becomes a flood of notices.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::message::{Kind, Notice};

/// Most notices of one kind within [`WINDOW`].
pub const PER_MINUTE: u32 = 20;

/// How long they are counted together.
const WINDOW: Duration = Duration::from_secs(60);

/// What was told of each kind.
#[derive(Debug, Default)]
pub struct Bound {
    kinds: HashMap<Kind, Counted>,
}

#[derive(Debug)]
struct Counted {
    since: Instant,
    told: u32,
    /// Not told, since the last one that was.
    more: u64,
}

impl Bound {
    /// Whether the notice is told; if so, it says how many before it were not.
    pub fn admit(&mut self, notice: &mut Notice, now: Instant) -> bool {
        if !notice.kind.is_bounded() {
            return true;
        }
        let counted = self.kinds.entry(notice.kind).or_insert(Counted { since: now, told: 0, more: 0 });
        if now.saturating_duration_since(counted.since) >= WINDOW {
            (counted.since, counted.told) = (now, 0);
        }
        if counted.told >= PER_MINUTE {
            counted.more += notice.count;
            return false;
        }
        counted.told += 1;
        notice.more = std::mem::take(&mut counted.more);
        true
    }
}
