//! Placeholder.
pub mod clock;
pub mod source;
