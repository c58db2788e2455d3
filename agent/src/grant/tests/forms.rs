//! One signature for several hosts, and grants that were signed ahead.

use breakglass_api::{
    PREPARED_NAMESPACE,
    grant::{ManyText, Place, PreparedText},
};

use super::*;

/// A bench that is another host, with nonces of its own.
fn host(id: &str, secret: u8) -> Bench {
    let mut bench = Bench::new();
    bench.policy.host_id = id.into();
    bench.policy.boot_id = [secret; 16];
    bench.nonces = Nonces::new([secret; 32]);
    bench
}

fn place(bench: &Bench) -> Place {
    Place {
        host_id: bench.policy.host_id.clone(),
        host_name: format!("name of {}", bench.policy.host_id),
        boot_id: bench.policy.boot_id,
        nonce: bench.nonces.make(BOOT_NS, rand::random(), Lasting::Alone).to_vec(),
    }
}

fn many(benches: &[&Bench]) -> ManyText {
    ManyText {
        places: benches.iter().map(|bench| place(bench)).collect(),
        operator: "alice@example.org".into(),
        reason: "the cluster has lost its quorum".into(),
        ticket: String::new(),
        ttl_seconds: 600,
        close_on_exit: false,
        client_time: "2026-01-31T23:59:59Z".into(),
    }
}

#[test]
fn one_signature_opens_each_host_that_it_names_once() {
    let (one, two, third) = (host("host-1", 1), host("host-2", 2), host("host-3", 3));
    let key = one.key("ed25519", "256");
    let signed = sign(&key, GRANT_NAMESPACE, &many(&[&two, &one]).encode().unwrap(), &[]);
    let signers = line(&key);
    for bench in [&one, &two] {
        let grant = bench.verify(signed.clone(), &signers).unwrap();
        assert_eq!((grant.terms.ttl_seconds, grant.signer.principal.as_str()), (600, "alice@example.org"));
        assert_eq!(grant.signed.text, signed.text, "the record has the whole text");
        assert_eq!(code(bench.verify(signed.clone(), &signers)), "replayed-nonce");
    }
    assert_eq!(code(third.verify(signed, &signers)), "other-host");
}

#[test]
fn nothing_of_one_host_counts_on_another() {
    let (one, two) = (host("host-1", 1), host("host-2", 2));
    let key = one.key("ed25519", "256");
    let signers = line(&key);
    // The other host's challenge under this one's name.
    let mut swapped = many(&[&one, &two]);
    let nonces: Vec<_> = swapped.places.iter().map(|place| place.nonce.clone()).collect();
    swapped.places[0].nonce.clone_from(&nonces[1]);
    swapped.places[1].nonce.clone_from(&nonces[0]);
    let signed = sign(&key, GRANT_NAMESPACE, &swapped.encode().unwrap(), &[]);
    assert_eq!(code(one.verify(signed.clone(), &signers)), "forged-nonce");
    assert_eq!(code(two.verify(signed, &signers)), "forged-nonce");
    let mut reboot = many(&[&one, &two]);
    reboot.places[0].boot_id = [9; 16];
    assert_eq!(code(one.verify(sign(&key, GRANT_NAMESPACE, &reboot.encode().unwrap(), &[]), &signers)), "other-boot");
    // A host is taken out of, or put into, the text after it was signed.
    let text = many(&[&one, &two]);
    let good = sign(&key, GRANT_NAMESPACE, &text.encode().unwrap(), &[]);
    let mut more = text.clone();
    more.places.push(Place { host_id: "host-0".into(), ..text.places[0].clone() });
    let widened = Signed { text: more.encode().unwrap().into_bytes(), ..good.clone() };
    assert_eq!(code(one.verify(widened, &signers)), "bad-signature");
    // The part of one host as a text of its own.
    let alone = text.for_host("host-1").unwrap().encode().unwrap().into_bytes();
    assert_eq!(code(one.verify(Signed { text: alone, ..good.clone() }, &signers)), "bad-signature");
    assert!(one.verify(good, &signers).is_ok());
}

