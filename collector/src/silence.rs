//! Raises the alarm for hosts that fall silent: within 3 s while a session is open there, within 10 s otherwise.
//!
//! Which hosts there are, the store knows: every one that ever connected and was not retired. A host with the glass broken that
//! says nothing is the case for which all of this is kept, so the alarm does not ask why: a cut network, a stopped agent and a
//! host that was switched off look alike from here. It is over when the host is heard again, and stays open until somebody has
//! looked at it.

use std::collections::{HashMap, HashSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use breakglass_api::v1::Alarm;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use uuid::Uuid;

use crate::desk::Desk;
use crate::index::IndexReader;
use crate::presence::{Presence, Silence};
use crate::settings::Alarms;
use crate::store::{Result, Store};
use crate::wall_clock_ns;

/// How often is looked. Below the difference of the limits to what is promised.
const LOOK: Duration = Duration::from_millis(250);
/// Silence that is one, with a session open and without. An agent says something every second.
const SESSION_LIMIT: Duration = Duration::from_millis(2500);
const REST_LIMIT: Duration = Duration::from_millis(9000);
/// A look that comes later than this says that this process itself stood still: what was not heard meanwhile proves nothing.
const STALL: Duration = Duration::from_millis(1000);
/// How long what is run for an alarm may take.
const HOOK_LIMIT: Duration = Duration::from_secs(10);

/// Looks for silent hosts.
pub struct Watchman {
    store: Store,
    index: IndexReader,
    presence: Presence,
    desk: Desk,
    settings: Alarms,
    /// Who was retired; their silence is what was asked for.
    retired: Box<dyn Fn(&str) -> bool + Send>,
    /// Alarms that last, by host.
    lasting: HashMap<String, Vec<(u64, bool)>>,
    /// Nothing is a silence before this.
    grace: Instant,
}

/// Whether a silence is one to raise the alarm for.
fn is_silent(silence: &Silence, in_session: bool) -> bool {
    // An agent that does not keep talking pings after four seconds.
    let limit = if in_session && silence.keeps_talking { SESSION_LIMIT } else { REST_LIMIT };
    silence.lasts >= limit
}

impl Watchman {
    /// Takes over the alarms that lasted when the collector stopped.
    pub async fn new(
        store: Store,
        index: IndexReader,
        presence: Presence,
        desk: Desk,
        settings: Alarms,
        retired: Box<dyn Fn(&str) -> bool + Send>,
    ) -> Result<Self> {
        let mut lasting: HashMap<String, Vec<(u64, bool)>> = HashMap::new();
        for alarm in desk.lasting().await? {
            lasting.entry(alarm.host_id).or_default().push((alarm.id, alarm.in_session));
        }
        Ok(Self { store, index, presence, desk, settings, retired, lasting, grace: Instant::now() })
    }

    /// Looks until told to stop.
    pub async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = stopping.wait_for(|stop| *stop) => return,
            }
            if looked.elapsed() >= STALL {
                self.grace = Instant::now() + SESSION_LIMIT;
            }
            looked = Instant::now();
            if let Err(error) = self.look().await {
                tracing::error!(%error, "cannot look for silent hosts");
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        let open: HashMap<i64, Uuid> = self.index.hosts().await?.into_iter().filter_map(session_of).collect();
        let mut known = HashSet::new();
        for (row, host) in self.store.hosts().await? {
            known.insert(host.host_id.clone());
            let session = open.get(&row).copied();
            let silence = self.presence.silence(&host.host_id);
            if silence.lasts < LOOK * 4 || (self.retired)(&host.host_id) {
                self.end(&host.host_id).await?;
            } else if is_silent(&silence, session.is_some()) && Instant::now() >= self.grace {
                self.raise(&host.host_id, &host.hostname, session, &silence).await?;
            }
        }
        Ok(())
    }

    async fn end(&mut self, host_id: &str) -> Result<()> {
        for (id, _) in self.lasting.remove(host_id).unwrap_or_default() {
            self.desk.end(id).await?;
            tracing::info!(host = host_id, alarm = id, "the host is heard again");
        }
        Ok(())
    }

    /// Raises the alarm once for a silence, and once more where it turns out that a session is open.
    async fn raise(&mut self, host_id: &str, hostname: &str, session: Option<Uuid>, silence: &Silence) -> Result<()> {
        let in_session = session.is_some();
        let lasting = self.lasting.entry(host_id.to_owned()).or_default();
        if lasting.iter().any(|(_, known)| *known || !in_session) {
            return Ok(());
        }
        let tenths = silence.lasts.as_millis() / 100;
        let seconds = format!("{}.{}", tenths / 10, tenths % 10);
        let (code, message) = match session {
            Some(session) => (
                "silent-in-session",
                format!(
                    "{hostname} has said nothing for {seconds} s, and the glass is broken there (session {session})"
                ),
            ),
            None => ("silent", format!("{hostname} has said nothing for {seconds} s")),
        };
        let alarm = Alarm {
            host_id: host_id.to_owned(),
            hostname: hostname.to_owned(),
            session: session.map(|session| session.to_string()).unwrap_or_default(),
            code: code.to_owned(),
            message,
            began_ns: wall_clock_ns(),
            ..Alarm::default()
        };
        let id = self.desk.raise(&alarm).await?;
        lasting.push((id, in_session));
        tracing::error!(host = host_id, alarm = id, code, "{}", alarm.message);
        if !self.settings.exec.is_empty() {
            tokio::spawn(tell(self.settings.exec.clone(), Alarm { id, ..alarm }));
        }
        Ok(())
    }
}

