//! What is worth a notice, and how it reads.

use std::fmt::Write as _;

use breakglass_api::v1::{CloseCause, Event, event::Body};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Origin, syslog::Priority};

/// Longest single value in a notice, characters; the record has the whole.
const VALUE_MAX: usize = 300;

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The glass is broken.
    Opened,
    /// A further proof came for an open session.
    Extended,
    /// A session is over.
    Closed,
    /// A proof was refused.
    Refused,
    /// Somebody logged in.
    Login,
    /// Something that somebody must look at, such as a login without a grant.
    Alert,
}

impl Kind {
    /// Stable word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Opened => "session-opened",
            Self::Extended => "session-extended",
            Self::Closed => "session-closed",
            Self::Refused => "proof-refused",
            Self::Login => "login",
            Self::Alert => "alert",
        }
    }

    /// Whether others can make any number of them.
    pub fn is_bounded(self) -> bool {
        matches!(self, Self::Refused | Self::Login | Self::Alert)
    }
}

/// One notice.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// New for each; a retry has the same.
    pub id: Uuid,
    /// What it is about.
    pub kind: Kind,
    /// Unix seconds.
    pub time_s: i64,
    /// The session, where there is one.
    pub session: Option<Uuid>,
    /// Names and values, in order.
    pub values: Vec<(&'static str, String)>,
    /// How many equal ones it stands for.
    pub count: u64,
    /// How many of its kind before it were not told.
    pub more: u64,
    /// How many before it were given up on because the webhook was behind.
    pub lost: u64,
}

/// The notice of an event, if it is worth one.
pub fn of(event: &Event, session: Option<Uuid>) -> Option<Notice> {
    let (kind, count, values) = match event.body.as_ref()? {
        Body::SessionOpened(e) => (
            Kind::Opened,
            1,
            vec![
                ("operator", e.operator.clone()),
                ("reason", e.reason.clone()),
                ("ticket", e.ticket.clone()),
                ("key", e.key_fingerprint.clone()),
                ("source", e.source.clone()),
                ("ttl_seconds", e.ttl_seconds.to_string()),
                ("tier", e.tier.clone()),
                ("warnings", e.warnings.join("; ")),
            ],
        ),
        Body::SessionExtended(e) => (
            Kind::Extended,
            1,
            vec![
                ("operator", e.operator.clone()),
                ("reason", e.reason.clone()),
                ("ticket", e.ticket.clone()),
                ("key", e.key_fingerprint.clone()),
                ("source", e.source.clone()),
                ("ttl_seconds", e.ttl_seconds.to_string()),
            ],
        ),
        Body::SessionClosed(e) => (
            Kind::Closed,
            1,
            vec![
                ("cause", cause(e.cause())),
                ("by", e.by.clone()),
                ("killed", e.killed.to_string()),
                ("survivors", e.survivors.len().to_string()),
            ],
        ),
        Body::ProofRefused(e) => (
            Kind::Refused,
            u64::from(e.count.max(1)),
            vec![
                ("code", e.code.clone()),
                ("source", e.source.clone()),
                ("claimed_operator", e.claimed_operator.clone()),
                ("key", e.key_fingerprint.clone()),
                ("message", e.message.clone()),
            ],
        ),
        Body::Login(e) => (
            Kind::Login,
            1,
            vec![
                ("service", e.service.clone()),
                ("terminal", e.tty.clone()),
                ("source", e.remote_host.clone()),
                ("operator", e.operator.clone()),
            ],
        ),
        Body::Alert(e) => (Kind::Alert, 1, vec![("code", e.code.clone()), ("message", e.message.clone())]),
        _ => return None,
    };
    let values = values.into_iter().filter(|(_, value)| !value.is_empty());
    let values = values.map(|(name, value)| (name, value.chars().take(VALUE_MAX).collect())).collect();
    let time_s = crate::session::clock::wall_s();
    Some(Notice { id: Uuid::now_v7(), kind, time_s, session, values, count, more: 0, lost: 0 })
}

fn cause(cause: CloseCause) -> String {
    cause.as_str_name().trim_start_matches("CLOSE_CAUSE_").to_ascii_lowercase().replace('_', "-")
}

impl Notice {
    /// How much it matters.
    pub fn priority(&self) -> Priority {
        match self.kind {
            Kind::Opened | Kind::Alert => Priority::Alert,
            Kind::Extended | Kind::Refused => Priority::Warning,
            Kind::Closed | Kind::Login => Priority::Notice,
        }
    }

    /// One line: the kind, then `name="value"`, with whatever could disturb a log escaped.
    pub fn line(&self, host: &str) -> String {
        let mut line = format!("{} host={:?}", self.kind.word(), host);
        // Writing to a string cannot fail.
        if let Some(session) = self.session {
            let _ = write!(line, " session={session}");
        }
        for (name, value) in &self.values {
            let _ = write!(line, " {name}={value:?}");
        }
        for (name, count) in [("count", self.count), ("not_told_before", self.more)] {
            if count > u64::from(name == "count") {
                let _ = write!(line, " {name}={count}");
            }
        }
        line
    }

    /// The body of the POST: one JSON object.
    pub fn json(&self, origin: &Origin) -> Value {
        let time = jiff::Timestamp::from_second(self.time_s).map(|time| time.to_string()).unwrap_or_default();
        let mut object = json!({
            "version": 1,
            "id": self.id,
            "kind": self.kind.word(),
            "time": time,
            "host": origin.host,
            "host_id": origin.host_id,
            "session": self.session,
            "count": self.count,
            "not_told_before": self.more,
            "lost_before": self.lost,
        });
        for (name, value) in &self.values {
            object[*name] = value.clone().into();
        }
        object
    }
}
