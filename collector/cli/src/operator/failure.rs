//! What can go wrong for an operator, and the exit code for it.

use breakglass_api::{grant::is_plain, v1};

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The host said no.
    #[error("refused by {host}: {message} ({code})", message = plain(message), code = plain(code))]
    Refused {
        /// The host's name.
        host: String,
        /// Stable word.
        code: String,
        /// The host's sentence.
        message: String,
    },
    /// The command line or the configuration lacks something.
    #[error("{0}")]
    Usage(String),
    /// No connection, or it broke.
    #[error("cannot connect to {host}: {message}")]
    Connect {
        /// The host's name.
        host: String,
        /// What happened, and what to do.
        message: String,
    },
    /// None of several hosts; each said why.
    #[error("no host is open")]
    NoneOpen {
        /// What the first of them failed with.
        code: u8,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// What the command exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Other(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused { .. } => 3,
            Self::Connect { .. } => 5,
            Self::NoneOpen { code } => *code,
        }
    }

    /// A word for programs.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Usage(_) => "usage",
            Self::Connect { .. } => "cannot-connect",
            Self::NoneOpen { .. } => "none-open",
            Self::Other(_) => "failed",
        }
    }

    /// A host's refusal.
    pub fn refused(host: &str, refused: v1::Refused) -> Self {
        Self::Refused { host: host.to_owned(), code: refused.code, message: refused.message }
    }
}

/// Text from a host, made harmless: whoever serves the port may not be who it should be.
pub fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if is_plain(c) { vec![c] } else { c.escape_default().collect() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_cannot_write_to_the_terminal() {
        let refused = v1::Refused { code: "x\x1b[2J".into(), message: "a\nb\u{202e}c".into() };
        assert_eq!(Failure::refused("web1", refused).to_string(), "refused by web1: a\\nb\\u{202e}c (x\\u{1b}[2J)");
    }
}
