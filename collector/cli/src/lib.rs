//! The one command for operators and the security team.

#![forbid(unsafe_code)]

pub mod operator;
pub mod security;
