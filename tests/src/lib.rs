//! What the end-to-end tests, the demonstration and the measurements share: a collector, an agent, an account and an sshd of
//! their own on this machine, and the means to drive them as an operator and a reviewer would.
//!
//! Everything drives the built binaries; nothing of the agent or the collector is linked in but the protocol. Whatever a run
//! makes outside of its own folder is written down first and taken back at the end, see [`undo`].

#![forbid(unsafe_code)]

pub mod account;
pub mod argvs;
pub mod binaries;
pub mod control;
pub mod daemon;
pub mod fido;
pub mod gate;
pub mod grant;
pub mod machine;
pub mod operator;
pub mod poll;
pub mod proxy;
pub mod query;
pub mod remains;
pub mod sshd;
pub mod stack;
pub mod terminal;
pub mod tiny;
pub mod undo;
