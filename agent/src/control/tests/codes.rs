//! One-time codes and what the PAM gate says.

use breakglass_api::v1::{CodeRequest, LoginNotice, LoginPlace};

use super::*;
use crate::codes::{Book, Code};

const NOW: &str = "2026-01-31T23:59:59Z";

fn issue(bench: &Bench, count: usize) -> Vec<(u32, Code)> {
    Book::new(bench.dir.path()).issue(count, false, NOW).unwrap()
}

fn request(code: &Code) -> CodeRequest {
    CodeRequest { code: code.to_string(), reason: "the vault is down".into(), ..CodeRequest::default() }
}

fn at_login(code: &Code, host: &str) -> CodeRequest {
    let login =
        LoginPlace { service: "login".into(), tty: "tty1".into(), remote_host: host.into(), ..Default::default() };
    CodeRequest { code: code.to_string(), login: Some(login), ..CodeRequest::default() }
}

#[tokio::test]
async fn each_code_opens_once_over_either_door() {
    let bench = Bench::start().await;
    let codes = issue(&bench, 2);
    let mut tls = bench.tls().await;
    let mut unix = bench.unix().await;
    assert!(matches!(ask(&mut tls, Request::Code(request(&codes[0].1))).await, Answer::Opened(_)));
    assert_eq!(code(ask(&mut unix, Request::Code(request(&codes[0].1))).await), "used-code");
    assert!(matches!(ask(&mut unix, Request::Code(request(&codes[1].1))).await, Answer::Opened(_)));
    let opened: Vec<_> = bench.fake.opened.lock().unwrap().iter().map(|(who, _)| who.clone()).collect();
    assert_eq!(opened, ["code:1", "code:2"]);
}

#[tokio::test]
async fn a_request_that_is_refused_for_another_reason_costs_no_code() {
    let bench = Bench::start().await;
    let codes = issue(&bench, 1);
    let good = request(&codes[0].1);
    let mut stream = bench.unix().await;
    for (change, expected) in [
        ((|r: &mut CodeRequest| r.reason = String::new()) as fn(&mut CodeRequest), "no-reason"),
        (|r| r.reason = "a\u{202e}b".into(), "bad-text"),
        (|r| r.ttl_seconds = 1_000_000, "ttl-too-long"),
        (|r| r.public_key = "ssh-ed25519 AAAA".into(), "bad-key"),
        (|r| r.code = "no code".into(), "bad-code"),
    ] {
        let mut bad = good.clone();
        change(&mut bad);
        assert_eq!(code(ask(&mut stream, Request::Code(bad)).await), expected);
    }
    bench.fake.unready.store(true, Ordering::Relaxed);
    assert_eq!(code(ask(&mut stream, Request::Code(good.clone())).await), "cannot-record");
    bench.fake.unready.store(false, Ordering::Relaxed);
    assert!(matches!(ask(&mut stream, Request::Code(good)).await, Answer::Opened(_)));
}

#[tokio::test]
async fn only_root_speaks_for_pam() {
    let bench = Bench::start().await;
    let codes = issue(&bench, 1);
    let mut tls = bench.tls().await;
    assert_eq!(code(ask(&mut tls, Request::Code(at_login(&codes[0].1, ""))).await), "not-allowed");
    assert_eq!(code(ask(&mut tls, Request::Login(LoginNotice::default())).await), "not-allowed");
    if !nix::unistd::geteuid().is_root() {
        println!("skipped the rest: not root");
        return;
    }
    let mut unix = bench.unix().await;
    assert!(matches!(ask(&mut unix, Request::Login(LoginNotice::default())).await, Answer::Noted(_)));
    assert_eq!(bench.fake.logins.lock().unwrap().len(), 1);
    assert!(matches!(ask(&mut unix, Request::Code(at_login(&codes[0].1, ""))).await, Answer::Opened(_)));
}

/// Somebody guesses at ssh's prompt; the console is not made to wait for them.
#[tokio::test]
async fn guesses_from_elsewhere_do_not_hold_up_the_console() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let bench = Bench::start().await;
    let codes = issue(&bench, 1);
    let mark = codes[0].1.mark();
    let guess = Code::parse(&format!("{mark}bbbbbbbbbbbbbbbb")).unwrap();
    let guesses: Vec<_> = (0..8)
        .map(|_| {
            let (socket, guess) = (bench.dir.path().join("run/control.sock"), at_login(&guess, "192.0.2.9"));
            tokio::spawn(async move {
                let mut stream = UnixStream::connect(socket).await.unwrap();
                code(ask(&mut stream, Request::Code(guess)).await)
            })
        })
        .collect();
    let mut unix = bench.unix().await;
    assert!(matches!(ask(&mut unix, Request::Code(at_login(&codes[0].1, ""))).await, Answer::Opened(_)));
    for guess in guesses {
        assert_eq!(guess.await.unwrap(), "bad-code");
    }
}
