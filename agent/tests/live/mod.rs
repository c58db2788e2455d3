mod harness;

mod actions;
mod exec;
mod session;
mod stdio;
mod takeover;
mod terminal;
