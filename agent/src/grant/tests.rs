//! Every refusal, with signatures by the real `ssh-keygen` and by FIDO keys in software.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use breakglass_api::grant::{Claim, CloseText, GrantText};
use ed25519_dalek::Signer as _;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use ssh_key::PublicKey;

use super::{
    nonce::{Lasting, NONCE_LEN},
    *,
};

mod certificates;
mod forms;
mod quorum;

const BOOT_NS: u64 = 5_000_000_000_000;
const WALL_S: i64 = 1_790_000_000;
const CLOCK: Clock = Clock { boot_ns: BOOT_NS, wall_s: WALL_S };

struct Bench {
    dir: tempfile::TempDir,
    policy: Policy,
    nonces: Nonces,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            policy: Policy {
                host_id: "host-1".into(),
                boot_id: [7; 16],
                max_ttl: Duration::from_secs(3600),
                rules: Rules::default(),
            },
            nonces: Nonces::new([3; 32]),
        }
    }

    fn grant(&self) -> GrantText {
        GrantText {
            claim: Claim {
                host_id: "host-1".into(),
                host_name: "web1".into(),
                boot_id: [7; 16],
                nonce: self.nonces.make(BOOT_NS, [1; 16], Lasting::Alone).to_vec(),
                operator: "alice@example.org".into(),
            },
            reason: "database does not answer".into(),
            ticket: String::new(),
            ttl_seconds: 600,
            close_on_exit: true,
            client_time: "2026-01-31T23:59:59Z".into(),
        }
    }

    /// A key made by `ssh-keygen`; returns its path.
    fn key(&self, kind: &str, bits: &str) -> PathBuf {
        let path = self.dir.path().join(format!("{kind}{bits}"));
        run(Command::new("ssh-keygen").args(["-q", "-t", kind, "-b", bits, "-N", "", "-C", "", "-f"]).arg(&path), b"");
        path
    }

    fn verify(&self, signed: Signed, signers: &str) -> Result<VerifiedGrant, Refusal> {
        self.verify_with(signed, &[], signers, "")
    }

    fn verify_with(
        &self,
        signed: Signed,
        cosignatures: &[v1::Cosignature],
        signers: &str,
        revoked: &str,
    ) -> Result<VerifiedGrant, Refusal> {
        self.verify_against(signed, cosignatures, signers, &Revoked::parse(revoked).unwrap())
    }

    fn verify_against(
        &self,
        signed: Signed,
        cosignatures: &[v1::Cosignature],
        signers: &str,
        revoked: &Revoked,
    ) -> Result<VerifiedGrant, Refusal> {
        let signers = AllowedSigners::parse(signers, None);
        verify_grant(signed, cosignatures, &self.check(&signers, revoked))
    }

    fn check<'a>(&'a self, signers: &'a AllowedSigners, revoked: &'a Revoked) -> Check<'a> {
        Check { policy: &self.policy, signers, revoked, nonces: &self.nonces, clock: CLOCK, source: None }
    }
}

fn run(command: &mut Command, stdin: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn sign(key: &Path, namespace: &str, text: &str, extra: &[&str]) -> Signed {
    let signature = run(
        Command::new("ssh-keygen").args(["-Y", "sign", "-n", namespace, "-f"]).arg(key).args(extra),
        text.as_bytes(),
    );
    Signed { text: text.as_bytes().to_vec(), signature }
}

fn sign_grant(key: &Path, text: &GrantText) -> Signed {
    sign(key, GRANT_NAMESPACE, &text.encode().unwrap(), &[])
}

fn public(key: &Path) -> String {
    std::fs::read_to_string(key.with_extension("pub")).unwrap().trim().to_owned()
}

fn line(key: &Path) -> String {
    format!("alice@example.org {}\n", public(key))
}

fn code(result: Result<VerifiedGrant, Refusal>) -> &'static str {
    let refusal = result.expect_err("it was granted");
    assert!(refusal.message.len() > 20, "{refusal}: says too little");
    refusal.code
}

