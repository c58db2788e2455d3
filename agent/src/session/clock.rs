//! The clocks of the host.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_BOOTTIME` in nanoseconds: counts through suspend and cannot be set, so deadlines are kept on it.
///
/// The clock cannot fail on a kernel that runs our programs; should it, the largest value makes every deadline past.
pub fn boot_ns() -> u64 {
    read(ClockId::CLOCK_BOOTTIME).map_or(u64::MAX, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX))
}

fn read(clock: ClockId) -> Option<Duration> {
    clock_gettime(clock).ok().map(Duration::from)
}

/// How long until a boot time; zero once it is past.
pub fn until(deadline_boot_ns: u64) -> Duration {
    Duration::from_nanos(deadline_boot_ns.saturating_sub(boot_ns()))
}

/// Unix time, seconds. For what is compared with dates in files, never for deadlines.
pub fn wall_s() -> i64 {
    read(ClockId::CLOCK_REALTIME).map_or(0, |t| i64::try_from(t.as_secs()).unwrap_or(i64::MAX))
}
