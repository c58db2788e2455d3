//! The collector: receives frames from agents, keeps them as they came, and answers questions about them.
//!
//! Data flows one way: [`ingest`] checks and stores frames ([`store`]), [`index`] follows the stored frames and builds
//! everything that can be searched (with [`transcript`] for terminals), [`query`] reads both. The index can be deleted and
//! rebuilt at any time; only the stored frames are evidence. [`enrol`] gives hosts their certificates, [`manage`] lets people act,
//! [`silence`] raises the alarm for hosts that are not heard, and [`desk`] keeps what of that must be kept. [`tlog`] is the transparency log that makes rewriting them visible.

#![forbid(unsafe_code)]

pub mod access;
pub mod cli;
pub mod desk;
pub mod enrol;
pub mod feed;
pub mod index;
pub mod ingest;
pub mod manage;
pub mod pki;
pub mod presence;
pub mod query;
pub mod quote;
pub mod reviews;
pub mod server;
pub mod settings;
pub mod silence;
pub mod store;
pub mod tlog;
pub mod transcript;

use std::time::{SystemTime, UNIX_EPOCH};

/// Wall clock in nanoseconds since 1970; 0 where the clock stands before that.
pub(crate) fn wall_clock_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
