//! Sealed one-time codes: the way in where there is no key, such as at a console.
//!
//! `breakglass-agent codes issue` prints them once ([`paper`]); at rest there are only Argon2id hashes ([`book`]). A code opens a session
//! once: it is marked as used on the disk before anything else happens. It names no person, so it is a person's consent nowhere: a host
//! that asks for several signers takes no codes.

pub mod book;
pub mod command;
pub mod paper;

pub use book::{Book, CodeError, Found};
pub use paper::Code;

/// Unused codes of which a warning is given.
pub const FEW: usize = 2;
