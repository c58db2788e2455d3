//! Certificates as signers, and what revokes them, all made by the real `ssh-keygen`.

use super::*;

struct Authority {
    bench: Bench,
    authority: PathBuf,
    key: PathBuf,
}

impl Authority {
    fn new() -> Self {
        let bench = Bench::new();
        let (authority, key) = (bench.key("ecdsa", "256"), bench.key("ed25519", "256"));
        Self { bench, authority, key }
    }

    /// The usual line, for everybody of example.org.
    fn line(&self) -> String {
        format!("*@example.org cert-authority {}", public(&self.authority))
    }

    /// A certificate for `key`, beside it; `extra` says more, or in the place of what is usual.
    fn certify(&self, key: &Path, extra: &[&str]) -> PathBuf {
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-s"]).arg(&self.authority);
        if !extra.contains(&"-I") {
            command.args(["-I", "alice's laptop"]);
        }
        if !extra.contains(&"-n") {
            command.args(["-n", "alice@example.org"]);
        }
        // For nobody in particular is said by not saying it.
        let extra = if extra == ["-n", ""] { &[] } else { extra };
        run(command.args(extra).arg(key), b"");
        // To sign with a certificate, ssh-keygen looks for the private key beside it under its own name.
        let stem = key.file_name().unwrap().to_str().unwrap();
        std::fs::copy(key, key.with_file_name(format!("{stem}-cert"))).unwrap();
        key.with_file_name(format!("{stem}-cert.pub"))
    }

    fn signed(&self, certificate: &Path) -> Signed {
        let mut text = self.bench.grant();
        text.claim.nonce = self.bench.nonces.make(BOOT_NS, rand::random(), Lasting::Alone).to_vec();
        sign(certificate, GRANT_NAMESPACE, &text.encode().unwrap(), &[])
    }

    fn ask(&self, extra: &[&str], signers: &str) -> Result<VerifiedGrant, Refusal> {
        let certificate = self.certify(&self.key, extra);
        self.bench.verify(self.signed(&certificate), signers)
    }
}

#[test]
fn a_certificate_signs_for_its_principals() {
    let authority = Authority::new();
    let grant = authority.ask(&["-z", "7"], &authority.line()).unwrap();
    let certificate = grant.signer.certificate.as_ref().unwrap();
    assert_eq!((certificate.serial, certificate.key_id.as_str()), (7, "alice's laptop"));
    assert!(grant.signer.certificate().contains("serial 7, by SHA256:"), "{}", grant.signer.certificate());
    assert_eq!(grant.signer.key_type(), "ssh-ed25519", "the key that logs in is the plain one");
    assert!(public(&authority.key).starts_with(&grant.signer.public_key().unwrap()));

    let refused = |extra: &[&str], signers: &str| code(authority.ask(extra, signers));
    assert_eq!(refused(&["-n", "bob@example.org"], &authority.line()), "certificate-principal");
    assert_eq!(
        refused(&["-n", ""], &authority.line()),
        "certificate-principal",
        "a certificate for nobody in particular"
    );
    assert_eq!(refused(&["-h"], &authority.line()), "certificate", "a host's");
    let line = |options: &str| format!("*@example.org {options}{}", public(&authority.authority));
    assert_eq!(refused(&[], &line("")), "certificate", "its authority is listed as a key");
    assert_eq!(refused(&[], &line("cert-authority,namespaces=\"file\" ")), "namespace-not-allowed");
    assert_eq!(refused(&[], &line("cert-authority,valid-before=\"20260101Z\" ")), "not-valid-now");
    assert_eq!(
        refused(&[], &format!("bob@example.org cert-authority {}", public(&authority.authority))),
        "unknown-signer"
    );
    assert_eq!(
        refused(&[], &self::line(&authority.key)),
        "unknown-signer",
        "the plain key is listed, the authority is not"
    );
    let other = authority.bench.key("ecdsa", "384");
    assert_eq!(refused(&[], &format!("* cert-authority {}", public(&other))), "unknown-signer");
}

#[test]
fn time_and_options_of_a_certificate_count() {
    let authority = Authority::new();
    let line = authority.line();
    // The host's clock in these tests: 2026-09-21.
    for (validity, expected) in [
        ("20260901Z:20261001Z", None),
        ("20260901Z:20260920Z", Some("not-valid-now")),
        ("20261001Z:20261101Z", Some("not-valid-now")),
        ("always:forever", None),
    ] {
        let result = authority.ask(&["-V", validity], &line);
        assert_eq!(result.err().map(|refusal| refusal.code), expected, "{validity}");
    }
    for (option, expected) in [
        ("clear", None),
        ("source-address=127.0.0.1", None),
        ("source-address=10.0.0.0/8", Some("certificate")),
        ("force-command=/bin/true", Some("certificate")),
        ("critical:nobody@example.org=knows", Some("certificate")),
        ("verify-required", Some("not-verified")),
    ] {
        let result = authority.ask(&["-O", option], &line);
        assert_eq!(result.err().map(|refusal| refusal.code), expected, "{option}");
    }
}

