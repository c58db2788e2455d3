//! What can go wrong with the spool.

use std::{io, path::PathBuf};

use breakglass_api::frame::FrameError;

/// Why the spool could not do something. The spool itself is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The bound of the configuration is reached.
    #[error(
        "the spool {dir} is full: {used} of {limit} bytes wait for the collector; bring the collector back or raise spool.max_bytes"
    )]
    Full {
        /// The spool's folder.
        dir: PathBuf,
        /// Bytes not acknowledged.
        used: u64,
        /// The bound, bytes.
        limit: u64,
    },
    /// The file system refused.
    #[error("cannot {what} {file}{}: {source}{}", at(.offset), advice(.source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        file: PathBuf,
        /// Where in it, bytes.
        offset: Option<u64>,
        /// Why not.
        source: io::Error,
    },
    /// Another process has the spool.
    #[error("the spool {0} is in use by another process; stop the other agent first")]
    Locked(PathBuf),
    /// The folder was written by a later version.
    #[error("{file} is of format version {found}, this agent knows up to {known}; install the agent that wrote it")]
    Version {
        /// The file.
        file: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A frame that does not continue the chain was offered.
    #[error("frame {seq} does not continue the spool, which is at {last}")]
    Order {
        /// The frame.
        seq: u64,
        /// The last one.
        last: u64,
    },
    /// A frame that was durable cannot be read back.
    #[error(
        "{file} is damaged at byte {offset}: {reason}; restart the agent to have it set aside and the rest recovered"
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where, bytes.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A frame could not be made during a repair.
    #[error("cannot repair the spool {dir}: {source}")]
    Repair {
        /// The spool's folder.
        dir: PathBuf,
        /// Why.
        source: FrameError,
    },
    /// The repair found the same damage again.
    #[error("the spool {0} is still damaged after a repair; move the folder away and restart the agent")]
    Irreparable(PathBuf),
}

impl SpoolError {
    /// For `map_err`: an input/output error of a whole file.
    pub(super) fn io(what: &'static str, file: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { what, file, offset: None, source }
    }

    /// For `map_err`: an input/output error at a place.
    pub(super) fn io_at(what: &'static str, file: impl Into<PathBuf>, offset: u64) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { what, file, offset: Some(offset), source }
    }
}

fn at(offset: &Option<u64>) -> String {
    offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default()
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space on its file system",
        io::ErrorKind::ReadOnlyFilesystem => "; remount its file system writable",
        io::ErrorKind::PermissionDenied => "; the agent must run as root and own the folder",
        _ => "",
    }
}