fn session_of((row, state): (i64, crate::index::HostState)) -> Option<(i64, Uuid)> {
    Some((row, Uuid::from_bytes(state.open?)))
}

/// Runs what the settings name, with the alarm as one JSON object on its standard input.
async fn tell(command: Vec<String>, alarm: Alarm) {
    let text = serde_json::json!({
        "id": alarm.id, "host_id": alarm.host_id, "hostname": alarm.hostname, "session": alarm.session,
        "code": alarm.code, "message": alarm.message, "began_ns": alarm.began_ns,
    });
    let told = tokio::time::timeout(HOOK_LIMIT, run_hook(&command, text.to_string())).await;
    match told {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => tracing::error!(?command, %status, alarm = alarm.id, "what is run for alarms failed"),
        Ok(Err(error)) => tracing::error!(?command, %error, alarm = alarm.id, "what is run for alarms cannot be run"),
        Err(_) => tracing::error!(?command, alarm = alarm.id, "what is run for alarms took too long and was ended"),
    }
}

async fn run_hook(command: &[String], text: String) -> std::io::Result<std::process::ExitStatus> {
    let (program, arguments) = command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input has been told all the same.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
    child.wait().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_leave_time_to_look() {
        assert!(SESSION_LIMIT + LOOK < Duration::from_secs(3));
        assert!(REST_LIMIT + LOOK < Duration::from_secs(10));
        for (lasts_ms, keeps_talking, in_session, silent) in [
            (2000, true, true, false),
            (2600, true, true, true),
            (2600, false, true, false),
            (2600, true, false, false),
            (9100, false, true, true),
            (9100, true, false, true),
        ] {
            let silence = Silence { lasts: Duration::from_millis(lasts_ms), keeps_talking };
            assert_eq!(is_silent(&silence, in_session), silent, "{silence:?} {in_session}");
        }
    }

    #[tokio::test]
    async fn a_hook_gets_the_alarm_as_json_and_one_that_hangs_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("told");
        let line = format!("cat > {}", out.display());
        let status = run_hook(&["/bin/sh".into(), "-c".into(), line], "{\"id\":1}".into()).await.unwrap();
        assert!(status.success());
        assert_eq!(std::fs::read_to_string(out).unwrap(), "{\"id\":1}");
        let sleep = ["/bin/sleep".to_owned(), "600".to_owned()];
        let hung = run_hook(&sleep, String::new());
        assert!(tokio::time::timeout(Duration::from_millis(50), hung).await.is_err());
    }
}
