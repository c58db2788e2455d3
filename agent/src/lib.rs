//! The root daemon that opens, records and closes break-glass sessions.

#![deny(unsafe_code)]

pub mod account;
pub mod aftermath;
pub mod blocking;
pub mod codes;
pub mod commands;
pub mod config;
pub mod control;
pub mod daemon;
pub mod doctor;
pub mod enrol;
pub mod evidence;
pub mod gate;
pub mod grant;
pub mod identity;
pub mod kernel;
pub mod notice;
pub mod procfs;
pub mod program;
pub mod recorder;
pub mod regular;
pub mod session;
pub mod ship;
pub mod spool;
#[allow(unsafe_code, reason = "the one module that may; each use says why it is sound")]
pub mod sys;
