//! Drives the built `breakglass` against a collector that is faked in this process, over mutual TLS.

mod fake;
mod lists;
mod output;
mod refusals;
mod replay;
mod run;
mod sample;
mod show;
mod terminal;