#[test]
fn a_forged_certificate_is_refused() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let authority = Authority::new();
    let good = authority.signed(&authority.certify(&authority.key, &[]));
    let lines: Vec<&str> = std::str::from_utf8(&good.signature).unwrap().lines().collect();
    let blob = STANDARD.decode(lines[1..lines.len() - 1].concat()).unwrap();
    let (mut refused, line) = (std::collections::BTreeSet::new(), authority.line());
    for at in 0..blob.len() {
        let mut bad = blob.clone();
        bad[at] ^= 1;
        let signed = Signed { signature: armoured(&bad), ..good.clone() };
        let refusal = authority.bench.verify(signed, &line).expect_err(&format!("byte {at}"));
        refused.insert(refusal.code);
    }
    assert!(refused.contains("certificate") && refused.contains("bad-signature"), "{refused:?}");
    assert!(authority.bench.verify(good, &line).is_ok());
}

#[test]
fn keys_and_authorities_of_every_kind() {
    for (kind, bits) in [("ed25519", "256"), ("ecdsa", "384"), ("rsa", "3072")] {
        let bench = Bench::new();
        let (authority, key) = (bench.key(kind, bits), bench.key("rsa", "2048"));
        let authority = Authority { bench, authority, key };
        assert!(authority.ask(&[], &authority.line()).is_ok(), "{kind} {bits}");
    }
    let bench = Bench::new();
    let (authority, key) = (bench.key("rsa", "1024"), bench.key("ed25519", "256"));
    let authority = Authority { bench, authority, key };
    assert_eq!(code(authority.ask(&[], &authority.line())), "weak-key", "the authority's");
}

#[test]
fn lists_revoke_certificates() {
    let authority = Authority::new();
    let dir = authority.bench.dir.path().to_owned();
    let certificate = authority.certify(&authority.key, &["-z", "7"]);
    let plain = |key: &Path| key.with_extension("pub");
    let fingerprint = |key: &Path, hash: &str| {
        let output = run(Command::new("ssh-keygen").args(["-l", "-E", hash, "-f"]).arg(plain(key)), b"");
        String::from_utf8(output).unwrap().split(' ').nth(1).unwrap().to_owned()
    };
    let path = |path: PathBuf| path.display().to_string();
    let (key_pub, authority_pub) = (path(plain(&authority.key)), path(plain(&authority.authority)));
    let hash = |kind: &str| format!("hash: {}\n", fingerprint(&authority.key, kind));
    let sha1 = format!("sha1: {}", public(&authority.key));
    let ca = ["-s", authority_pub.as_str()];
    for (spec, flags, expected) in [
        ("serial: 7\n".to_owned(), &ca[..], true),
        ("serial: 1-9\n".to_owned(), &ca, true),
        ("serial: 1\nserial: 3\nserial: 5\nserial: 7\n".to_owned(), &ca, true),
        ("serial: 8\n".to_owned(), &ca, false),
        ("serial: 1-6\nserial: 8-4000000000\n".to_owned(), &ca, false),
        ("id: alice's laptop\n".to_owned(), &ca, true),
        ("id: bob's laptop\n".to_owned(), &ca, false),
        ("serial: 7\n".to_owned(), &[][..], true),
        (format!("key: {}\n", public(&authority.key)), &[], true),
        (format!("{sha1}\n"), &[], true),
        (format!("sha256: {}\n", public(&authority.key)), &[], true),
        (hash("sha256"), &[], true),
        (format!("key: {}\n", public(&authority.authority)), &[], true),
        (format!("sha256: {}\n", public(&authority.authority)), &[], true),
    ] {
        std::fs::write(dir.join("spec"), &spec).unwrap();
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-k", "-f"]).arg(dir.join("krl")).args(if flags.is_empty() && spec.starts_with("serial") {
            &["-s", "none"]
        } else {
            flags
        });
        run(command.arg(dir.join("spec")), b"");
        let revoked = Revoked::read(&std::fs::read(dir.join("krl")).unwrap()).unwrap_or_else(|e| panic!("{spec}: {e}"));
        let result = authority.bench.verify_against(authority.signed(&certificate), &[], &authority.line(), &revoked);
        assert_eq!(result.err().map(|e| e.code), expected.then_some("revoked-key"), "{spec}{flags:?}");
    }
    let by_text = |text: &str| {
        let signed = authority.signed(&certificate);
        authority.bench.verify_with(signed, &[], &authority.line(), text).err().map(|e| e.code)
    };
    assert_eq!(by_text(&public(&authority.authority)), Some("revoked-key"), "the authority, in a plain list");
    assert_eq!(by_text(&fingerprint(&authority.key, "sha256")), Some("revoked-key"));
    let _ = key_pub;
}

