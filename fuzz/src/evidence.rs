//! What proves a session, and is read by people who trust nobody.

use breakglass_api::{
    checkpoint::{Signed, Statement},
    evidence::{Reader, Writer},
};
use breakglass_collector::tlog::{note::SignedCheckpoint, request::AddCheckpoint};

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
    let (mut writer, mut bytes) = Writer::new();
    bytes.extend(writer.section(1, b"{}"));
    for part in input.chunks(97) {
        let (kind, content) = part.split_first().map_or((2, part), |(kind, rest)| (2 + u32::from(kind % 16), rest));
        bytes.extend(writer.section(kind, content));
    }
    bytes.extend(writer.end());
    let _ = sections(&bytes);
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
