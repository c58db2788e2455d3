//! Raises the alarm for hosts that fall silent: within 3 s while a session is open there, within 10 s otherwise.
//!
//! Which hosts there are, the store knows: every one that ever connected and was not retired. A host with the glass broken that
//! says nothing is the case for which all of this is kept, so the alarm does not ask why: a cut network, a stopped agent and a
//! host that was switched off look alike from here. It is over when the host is heard again, and stays open until somebody has
//! looked at it.
//!
//! It is raised as well for this collector's own certificate before that ends: then every host would fall silent at once.

use std::collections::HashMap;
use std::path::Path;
use std::pin::pin;
use std::process::Stdio;
use std::time::{Duration, Instant};

use breakglass_api::v1::Alarm;
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::desk::Desk;
use crate::index::IndexReader;
use crate::presence::{Presence, Silence};
use crate::settings::Alarms;
use crate::store::{HostRecord, Result, Store, StoreError};
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
/// How long the log and the hook wait for an alarm's number: what is left of the time that is promised.
const NUMBER_WAIT: Duration = Duration::from_millis(200);
/// When it is tried again to store what could not be stored.
const STORE_AGAIN: Duration = Duration::from_secs(2);
/// How often the end of the collector's own certificate is looked at.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(24 * 3600);
/// The same failure is logged this often at most.
const COMPLAIN: Duration = Duration::from_secs(60);

/// In place of a host's id, for alarms about the collector itself.
const OWN: &str = "";

/// Looks for silent hosts.
pub struct Watchman {
    store: Store,
    index: IndexReader,
    presence: Presence,
    desk: Desk,
    settings: Alarms,
    /// Who was retired; their silence is what was asked for.
    retired: Box<dyn Fn(&str) -> bool + Send>,
    /// What was last read: without the databases the hosts that are known are watched all the same.
    hosts: Vec<(i64, HostRecord)>,
    /// The open session of each host, by its row; as above.
    open: HashMap<i64, Uuid>,
    /// Alarms that last, by host.
    lasting: HashMap<String, Vec<Lasting>>,
    /// A task for each alarm, which stores it and its end: looking never waits for a disk.
    keeping: JoinSet<()>,
    /// When a look failed and it was logged.
    complaints: Complaints,
    /// Nothing is a silence before this.
    grace: Instant,
    /// When the certificate that is served ends, and when that was last looked at.
    certificate: Option<(OffsetDateTime, Option<Instant>)>,
}

/// An alarm that is not over.
struct Lasting {
    /// Whether a session was open when it was raised.
    in_session: bool,
    /// Tells its task when it was over.
    over: oneshot::Sender<i64>,
}

/// Says whether to log a failure that may come again many times a second.
#[derive(Default)]
struct Complaints(Option<Instant>);

