//! What the collector has from the beginning of an attack on.

use breakglass_api::v1::{
    Alert, CloseCause, Exec, FileAction, RecordedEvent, Ring, SocketAction, SystemAction, event::Body, file_action,
    socket_action, stdio_data::Direction, system_action,
};
use breakglass_tests::terminal::find;

use crate::{case::Held, stage::Deed};

/// Events of the host.
pub struct Record<'a> {
    pub events: &'a [RecordedEvent],
    /// The session that is open, as the collector names it.
    pub session: &'a str,
}

/// How the agent says that something did not happen (`agent/src/kernel/refusals.rs`).
const REFUSALS: &[&str] = &[" was refused: ", " was killed: "];

/// What it says of who did it, where that was not the session; the tests themselves are refused things too.
const NOT_OF_SESSION: &str = ", not of the session) ";

/// What counts as held where a test is yes or no.
pub fn whole(yes: bool) -> Option<Held> {
    yes.then_some(Held::Whole)
}

impl<'a> Record<'a> {
    /// Bodies of the session's events.
    pub fn bodies(&self) -> impl Iterator<Item = &'a Body> + use<'a> {
        let session = self.session.to_owned();
        let own = self.events.iter().filter(move |recorded| recorded.session == session);
        own.filter_map(|recorded| recorded.event.as_ref()?.body.as_ref())
    }

    /// Programs that the session ran itself.
    pub fn execs(&self) -> impl Iterator<Item = &'a Exec> + use<'a> {
        let session = self.session.to_owned();
        let events = self.events.iter().filter(move |recorded| recorded.session == session);
        let events = events.filter_map(|recorded| recorded.event.as_ref());
        let audited = events.filter(|event| event.origin.as_ref().is_some_and(|origin| origin.ring() == Ring::Audit));
        audited.filter_map(|event| match &event.body {
            Some(Body::Exec(exec)) => Some(exec),
            _ => None,
        })
    }

    /// Programs that anybody ran on the host, as far as they were recorded.
    pub fn all_execs(&self) -> impl Iterator<Item = &'a Exec> + use<'a> {
        self.events.iter().filter_map(|recorded| match recorded.event.as_ref()?.body.as_ref()? {
            Body::Exec(exec) => Some(exec),
            _ => None,
        })
    }

    /// Whether the session ran a program with this as one of its arguments.
    pub fn ran(&self, argument: &str) -> bool {
        self.execs().any(|exec| exec.argv.iter().any(|found| found == argument.as_bytes()))
    }

    /// What a file had done to it.
    pub fn files(&self, kind: file_action::Kind) -> impl Iterator<Item = &'a FileAction> + use<'a> {
        self.bodies().filter_map(move |body| match body {
            Body::FileAction(action) if action.kind() == kind => Some(action),
            _ => None,
        })
    }

    /// Whether a file whose path ends so had that done to it.
    pub fn file(&self, kind: file_action::Kind, end: &str) -> bool {
        self.files(kind).any(|action| action.path.ends_with(end.as_bytes()) || action.other.ends_with(end.as_bytes()))
    }

    /// What was done to the system.
    pub fn system(&self, kind: system_action::Kind) -> impl Iterator<Item = &'a SystemAction> + use<'a> {
        self.bodies().filter_map(move |body| match body {
            Body::SystemAction(action) if action.kind() == kind => Some(action),
            _ => None,
        })
    }

    /// Connections.
    pub fn connected(&self) -> impl Iterator<Item = &'a SocketAction> + use<'a> {
        self.bodies().filter_map(|body| match body {
            Body::SocketAction(action) if action.kind() == socket_action::Kind::Connected => Some(action),
            _ => None,
        })
    }

    /// Alerts of the host, the session's and others'.
    pub fn alerts(&self) -> impl Iterator<Item = &'a Alert> + use<'a> {
        self.events.iter().filter_map(|recorded| match recorded.event.as_ref()?.body.as_ref()? {
            Body::Alert(alert) => Some(alert),
            _ => None,
        })
    }

    /// Whether an alert says that something of the session was refused, or killed before it could begin.
    pub fn refused(&self) -> bool {
        self.refusals().any(|alert| !alert.message.contains(NOT_OF_SESSION))
    }

    /// Whether something was refused to whoever is named by these words, and is asked by others to do it for them.
    pub fn refused_to(&self, helper: &str) -> bool {
        self.refusals().any(|alert| alert.message.starts_with(helper))
    }

    /// Whether the session ended with the agent: whoever stops it ends what they wanted to do unseen.
    pub fn ended_with_agent(&self) -> bool {
        self.bodies().any(|body| matches!(body, Body::SessionClosed(closed) if closed.cause() == CloseCause::AgentStop))
    }

    fn refusals(&self) -> impl Iterator<Item = &'a Alert> + use<'a> {
        self.alerts().filter(|alert| REFUSALS.iter().any(|words| alert.message.contains(words)))
    }

    /// Everything that terminals of the session showed, one after the other.
    pub fn shown(&self) -> Vec<u8> {
        let pieces = self.bodies().filter_map(|body| match body {
            Body::TerminalOutput(output) => Some(&output.data[..]),
            _ => None,
        });
        pieces.collect::<Vec<_>>().concat()
    }

    /// Whether a terminal showed that.
    pub fn showed(&self, text: &str) -> bool {
        find(&self.shown(), text.as_bytes()).is_some()
    }

    /// What logins without a terminal sent or printed.
    pub fn carried(&self, direction: Direction) -> Vec<u8> {
        let pieces = self.bodies().filter_map(|body| match body {
            Body::StdioData(data) if data.direction() == direction => Some(&data.data[..]),
            _ => None,
        });
        pieces.collect::<Vec<_>>().concat()
    }

    /// Bytes of terminals and streams that the record says are missing.
    pub fn missing(&self) -> u64 {
        let of_host = self.events.iter().filter_map(|recorded| recorded.event.as_ref()?.body.as_ref());
        of_host
            .map(|body| match body {
                Body::TerminalOutput(output) => output.missing,
                Body::StdioData(data) => data.missing,
                Body::Gap(gap) => gap.bytes,
                _ => 0,
            })
            .sum()
    }
}

/// The deed's program ran in the session.
pub fn acted(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.execs().any(|exec| is_act(exec, deed)))
}

/// The deed's program ran, whoever is said to have run it.
pub fn witnessed(record: &Record<'_>, deed: &Deed) -> Option<Held> {
    whole(record.all_execs().any(|exec| is_act(exec, deed)))
}

/// Whether a program is the deed's own.
pub fn is_act(exec: &Exec, deed: &Deed) -> bool {
    exec.argv.get(1).is_some_and(|word| word == b"act" || word == b"note")
        && exec.argv.last().is_some_and(|last| last == deed.mark.as_bytes())
}
