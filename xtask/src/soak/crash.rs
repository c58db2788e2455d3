//! Agent and collector killed at random moments under load: the test of the end-to-end suite, with more kills.

use anyhow::{Context, Result, ensure};

use super::Wish;
use crate::build::{self, cargo};

/// How often something is killed where nothing is said, and how often a minute.
const KILLS: u64 = 500;
const KILLS_A_MINUTE: u64 = 40;
/// The test; says what it found, and how to see it again, by itself.
const TEST: &str = "crash::nothing_is_lost_whenever_either_is_killed";

/// Runs it to its end.
pub fn run(wish: &Wish<'_>) -> Result<()> {
    let kills = wish.time.map_or(KILLS, |time| (time.as_secs() * KILLS_A_MINUTE / 60).max(1));
    build::everything()?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--test", "live", "--", "--exact", TEST, "--nocapture"]);
    let status = command.env("BREAKGLASS_CRASH_KILLS", kills.to_string()).status().context("cannot run cargo test")?;
    ensure!(status.success(), "{TEST} failed within {kills} kills");
    Ok(())
}