#[test]
fn a_list_that_is_not_understood_is_none() {
    let authority = Authority::new();
    let dir = authority.bench.dir.path();
    std::fs::write(dir.join("spec"), format!("key: {}\nserial: 7\n", public(&authority.key))).unwrap();
    run(
        Command::new("ssh-keygen")
            .args(["-q", "-k", "-f"])
            .arg(dir.join("krl"))
            .arg("-s")
            .arg(authority.authority.with_extension("pub"))
            .arg(dir.join("spec")),
        b"",
    );
    let good = std::fs::read(dir.join("krl")).unwrap();
    assert!(Revoked::read(&good).is_ok_and(|list| list.len() == 2));
    let header = 8 + 4 + 8 * 3 + 4 + 4;
    for cut in (8..good.len()).filter(|cut| *cut != header) {
        let Ok(list) = Revoked::read(&good[..cut]) else { continue };
        assert!(list.len() == 1, "a list that was cut between sections at {cut}");
    }
    assert!(Revoked::read(&[&good[..], &[77, 0, 0, 0, 0]].concat()).unwrap_err().contains("type 77"));
    let extension = |critical: u8| [&good[..], &[255, 0, 0, 0, 10, 0, 0, 0, 1, b'x', critical, 0, 0, 0, 0]].concat();
    assert!(Revoked::read(&extension(1)).unwrap_err().contains("extension \"x\""));
    assert!(Revoked::read(&extension(0)).is_ok());
    let mut newer = good.clone();
    newer[11] = 2;
    assert!(Revoked::read(&newer).unwrap_err().contains("version 2"));
}

#[test]
fn keys_may_have_to_be_short_lived() {
    let mut authority = Authority::new();
    authority.bench.policy.rules.max_key_lifetime = Some(Duration::from_secs(90 * 86_400));
    let line = authority.line();
    assert!(authority.ask(&["-V", "20260901Z:20261101Z"], &line).is_ok());
    assert_eq!(code(authority.ask(&["-V", "20260901Z:20270901Z"], &line)), "key-lifetime");
    assert_eq!(code(authority.ask(&["-V", "always:forever"], &line)), "key-lifetime");
    let by_key = |options: &str| {
        let signed = sign_grant(&authority.key, &{
            let mut text = authority.bench.grant();
            text.claim.nonce = authority.bench.nonces.make(BOOT_NS, rand::random(), Lasting::Alone).to_vec();
            text
        });
        let line = format!("alice@example.org {options} {}", public(&authority.key));
        authority.bench.verify(signed, &line).err().map(|e| e.code)
    };
    assert_eq!(by_key("valid-after=\"20260901Z\",valid-before=\"20261101Z\""), None);
    assert_eq!(by_key("valid-before=\"20261101Z\""), Some("key-lifetime"), "it has no beginning");
    assert_eq!(by_key("valid-after=\"20260101Z\",valid-before=\"20261101Z\""), Some("key-lifetime"));
    assert_eq!(by_key(""), Some("key-lifetime"));
}

#[test]
fn two_certificates_are_two_people_only_if_neither_has_the_others_name() {
    let mut authority = Authority::new();
    authority.bench.policy.rules.required_signers = 2;
    let other = authority.bench.key("ecdsa", "384");
    let mine = authority.certify(&authority.key, &[]);
    for (principals, expected) in
        [("bob@example.org", None), ("bob@example.org,alice@example.org", Some("same-person"))]
    {
        let theirs = authority.certify(&other, &["-n", principals]);
        let signed = authority.signed(&mine);
        let text = String::from_utf8(signed.text.clone()).unwrap();
        let signature = sign(&theirs, breakglass_api::COSIGN_NAMESPACE, &text, &[]).signature;
        let cosignature = v1::Cosignature { principal: "bob@example.org".into(), signature };
        let result = authority.bench.verify_with(signed, &[cosignature], &authority.line(), "");
        assert_eq!(result.err().map(|e| e.code), expected, "{principals}");
    }
}
