//! Placeholder.
pub mod source;
