//! Policy: several people, other keys, other terms.

use breakglass_api::COSIGN_NAMESPACE;

use super::*;

struct Three {
    bench: Bench,
    keys: [PathBuf; 3],
}

const NAMES: [&str; 3] = ["alice@example.org", "bob@example.org", "carol@example.org"];

impl Three {
    fn new(required: usize) -> Self {
        let mut bench = Bench::new();
        bench.policy.rules.required_signers = required;
        let keys = [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "384")].map(|(kind, bits)| bench.key(kind, bits));
        Self { bench, keys }
    }

    fn signers(&self) -> String {
        NAMES.iter().zip(&self.keys).map(|(name, key)| format!("{name} {}\n", public(key))).collect()
    }

    fn text(&self) -> GrantText {
        let mut text = self.bench.grant();
        text.claim.nonce = self.bench.nonces.make(BOOT_NS, rand::random(), Lasting::Alone).to_vec();
        text
    }

    fn cosign(&self, who: usize, text: &GrantText) -> v1::Cosignature {
        let signed = sign(&self.keys[who], COSIGN_NAMESPACE, &text.encode().unwrap(), &[]);
        v1::Cosignature { principal: NAMES[who].into(), signature: signed.signature }
    }

    fn ask(&self, text: &GrantText, cosignatures: &[v1::Cosignature], signers: &str) -> Result<VerifiedGrant, Refusal> {
        self.bench.verify_with(sign_grant(&self.keys[0], text), cosignatures, signers, "")
    }
}

#[test]
fn enough_people_open_together() {
    let three = Three::new(3);
    let text = three.text();
    let [bob, carol] = [1, 2].map(|who| three.cosign(who, &text));
    let signers = three.signers();
    let refusal = three.ask(&text, &[], &signers).unwrap_err();
    assert!(refusal.code == "quorum" && refusal.message.contains("3 people together and 1 signed"), "{refusal}");
    assert_eq!(code(three.ask(&text, std::slice::from_ref(&bob), &signers)), "quorum");
    let grant = three.ask(&text, &[bob, carol], &signers).unwrap();
    let names: Vec<_> = grant.cosigned.iter().map(|c| c.signer.principal.as_str()).collect();
    assert_eq!(names, NAMES[1..]);
}

#[test]
fn nobody_counts_twice() {
    let three = Three::new(2);
    let signers = three.signers();
    let text = three.text();
    let alice = three.cosign(0, &text);
    assert_eq!(code(three.ask(&text, &[alice], &signers)), "same-person");
    let bob = three.cosign(1, &text);
    assert_eq!(code(three.ask(&text, &[bob.clone(), bob.clone()], &signers)), "same-person");
    // Bob's key is listed for Alice too, so Alice could have both.
    let shared = format!("{signers}alice@example.org {}\n", public(&three.keys[1]));
    assert_eq!(code(three.ask(&text, std::slice::from_ref(&bob), &shared)), "same-person");
    let wild = format!("{signers}*@example.org {}\n", public(&three.keys[1]));
    assert_eq!(code(three.ask(&text, std::slice::from_ref(&bob), &wild)), "same-person");
    // Bob's key under Alice's name is a key that she does not have.
    let claimed = v1::Cosignature { principal: NAMES[2].into(), ..bob.clone() };
    assert_eq!(code(three.ask(&text, &[claimed], &signers)), "unknown-signer");
    assert!(three.ask(&text, &[bob], &signers).is_ok());
}

#[test]
fn consent_is_to_one_text_and_for_nothing_else() {
    let three = Three::new(2);
    let signers = three.signers();
    let text = three.text();
    let other = GrantText { ttl_seconds: 3600, ..text.clone() };
    assert_eq!(code(three.ask(&text, &[three.cosign(1, &other)], &signers)), "bad-signature");
    // A signature that opens is not one that consents, nor the other way round.
    let opening =
        v1::Cosignature { principal: NAMES[1].into(), signature: sign_grant(&three.keys[1], &text).signature };
    assert_eq!(code(three.ask(&text, &[opening], &signers)), "wrong-namespace");
    let consent = sign(&three.keys[0], COSIGN_NAMESPACE, &text.encode().unwrap(), &[]);
    assert_eq!(code(three.bench.verify(consent, &signers)), "wrong-namespace");
    let many = vec![three.cosign(1, &text); super::super::quorum::COSIGNATURES_MAX + 1];
    assert_eq!(code(three.ask(&text, &many, &signers)), "too-many-signatures");
}

#[test]
fn revoked_keys_neither_open_nor_consent() {
    let three = Three::new(2);
    let signers = three.signers();
    let text = three.text();
    let bob = three.cosign(1, &text);
    for revoked in &three.keys[..2] {
        let signed = sign_grant(&three.keys[0], &text);
        let result = three.bench.verify_with(signed, std::slice::from_ref(&bob), &signers, &public(revoked));
        assert_eq!(code(result), "revoked-key");
    }
}

#[test]
fn the_rules_of_a_host() {
    let mut bench = Bench::new();
    let key = bench.key("ed25519", "256");
    let ask = |bench: &Bench| bench.verify(sign_grant(&key, &bench.grant()), &line(&key));
    bench.policy.rules.hardware_only = true;
    assert_eq!(code(ask(&bench)), "not-hardware");
    bench.policy.rules = Rules { ticket: Some(policy::TicketPattern::new("INC-[0-9]+").unwrap()), ..Rules::default() };
    assert_eq!(code(ask(&bench)), "bad-ticket");
    bench.policy.rules = Rules { operators: vec!["bob@*".into()], ..Rules::default() };
    assert_eq!(code(ask(&bench)), "operator-not-allowed");
    bench.policy.rules = Rules { sources: vec!["10.0.0.0/8".parse().unwrap()], ..Rules::default() };
    let (signers, revoked) = (AllowedSigners::parse(&line(&key), None), Revoked::default());
    let from = |source: Option<&str>| {
        let check = Check { source: source.map(|ip| ip.parse().unwrap()), ..bench.check(&signers, &revoked) };
        verify_grant(sign_grant(&key, &bench.grant()), &[], &check)
    };
    assert_eq!(code(from(Some("192.0.2.1"))), "source-not-allowed");
    assert!(from(Some("10.9.9.9")).unwrap().warnings.is_empty());
}

#[test]
fn a_reason_that_says_nothing_is_flagged_and_not_refused() {
    let bench = Bench::new();
    let key = bench.key("ed25519", "256");
    let text = GrantText { reason: "test".into(), ..bench.grant() };
    let grant = bench.verify(sign_grant(&key, &text), &line(&key)).unwrap();
    assert!(grant.warnings[0].contains("says little"), "{:?}", grant.warnings);
}

#[test]
fn fido_keys_where_policy_asks_for_them() {
    let mut bench = Bench::new();
    bench.policy.rules.user_verification = true;
    let fido = |flags| Fido { key: ed25519_dalek::SigningKey::from_bytes(&[5; 32]), application: "ssh:", flags };
    for (flags, expected) in [(0x01, Err("not-verified")), (0x05, Ok(()))] {
        let mut text = bench.grant();
        text.claim.nonce = bench.nonces.make(BOOT_NS, rand::random(), Lasting::Alone).to_vec();
        let result = bench.verify(fido(flags).sign(&text), &fido(flags).line());
        assert_eq!(result.map(|_| ()).map_err(|e| e.code), expected);
    }
}
