//! The one command for operators and the security team.

#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod evidence;
pub mod operator;
pub mod print;
pub mod security;
