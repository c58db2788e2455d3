//! A session that overruns its record for longer than a test may: the test of the end-to-end suite, with more time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Wish;
use crate::build::{self, cargo};

/// How long it floods where nothing is said.
const TIME: Duration = Duration::from_secs(30);
/// The test; says what it found by itself.
const TEST: &str = "flood::no_program_is_lost_and_no_byte_unreported";

/// Runs it to its end.
pub fn run(wish: &Wish<'_>) -> Result<()> {
    let seconds = wish.time.unwrap_or(TIME).as_secs();
    build::everything()?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--test", "live", "--", "--exact", TEST, "--nocapture"]);
    let status =
        command.env("BREAKGLASS_FLOOD_SECONDS", seconds.to_string()).status().context("cannot run cargo test")?;
    ensure!(status.success(), "{TEST} failed after a flood of {seconds} s");
    Ok(())
}
