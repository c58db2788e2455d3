//! What a session left on the host that could open a door later.
//!
//! Whoever had root may have added a key, a user, a sudoers line, a setuid copy of a shell, a timer. A [`Snapshot`] from before the
//! session and one from after its last process are compared by [`diff`], and [`left_behind`] makes the event of it that the review
//! shows. Nothing here decides or undoes anything.
//!
//! # Taking a snapshot
//!
//! The host may be booby-trapped by the time of the second look, so every read is made through `files`: nothing is opened before it
//! is known to be a regular file or a folder, links are resolved inside the root that was given, and every file, folder, category
//! and stretch of time has a limit. Work is cut into steps that run on threads of their own (`steps`): one that never comes back, on
//! a dead network file system say, costs its own findings and not the others'. What was cut short is in the snapshot as a [`Cut`],
//! and so in the event.
//!
//! Reading the settings takes some tens of milliseconds; walking the file systems for files with special rights takes a few
//! microseconds a file, seconds on a full host. [`Part`] separates the two, so that the walk can be made while the host is at rest and
//! [`Snapshot::join`]ed with settings read just before the account is enabled.
//!
//! # Formats
//!
//! A stored snapshot ([`Snapshot::to_bytes`]) is a protocol buffer, zstd-compressed; the fields are those of `snapshot`.

mod accounts;
mod compare;
mod files;
mod kernel;
mod keys;
mod lines;
mod places;
mod snapshot;
mod sockets;
mod steps;
mod take;
mod text;
mod tree;
mod walk;
mod words;

#[cfg(test)]
mod tests;

pub use breakglass_api::v1::left_behind::{Category, Change, Kind, Severity};
pub use compare::{diff, left_behind};
pub use snapshot::{Cut, Item, Snapshot, SnapshotError};
pub use take::{Limits, Part};

/// What no snapshot of this version looks at, for [`breakglass_api::v1::LeftBehind::not_covered`].
pub const NEVER_COVERED: &[&str] = &[
    "contents of programs and libraries; of PAM modules, vendor units, boot files and files with special rights only size, owner, mode and times are compared",
    "firewall rules: only the names of the loaded tables and the configuration files are compared",
    "BPF programs and maps without a pin, and what a pin holds",
    "sockets, mounts and processes in namespaces other than the first process's; processes that still run",
    "home folders outside /home of users whom only a directory service knows",
    "files that a mount point hides; what a link to a folder leads to",
];