#[test]
fn each_host_keeps_its_own_policy() {
    let (one, mut two) = (host("host-1", 1), host("host-2", 2));
    two.policy.max_ttl = Duration::from_secs(300);
    let key = one.key("ed25519", "256");
    let signed = sign(&key, GRANT_NAMESPACE, &many(&[&one, &two]).encode().unwrap(), &[]);
    assert_eq!(code(two.verify(signed.clone(), &line(&key))), "ttl-too-long");
    assert!(one.verify(signed, &line(&key)).is_ok());
}

fn prepared() -> PreparedText {
    PreparedText {
        host_id: "host-1".into(),
        host_name: "web1".into(),
        number: [5; 16],
        operator: "alice@example.org".into(),
        reason: "no network in cage 4".into(),
        ticket: String::new(),
        ttl_seconds: 600,
        close_on_exit: false,
        // The host's clock in these tests: 2026-09-21T14:13:20Z.
        not_before: "2026-09-21T00:00:00Z".into(),
        not_after: "2026-09-23T00:00:00Z".into(),
        client_time: "2026-09-20T08:00:00Z".into(),
    }
}

fn ready() -> Bench {
    let mut bench = Bench::new();
    bench.policy.rules.prepared_max = Duration::from_secs(7 * 86_400);
    bench
}

#[test]
fn a_grant_that_was_signed_ahead() {
    let bench = ready();
    let key = bench.key("ed25519", "256");
    let signed = sign(&key, PREPARED_NAMESPACE, &prepared().encode().unwrap(), &[]);
    let grant = bench.verify(signed, &line(&key)).unwrap();
    assert_eq!(grant.prepared, Some(prepared::Number { number: [5; 16], not_after_s: 1_790_121_600 }));
    assert!(grant.warnings.iter().any(|warning| warning.contains("signed ahead")), "{:?}", grant.warnings);
}

#[test]
fn what_a_grant_that_was_signed_ahead_is_refused_for() {
    let mut bench = ready();
    let key = bench.key("ed25519", "256");
    type Change = fn(&mut PreparedText);
    let cases: [(&str, Change); 8] = [
        ("other-host", |t| t.host_id = "host-2".into()),
        ("prepared-not-now", |t| t.not_before = "2026-09-22T00:00:00Z".into()),
        ("prepared-not-now", |t| {
            (t.not_before, t.not_after) = ("2026-09-20T00:00:00Z".into(), "2026-09-21T00:00:00Z".into())
        }),
        ("prepared-too-long", |t| t.not_after = "2026-10-23T00:00:00Z".into()),
        ("bad-text", |t| t.not_after = t.not_before.clone()),
        ("bad-text", |t| t.not_after = "2026-13-45T00:00:00Z".into()),
        ("no-reason", |t| t.reason = String::new()),
        ("ttl-too-long", |t| t.ttl_seconds = 3601),
    ];
    for (expected, change) in cases {
        let mut text = prepared();
        change(&mut text);
        let signed = sign(&key, PREPARED_NAMESPACE, &text.encode().unwrap(), &[]);
        assert_eq!(code(bench.verify(signed, &line(&key))), expected, "{text:?}");
    }
    let good = sign(&key, PREPARED_NAMESPACE, &prepared().encode().unwrap(), &[]);
    let as_usual = sign(&key, GRANT_NAMESPACE, &prepared().encode().unwrap(), &[]);
    assert_eq!(code(bench.verify(as_usual, &line(&key))), "wrong-namespace");
    let as_grant = sign(&key, PREPARED_NAMESPACE, &bench.grant().encode().unwrap(), &[]);
    assert_eq!(code(bench.verify(as_grant, &line(&key))), "wrong-namespace");
    let (signers, revoked) = (AllowedSigners::parse(&line(&key), None), Revoked::default());
    let from_elsewhere = Check { source: Some([10, 0, 0, 1].into()), ..bench.check(&signers, &revoked) };
    assert_eq!(code(verify_grant(good.clone(), &[], &from_elsewhere)), "prepared-elsewhere");
    bench.policy.rules.required_signers = 2;
    assert_eq!(code(bench.verify(good.clone(), &line(&key))), "quorum");
    bench.policy.rules = Rules::default();
    assert_eq!(code(bench.verify(good, &line(&key))), "prepared-not-taken", "the policy takes none");
}
