mod harness;

mod actions;
mod cost;
mod differential;
mod exec;
mod fail_closed;
mod guard;
mod line;
mod session;
mod stdio;
mod takeover;
mod terminal;
mod witness;
