mod harness;

mod exec;
mod session;
mod takeover;
mod terminal;
