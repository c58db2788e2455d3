//! What is in the frames: the session's opening and closing, and the numbers of kernel records.

use breakglass_api::{
    frame::{Frame, Header, Unpacker},
    v1::{SessionClosed, SessionOpened, event::Body},
};

use super::numbers::Numbers;

/// Most people that a session may be extended by: above what happens, and few enough to be compared.
const JOINED_MAX: usize = 256;

/// The session as its frames tell it.
#[derive(Debug, Default)]
pub struct Told {
    /// The opening, the frame that holds it and its wall clock, ns.
    pub opened: Option<(SessionOpened, u64, i64)>,
    /// Name and fingerprint of the key of everybody who extended it.
    pub joined: Vec<(String, String)>,
    /// The closing, the frame that holds it and its wall clock, ns.
    pub closed: Option<(SessionClosed, u64, i64)>,
    /// Events of all kinds.
    pub events: u64,
    /// Of those, how many belong to the session.
    pub own_events: u64,
    /// Alerts of the session.
    pub alerts: u64,
    /// Kernel records.
    pub numbers: Numbers,
    unpacker: Unpacker,
}

impl Told {
    /// Takes one frame. The error says what cannot be read.
    pub fn take(&mut self, session: [u8; 16], frame: &Frame<'_>) -> Result<(), String> {
        let batch = self.unpacker.batch(frame).map_err(|error| error.to_string())?;
        // Event.session is an index plus one.
        let own = batch.sessions.iter().position(|id| id.as_slice() == session);
        let own = own.and_then(|at| u32::try_from(at + 1).ok());
        for event in batch.events {
            self.events += 1;
            if let Some(origin) = &event.origin {
                self.numbers.see(origin);
            }
            let is_own = own.is_some_and(|own| own == event.session);
            self.own_events += u64::from(is_own);
            self.event(&frame.header, event.boot_ns, is_own, event.body);
        }
        if self.joined.len() > JOINED_MAX {
            return Err(format!("more than {JOINED_MAX} people extended the session"));
        }
        Ok(())
    }

    fn event(&mut self, header: &Header, boot_ns: u64, is_own: bool, body: Option<Body>) {
        let at = (header.seq, header.wall_ns(boot_ns));
        match body {
            Some(Body::Gap(gap)) => self.numbers.declare(&gap),
            Some(Body::AgentStarted(started)) if !started.took_over => self.numbers.restart(),
            // The first word counts: a later one can only be a mistake or a lie.
            Some(Body::SessionOpened(opened)) if is_own && self.opened.is_none() => {
                self.opened = Some((opened, at.0, at.1));
            }
            Some(Body::SessionExtended(extended)) if is_own => {
                let who = (extended.operator, extended.key_fingerprint);
                if self.joined.len() <= JOINED_MAX && !self.joined.contains(&who) {
                    self.joined.push(who);
                }
            }
            Some(Body::SessionClosed(closed)) if is_own && self.closed.is_none() => {
                self.closed = Some((closed, at.0, at.1));
            }
            Some(Body::Alert(_)) if is_own => self.alerts += 1,
            _ => {}
        }
    }
}
