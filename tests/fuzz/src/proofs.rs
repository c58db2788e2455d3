//! What comes with a proof, before anybody is known.

use breakglass_agent::{
    codes::Code,
    grant::{
        proof::{self, Circumstances, verify},
        revoked::Revoked,
        signers::AllowedSigners,
    },
};
use breakglass_api::grant::{CloseText, Request};
use ssh_key::public::{Ed25519PublicKey, KeyData};

/// An armoured signature: as it is, and the input as what is inside the armour, which chance does not find through base64.
pub fn sshsig(input: &[u8]) {
    let _ = proof::claimed_fingerprint(input);
    let _ = proof::claimed_fingerprint(&armour(input));
}

fn armour(blob: &[u8]) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = b"-----BEGIN SSH SIGNATURE-----\n".to_vec();
    for chunk in blob.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() { digit } else { b'=' });
        }
    }
    text.extend_from_slice(b"\n-----END SSH SIGNATURE-----\n");
    text
}

/// A whole file. Every line is either an entry or a problem, and each names a line that exists.
pub fn allowed_signers(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let signers = AllowedSigners::parse(&text, None);
    let lines = text.lines().count();
    let mut numbers: Vec<usize> = signers.entries().iter().map(|entry| entry.line).collect();
    numbers.extend(signers.problems().iter().map(|problem| problem.line));
    numbers.sort_unstable();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "a line counts twice");
    assert!(numbers.iter().all(|line| (1..=lines).contains(line)), "a line that is not there");
    for entry in signers.entries() {
        let _ = (entry.names("alice", &entry.key), entry.allows_namespace("breakglass-grant@v1"), entry.valid_at(0));
    }
}

/// A whole list of either kind; what is in it can be looked up.
pub fn revoked(input: &[u8]) {
    if let Ok(list) = Revoked::read(input) {
        let key = KeyData::Ed25519(Ed25519PublicKey([1; 32]));
        assert!(!list.is_empty() || !list.revokes(&key, None), "an empty list revokes");
    }
}

/// A whole proof over the text that it begins with, up to an empty line: nothing that was not signed is taken, whatever certificate
/// comes with it. The authority and the key that are listed are nobody's.
pub fn proof(input: &[u8]) {
    let (text, signature) = match input.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&input[..=at], &input[at + 2..]),
        None => (input, &[][..]),
    };
    let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";
    let signers = AllowedSigners::parse(&format!("* cert-authority {line}\n* {line}\n"), None);
    let at = Circumstances { wall_s: 1_790_000_000, source: None };
    for signature in [signature.to_vec(), armour(signature)] {
        let result = verify(text, &signature, "breakglass-grant@v1", "alice@example.org", &signers, at);
        assert!(result.is_err(), "a signature by nobody was taken");
    }
}

/// What is taken has exactly one spelling.
pub fn grant_text(input: &[u8]) {
    if let Ok(text) = Request::parse(input) {
        assert!(!text.host_names().is_empty() && !text.operator().is_empty());
        assert_eq!(text.encode().expect("what was read can be written").as_bytes(), input);
    }
    if let Ok(text) = CloseText::parse(input) {
        assert_eq!(text.encode().expect("what was read can be written").as_bytes(), input);
    }
}

/// What is taken is the same code however it is spelt.
pub fn code(input: &[u8]) {
    let Ok(typed) = std::str::from_utf8(input) else { return };
    if let Some(code) = Code::parse(typed) {
        assert!(Code::parse(&code.to_string()).as_ref() == Some(&code), "the printed form is another code");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn armour_is_base64() {
        for (blob, expected) in
            [(&b"a"[..], "YQ=="), (b"ab", "YWI="), (b"abc", "YWJj"), (b"\xff\xff\xff\xff", "/////w==")]
        {
            assert!(String::from_utf8(armour(blob)).unwrap().contains(&format!("\n{expected}\n")), "{expected}");
        }
    }
}
