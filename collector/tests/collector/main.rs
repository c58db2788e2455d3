//! End to end: the built binary, enrolment by its own commands, synthetic frames in, questions back.

#![forbid(unsafe_code)]

mod access;
mod bounds;
mod commands;
mod crash;
mod enrol;
mod evidence;
mod host;
mod ingest;
mod manage;
mod pressure;
mod query;
mod review;
mod search;
mod support;
mod throughput;
mod tlog;
