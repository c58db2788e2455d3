//! Raises an alert for every program that the emergency account runs while the glass is whole.

use std::{io, sync::Arc, time::Duration};

use breakglass_api::{
    checkpoint::Number,
    v1::{Alert, Event, Exec, Ring, event::Body},
};

use crate::recorder::source::{EventSource, Observed};

/// Longest command line in an alert, bytes; the exec event beside it has the whole.
const COMMAND_LIMIT: usize = 200;

/// Passes a source through and adds an alert behind each exec that belongs to no session.
pub struct Ungranted<S> {
    source: S,
}

impl<S: EventSource> Ungranted<S> {
    /// Watches `source`.
    pub fn new(source: S) -> Self {
        Self { source }
    }
}

impl<S: EventSource> EventSource for Ungranted<S> {
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.source.wait(timeout)
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        self.source.waker()
    }

    fn read(&mut self, out: &mut Vec<Observed>, max_bytes: usize) -> io::Result<()> {
        let before = out.len();
        self.source.read(out, max_bytes)?;
        let alerts: Vec<_> = out[before..].iter().filter_map(alert_for).collect();
        out.extend(alerts);
        Ok(())
    }

    fn position(&self) -> Vec<u8> {
        self.source.position()
    }

    fn numbers(&self) -> Vec<Number> {
        self.source.numbers()
    }

    fn release(&mut self) {
        self.source.release();
    }

    fn resume(&mut self, position: &[u8]) -> io::Result<()> {
        self.source.resume(position)
    }
}

fn alert_for(observed: &Observed) -> Option<Observed> {
    let Some(Body::Exec(exec)) = &observed.event.body else { return None };
    // Other tasks' programs come over the witness ring.
    let audited = observed.event.origin.as_ref().is_some_and(|origin| origin.ring() == Ring::Audit);
    if observed.slot != 0 || !audited {
        return None;
    }
    let message = format!("the emergency account ran a program without a grant: {}", command(exec));
    tracing::warn!(pid = exec.process.as_ref().map(|p| p.pid), message, "alert");
    let alert = Alert { code: "exec-without-grant".into(), message, process: exec.process };
    Some(Observed {
        slot: 0,
        event: Event { boot_ns: observed.event.boot_ns, body: Some(Body::Alert(alert)), ..Event::default() },
    })
}

/// The command line with whatever could disturb a log escaped.
fn command(exec: &Exec) -> String {
    let mut line = exec.exe.escape_ascii().to_string();
    for argument in exec.argv.iter().skip(1) {
        if line.len() > COMMAND_LIMIT {
            line.push_str(" …");
            break;
        }
        line.push(' ');
        line.extend(argument.iter().take(COMMAND_LIMIT).flat_map(|byte| byte.escape_ascii()).map(char::from));
    }
    line
}

#[cfg(test)]
mod tests {
    use breakglass_api::v1::KernelRef;

    use super::*;

    fn observed(slot: u32, ring: Ring) -> Observed {
        let exec = Exec { exe: b"/bin/sh".into(), argv: vec![b"sh".into(), b"\x1b[2J".into()], ..Exec::default() };
        let origin = KernelRef { ring: ring.into(), ..KernelRef::default() };
        Observed {
            slot,
            event: Event { boot_ns: 5, origin: Some(origin), body: Some(Body::Exec(exec)), ..Event::default() },
        }
    }

    #[test]
    fn only_an_audited_exec_without_a_session_alerts() {
        assert!(alert_for(&observed(1, Ring::Audit)).is_none());
        assert!(alert_for(&observed(0, Ring::Witness)).is_none());
        let Some(Body::Alert(alert)) = alert_for(&observed(0, Ring::Audit)).and_then(|o| o.event.body) else {
            panic!("no alert");
        };
        assert_eq!(alert.code, "exec-without-grant");
        assert!(alert.message.ends_with(r"/bin/sh \x1b[2J"), "{}", alert.message);
    }
}
