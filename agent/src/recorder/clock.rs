//! The two clocks of a record, and the boot that they belong to.

use nix::time::{ClockId, clock_gettime};

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
    /// `CLOCK_REALTIME` minus `CLOCK_BOOTTIME`, nanoseconds.
    pub wall_offset_ns: i64,
}

/// Reads both clocks.
pub fn now() -> Now {
    let (boot, wall) = (read(ClockId::CLOCK_BOOTTIME), read(ClockId::CLOCK_REALTIME));
    Now { boot_ns: u64::try_from(boot).unwrap_or(0), wall_offset_ns: wall.saturating_sub(boot) }
}

/// The kernel's id of this boot; zeros where it cannot be read, which only a missing `/proc` explains.
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().parse().map(uuid::Uuid::into_bytes).unwrap_or_default()
}

/// Nanoseconds; both clocks exist on every kernel since 2.6.39, so that an error cannot happen.
fn read(clock: ClockId) -> i64 {
    clock_gettime(clock).map_or(0, |time| time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec()))
}
