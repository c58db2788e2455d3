//! Raises an alert for every program that the emergency account runs while the glass is whole, and for every task of a session
//! that rewrites its audit login uid: other recorders tell by it who did what.

use std::{io, sync::Arc, time::Duration};

use breakglass_api::{
    checkpoint::Number,
    v1::{Alert, Event, Exec, Ring, SystemAction, event::Body, system_action::Kind},
};

use crate::recorder::source::{EventSource, Observed};

/// Longest command line in an alert, bytes; the exec event beside it has the whole.
const COMMAND_LIMIT: usize = 200;

/// Passes a source through and adds an alert behind each event that calls for one.
pub struct Ungranted<S> {
    source: S,
    account_uid: u32,
}

impl<S: EventSource> Ungranted<S> {
    /// Watches `source` for the account of this uid.
    pub fn new(source: S, account_uid: u32) -> Self {
        Self { source, account_uid }
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
        let alerts: Vec<_> =
            out[before..].iter().filter_map(|observed| alert_for(observed, self.account_uid)).collect();
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

fn alert_for(observed: &Observed, account_uid: u32) -> Option<Observed> {
    let alert = match &observed.event.body {
        Some(Body::Exec(exec)) => without_grant(observed, exec)?,
        Some(Body::SystemAction(action)) => rewritten(action, account_uid)?,
        _ => return None,
    };
    tracing::warn!(pid = alert.process.map(|p| p.pid), message = alert.message, "alert");
    Some(Observed {
        slot: observed.slot,
        event: Event { boot_ns: observed.event.boot_ns, body: Some(Body::Alert(alert)), ..Event::default() },
    })
}

fn without_grant(observed: &Observed, exec: &Exec) -> Option<Alert> {
    // Other tasks' programs come over the witness ring.
    let audited = observed.event.origin.as_ref().is_some_and(|origin| origin.ring() == Ring::Audit);
    if observed.slot != 0 || !audited {
        return None;
    }
    let killed = if exec.killed { " (killed before it ran)" } else { "" };
    let message = format!("the emergency account ran a program without a grant{killed}: {}", command(exec));
    Some(Alert { code: "exec-without-grant".into(), message, process: exec.process })
}

/// A login sets it to the account's; nothing else has a reason to touch it.
fn rewritten(action: &SystemAction, account_uid: u32) -> Option<Alert> {
    if action.kind() != Kind::LoginUidSet || action.value == u64::from(account_uid) {
        return None;
    }
    let message = match u32::try_from(action.value) {
        Ok(u32::MAX) | Err(_) => "a task of the session unset its audit login uid".into(),
        Ok(uid) => format!("a task of the session set its audit login uid to {uid}"),
    };
    Some(Alert { code: "login-uid-rewritten".into(), message, process: action.process })
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
        assert!(alert_for(&observed(1, Ring::Audit), 7).is_none());
        assert!(alert_for(&observed(0, Ring::Witness), 7).is_none());
        let Some(Body::Alert(alert)) = alert_for(&observed(0, Ring::Audit), 7).and_then(|o| o.event.body) else {
            panic!("no alert");
        };
        assert_eq!(alert.code, "exec-without-grant");
        assert!(alert.message.ends_with(r"/bin/sh \x1b[2J"), "{}", alert.message);
    }

    #[test]
    fn only_a_login_uid_that_is_not_the_accounts_alerts() {
        let wrote = |value: u64| {
            let action = SystemAction { kind: Kind::LoginUidSet.into(), value, ..SystemAction::default() };
            let event = Event { body: Some(Body::SystemAction(action)), ..Event::default() };
            alert_for(&Observed { slot: 3, event }, 7)
        };
        assert!(wrote(7).is_none(), "sshd's own");
        for (value, words) in [(0, "to 0"), (u64::from(u32::MAX), "unset")] {
            let alert = wrote(value).expect("an alert");
            assert_eq!(alert.slot, 3);
            let Some(Body::Alert(alert)) = alert.event.body else { panic!("no alert") };
            assert_eq!(alert.code, "login-uid-rewritten");
            assert!(alert.message.contains(words), "{}", alert.message);
        }
    }
}
