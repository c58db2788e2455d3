//! The manager against a fake machine and a fake journal, on the runtime's paused clock.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use breakglass_api::v1::{CloseCause, CredentialsRotated, LeftBehind, event::Body};
use uuid::Uuid;

use super::{
    grant::{Grant, SessionError},
    intent::{Intent, IntentStore},
    machine::{Access, Counts, Machine, MachineError},
    manager::{Journal, Manager},
    processes::Hunt,
};
use crate::{config::Tier, kernel::ProcessId};

mod extension;
mod model;

const BOOT: &str = "0123456789abcdef0123456789abcdef";

/// Everything that happened, in order.
type Log = Arc<Mutex<Vec<String>>>;

struct FakeMachine {
    log: Log,
    started: tokio::time::Instant,
    boot_id: &'static str,
    live: Mutex<u32>,
    access: Mutex<Option<Access>>,
    fail: Mutex<Vec<&'static str>>,
    /// What a process of the session holds up for as long as it lives.
    held_up: Mutex<Option<&'static str>>,
}

impl FakeMachine {
    fn act(&self, what: &'static str) -> Result<String, MachineError> {
        let was_killed = || self.log.lock().unwrap().contains(&"kill".to_owned());
        while *self.held_up.lock().unwrap() == Some(what) && !was_killed() {
            std::thread::sleep(Duration::from_millis(2));
        }
        let failing = {
            let mut fail = self.fail.lock().unwrap();
            fail.iter().position(|f| *f == what).map(|at| fail.remove(at)).is_some()
        };
        self.log.lock().unwrap().push(if failing { format!("{what}!") } else { what.into() });
        if failing { Err(MachineError(format!("{what} failed"))) } else { Ok(what.into()) }
    }
}

impl Machine for FakeMachine {
    fn boot_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap()
    }
    fn boot_id(&self) -> String {
        self.boot_id.into()
    }
    fn tier(&self) -> Tier {
        Tier::Basic
    }
    fn account(&self) -> (String, u32) {
        ("emergency".into(), 61000)
    }
    fn can_record(&self) -> Result<(), MachineError> {
        if self.fail.lock().unwrap().contains(&"can_record") { Err(MachineError("no tier".into())) } else { Ok(()) }
    }
    fn enable(&self, access: &Access) -> Result<String, MachineError> {
        let done = self.act("enable")?;
        *self.access.lock().unwrap() = Some(access.clone());
        Ok(done)
    }
    fn lock(&self) -> Result<String, MachineError> {
        *self.access.lock().unwrap() = None;
        self.act("lock")
    }
    fn begin_recording(&self, _: u32) -> Result<(), MachineError> {
        self.act("begin").map(drop)
    }
    fn forbid_new(&self, _: u32) -> Result<(), MachineError> {
        self.act("forbid").map(drop)
    }
    fn end_processes(&self, _: u32) -> Hunt {
        let killed = std::mem::take(&mut *self.live.lock().unwrap());
        let _ = self.act("kill");
        Hunt { killed, ..Hunt::default() }
    }
    fn end_recording(&self, _: u32) -> Result<(), MachineError> {
        self.act("end").map(drop)
    }
    fn live(&self, _: u32) -> Vec<ProcessId> {
        (0..*self.live.lock().unwrap()).map(|n| ProcessId { tgid: n + 2, start_ns: 1 }).collect()
    }
    fn look_before(&self, _: Uuid) {
        let _ = self.act("look");
    }
    fn rotate(&self, _: &Intent) -> CredentialsRotated {
        let _ = self.act("rotate");
        CredentialsRotated::default()
    }
    fn left_behind(&self, _: Uuid) -> LeftBehind {
        let _ = self.act("compare");
        LeftBehind::default()
    }
    fn counts(&self) -> Counts {
        Counts::default()
    }
}

struct FakeJournal {
    log: Log,
    broken: AtomicBool,
}

impl Journal for FakeJournal {
    async fn record(&self, _: Option<Uuid>, body: Body) -> Result<u64, String> {
        if self.broken.load(Ordering::Relaxed) {
            return Err("no space left on device".into());
        }
        let name = match body {
            Body::SessionOpened(_) => "record opened".into(),
            Body::SessionClosed(c) => format!("record closed {}", c.cause().as_str_name()),
            Body::SessionResumed(_) => "record resumed".into(),
            Body::SessionExtended(e) => format!("record extended{}", if e.reenabled { " again" } else { "" }),
            Body::Login(l) => format!("record login {}", l.operator),
            Body::AccountChanged(c) => format!("record account {}", if c.enabled { "on" } else { "off" }),
            Body::Alert(a) => format!("alert {}", a.code),
            Body::LeftBehind(_) => "record left behind".into(),
            Body::AgentStopAsked(_) => "record stop asked".into(),
            other => format!("{other:?}"),
        };
        self.log.lock().unwrap().push(name);
        Ok(1)
    }
    fn name_session(&self, _: u32, _: Uuid) {}
    async fn barrier(&self) -> Result<u64, String> {
        Ok(1)
    }
}

