//! How many of the guest's processors a suite has.
//!
//! Emulated, a second processor is dear: while one waits for the other (locks, interrupts to all, the emulator's own lock), a thread of
//! the host burns or sleeps for it, and a fifth of the time of two guests side by side went there. Tests that look for races, count events
//! per processor or flood the agent have both; tests that log in, wait and log in again do not need them, and tell besides that the
//! product works on a machine with one.

use std::path::Path;

use anyhow::Result;

use crate::lab::host;

/// Suites that run on the first processor alone.
const ALONE: &[&str] = &["lab"];

/// Where the kernel takes its second processor out of use and back (`Documentation/core-api/cpu_hotplug.rst`).
const SECOND: &str = "/sys/devices/system/cpu/cpu1/online";

/// Gives the machine as many processors as `suite` is to have.
pub fn set_for(suite: &str) -> Result<()> {
    // A machine of one processor has no such file.
    if !Path::new(SECOND).exists() {
        return Ok(());
    }
    host::write(Path::new(SECOND), value_for(suite))
}

fn value_for(suite: &str) -> &'static str {
    if ALONE.contains(&suite) { "0" } else { "1" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_for_races_has_both() {
        assert_eq!(["lab", "kernel_live", "bypass", "live"].map(value_for), ["0", "1", "1", "1"]);
    }
}
