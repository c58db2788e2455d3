//! Several hosts under one signature.

use breakglass_api::grant::{ManyText, Request as Text};

use super::*;

fn challenge_of(id: &str, signers: u32) -> Option<Answer> {
    Some(Answer::Challenge(Challenge {
        host_id: id.into(),
        hostname: format!("name-{id}"),
        nonce: id.as_bytes().to_vec(),
        required_signers: signers,
        valid_seconds: if signers > 1 { 900 } else { 60 },
        default_ttl_seconds: if id == "b" { 900 } else { 1800 },
        ..challenge_of_host()
    }))
}

/// Two hosts as `a` and `b` of the first one's configuration; `gone` is there too, and nobody answers for it.
async fn two(
    a: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
    b: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
) -> (Host, Host) {
    let (mut first, second) = (Host::start(a).await, Host::start(b).await);
    for (name, host) in [("a", &first.dir), ("b", &second.dir)] {
        let host = crate::config::Host { socket: Some(host.path().join("control.sock")), ..Default::default() };
        first.config.hosts.insert(name.into(), host);
    }
    (first, second)
}

fn answering(id: &'static str) -> impl FnMut(&Request) -> Option<Answer> {
    move |request| match request {
        Request::Challenge(_) => challenge_of(id, 1),
        _ => opened(),
    }
}

#[tokio::test]
async fn one_text_names_all_and_each_gets_it() {
    let (a, b) = two(answering("a"), answering("b")).await;
    assert_eq!(a.run("open b a --reason down --ticket INC-1 --no-ssh").await.unwrap(), 0);
    let (one, other) = (a.opens(), b.opens());
    assert_eq!((one.len(), &one), (1, &other), "the same request, signed once");
    let Ok(Text::Many(text)) = Text::parse(&one[0].grant_text) else { panic!("another form") };
    assert_eq!(text.places.iter().map(|p| p.host_id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(text.places[1].nonce, b"b");
    assert_eq!(
        (text.reason.as_str(), text.ticket.as_str(), text.ttl_seconds),
        ("down", "INC-1", 900),
        "the shortest default"
    );
}

#[tokio::test]
async fn one_that_fails_keeps_none_of_the_others() {
    let (a, _b) = two(answering("a"), |request| match request {
        Request::Challenge(_) => challenge_of("b", 1),
        _ => refused("source-not-allowed"),
    })
    .await;
    assert_eq!(a.run("open b a --reason down --no-ssh").await.unwrap(), SOME);
    // The first one is not open, so nobody is logged in anywhere.
    assert_eq!(a.run("open b a --reason down").await.unwrap(), SOME);
    assert!(!a.dir.path().join("args").exists());
    assert_eq!(a.run("open b a --reason down --login a").await.unwrap(), SOME);
    assert!(a.read("args").contains("bg@127.0.0.1"), "{}", a.read("args"));
    // With only one that answers, the text is the usual one.
    assert_eq!(a.run("open a gone --reason down --no-ssh").await.unwrap(), SOME);
    assert!(GrantText::parse(&a.opens().last().unwrap().grant_text).is_ok());
    let none = a.run("open gone b --reason down --no-ssh").await.unwrap_err();
    assert_eq!((none.exit_code(), none.code()), (5, "none-open"));
}

#[tokio::test]
async fn mistakes_are_said_before_anybody_signs() {
    let (a, b) = two(answering("a"), answering("a")).await;
    let message = |result: Result<u8, Failure>| {
        let failure = result.unwrap_err();
        assert_eq!(failure.exit_code(), 2, "{failure}");
        failure.to_string()
    };
    assert!(message(a.run("open a b --reason x --no-ssh").await).contains("a and b are the same host"));
    assert!(message(a.run("open a b --reason x --login c").await).contains("--login c"));
    assert!(message(a.run("open a b --reason x --address h:1").await).contains("for one host"));
    assert!(message(a.run("open a b --reason x --code").await).contains("for one host"));
    assert!(message(a.run("close a b --session s1").await).contains("on one host"));
    assert!(a.opens().is_empty() && b.opens().is_empty());
}

#[tokio::test]
async fn where_one_asks_for_several_people_all_challenges_last_as_long() {
    let ask = |id: &'static str, signers| {
        move |request: &Request| match request {
            Request::Challenge(asked) => challenge_of(id, asked.signers.max(signers)),
            _ => opened(),
        }
    };
    let (a, b) = two(ask("a", 1), ask("b", 2)).await;
    let path = |name: &str| a.dir.path().join(name).display().to_string();
    let missing = a.run(&format!("open a b --reason down --no-ssh --save-request {}", path("request"))).await;
    assert!(missing.unwrap_err().to_string().contains("--cosignature"));
    let asked = |host: &Host| {
        let requests = host.requests.lock().unwrap();
        requests.iter().map(|r| if let Request::Challenge(c) = r { c.signers } else { 99 }).collect::<Vec<_>>()
    };
    assert_eq!((asked(&a), asked(&b)), (vec![0, 2], vec![0]));
    let text = cosign::saved_request(path("request").as_ref()).unwrap();
    let parsed = ManyText::parse(text.as_bytes()).unwrap();
    assert_eq!(parsed.places.len(), 2);
    assert!(a.run(&format!("cosign --operator bob {}", a.read("request").trim())).await.is_ok());
}

#[tokio::test]
async fn several_are_asked_and_closed_one_after_the_other() {
    let status = |request: &Request| match request {
        Request::Challenge(_) => challenge_of("a", 1),
        Request::Close(_) => Some(Answer::Closed(Closed::default())),
        _ => Some(Answer::Status(Default::default())),
    };
    let (a, _b) = two(status, |_| refused("not-open")).await;
    assert_eq!(a.run("status a").await.unwrap(), 0);
    assert_eq!(a.run("status a gone --json").await.unwrap(), SOME);
    assert_eq!(a.run("close a b").await.unwrap(), SOME);
    assert_eq!(a.run("status gone").await.unwrap_err().exit_code(), 5);
}
