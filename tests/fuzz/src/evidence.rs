//! What proves a session, and is read by people who trust nobody.

use breakglass_api::{
    checkpoint::{Signed, Statement},
    evidence::{Reader, Writer},
};
use breakglass_cli::evidence::{report::Verdict, trust::Trust, verify::Verifier};
use breakglass_collector::tlog::{note::SignedCheckpoint, request::AddCheckpoint};
use breakglass_proof::{
    history::History,
    merkle::{Consistency, Inclusion, leaf_hash},
    reviewers::Reviewers,
};

/// A statement has one spelling.
pub fn statement(input: &[u8]) {
    if let Ok(statement) = Statement::parse(input) {
        assert_eq!(statement.encode(), input, "another spelling");
    }
    if let Ok(signed) = Signed::parse(input) {
        assert_eq!(signed.encode(), input, "another spelling");
        assert!(
            signed.verify(&[0; 32]).is_err() && signed.verify(&signed.statement.host_key).is_err(),
            "a forgery holds"
        );
    }
}

/// An evidence file as it is, and the input as its sections with an end that fits.
pub fn file(input: &[u8]) {
    let _ = sections(input);
    let _ = sections(&sealed(b"{}", input));
}

/// A file with a digest that fits, of the sections that the input says: type, two bytes of length, content.
fn sealed(manifest: &[u8], mut input: &[u8]) -> Vec<u8> {
    let (mut writer, mut bytes) = Writer::new();
    bytes.extend(writer.section(1, manifest));
    while let Some(([kind, low, high], rest)) = input.split_first_chunk() {
        let (content, rest) = rest.split_at(usize::from(u16::from_le_bytes([*low, *high])).min(rest.len()));
        bytes.extend(writer.section(u32::from(kind % 32), content));
        input = rest;
    }
    bytes.extend(writer.end());
    bytes
}

/// What the manifests of the corpus say.
const MANIFEST: &[u8] = br#"{"format":1,"session":"e5e5e5e5-e5e5-e5e5-e5e5-e5e5e5e5e5e5","host_id":"11111111-1111-1111-1111-111111111111","stream":"57575757575757575757575757575757"}"#;
/// A key of a log and of a witness whose secrets nobody has.
const LOG: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";

/// `breakglass verify` over a file as it is, and over the input as its sections: a verdict, and never that nobody's word is verified.
pub fn verify(input: &[u8]) {
    for bytes in [input, &sealed(MANIFEST, input)] {
        let logs = vec![LOG.parse().expect("the key of the specification")];
        let reviewers = Some(Reviewers::parse(super::review::KEYS));
        let trust = Trust { hosts: vec![[7; 32]], logs, reviewers, ..Trust::default() };
        let report = Verifier::new(trust).run(bytes).expect("memory can be read");
        assert_ne!(report.verdict(), Verdict::Verified, "what nobody signed is verified");
    }
}

/// A log whose leaves the input says, each after two bytes of its length. What is read is a statement or foreign.
pub fn history(mut input: &[u8]) {
    let (mut history, mut leaves) = (History::default(), 0);
    while let Some((length, rest)) = input.split_first_chunk() {
        let (leaf, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        history.take(leaves, leaf);
        (input, leaves) = (rest, leaves + 1);
    }
    let known: u64 = history.hosts.values().map(|host| host.statements).sum();
    assert!(known + history.foreign <= leaves, "a leaf counts twice");
}

/// Both kinds of proofs: one spelling, and nothing is proved about a root that is none.
pub fn log_proof(input: &[u8]) {
    let root = leaf_hash(input);
    let size = input.first_chunk().map_or(1, |size| u64::from_le_bytes(*size));
    if let Ok(proof) = Inclusion::parse(input) {
        assert_eq!(proof.encode(), input, "another spelling");
        assert!(proof.check(size, root).is_err(), "a leaf is proved to be where it is not");
    }
    if let Ok(proof) = Consistency::parse(input) {
        assert_eq!(proof.encode(), input, "another spelling");
        assert!(proof.check(size, root).is_err(), "a tree is proved to continue another");
    }
}

/// Reads to the end; what was read is where it says.
fn sections(bytes: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(bytes).ok()?;
    let mut count = 0;
    while let Some(section) = reader.next_section().ok()? {
        let at = usize::try_from(section.offset).ok()?;
        assert_eq!(
            bytes.get(at..at + section.content.len()),
            Some(section.content.as_slice()),
            "a section from elsewhere"
        );
        count += 1;
    }
    Some(count)
}

/// A checkpoint of a transparency log: signed by nobody whom anybody knows.
pub fn note(input: &[u8]) {
    if let Ok(checkpoint) = SignedCheckpoint::parse(input) {
        let again = SignedCheckpoint::parse(&checkpoint.to_bytes()).expect("what was read can be written");
        assert_eq!(
            (again.origin(), again.size(), again.text()),
            (checkpoint.origin(), checkpoint.size(), checkpoint.text())
        );
        assert!(checkpoint.verify(&[]).is_err(), "a signature by nobody holds");
    }
}

/// What a log asks of a witness.
pub fn add_checkpoint(input: &[u8]) {
    if let Some(request) = AddCheckpoint::parse(input) {
        let bytes = request.to_bytes();
        assert_eq!(AddCheckpoint::parse(&bytes).as_ref(), Some(&request), "the request changes when it is passed on");
    }
}