struct Bench {
    manager: Manager<FakeMachine, FakeJournal>,
    log: Log,
    folder: Arc<tempfile::TempDir>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Arc::new(tempfile::tempdir().unwrap()), BOOT, 0, tokio::time::Instant::now())
    }

    fn with(folder: Arc<tempfile::TempDir>, boot_id: &'static str, live: u32, started: tokio::time::Instant) -> Self {
        let log = Log::default();
        let machine = FakeMachine {
            log: Arc::clone(&log),
            started,
            boot_id,
            live: Mutex::new(live),
            access: Mutex::default(),
            fail: Mutex::default(),
            held_up: Mutex::default(),
        };
        let journal = FakeJournal { log: Arc::clone(&log), broken: AtomicBool::new(false) };
        let intents = IntentStore::new(folder.path(), folder.path());
        Self { manager: Manager::new(Arc::new(machine), journal, intents), log, folder }
    }

    fn failing(self, what: &'static str) -> Self {
        self.manager.machine().fail.lock().unwrap().push(what);
        self
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn noted(&self) -> bool {
        IntentStore::new(self.folder.path(), self.folder.path()).read().is_some()
    }

    async fn until_locked(&self) {
        let end = tokio::time::Instant::now() + Duration::from_secs(7200);
        while self.manager.view().state != "locked" {
            assert!(tokio::time::Instant::now() < end, "never locked: {:?}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn grant(ttl_s: u64) -> Grant {
    Grant {
        operator: "alice@example.org".into(),
        key: Some("ssh-ed25519 AAAA".into()),
        key_fingerprint: "SHA256:x".into(),
        key_type: "ssh-ed25519".into(),
        reason: "disk full".into(),
        ticket: String::new(),
        ttl: Duration::from_secs(ttl_s),
        source: "test".into(),
        ..Grant::default()
    }
}

fn before(log: &[String], first: &str, second: &str) {
    let at = |what: &str| log.iter().position(|l| l == what).unwrap_or_else(|| panic!("no {what:?} in {log:?}"));
    assert!(at(first) < at(second), "{first:?} must come before {second:?}: {log:?}");
}

#[tokio::test(start_paused = true)]
async fn recorded_before_enabled_and_locked_before_killed() {
    let bench = Bench::new();
    bench.manager.open(grant(60)).await.unwrap();
    assert!(bench.noted());
    bench.until_locked().await;
    let log = bench.log();
    before(&log, "record opened", "begin");
    before(&log, "begin", "enable");
    before(&log, "lock", "forbid");
    before(&log, "forbid", "kill");
    before(&log, "kill", "end");
    before(&log, "end", "record closed CLOSE_CAUSE_DEADLINE");
    bench.manager.settle().await;
    let log = bench.log();
    before(&log, "look", "compare");
    before(&log, "kill", "compare");
    before(&log, "compare", "record left behind");
    assert!(!bench.noted());
}

#[tokio::test]
async fn nobody_holds_the_deadline_up() {
    // Somebody of the session has the account files: neither locking nor an extension comes to an end while that process lives.
    for (what, extends) in [("lock", false), ("enable", true)] {
        let bench = Bench::new();
        let opened = bench.manager.open(grant(1)).await.unwrap();
        *bench.manager.machine().held_up.lock().unwrap() = Some(what);
        if extends {
            let manager = bench.manager.clone();
            tokio::spawn(async move { manager.open(grant(3600)).await });
        }
        bench.until_locked().await;
        let late = bench.manager.machine().boot_ns() - opened.deadline_boot_ns;
        assert!(late <= 5_000_000_000, "{what}: {late} ns late: {:?}", bench.log());
        before(&bench.log(), "forbid", "kill");
        assert!(bench.log().contains(&"record closed CLOSE_CAUSE_DEADLINE".to_owned()), "{what}: {:?}", bench.log());
        assert_eq!(bench.log().iter().rfind(|l| *l == "lock" || *l == "enable").unwrap(), "lock");
    }
}

#[tokio::test(start_paused = true)]
async fn the_deadline_is_kept_to_the_tick() {
    let bench = Bench::new();
    let opened = bench.manager.open(grant(90)).await.unwrap();
    bench.until_locked().await;
    let late = bench.manager.machine().boot_ns() - opened.deadline_boot_ns;
    assert!(late <= 100_000_000, "{late} ns late");
}

#[tokio::test(start_paused = true)]
async fn what_fails_while_opening_is_undone() {
    for failing in ["begin", "enable"] {
        let bench = Bench::new().failing(failing);
        assert!(bench.manager.open(grant(60)).await.is_err());
        let log = bench.log();
        before(&log, &format!("{failing}!"), "lock");
        before(&log, "lock", "record closed CLOSE_CAUSE_OPEN_FAILED");
        assert!(!bench.noted());
        bench.manager.open(grant(60)).await.expect("a later try works");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_recorded_is_not_opened() {
    let bench = Bench::new();
    bench.manager.journal().broken.store(true, Ordering::Relaxed);
    assert!(matches!(bench.manager.open(grant(60)).await, Err(SessionError::CannotRecord(_))));
    assert!(!bench.log().contains(&"enable".to_owned()));

    let bench = Bench::new().failing("can_record");
    assert!(matches!(bench.manager.open(grant(60)).await, Err(SessionError::CannotRecord(_))));
    assert_eq!(bench.log(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_fails_is_tried_until_it_holds() {
    let bench = Bench::new().failing("lock").failing("lock");
    bench.manager.open(grant(60)).await.unwrap();
    bench.manager.close(None, CloseCause::Operator, "alice").await.unwrap();
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    while !bench.log().contains(&"alert lock-repaired".to_owned()) {
        assert!(tokio::time::Instant::now() < end, "{:?}", bench.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bench.log().iter().filter(|l| *l == "lock!").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_last_exit_closes_where_asked_for() {
    let bench = Bench::new();
    bench.manager.open(Grant { close_on_exit: true, ..grant(3600) }).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.manager.view().state, "open", "closed before anybody logged in");
    *bench.manager.machine().live.lock().unwrap() = 2;
    tokio::time::sleep(Duration::from_secs(5)).await;
    *bench.manager.machine().live.lock().unwrap() = 0;
    bench.until_locked().await;
    assert!(bench.log().contains(&"record closed CLOSE_CAUSE_LAST_EXIT".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_on_record_before_anything_ends_and_nothing_opens_after_it() {
    let bench = Bench::new();
    bench.manager.open(grant(3600)).await.unwrap();
    let refused = bench.manager.retire("an update", "root", false).await.unwrap_err();
    assert!(matches!(refused, SessionError::Open(_)), "{refused}");
    assert_eq!(bench.manager.view().state, "open");
    bench.manager.retire("an update", "root", true).await.unwrap().unwrap();
    let log = bench.log();
    before(&log, "record stop asked", "lock");
    before(&log, "record stop asked", "record closed CLOSE_CAUSE_AGENT_STOP");
    let closed = log.iter().position(|entry| entry.starts_with("record closed"));
    assert!(log.iter().rposition(|entry| entry == "lock") > closed, "not locked again at the end: {log:?}");
    assert_eq!(bench.manager.open(grant(60)).await.unwrap_err(), SessionError::Stopping);
    assert_eq!(bench.manager.retire("again", "root", true).await.unwrap_err(), SessionError::Stopping);
}

#[tokio::test(start_paused = true)]
async fn nothing_opens_while_the_agent_ends() {
    for open in [true, false] {
        let bench = Bench::new();
        if open {
            bench.manager.open(grant(3600)).await.unwrap();
        }
        bench.manager.wind_up(CloseCause::AgentStop, "SIGTERM").await;
        assert_eq!(bench.manager.open(grant(60)).await.unwrap_err(), SessionError::Stopping);
        assert_eq!(bench.manager.view().state, "locked");
        let closed = bench.log().contains(&"record closed CLOSE_CAUSE_AGENT_STOP".to_owned());
        assert_eq!(closed, open, "{:?}", bench.log());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_cannot_be_recorded_or_does_not_lock_is_none() {
    let bench = Bench::new().failing("lock");
    bench.manager.journal().broken.store(true, Ordering::Relaxed);
    let refused = bench.manager.retire("an update", "root", true).await.unwrap_err();
    assert!(matches!(refused, SessionError::Failed(_)), "{refused}");
    assert!(bench.log().is_empty(), "something was done: {:?}", bench.log());
    bench.manager.journal().broken.store(false, Ordering::Relaxed);
    let refused = bench.manager.retire("an update", "root", true).await.unwrap_err();
    assert!(matches!(refused, SessionError::NotLocked(_)), "{refused}");
    bench.manager.open(grant(60)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_restart_closes_or_resumes() {
    for (boot_id, live, wait_s, expected) in [
        (BOOT, 1, 0, "record resumed"),
        (BOOT, 0, 0, "record closed CLOSE_CAUSE_AGENT_STOP"),
        (BOOT, 1, 61, "record closed CLOSE_CAUSE_DEADLINE"),
        ("ffffffffffffffffffffffffffffffff", 1, 0, "record closed CLOSE_CAUSE_REBOOT"),
    ] {
        let first = Bench::new();
        first.manager.open(grant(60)).await.unwrap();
        // The first agent dies here: its note stays, its tasks would not run on.
        let started = first.manager.machine().started - Duration::from_secs(wait_s);
        let second = Bench::with(Arc::clone(&first.folder), boot_id, live, started);
        second.manager.recover().await;
        assert!(second.log().contains(&expected.to_owned()), "{expected}: {:?}", second.log());
        assert!(!second.log().contains(&"enable".to_owned()), "a restart must never enable");
    }
}