impl Complaints {
    fn are_due(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= COMPLAIN);
        if due {
            self.0 = Some(Instant::now());
        }
        due
    }
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
        let mut watchman = Self {
            store,
            index,
            presence,
            desk,
            settings,
            retired,
            hosts: Vec::new(),
            open: HashMap::new(),
            lasting: HashMap::new(),
            keeping: JoinSet::new(),
            complaints: Complaints::default(),
            grace: Instant::now(),
            certificate: None,
        };
        for alarm in watchman.desk.lasting().await? {
            let over = watchman.last(&alarm.host_id, alarm.in_session);
            watchman.keeping.spawn(keep_end(watchman.desk.clone(), alarm.host_id, alarm.id, over));
        }
        Ok(watchman)
    }

    /// Looks at the end of the collector's own certificate too: of the one in this file now, which is served until the next start.
    pub fn with_certificate(mut self, path: &Path) -> Self {
        match crate::pki::end_of(path) {
            Ok(end) => self.certificate = Some((end, None)),
            Err(error) => tracing::error!("it is not known when the collector's own certificate ends: {error:#}"),
        }
        self
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
            self.look().await;
            self.look_at_certificate(OffsetDateTime::now_utc());
        }
    }

    async fn look(&mut self) {
        if let Err(error) = self.read().await
            && self.complaints.are_due()
        {
            tracing::error!(%error, "cannot read which hosts there are; watching those that were known before");
        }
        for (row, host) in std::mem::take(&mut self.hosts) {
            let session = self.open.get(&row).copied();
            let silence = self.presence.silence(&host.host_id);
            if silence.lasts < LOOK * 4 || (self.retired)(&host.host_id) {
                self.end(&host.host_id);
            } else if is_silent(&silence, session.is_some()) && Instant::now() >= self.grace {
                self.raise(&host.host_id, &host.hostname, session, &silence);
            }
            self.hosts.push((row, host));
        }
        while self.keeping.try_join_next().is_some() {}
    }

    fn look_at_certificate(&mut self, now: OffsetDateTime) {
        let Some((end, looked)) = &mut self.certificate else { return };
        if looked.is_some_and(|looked| looked.elapsed() < CERTIFICATE_LOOK) {
            return;
        }
        *looked = Some(Instant::now());
        let Some(message) = crate::pki::reminder(*end, now) else { return self.end(OWN) };
        if self.lasting.contains_key(OWN) {
            tracing::warn!("{message}");
            return;
        }
        self.begin(Alarm {
            hostname: "collector".to_owned(),
            code: "certificate-ends".to_owned(),
            message,
            began_ns: wall_clock_ns(),
            ..Alarm::default()
        });
    }

    async fn read(&mut self) -> Result<()> {
        // Hosts first: the index can be behind, or be built anew.
        self.hosts = self.store.hosts().await?;
        self.open = self.index.hosts().await?.into_iter().filter_map(session_of).collect();
        Ok(())
    }

    fn end(&mut self, host_id: &str) {
        for alarm in self.lasting.remove(host_id).unwrap_or_default() {
            // A task that is gone has failed, which the log says.
            let _ = alarm.over.send(wall_clock_ns());
        }
    }

    /// Notes that an alarm lasts; what is returned says when it is over.
    fn last(&mut self, host_id: &str, in_session: bool) -> oneshot::Receiver<i64> {
        let (over, ended) = oneshot::channel();
        self.lasting.entry(host_id.to_owned()).or_default().push(Lasting { in_session, over });
        ended
    }

    /// Raises the alarm once for a silence, and once more where it turns out that a session is open.
    fn raise(&mut self, host_id: &str, hostname: &str, session: Option<Uuid>, silence: &Silence) {
        let in_session = session.is_some();
        let lasting = self.lasting.get(host_id).map(Vec::as_slice).unwrap_or_default();
        if lasting.iter().any(|alarm| alarm.in_session || !in_session) {
            return;
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
        self.begin(alarm);
    }

    fn begin(&mut self, alarm: Alarm) {
        let over = self.last(&alarm.host_id, !alarm.session.is_empty());
        self.keeping.spawn(keep(self.desk.clone(), alarm, self.settings.exec.clone(), over));
    }
}

/// One alarm from its beginning to its end. That it cannot be stored, as on a full disk, keeps nobody from being told.
async fn keep(desk: Desk, alarm: Alarm, exec: Vec<String>, over: oneshot::Receiver<i64>) {
    let mut storing = pin!(insist(|| desk.raise(&alarm), &alarm.host_id, "an alarm cannot be stored; trying again"));
    let stored = tokio::time::timeout(NUMBER_WAIT, &mut storing).await.ok();
    // 0 is no alarm's number.
    let id = stored.unwrap_or(0);
    tracing::error!(host = alarm.host_id, alarm = id, code = alarm.code, "{}", alarm.message);
    if !exec.is_empty() {
        tokio::spawn(tell(exec, Alarm { id, ..alarm.clone() }));
    }
    let id = match stored {
        Some(id) => id,
        None => storing.await,
    };
    keep_end(desk.clone(), alarm.host_id.clone(), id, over).await;
}

/// Waits until an alarm is over, and stores that.
async fn keep_end(desk: Desk, host_id: String, id: u64, over: oneshot::Receiver<i64>) {
    let Ok(ended_ns) = over.await else { return };
    match host_id.as_str() {
        OWN => tracing::info!(alarm = id, "the collector has a certificate that lasts"),
        _ => tracing::info!(host = host_id, alarm = id, "the host is heard again"),
    }
    insist(|| desk.end(id, ended_ns), &host_id, "the end of an alarm cannot be stored; trying again").await;
}