#[test]
fn keys_of_every_kind_that_is_taken() {
    let bench = Bench::new();
    for (kind, bits, name, extra) in [
        ("ed25519", "256", "ssh-ed25519", &[][..]),
        ("ed25519", "256", "ssh-ed25519", &["-O", "hashalg=sha256"]),
        ("ecdsa", "256", "ecdsa-sha2-nistp256", &[]),
        ("ecdsa", "384", "ecdsa-sha2-nistp384", &[]),
        ("rsa", "2048", "ssh-rsa", &[]),
        ("rsa", "2048", "ssh-rsa", &["-O", "hashalg=sha256"]),
    ] {
        let path = bench.dir.path().join(format!("{kind}{bits}"));
        let key = if path.exists() { path } else { bench.key(kind, bits) };
        let mut text = bench.grant();
        text.claim.nonce = bench.nonces.make(BOOT_NS, rand::random(), Lasting::Alone).to_vec();
        let signed = sign(&key, GRANT_NAMESPACE, &text.encode().unwrap(), extra);
        let grant = bench.verify(signed, &line(&key)).unwrap_or_else(|e| panic!("{kind} {bits}: {e}"));
        assert_eq!(grant.terms.reason, text.reason);
        assert_eq!(grant.signer.principal, "alice@example.org");
        assert_eq!(grant.signer.key_type(), name);
        assert_eq!(grant.signer.public_key().unwrap(), public(&key));
        let listed = run(Command::new("ssh-keygen").arg("-lf").arg(&key), b"");
        assert!(String::from_utf8(listed).unwrap().contains(&grant.signer.fingerprint()));
    }
}

#[test]
fn a_grant_is_good_once_even_for_two_at_once() {
    let bench = Bench::new();
    let key = bench.key("ed25519", "256");
    let signed = sign_grant(&key, &bench.grant());
    let signers = line(&key);
    let granted = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8).map(|_| scope.spawn(|| bench.verify(signed.clone(), &signers))).collect();
        tries.into_iter().map(|t| t.join().unwrap()).filter(Result::is_ok).count()
    });
    assert_eq!(granted, 1);
    assert_eq!(code(bench.verify(signed, &signers)), "replayed-nonce");
}

#[test]
fn wrong_proofs_use_no_nonce_up() {
    let bench = Bench::new();
    let key = bench.key("ed25519", "256");
    let signed = sign_grant(&key, &bench.grant());
    for _ in 0..3 {
        assert_eq!(code(bench.verify(signed.clone(), "")), "unknown-signer");
    }
    assert!(bench.verify(signed, &line(&key)).is_ok());
}

#[test]
fn what_the_text_says_is_held_against_host_and_policy() {
    let bench = Bench::new();
    let key = bench.key("ed25519", "256");
    type Change = fn(&mut GrantText, &Nonces);
    let cases: [(&str, Change); 8] = [
        ("other-host", |t, _| t.claim.host_id = "host-2".into()),
        ("other-boot", |t, _| t.claim.boot_id = [8; 16]),
        ("forged-nonce", |t, _| t.claim.nonce = vec![0; NONCE_LEN]),
        ("forged-nonce", |t, _| t.claim.nonce = vec![1]),
        ("stale-nonce", |t, n| t.claim.nonce = n.make(BOOT_NS - 61_000_000_000, [1; 16], Lasting::Alone).to_vec()),
        ("no-reason", |t, _| t.reason = String::new()),
        ("ttl-too-short", |t, _| t.ttl_seconds = 0),
        ("ttl-too-long", |t, _| t.ttl_seconds = 3601),
    ];
    for (expected, change) in cases {
        let mut text = bench.grant();
        change(&mut text, &bench.nonces);
        assert_eq!(code(bench.verify(sign_grant(&key, &text), &line(&key))), expected);
    }
    let good = bench.grant().encode().unwrap();
    let spaced = sign(&key, GRANT_NAMESPACE, &good.replace("ttl: 600", "ttl:  600"), &[]);
    assert_eq!(code(bench.verify(spaced, &line(&key))), "bad-text");
}

#[test]
fn the_signature_must_fit() {
    let bench = Bench::new();
    let (key, other) = (bench.key("ed25519", "256"), bench.key("ecdsa", "256"));
    let text = bench.grant();
    let encoded = text.encode().unwrap();
    let good = sign_grant(&key, &text);

    assert_eq!(code(bench.verify(sign(&key, "file", &encoded, &[]), &line(&key))), "wrong-namespace");
    assert_eq!(code(bench.verify(sign(&key, CLOSE_NAMESPACE, &encoded, &[]), &line(&key))), "wrong-namespace");
    assert_eq!(code(bench.verify(good.clone(), &line(&other))), "unknown-signer");
    let bob = format!("bob@example.org {}\n", public(&key));
    assert_eq!(code(bench.verify(good.clone(), &bob)), "unknown-signer");

    let longer = GrantText { ttl_seconds: 3600, ..text };
    let swapped = Signed { text: longer.encode().unwrap().into_bytes(), ..good.clone() };
    assert_eq!(code(bench.verify(swapped, &line(&key))), "bad-signature");
    for signature in
        [vec![], b"-----BEGIN SSH SIGNATURE-----".to_vec(), good.signature[1..].to_vec(), vec![b'A'; 20_000]]
    {
        assert_eq!(code(bench.verify(Signed { signature, ..good.clone() }, &line(&key))), "bad-signature");
    }
}

