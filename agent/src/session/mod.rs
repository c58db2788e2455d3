//! The life of a session: open, deadline, closing, and what a restart finds.

pub mod backstop;
pub mod clock;
pub mod grant;
pub mod host;
pub mod intent;
pub mod looks;
pub mod machine;
pub mod manager;
pub mod orders;
pub mod processes;
pub mod rotate;
pub mod service;
pub mod systemd;
pub mod ungranted;
pub mod witness;

#[cfg(test)]
mod tests;
