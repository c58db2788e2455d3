//! Signatures over the record, so that neither a later intruder nor whoever keeps it can change it unseen.
//!
//! [`keys`] holds the one secret: a signing key that is replaced by a new one at every opening and closing, at every start, and
//! each minute in which something is recorded. The old key's last act is to sign for everything so far and for its successor; then it is
//! destroyed, and only then the new one signs anything. [`notary`] decides when, and puts statements into the record like any
//! other event: a checkpoint lies in a frame behind the ones that it covers. What is signed is described in
//! [`breakglass_api::checkpoint`], how it is verified in `docs/EVIDENCE.md`, what it is worth in `docs/THREAT-MODEL.md`.

pub mod keys;
pub mod notary;
mod state;

#[cfg(test)]
mod tests;

pub use self::{
    keys::{FileKeys, KeyError, KeyStore, Origin},
    notary::Notary,
};