#[test]
fn what_the_line_says_counts() {
    let bench = Bench::new();
    let key = bench.key("ed25519", "256");
    let signed = sign_grant(&key, &bench.grant());
    let with = |options: &str| format!("*@example.org {options} {}", public(&key));
    for (options, expected) in [
        ("namespaces=\"file\"", "namespace-not-allowed"),
        ("namespaces=\"breakglass-close@v1\"", "namespace-not-allowed"),
        ("valid-after=\"20270101Z\"", "not-valid-now"),
        ("valid-before=\"20260101Z\"", "not-valid-now"),
        ("cert-authority", "certificate"),
    ] {
        assert_eq!(code(bench.verify(signed.clone(), &with(options))), expected, "{options}");
    }
    let second = format!("{}\n{}", with("valid-before=\"20260101Z\""), with("namespaces=\"breakglass-*@v1\""));
    let grant = bench.verify(signed, &second).expect("a later line allows it");
    assert_eq!(grant.signer.line, 2);
}

#[test]
fn weak_keys() {
    let bench = Bench::new();
    for (kind, bits) in [("rsa", "1024"), ("dsa", "1024"), ("ecdsa", "521")] {
        let key = bench.key(kind, bits);
        let signed = sign_grant(&key, &bench.grant());
        assert_eq!(code(bench.verify(signed, &line(&key))), "weak-key", "{kind} {bits}");
    }
}

#[test]
fn closing_has_its_own_namespace_and_the_same_nonces() {
    let bench = Bench::new();
    let key = bench.key("ed25519", "256");
    let signers = AllowedSigners::parse(&line(&key), None);
    let text =
        CloseText { claim: bench.grant().claim, session: "0199".into(), client_time: "2026-01-31T23:59:59Z".into() };
    let encoded = text.encode().unwrap();
    let revoked = Revoked::default();
    let verify = |signed| verify_close(signed, &bench.check(&signers, &revoked));
    assert_eq!(verify(sign(&key, GRANT_NAMESPACE, &encoded, &[])).unwrap_err().code, "wrong-namespace");
    let signed = sign(&key, CLOSE_NAMESPACE, &encoded, &[]);
    assert_eq!(verify(signed.clone()).unwrap().text, text);
    assert_eq!(verify(signed).unwrap_err().code, "replayed-nonce");
    assert_eq!(code(bench.verify(sign_grant(&key, &bench.grant()), &line(&key))), "replayed-nonce");
}

/// A FIDO key in software, PROTOCOL.u2f.
struct Fido {
    key: ed25519_dalek::SigningKey,
    application: &'static str,
    flags: u8,
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn armoured(blob: &[u8]) -> Vec<u8> {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(blob);
    let lines: Vec<_> = body.as_bytes().chunks(70).map(|c| std::str::from_utf8(c).unwrap()).collect();
    format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n")).into_bytes()
}

/// The bytes that a FIDO key signs for an SSHSIG over `text`.
fn fido_message(application: &str, flags: u8, text: &[u8]) -> Vec<u8> {
    let hash = sha2::Sha512::digest(text);
    let inner = [&b"SSHSIG"[..], &string(GRANT_NAMESPACE.as_bytes()), &string(b""), &string(b"sha512"), &string(&hash)]
        .concat();
    [&Sha256::digest(application)[..], &[flags, 0, 0, 0, 9], &Sha256::digest(inner)[..]].concat()
}

fn fido_armour(public: &[u8], kind: &str, signature: &[u8], flags: u8) -> Vec<u8> {
    let signature = [string(kind.as_bytes()), string(signature), vec![flags, 0, 0, 0, 9]].concat();
    let mut blob = [&b"SSHSIG"[..], &1u32.to_be_bytes(), &string(public)].concat();
    for part in [GRANT_NAMESPACE.as_bytes(), b"", b"sha512", &signature] {
        blob.extend(string(part));
    }
    armoured(&blob)
}

impl Fido {
    const KIND: &str = "sk-ssh-ed25519@openssh.com";

    fn public(&self) -> Vec<u8> {
        [Self::KIND.as_bytes(), self.key.verifying_key().as_bytes(), self.application.as_bytes()].map(string).concat()
    }

    fn line(&self) -> String {
        let key = PublicKey::from_bytes(&self.public()).unwrap().to_openssh().unwrap();
        format!("alice@example.org {key}")
    }

