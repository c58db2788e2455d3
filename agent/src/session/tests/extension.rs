//! A fresh proof while a session is open.

use breakglass_api::v1::{LoginNotice, LoginPlace};

use super::*;

fn bobs(ttl_s: u64) -> Grant {
    Grant {
        operator: "bob@example.org".into(),
        key: Some("ssh-ed25519 BBBB".into()),
        key_fingerprint: "SHA256:b".into(),
        ..grant(ttl_s)
    }
}

impl Bench {
    fn keys(&self) -> Vec<String> {
        self.manager.machine().access.lock().unwrap().as_ref().map(|access| access.keys.clone()).unwrap_or_default()
    }
}

#[tokio::test(start_paused = true)]
async fn another_operator_joins_the_same_session() {
    let bench = Bench::new();
    let first = bench.manager.open(grant(60)).await.unwrap();
    let second = bench.manager.open(bobs(600)).await.unwrap();
    assert!(second.extended && second.session == first.session);
    assert!(second.deadline_boot_ns > first.deadline_boot_ns);
    assert_eq!(bench.keys(), ["ssh-ed25519 AAAA", "ssh-ed25519 BBBB"]);
    before(&bench.log(), "enable", "record extended");
    // Past the first deadline and before the second.
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bench.manager.view().state, "open");
    bench.until_locked().await;
    let late = bench.manager.machine().boot_ns() - second.deadline_boot_ns;
    assert!(late <= 100_000_000, "{late} ns late");
}

#[tokio::test(start_paused = true)]
async fn a_shorter_proof_shortens_nothing() {
    let bench = Bench::new();
    let first = bench.manager.open(grant(600)).await.unwrap();
    let again = bench.manager.open(grant(60)).await.unwrap();
    assert_eq!(again.deadline_boot_ns, first.deadline_boot_ns);
    assert_eq!(bench.keys(), ["ssh-ed25519 AAAA"], "one key is in once");
    assert!(!bench.manager.view().session.unwrap().close_on_exit);
}

#[tokio::test(start_paused = true)]
async fn keys_are_bounded() {
    let bench = Bench::new();
    bench.manager.open(grant(60)).await.unwrap();
    for n in 1..crate::account::keys::KEYS_MAX {
        bench.manager.open(Grant { key: Some(format!("ssh-ed25519 K{n}")), ..grant(60) }).await.unwrap();
    }
    let error = bench.manager.open(bobs(60)).await.unwrap_err();
    assert_eq!(error.code(), "too-many-keys");
    assert_eq!(bench.keys().len(), crate::account::keys::KEYS_MAX);
}

#[tokio::test(start_paused = true)]
async fn what_fails_while_extending_leaves_the_session_as_it_was() {
    let bench = Bench::new();
    let first = bench.manager.open(grant(60)).await.unwrap();
    bench.manager.machine().fail.lock().unwrap().push("enable");
    assert!(matches!(bench.manager.open(bobs(600)).await, Err(SessionError::Failed(_))));
    assert_eq!(bench.keys(), ["ssh-ed25519 AAAA"]);
    bench.manager.journal().broken.store(true, Ordering::Relaxed);
    assert!(matches!(bench.manager.open(bobs(600)).await, Err(SessionError::CannotRecord(_))));
    bench.manager.journal().broken.store(false, Ordering::Relaxed);
    let noted = IntentStore::new(bench.folder.path(), bench.folder.path()).read().unwrap();
    assert_eq!(noted.deadline_boot_ns, first.deadline_boot_ns, "a restart would go by what was granted");
    bench.until_locked().await;
    let late = bench.manager.machine().boot_ns() - first.deadline_boot_ns;
    assert!(late <= 100_000_000, "{late} ns late");
}

#[tokio::test(start_paused = true)]
async fn a_resumed_session_is_enabled_again_for_whoever_proves_anew() {
    let first = Bench::new();
    let opened = first.manager.open(grant(60)).await.unwrap();
    let second = Bench::with(Arc::clone(&first.folder), BOOT, 1, first.manager.machine().started);
    second.manager.recover().await;
    assert_eq!(second.manager.view().state, "resumed");
    assert!(second.keys().is_empty());
    second.manager.machine().fail.lock().unwrap().push("enable");
    assert!(second.manager.open(bobs(600)).await.is_err());
    assert!(second.keys().is_empty() && second.manager.view().state == "resumed");
    let again = second.manager.open(bobs(600)).await.unwrap();
    assert!(again.extended && again.session == opened.session);
    assert_eq!(second.keys(), ["ssh-ed25519 BBBB"], "the other key needs a proof of its own");
    assert_eq!(second.manager.view().state, "open");
    assert!(second.log().contains(&"record extended again".to_owned()));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(second.manager.view().state, "open");
    second.until_locked().await;
}

#[tokio::test(start_paused = true)]
async fn a_proof_that_comes_at_the_deadline_opens_a_session_of_its_own() {
    let bench = Bench::new();
    let first = bench.manager.open(grant(60)).await.unwrap();
    tokio::time::advance(Duration::from_secs(61)).await;
    let second = bench.manager.open(bobs(60)).await.unwrap();
    assert!(!second.extended && second.session != first.session);
    assert_eq!(bench.keys(), ["ssh-ed25519 BBBB"]);
    let log = bench.log();
    let closed = log.iter().position(|line| line == "record closed CLOSE_CAUSE_DEADLINE");
    assert!(closed < log.iter().rposition(|line| line == "record opened"), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn whoever_wants_to_stay_keeps_it_open() {
    let bench = Bench::new();
    bench.manager.open(Grant { close_on_exit: true, ..grant(3600) }).await.unwrap();
    bench.manager.open(bobs(3600)).await.unwrap();
    *bench.manager.machine().live.lock().unwrap() = 1;
    tokio::time::sleep(Duration::from_secs(5)).await;
    *bench.manager.machine().live.lock().unwrap() = 0;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bench.manager.view().state, "open");
}

#[tokio::test(start_paused = true)]
async fn logins_of_the_open_session_are_recorded_with_their_operator() {
    let bench = Bench::new();
    let opened = bench.manager.open(grant(60)).await.unwrap();
    bench.manager.open(bobs(60)).await.unwrap();
    let notice = |session: &str| LoginNotice {
        session: session.into(),
        place: Some(LoginPlace::default()),
        method: "publickey".into(),
        key_fingerprint: "SHA256:b".into(),
    };
    bench.manager.logged_in(notice(&Uuid::nil().to_string())).await;
    assert!(!bench.log().iter().any(|line| line.starts_with("record login")));
    bench.manager.logged_in(notice(&opened.session.to_string())).await;
    assert!(bench.log().contains(&"record login bob@example.org".to_owned()));
}
