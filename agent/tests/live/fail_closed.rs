//! No program of a session that could not be recorded for certain, by refusal where security hooks work and by a kill elsewhere.

use std::{
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use breakglass_agent::kernel::Kernel;
use breakglass_api::v1::event::Body;

use super::harness::{DEADLINE, Recording, command_as};
use crate::need_kernel;

/// Set for a test that is run as another process, to be the agent there: the pin folder and the account's uid.
const AGENT_PINS: &str = "BREAKGLASS_TEST_AGENT_PINS";
const AGENT_UID: &str = "BREAKGLASS_TEST_AGENT_UID";
/// What it says when it records.
const READY: &str = "the agent is ready";

/// Whether a program of the account ran.
fn runs(uid: u32) -> bool {
    match command_as(uid, "/bin/true").status() {
        Ok(status) => {
            assert!(status.success() || status.signal() == Some(9), "{status}");
            status.success()
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(1), "{error}");
            false
        }
    }
}

fn until_runs(uid: u32, expected: bool) {
    let limit = Instant::now() + DEADLINE;
    while runs(uid) != expected {
        assert!(Instant::now() < limit, "programs run: {}", !expected);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Expects an alert that says why.
fn expect_reason(recording: &mut Recording, reason: &str) {
    recording.until(reason, |seen| {
        seen.iter().any(|observed| {
            matches!(&observed.event.body, Some(Body::Alert(alert))
                if alert.code == "exec-refused" && alert.message.contains(reason))
        })
    });
}

#[test]
fn nothing_runs_while_the_spool_takes_nothing() {
    need_kernel!();
    let mut recording = Recording::guarded();
    recording.kernel().begin_session(3).unwrap();
    assert!(runs(recording.uid));
    recording.kernel().health().set_spool_full(true);
    until_runs(recording.uid, false);
    expect_reason(&mut recording, "the agent's spool takes no more");
    // Nobody else is held up.
    assert!(Command::new("/bin/true").status().unwrap().success());
    recording.kernel().health().set_spool_full(false);
    until_runs(recording.uid, true);
    recording.kernel().end_session(3).unwrap();
}

#[test]
fn where_policy_is_to_record_everything_runs() {
    need_kernel!();
    let mut recording = Recording::guarded_with(|options| options.deny_unrecorded = false);
    recording.kernel().begin_session(3).unwrap();
    recording.kernel().health().set_spool_full(true);
    std::thread::sleep(Duration::from_secs(1));
    assert!(runs(recording.uid));
    recording.kernel().end_session(3).unwrap();
}

#[test]
fn nothing_runs_while_the_agent_shows_no_sign_of_life() {
    need_kernel!();
    let mut recording = Recording::guarded_with(|options| options.stale_after = Duration::from_millis(1500));
    recording.kernel().begin_session(3).unwrap();
    until_runs(recording.uid, true);
    // The process lives, and beats no more.
    recording.reader = None;
    recording.kernel = None;
    until_runs(recording.uid, false);
    assert!(Command::new("/bin/true").status().unwrap().success());
    recording.restart();
    until_runs(recording.uid, true);
    expect_reason(&mut recording, "the agent has not shown itself for too long");
    recording.kernel().end_session(3).unwrap();
}

/// Runs in a process of its own for the test below; by itself it does nothing.
#[test]
fn an_agent_of_its_own() {
    let (Ok(pins), Ok(uid)) = (std::env::var(AGENT_PINS), std::env::var(AGENT_UID)) else { return };
    let mut options = Recording::guarded_options();
    options.pins = pins.into();
    options.account_uid = uid.parse().unwrap();
    let (mut kernel, _reader) = Kernel::start(&options).expect("start");
    kernel.begin_session(3).unwrap();
    println!("{READY}");
    // Ends with its standard input, and says no goodbye.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(7);
}

#[test]
fn nothing_runs_once_the_agent_has_ended() {
    need_kernel!();
    let options = Recording::guarded_options();
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["live::fail_closed::an_agent_of_its_own", "--exact", "--nocapture"])
        .env(AGENT_PINS, &options.pins)
        .env(AGENT_UID, options.account_uid.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(READY)));
    let uid = options.account_uid;
    assert!(runs(uid));
    drop(agent.stdin.take());
    assert_eq!(agent.wait().unwrap().code(), Some(7));
    // At once, not after its last beat has grown old.
    assert!(!runs(uid));
    assert!(Command::new("/bin/true").status().unwrap().success());
    let mut recording = Recording::of(options);
    assert!(recording.kernel().info().took_over);
    expect_reason(&mut recording, "the agent has ended");
    until_runs(uid, true);
    recording.kernel().end_session(3).unwrap();
}

/// In tier `full` the guard lets nobody write to it; elsewhere it is put right.
#[test]
fn settings_that_somebody_else_changes_are_put_back() {
    need_kernel!();
    let mut recording = Recording::guarded();
    recording.kernel().begin_session(6).unwrap();
    assert!(runs(recording.uid));
    let folders = std::fs::read_dir(&recording.options.pins).unwrap();
    let pin = folders.map(|folder| folder.unwrap().path().join("map_SETTINGS")).find(|pin| pin.exists()).unwrap();
    let map = Map::Array(MapData::from_pin(&pin).unwrap());
    let mut settings = Array::<_, [u32; 6]>::try_from(map).unwrap();
    let before = settings.get(&0, 0).unwrap();
    // No account, no session, no load in charge.
    settings.set(0, [0; 6], 0).unwrap();
    let limit = Instant::now() + DEADLINE;
    while settings.get(&0, 0).unwrap() != before {
        assert!(Instant::now() < limit, "the settings stay as somebody else made them");
        std::thread::sleep(Duration::from_millis(20));
    }
    let health = std::sync::Arc::clone(recording.kernel().health());
    // They are put right first.
    while !std::iter::from_fn(|| health.take_notice()).any(|notice| notice.code == "settings-changed") {
        assert!(Instant::now() < limit, "nobody hears of it");
        std::thread::sleep(Duration::from_millis(20));
    }
    until_runs(recording.uid, true);
    let seen = recording.seen.len();
    let mut marked = command_as(recording.uid, "/bin/true");
    assert!(marked.arg("after-the-change").status().unwrap().success());
    recording.until("the program after it", |all| {
        all.iter().skip(seen).any(|observed| {
            matches!(&observed.event.body, Some(Body::Exec(exec)) if exec.argv.iter().any(|a| a == b"after-the-change"))
        })
    });
    recording.kernel().end_session(6).unwrap();
}