/// Does it until it succeeds.
async fn insist<T, F>(act: impl Fn() -> F, host_id: &str, failed: &str) -> T
where
    F: Future<Output = std::result::Result<T, StoreError>>,
{
    let mut complaints = Complaints::default();
    loop {
        match act().await {
            Ok(done) => return done,
            Err(error) if complaints.are_due() => tracing::error!(host = host_id, %error, "{failed}"),
            Err(_) => {}
        }
        tokio::time::sleep(STORE_AGAIN).await;
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
        assert!(SESSION_LIMIT + LOOK + NUMBER_WAIT < Duration::from_secs(3));
        assert!(REST_LIMIT + LOOK + NUMBER_WAIT < Duration::from_secs(10));
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

    async fn eventually<T, F: Future<Output = Option<T>>>(what: impl Fn() -> F) -> T {
        for _ in 0..1200 {
            if let Some(found) = what().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("it has not come in 30 s");
    }

    #[tokio::test]
    async fn a_desk_that_cannot_be_written_keeps_no_alarm_from_being_told_and_it_is_stored_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("frames.db")).await.unwrap();
        let rows = ["a", "b"].map(|id| HostRecord {
            host_id: id.into(),
            hostname: format!("web-{id}"),
            tier: String::new(),
            agent_version: String::new(),
            last_seen_ns: 1,
        });
        for host in &rows {
            store.greet(host).await.unwrap();
        }
        let indexer = crate::index::Indexer::open(store.clone(), &dir.path().join("index.db")).await.unwrap();
        let path = dir.path().join("desk.db");
        let desk = Desk::open(&path).await.unwrap();
        let other = sqlx::SqlitePool::connect(&format!("sqlite://{}", path.display())).await.unwrap();
        let sql = async |text: String| sqlx::query(&text).execute(&other).await.map(drop).unwrap();
        let block = async |what: &str| {
            sql(format!("CREATE TRIGGER no_{what} BEFORE {what} ON alarms BEGIN SELECT RAISE(FAIL, 'full'); END"))
                .await;
        };
        let unblock = async |what: &str| sql(format!("DROP TRIGGER no_{what}")).await;
        block("INSERT").await;

        let told = dir.path().join("told");
        let settings = Alarms { exec: vec!["/bin/sh".into(), "-c".into(), format!("cat >> {}", told.display())] };
        let silent = Presence::begun(Instant::now().checked_sub(REST_LIMIT).unwrap());
        let mut watchman =
            Watchman::new(store, indexer.reader(), silent, desk.clone(), settings, Box::new(|_| false)).await.unwrap();
        watchman.look().await;
        let both = eventually(async || {
            let text = std::fs::read_to_string(&told).unwrap_or_default();
            (text.matches("\"silent\"").count() == 2).then_some(text)
        });
        let both = both.await;
        assert!(both.contains("web-a") && both.contains("web-b"), "both hosts, though neither was stored: {both}");
        assert!(desk.alarms(false, 9).await.unwrap().is_empty());

        unblock("INSERT").await;
        block("UPDATE").await;
        eventually(async || (desk.lasting().await.unwrap().len() == 2).then_some(())).await;
        watchman.look().await;
        assert_eq!(desk.lasting().await.unwrap().len(), 2, "once for each silence");

        // Heard again, which cannot be stored yet; then silent again, which is another alarm.
        for heard in ["a", "b"] {
            watchman.end(heard);
        }
        watchman.look().await;
        eventually(async || (desk.lasting().await.unwrap().len() == 4).then_some(())).await;
        unblock("UPDATE").await;
        eventually(async || (desk.lasting().await.unwrap().len() == 2).then_some(())).await;
    }

    #[tokio::test]
    async fn the_end_of_the_collectors_certificate_is_an_alarm_until_there_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("frames.db")).await.unwrap();
        let indexer = crate::index::Indexer::open(store.clone(), &dir.path().join("index.db")).await.unwrap();
        let desk = Desk::open(&dir.path().join("desk.db")).await.unwrap();
        let (ca, _) = crate::pki::Authority::create().unwrap();
        let path = dir.path().join("collector.crt");
        std::fs::write(&path, ca.issue_collector("collector", &[]).unwrap().cert_pem).unwrap();
        let started = async || {
            let (store, index) = (store.clone(), indexer.reader());
            let made =
                Watchman::new(store, index, Presence::default(), desk.clone(), Alarms::default(), Box::new(|_| false));
            made.await.unwrap().with_certificate(&path)
        };
        let now = OffsetDateTime::now_utc();
        let late = now + time::Duration::days(340);
        let mut watchman = started().await;
        watchman.look_at_certificate(now);
        assert!(watchman.lasting.is_empty());
        watchman.look_at_certificate(late);
        assert!(watchman.lasting.is_empty(), "once a day is enough");
        let mut watchman = started().await;
        watchman.look_at_certificate(late);
        let alarm = eventually(async || desk.alarms(true, 9).await.unwrap().pop()).await;
        assert_eq!((alarm.code.as_str(), alarm.host_id.as_str(), alarm.ended_ns), ("certificate-ends", "", 0));
        // The next start finds it as it is, or another certificate.
        let mut watchman = started().await;
        watchman.look_at_certificate(late);
        watchman.look().await;
        assert_eq!(desk.alarms(true, 9).await.unwrap().len(), 1);
        let mut watchman = started().await;
        watchman.look_at_certificate(now);
        eventually(async || desk.lasting().await.unwrap().is_empty().then_some(())).await;
    }
}
