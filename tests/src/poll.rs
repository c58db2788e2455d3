//! Waiting for something to become true, with a deadline.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// For what takes part of a second on a quiet machine; generous because the tests share two cores with each other, which may be emulated.
pub const SOON: Duration = Duration::from_secs(60);

/// For what moves megabytes or restarts a daemon.
pub const EVENTUALLY: Duration = Duration::from_secs(180);

/// Pause between two looks: short against every budget that is checked, long enough not to starve what is waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// A look that takes long, such as at all that a collector has, is followed by a pause as many times longer: under emulation two
/// processors would do little but look.
const REST: u32 = 2;

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Calls `look` until it gives something; fails after `limit`, naming `what` and the last error, if there was one.
/// An error of `look` counts as "not yet".
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let looked = Instant::now();
        let last = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= limit {
            match last {
                Some(error) => return Err(error.context(format!("waited {limit:?} in vain for {what}"))),
                None => bail!("waited {limit:?} in vain for {what}"),
            }
        }
        thread::sleep((looked.elapsed() * REST).clamp(PAUSE, PAUSE_MAX));
    }
}

/// As [`until`], for a plain condition.
pub fn until_true(what: &str, limit: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, limit, || Ok(look()?.then_some(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_was_found() {
        let mut left = 3;
        let found = until("three", SOON, || {
            left -= 1;
            Ok((left == 0).then_some("here"))
        });
        assert_eq!(found.unwrap(), "here");
    }

    #[test]
    fn names_what_never_came_and_the_last_error() {
        let error = until::<()>("a train", Duration::ZERO, || bail!("no rails")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("a train") && text.contains("no rails"), "{text}");
    }
}
