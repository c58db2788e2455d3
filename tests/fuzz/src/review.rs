//! What reviewers sign, and who they are.

use breakglass_proof::{
    REVIEW_NAMESPACE,
    review::{Review, join, split},
    reviewers::Reviewers,
    sshsig::Armoured,
};

/// A file of reviewers: the first test vector of RFC 8032, whose secret everybody has and nobody in the corpus used.
pub const KEYS: &str = "rita ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea\n";

/// A signed review: text and signature in one spelling each, and by nobody who is listed.
pub fn signed(input: &[u8]) {
    if let Ok(review) = Review::parse(input) {
        let text = review.encode().expect("what was read can be written");
        assert_eq!(text.as_bytes(), input, "another spelling");
    }
    let Some((text, armour)) = split(input) else { return };
    assert_eq!(join(text, armour), input, "the parts are not the whole");
    if let Ok(signature) = Armoured::parse(armour) {
        let _ = (signature.fingerprint(), signature.verify(REVIEW_NAMESPACE, text));
    }
    assert!(Reviewers::parse(KEYS).verify("rita", text, armour).is_err(), "a forgery counts");
}

/// A whole file: whatever is not understood is a line that exists.
pub fn list(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let reviewers = Reviewers::parse(&text);
    let lines = text.lines().count();
    assert!(reviewers.problems().iter().all(|problem| (1..=lines).contains(&problem.line)), "a line that is not there");
    let _ = (reviewers.is_empty(), reviewers.are_one("rita", "sam", "SHA256:"));
}
