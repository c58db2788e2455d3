mod harness;

mod actions;
mod cost;
mod differential;
mod exec;
mod line;
mod session;
mod stdio;
mod takeover;
mod terminal;
mod witness;
