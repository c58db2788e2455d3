mod harness;

mod actions;
mod cost;
mod exec;
mod session;
mod stdio;
mod takeover;
mod terminal;
