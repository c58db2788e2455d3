//! What is proved about a session beside the host's own signatures: that the host's statements are in a transparency log which only
//! grows, and that somebody has reviewed the session. Shared by the collector, which makes these proofs, and the command that verifies
//! them. Pure functions, without I/O; whatever bytes they are given, they end with a value or an error.
//!
//! | module | what it does |
//! |---|---|
//! | [`note`] | keys, checkpoints and cosignatures of a transparency log |
//! | [`merkle`] | proofs that a leaf is in the log's tree, and that a tree continues another |
//! | [`history`] | what a log tells of hosts, and whether anything is missing |
//! | [`review`] | the text that a reviewer signs |
//! | [`sshsig`] | signatures made by `ssh-keygen -Y sign` |
//! | [`reviewers`] | whose signatures count |

#![forbid(unsafe_code)]

pub mod history;
pub mod merkle;
pub mod note;
pub mod review;
pub mod reviewers;
pub mod sshsig;

/// SSHSIG namespace of a signed review.
pub const REVIEW_NAMESPACE: &str = "breakglass-review@v1";
