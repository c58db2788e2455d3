//! When to draw the next piece of a replay.

use std::time::Duration;

use tokio::time::Instant;

/// Slowest and fastest replay, times the speed of what happened.
pub const SPEED_MIN: f64 = 1.0 / 64.0;
/// See [`SPEED_MIN`].
pub const SPEED_MAX: f64 = 1024.0;

/// The clock of a replay.
#[derive(Debug)]
pub struct Pace {
    speed: f64,
    idle_max: Duration,
    /// Boot clock of the last piece.
    last: Option<u64>,
    /// When the next piece is to be drawn.
    due: Instant,
    /// While paused: how long was left to wait.
    paused: Option<Duration>,
}

impl Pace {
    /// Starts now.
    pub fn new(speed: f64, idle_max: Duration) -> Self {
        Self { speed: speed.clamp(SPEED_MIN, SPEED_MAX), idle_max, last: None, due: Instant::now(), paused: None }
    }

    /// Takes up the next piece: its time on the boot clock of the host, nanoseconds.
    pub fn take_up(&mut self, boot_ns: u64, now: Instant) {
        let gap = Duration::from_nanos(boot_ns.saturating_sub(self.last.unwrap_or(boot_ns)));
        self.last = Some(self.last.unwrap_or(0).max(boot_ns));
        let wait = gap.min(self.idle_max).div_f64(self.speed);
        // From when the last one was due, so that delays do not add up; but what is late is not hurried after.
        self.due = (self.due + wait).max(now);
    }

    /// Waits on from now, before anything is drawn.
    pub fn hold(&mut self, now: Instant, wait: Duration) {
        self.due = now + wait;
    }

    /// When to draw; `None` while paused.
    pub fn due(&self) -> Option<Instant> {
        self.paused.is_none().then_some(self.due)
    }

    /// Stops or goes on.
    pub fn toggle(&mut self, now: Instant) {
        match self.paused.take() {
            Some(left) => self.due = now + left,
            None => self.paused = Some(self.due.saturating_duration_since(now)),
        }
    }

    /// Multiplies the speed, also of the wait under way.
    pub fn change(&mut self, factor: f64, now: Instant) {
        let speed = (self.speed * factor).clamp(SPEED_MIN, SPEED_MAX);
        let scale = self.speed / speed;
        self.speed = speed;
        match &mut self.paused {
            Some(left) => *left = left.mul_f64(scale),
            None => self.due = now + self.due.saturating_duration_since(now).mul_f64(scale),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn keeps_time_caps_idling_and_scales() {
        let mut pace = Pace::new(2.0, Duration::from_secs(3));
        let start = pace.due;
        pace.take_up(7 * SECOND, start);
        assert_eq!(pace.due(), Some(start), "the first piece is drawn at once");
        pace.take_up(8 * SECOND, start);
        assert_eq!(pace.due(), Some(start + Duration::from_millis(500)));
        pace.take_up(100 * SECOND, start);
        assert_eq!(pace.due(), Some(start + Duration::from_secs(2)));
        pace.take_up(99 * SECOND, start);
        assert_eq!(pace.due(), Some(start + Duration::from_secs(2)), "a time that went back is no wait");
    }

    #[test]
    fn pauses_and_changes_speed_midway() {
        let mut pace = Pace::new(1.0, Duration::from_secs(60));
        let start = pace.due;
        pace.take_up(SECOND, start);
        pace.take_up(11 * SECOND, start);
        let now = start + Duration::from_secs(4);
        pace.toggle(now);
        assert_eq!(pace.due(), None);
        pace.change(2.0, now);
        let later = now + Duration::from_secs(100);
        pace.toggle(later);
        assert_eq!(pace.due(), Some(later + Duration::from_secs(3)));
        pace.change(f64::MAX, later);
        pace.change(f64::MIN_POSITIVE, later);
        assert_eq!(pace.speed, SPEED_MIN);
    }
}
