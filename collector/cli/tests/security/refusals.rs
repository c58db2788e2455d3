//! Exit codes and messages where something is wrong.

use std::fs;

use breakglass_api::v1;
use tonic::Status;

use crate::{
    fake::{Answers, Ca, Fake},
    run::complained,
    sample::{self, ID},
};

#[test]
fn nothing_of_that_name() {
    let fake = Fake::start(sample::answers());
    for args in [["show", "abcdefgh"], ["replay", "abcdefgh"], ["events", "abcdefgh"]] {
        assert_eq!(
            complained(&fake, "config.toml", &args),
            (4, "breakglass: there is no session abcdefgh\n".to_owned())
        );
    }
    let (code, message) = complained(&fake, "config.toml", &["replay", ID, "--terminal", "9"]);
    assert_eq!(code, 4);
    assert!(message.contains("there is no terminal 9; there are 1: pts/3"), "{message}");
}

#[test]
fn a_session_on_several_hosts_is_asked_for_with_its_host_all_the_way() {
    let mut answers = sample::answers();
    let mine = sample::session();
    answers.sessions =
        vec![v1::Session { host_id: "other".into(), hostname: "other".into(), ..mine.clone() }, mine.clone()];
    let fake = Fake::start(answers);
    let target = fake.path().join("evidence.bge").display().to_string();
    let with_host = format!("{}/{ID}", mine.hostname);
    for args in [
        &["show"][..],
        &["show", "--follow"],
        &["replay"],
        &["events"],
        &["search", "sudo", "--session"],
        &["export", "--evidence", &target],
    ] {
        let (code, message) = complained(&fake, "config.toml", &[args, &[ID]].concat());
        assert!(code != 0 && message.contains("may be on any of 2 hosts"), "{args:?}: {code} {message}");
        let (code, message) = complained(&fake, "config.toml", &[args, &[&with_host]].concat());
        assert!(!message.contains("may be on any"), "{args:?}: {code} {message}");
        assert!(matches!(code, 0 | 4), "{args:?}: {code} {message}");
    }
}

#[test]
fn usage() {
    let fake = Fake::start(sample::answers());
    for args in [&["show"][..], &["replay", ID, "--speed", "0"], &["sessions", "--limit", "0"], &["nonsense"]] {
        assert_eq!(complained(&fake, "config.toml", args).0, 2, "{args:?}");
    }
    let (code, message) = complained(&fake, "config.toml", &["search", "ab"]);
    assert_eq!((code, message.contains("three characters or more")), (2, true));
    let (code, message) = complained(&fake, "config.toml", &["search", "abc", "--since", "yesterday"]);
    assert_eq!((code, message.contains("\"yesterday\" is no time")), (2, true));
}

#[test]
fn a_role_that_may_not() {
    let refusal = Some(Status::permission_denied("operators see only their own sessions\x1b[2J"));
    let fake = Fake::start(Answers { refusal, ..sample::answers() });
    let (code, message) = complained(&fake, "config.toml", &["hosts"]);
    assert_eq!(code, 3);
    assert_eq!(message, "breakglass: refused by the collector: operators see only their own sessions\\x1b[2J\n");
}

#[test]
fn a_failure_over_there() {
    let fake = Fake::start(Answers { refusal: Some(Status::internal("disk on fire")), ..sample::answers() });
    let (code, message) = complained(&fake, "config.toml", &["hosts"]);
    assert_eq!((code, message.as_str()), (1, "breakglass: the collector failed: disk on fire (Internal)\n"));
}

#[test]
fn nobody_there() {
    let fake = Fake::start(Answers::default());
    // A port that nobody listens on: taken, and given back.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fs::copy(fake.path().join("config.crt"), fake.path().join("gone.crt")).unwrap();
    fs::copy(fake.path().join("config.key"), fake.path().join("gone.key")).unwrap();
    fake.configure("gone.toml", "ca.crt", "collector", free);
    let (code, message) = complained(&fake, "gone.toml", &["hosts"]);
    assert_eq!(code, 5);
    assert!(message.contains(&free.to_string()) && message.contains("Connection refused"), "{message}");
    assert!(message.contains("Check that breakglass-collector is running"), "{message}");
}

#[test]
fn certificates_that_do_not_fit() {
    let fake = Fake::start(sample::answers());
    let stranger = Ca::new();
    fake.enrol(&stranger, "stranger.toml");
    let (code, message) = complained(&fake, "stranger.toml", &["hosts"]);
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("he collector refuses your certificate"), "{message}");

    fs::write(fake.path().join("other.crt"), &stranger.pem).unwrap();
    fake.configure("stranger.toml", "other.crt", "collector", fake.address);
    let (code, message) = complained(&fake, "stranger.toml", &["hosts"]);
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("check that collector.ca is its CA's certificate"), "{message}");

    fake.configure("config.toml", "ca.crt", "elsewhere", fake.address);
    let (code, message) = complained(&fake, "config.toml", &["hosts"]);
    assert_eq!(code, 5, "{message}");
    assert!(message.contains("elsewhere") && message.contains("collector.server_name"), "{message}");
}

#[test]
fn files_that_are_not_there() {
    let fake = Fake::start(sample::answers());
    fs::remove_file(fake.path().join("config.key")).unwrap();
    let (code, message) = complained(&fake, "config.toml", &["hosts"]);
    assert_eq!(code, 1);
    assert!(message.contains("config.key") && message.contains("collector.key"), "{message}");
    fs::write(fake.path().join("config.key"), "nonsense").unwrap();
    let (code, message) = complained(&fake, "config.toml", &["hosts"]);
    assert_eq!(code, 1, "{message}");
    fs::write(fake.path().join("empty.toml"), "").unwrap();
    let (code, message) = complained(&fake, "empty.toml", &["hosts"]);
    assert_eq!((code, message.contains("no collector is configured")), (1, true));
}
