//! What the manager is asked for and what it answers.

use std::time::Duration;

use breakglass_api::v1::Cosigner;
use uuid::Uuid;

use super::intent::Intent;
use crate::account::keys::KEYS_MAX;

/// A verified permission to break the glass.
#[derive(Clone, Debug, Default)]
pub struct Grant {
    /// Principal of the signing key, or `code:SERIAL`.
    pub operator: String,
    /// The key that may log in, as in `authorized_keys`, without options. Absent where a one-time code was typed at a console.
    pub key: Option<String>,
    /// `SHA256:…`, or empty.
    pub key_fingerprint: String,
    /// Such as `ssh-ed25519`, or `one-time-code`.
    pub key_type: String,
    /// What the key's certificate says, for people; empty where the key itself is listed.
    pub certificate: String,
    /// Whether this was a one-time code.
    pub by_code: bool,
    /// Why.
    pub reason: String,
    /// Ticket, or empty.
    pub ticket: String,
    /// How long.
    pub ttl: Duration,
    /// End with the last process.
    pub close_on_exit: bool,
    /// What was signed.
    pub text: Vec<u8>,
    /// The signature over it.
    pub signature: Vec<u8>,
    /// Where it came from.
    pub source: String,
    /// Who else signed.
    pub cosigners: Vec<Cosigner>,
    /// What a reviewer should know at once.
    pub warnings: Vec<String>,
}

/// A session that was opened, or goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Its id.
    pub session: Uuid,
    /// When it ends, boot clock, nanoseconds.
    pub deadline_boot_ns: u64,
    /// Whether it was open already.
    pub extended: bool,
    /// From the verified grant to the account enabled.
    pub took: Duration,
}

/// Why the glass was not broken, or a session not closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// As many keys as there may be are in the session already.
    #[error(
        "{KEYS_MAX} keys may log into this session already; log in with one of them, or close the session first: breakglass close"
    )]
    TooManyKeys,
    /// The host cannot record, so it does not open.
    #[error("this host cannot record a session, so it stays locked: {0}")]
    CannotRecord(String),
    /// Something on the host failed; what was begun was undone.
    #[error("the account could not be enabled: {0}")]
    Failed(String),
    /// The agent is about to end, and opens nothing any more.
    #[error("the agent of this host is being stopped; once it is started again, try again")]
    Stopping,
    /// The agent is not stopped while this session is open.
    #[error(
        "session {0} is open; close it first (breakglass close), or end it with the agent: breakglass-agent stop --force"
    )]
    Open(Uuid),
    /// The agent goes on, so that something keeps trying.
    #[error("the account could not be locked, so the agent is not stopped: {0}")]
    NotLocked(String),
    /// Nothing to close.
    #[error("no session is open on this host")]
    NotOpen,
}

impl SessionError {
    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooManyKeys => "too-many-keys",
            Self::CannotRecord(_) => "cannot-record",
            Self::Failed(_) => "failed",
            Self::Stopping => "stopping",
            Self::Open(_) => "session-open",
            Self::NotLocked(_) => "not-locked",
            Self::NotOpen => "not-open",
        }
    }
}

/// Where the host stands, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// `locked`, `open`, `closing` or `resumed`.
    pub state: &'static str,
    /// The session, unless locked.
    pub session: Option<Intent>,
}
