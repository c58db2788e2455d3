//! Tests that only make sense on the machines of `cargo xtask lab`, see `docs/LAB.md`. Elsewhere each says that it is skipped.

#![forbid(unsafe_code)]

mod access;
mod boot;
mod guest;
mod handed_over;
mod power;
