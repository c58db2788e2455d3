//! Pauses that grow, with chance in them so that many hosts do not come back at the same moment.

use std::time::Duration;

use rand::Rng;

pub struct Backoff {
    min: Duration,
    max: Duration,
    current: Duration,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, current: min }
    }

    /// After a success.
    pub fn reset(&mut self) {
        self.current = self.min;
    }

    /// Between half of the current pause and all of it; the next one is twice as long.
    pub fn next(&mut self) -> Duration {
        let pause = self.current.mul_f64(share());
        self.current = (self.current * 2).min(self.max);
        pause
    }
}

/// Between a half and one.
fn share() -> f64 {
    #[cfg(test)]
    if let Some(share) = super::model::share() {
        return share;
    }
    rand::rng().random_range(0.5..=1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_begins_again() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max);
        let pauses: Vec<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses.iter().all(|pause| (min / 2..=max).contains(pause)), "{pauses:?}");
        assert!(pauses[19] >= max / 2);
        backoff.reset();
        assert!(backoff.next() <= min);
    }
}
