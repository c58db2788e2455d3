//! How hosts join: a one-time token, a key that never leaves the host, and certificates that are renewed before they end.
//!
//! `breakglass-collector enroll token` makes a token and keeps only the hash of its secret. The host makes a key, checks by the
//! fingerprint in the token that it talks to this collector, and sends the secret with a certificate request. What is taken from
//! the request is its public key and nothing else; id and name are those that the token was made for.

mod limit;
mod service;
pub mod token;

pub use limit::Attempts;
pub(crate) use limit::network;
pub use service::EnrolService;
