//! How many wrong tokens are looked at: so few that guessing and filling the log are hopeless.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What is counted together.
const WINDOW: Duration = Duration::from_secs(60);
/// Wrong tokens from one source in a window.
const PER_SOURCE: u32 = 5;
/// Wrong tokens in a window from everywhere.
const IN_ALL: u32 = 60;
/// Sources remembered; more than can fail in a window.
const SOURCES_MAX: usize = IN_ALL as usize;

/// Counts wrong tokens. Cheap to clone.
#[derive(Clone, Default)]
pub struct Attempts {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    began: Option<Instant>,
    in_all: u32,
    sources: HashMap<IpAddr, u32>,
}

impl Attempts {
    /// Whether a token from this source is looked at now.
    pub fn allowed(&self, source: Option<IpAddr>) -> bool {
        let state = self.current();
        let of_source = source.and_then(|source| state.sources.get(&network(source)).copied()).unwrap_or(0);
        state.in_all < IN_ALL && of_source < PER_SOURCE
    }

    /// A token from this source was wrong.
    pub fn wrong(&self, source: Option<IpAddr>) {
        let mut state = self.current();
        state.in_all += 1;
        if let Some(source) = source.filter(|_| state.sources.len() < SOURCES_MAX) {
            *state.sources.entry(network(source)).or_default() += 1;
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.began.is_none_or(|began| began.elapsed() >= WINDOW) {
            *state = State { began: Some(Instant::now()), ..State::default() };
        }
        state
    }
}

/// What counts as one source: an IPv4 address, also where it came as IPv6; of IPv6 the /64, which one host has to itself.
pub(crate) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) & (u128::MAX << 64)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_and_all_sources_together_are_bounded() {
        let attempts = Attempts::default();
        let source = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        for _ in 0..PER_SOURCE {
            assert!(attempts.allowed(source(1)));
            attempts.wrong(source(1));
        }
        assert!(!attempts.allowed(source(1)) && attempts.allowed(source(2)));
        for last in 2..=(IN_ALL - PER_SOURCE + 1) as u8 {
            attempts.wrong(source(last));
        }
        assert!(!attempts.allowed(source(200)) && !attempts.allowed(None));
        let six = |last: u16| Some(IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]));
        assert_eq!(network(six(1).unwrap()), network(six(2).unwrap()));
        let four = |text: &str| network(text.parse().unwrap());
        assert_eq!(four("::ffff:10.0.0.1"), four("10.0.0.1"));
        assert_ne!(four("::ffff:10.0.0.1"), four("::ffff:10.0.0.2"));
    }
}
