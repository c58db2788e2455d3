//! What comes with a proof, before anybody is known.

use breakglass_agent::{
    codes::Code,
    grant::{proof, revoked::Revoked, signers::AllowedSigners},
};
use breakglass_api::grant::{CloseText, GrantText};

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

/// A whole list.
pub fn revoked(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = Revoked::parse(text);
    }
}

/// What is taken has exactly one spelling.
pub fn grant_text(input: &[u8]) {
    if let Ok(text) = GrantText::parse(input) {
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
