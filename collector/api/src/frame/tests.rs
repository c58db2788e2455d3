use proptest::prelude::*;

use super::*;
use crate::v1::{Event, Exec, event::Body};

fn header(seq: u64) -> Header {
    Header {
        stream_id: [7; 16],
        boot_id: [9; 16],
        seq,
        prev: if seq == 1 { [0; 32] } else { [3; 32] },
        first_boot_ns: 10,
        last_boot_ns: 20,
        wall_offset_ns: -5,
        events: 0,
    }
}

fn batch(argv: Vec<Vec<u8>>) -> Batch {
    let exec = Exec { argv, ..Exec::default() };
    Batch {
        sessions: vec![vec![1; 16]],
        events: vec![Event { boot_ns: 10, session: 1, body: Some(Body::Exec(exec)), ..Event::default() }],
        resume: Vec::new(),
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let sealed = seal(header(2), &batch(vec![b"ls".to_vec()]), 1).unwrap();
    for at in 0..sealed.bytes.len() {
        for bit in 0..8 {
            let mut bytes = sealed.bytes.clone();
            bytes[at] ^= 1 << bit;
            assert!(Frame::parse(&bytes).is_err(), "bit {bit} of byte {at} went unnoticed");
        }
    }
}

#[test]
fn every_cut_is_refused_as_short() {
    let sealed = seal(header(1), &batch(vec![]), 1).unwrap();
    for len in 0..sealed.bytes.len() {
        assert!(matches!(Frame::parse(&sealed.bytes[..len]), Err(FrameError::Short { .. })), "{len}");
    }
}

#[test]
fn a_lying_length_does_not_allocate() {
    let raw = vec![0; 1 << 20];
    let mut sealed = seal_raw(header(1), &raw, 1).unwrap();
    sealed.bytes[108..112].copy_from_slice(&16u32.to_le_bytes());
    let end = sealed.bytes.len() - HASH_LEN;
    let hash = hash_of(&sealed.bytes[..end]);
    sealed.bytes[end..].copy_from_slice(&hash);
    assert!(matches!(Frame::parse(&sealed.bytes).unwrap().batch(), Err(FrameError::Decompress(_))));
}

#[test]
fn one_sealer_makes_the_same_frames_as_many() {
    let mut sealer = Sealer::new(1).unwrap();
    for seq in 1..20u64 {
        let mut batch = batch(vec![vec![b'x'; 5000 * (20 - seq as usize)], seq.to_le_bytes().to_vec()]);
        assert_eq!(
            sealer.seal(header(seq), &mut batch).unwrap().bytes,
            Sealer::new(1).unwrap().seal(header(seq), &mut batch).unwrap().bytes
        );
    }
}

#[test]
fn a_resealed_frame_has_the_same_content_at_its_new_place() {
    let content = batch(vec![b"id".to_vec()]);
    let old = seal(header(7), &content, 1).unwrap();
    let new = Frame::parse(&old.bytes).unwrap().reseal([8; 16], 1, [0; 32]).unwrap();
    let frame = Frame::parse(&new.bytes).unwrap();
    assert_eq!(frame.header, Header { stream_id: [8; 16], seq: 1, prev: [0; 32], ..old.header });
    assert_eq!(frame.batch().unwrap(), content);
}

#[test]
fn more_events_than_claimed_are_refused_before_they_are_decoded() {
    // A million empty events: two bytes each here, hundreds each once decoded.
    let raw = [0x12, 0].repeat(1_000_000);
    let sealed = seal_raw(Header { events: 3, ..header(1) }, &raw, 1).unwrap();
    let refused = Frame::parse(&sealed.bytes).unwrap().batch();
    assert_eq!(refused, Err(FrameError::Count { found: 1_000_000, claimed: 3 }));
}

#[test]
fn dictionaries_never_change() {
    // As in docs/EVIDENCE.md: another verifier gets them from there.
    const KNOWN: [&str; DICTIONARIES.len()] = [
        "be14693372fdcb280c9542827c61b8e2d7ad9688d8c6e8c14ae3c474fb8ff3c5",
        "6b76449b040489cd8972fe649f86d8aac80c3c3035c77ee179471f9c14323b4e",
    ];
    assert_eq!(DICTIONARIES.map(|dictionary| hex::encode(Sha256::digest(dictionary))), KNOWN);
}

#[test]
fn a_frame_with_a_dictionary_is_smaller_reads_back_and_can_be_resealed() {
    let mut batch = batch(vec![b"systemctl".to_vec(), b"status".to_vec()]);
    let plain = seal(header(1), &batch, 1).unwrap();
    let before = batch.clone();
    let sealed = Sealer::new(1).unwrap().seal(header(1), &mut batch).unwrap();
    assert_eq!(batch, before, "sealing leaves the batch as it was");
    assert!(sealed.bytes.len() < plain.bytes.len(), "{} {}", sealed.bytes.len(), plain.bytes.len());
    for sealed in [plain, sealed] {
        let frame = Frame::parse(&sealed.bytes).unwrap();
        assert_eq!(frame.batch().unwrap(), batch);
        let again = frame.reseal([8; 16], 5, [4; 32]).unwrap();
        assert_eq!(Frame::parse(&again.bytes).unwrap().batch().unwrap(), batch);
    }
}

#[test]
fn a_large_batch_is_compressed_as_it_is_and_reads_back() {
    let mut sealer = Sealer::new(1).unwrap();
    // On either side of the bound, in turn with one sealer.
    for (length, codec) in [(10, 3), (LARGE, 1), (LARGE - 100, 3), (3 * LARGE, 1), (10, 3)] {
        let mut batch = batch(vec![(0..length).map(|n| (n % 251) as u8).collect()]);
        let before = batch.clone();
        let sealed = sealer.seal(header(1), &mut batch).unwrap();
        assert_eq!(sealed.bytes[4], codec, "{length}");
        let frame = Frame::parse(&sealed.bytes).unwrap();
        assert_eq!(frame.batch().unwrap(), before, "{length}");
        assert_eq!(batch, before, "{length}: sealing leaves the batch as it was");
    }
    let huge = sealer.seal(header(1), &mut batch(vec![vec![0; RAW_MAX]])).unwrap_err();
    assert!(matches!(huge, FrameError::TooLarge { what: "batch", .. }), "{huge}");
}

#[test]
fn codecs_that_are_not_known_are_named() {
    let sealed = Sealer::new(1).unwrap().seal(header(1), &mut batch(vec![])).unwrap().bytes;
    let with = |codec: [u8; 4]| {
        let mut bytes = sealed.clone();
        bytes[4..8].copy_from_slice(&codec);
        Frame::parse(&bytes).unwrap_err()
    };
    assert_eq!(with([4, 0, 0, 0]), FrameError::Codec(4));
    for codec in [2, 3] {
        assert_eq!(with([codec, 0, 0, 0]), FrameError::Dictionary(0));
        assert_eq!(with([codec, NEWEST + 1, 0, 0]), FrameError::Dictionary(NEWEST + 1));
    }
    for codec in [[1, 1, 0, 0], [2, 1, 1, 0], [3, 1, 0, 1]] {
        assert_eq!(with(codec), FrameError::Reserved);
    }
    // A sound header of the other codec: the hash says that it was changed.
    assert_eq!(with([1, 0, 0, 0]), FrameError::Hash);
}

proptest! {
    #[test]
    fn the_count_is_that_of_the_decoder(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(batch) = Batch::decode(raw.as_slice()) {
            // Groups are skipped by the decoder and refused here.
            if let Some(found) = count_events(&raw) {
                prop_assert_eq!(found, batch.events.len());
            }
        }
    }

    #[test]
    fn round_trip(seq in 1u64..u64::MAX, argv in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let batch = batch(argv);
        let sealed = seal(header(seq), &batch, 1).unwrap();
        let frame = Frame::parse(&sealed.bytes).unwrap();
        prop_assert_eq!(frame.header, Header { events: 1, ..header(seq) });
        prop_assert_eq!(frame.hash, sealed.hash);
        prop_assert_eq!(frame.batch().unwrap(), batch);
    }

    #[test]
    fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Frame::parse(&bytes);
        let _ = frame_len(&bytes);
    }
}
