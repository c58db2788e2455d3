//! A witness, after C2SP tlog-witness: cosigns the checkpoints of the logs that it is told of, as long as each log only grows.
//!
//! Its folder: `witness.toml`, `witness.key` (0600), and `state/`, with a file for every log it has cosigned: the last
//! checkpoint with both signatures. That file is replaced, durably, before a cosignature leaves the process. Without its
//! state a witness would believe a log's rewritten history, so it does not start without `state/`.

pub mod server;
pub mod settings;
pub mod state;