    fn sign(&self, text: &GrantText) -> Signed {
        let text = text.encode().unwrap().into_bytes();
        let signature = self.key.sign(&fido_message(self.application, self.flags, &text)).to_bytes();
        Signed { signature: fido_armour(&self.public(), Self::KIND, &signature, self.flags), text }
    }
}

#[test]
fn fido_keys_must_be_touched_and_be_for_ssh() {
    let bench = Bench::new();
    let fido = |application, flags| Fido { key: ed25519_dalek::SigningKey::from_bytes(&[5; 32]), application, flags };
    for (application, flags, expected) in [
        ("ssh:", 0x00, Err("no-presence")),
        ("ssh:", 0x04, Err("no-presence")),
        ("https://example.org", 0x01, Err("wrong-application")),
        ("ssh:", 0x01, Ok(Some(proof::Touch { verified: false, counter: 9 }))),
        ("ssh:incident", 0x05, Ok(Some(proof::Touch { verified: true, counter: 9 }))),
    ] {
        let key = fido(application, flags);
        let mut text = bench.grant();
        text.claim.nonce = bench.nonces.make(BOOT_NS, rand::random(), Lasting::Alone).to_vec();
        let result = bench.verify(key.sign(&text), &key.line());
        assert_eq!(result.map(|g| g.signer.touch).map_err(|e| e.code), expected, "{application} {flags}");
    }
    let mut raised = fido("ssh:", 0x00).sign(&bench.grant());
    let touched = fido("ssh:", 0x01);
    raised.signature = {
        let signature = touched.key.sign(&fido_message("ssh:", 0x00, &raised.text)).to_bytes();
        fido_armour(&touched.public(), Fido::KIND, &signature, 0x01)
    };
    assert_eq!(code(bench.verify(raised, &touched.line())), "bad-signature", "flags are part of what is signed");
}

#[test]
fn fido_keys_of_the_ecdsa_kind() {
    const KIND: &str = "sk-ecdsa-sha2-nistp256@openssh.com";
    let bench = Bench::new();
    let key = ssh_key::PrivateKey::read_openssh_file(&bench.key("ecdsa", "256")).unwrap();
    let point = key.public_key().key_data().ecdsa().unwrap().as_sec1_bytes().to_vec();
    let public = [KIND.as_bytes(), b"nistp256", &point, b"ssh:"].map(string).concat();
    let listed = PublicKey::from_bytes(&public).unwrap().to_openssh().unwrap();
    for (flags, kind, expected) in [
        (0x01, KIND, Ok(())),
        (0x00, KIND, Err("no-presence")),
        (0x01, "webauthn-sk-ecdsa-sha2-nistp256@openssh.com", Err("bad-signature")),
    ] {
        let mut text = bench.grant();
        text.claim.nonce = bench.nonces.make(BOOT_NS, rand::random(), Lasting::Alone).to_vec();
        let text = text.encode().unwrap().into_bytes();
        // An ssh-key SSHSIG signs what it is given; here that is the FIDO message, signed as plain ECDSA.
        let signature: ssh_key::Signature = signer(&key, &fido_message("ssh:", flags, &text));
        let signed = Signed { signature: fido_armour(&public, kind, signature.as_bytes(), flags), text };
        let result = bench.verify(signed, &format!("alice@example.org {listed}"));
        assert_eq!(result.map(|_| ()).map_err(|e| e.code), expected, "{flags} {kind}");
    }
}

fn signer(key: &ssh_key::PrivateKey, message: &[u8]) -> ssh_key::Signature {
    ed25519_dalek::Signer::try_sign(key, message).unwrap()
}

#[test]
fn every_flipped_bit_of_a_signature_is_refused() {
    let bench = Bench::new();
    let key = bench.key("ed25519", "256");
    let good = sign_grant(&key, &bench.grant());
    for at in (0..good.signature.len()).filter(|at| good.signature[*at] != b'\n') {
        let mut signed = good.clone();
        signed.signature[at] ^= 1;
        assert!(bench.verify(signed, &line(&key)).is_err(), "byte {at}");
    }
}

proptest! {
    #[test]
    fn noise_never_panics(text in proptest::collection::vec(any::<u8>(), 0..200), blob in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bench = Bench::new();
        let signed = Signed { text: text.clone(), signature: blob.clone() };
        prop_assert!(bench.verify(signed, "").is_err());
        let _ = proof::claimed_fingerprint(&armoured(&blob));
        let _ = proof::claimed_fingerprint(&armoured(&[b"SSHSIG\0\0\0\x01", &blob[..]].concat()));
    }
}
