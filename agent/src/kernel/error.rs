//! What can go wrong on the way to a recording kernel.

use std::{io, path::PathBuf};

use super::{btf::BtfError, offsets::OffsetError};

/// Why the kernel side cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel's type information is missing or damaged.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A kernel field that the programs need is missing.
    #[error("this kernel cannot be recorded: {0}")]
    Offset(#[from] OffsetError),
    /// The object or its maps were refused.
    #[error(
        "the kernel refused the maps of the recording programs: {0}; root with CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN is needed"
    )]
    Object(#[source] Box<aya::EbpfError>),
    /// A program was refused.
    #[error(
        "the kernel refused the program {program} ({hook}): {source}; `breakglass-agent doctor` says what is missing"
    )]
    Program {
        /// Its name.
        program: &'static str,
        /// What it hangs on.
        hook: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Pins cannot be made, read or removed.
    #[error(
        "{action} {path}: {source}; the folder must be on a bpffs (mount -t bpf bpf /sys/fs/bpf) and writable by root"
    )]
    Pin {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A map cannot be read or written.
    #[error("{action} the kernel map {map}: {source}")]
    Map {
        /// What was being done.
        action: &'static str,
        /// Its name.
        map: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A ring cannot be mapped or waited for.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// An argument makes no sense.
    #[error("{0}")]
    Argument(&'static str),
}

impl KernelError {
    pub(super) fn pin(
        action: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Pin { action, path: path.into(), source: source.into() }
    }

    pub(super) fn map(
        action: &'static str,
        map: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Map { action, map, source: source.into() }
    }
}
