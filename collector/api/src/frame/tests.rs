use proptest::prelude::*;

use super::{
    codec::{NEWEST, RUN_PAYLOAD_MAX},
    seal::{LARGE, assemble},
    unpack::{Found, MESSAGE_LISTS},
    *,
};
use crate::v1::{Event, Exec, event::Body};
use prost::Message;

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

/// Room for any frame.
const ROOMY: u64 = u64::MAX;

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
            sealer.seal(header(seq), &mut batch, ROOMY).unwrap().bytes,
            Sealer::new(1).unwrap().seal(header(seq), &mut batch, ROOMY).unwrap().bytes
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

/// A batch of one event that says `body`, encoded, in the field `said` of the event.
fn raw_event(said: u32, body: &[u8]) -> Vec<u8> {
    use prost::encoding::{WireType, encode_key, encode_varint};
    let wrap = |number, content: &[u8]| {
        let mut raw = Vec::new();
        encode_key(number, WireType::LengthDelimited, &mut raw);
        encode_varint(content.len() as u64, &mut raw);
        [raw, content.to_vec()].concat()
    };
    wrap(2, &wrap(said, body))
}

#[test]
fn lists_that_are_large_only_in_memory_are_refused_before_they_are_decoded() {
    let one = Header { events: 1, ..header(1) };
    let refused = |raw: &[u8]| {
        let sealed = seal_raw(one, raw, 1).unwrap();
        matches!(Frame::parse(&sealed.bytes).unwrap().batch(), Err(FrameError::TooLarge { limit: 4_194_304, .. }))
    };
    // Changes that say nothing, in one event or in pieces of it, and empty arguments.
    assert!(refused(&raw_event(46, &[0x0a, 0].repeat(300_000))));
    assert!(refused(&raw_event(10, &[0x3a, 0].repeat(5_000_000))));
    let piece = [[0xf2, 0x02, 200, 1].to_vec(), [0x0a, 0].repeat(100)].concat();
    let inner = piece.repeat(3000);
    assert!(refused(&[vec![0x12], varint(inner.len()), inner].concat()));
    // As many arguments as Linux lets a program have, and a comparison as long as an agent's.
    assert!(!refused(&raw_event(10, &[0x3a, 0].repeat(700_000))));
    assert!(!refused(&raw_event(46, &[0x0a, 0].repeat(30 * 128))));
}

fn varint(value: usize) -> Vec<u8> {
    let mut raw = Vec::new();
    prost::encoding::encode_varint(value as u64, &mut raw);
    raw
}

#[test]
fn every_list_of_messages_is_known_to_whoever_counts_them() {
    use prost_types::field_descriptor_proto::{Label, Type};
    let files = prost_types::FileDescriptorSet::decode(crate::v1::DESCRIPTORS).unwrap().file;
    let messages: Vec<_> = files.iter().flat_map(|file| &file.message_type).collect();
    let named = |name: &str| *messages.iter().find(|message| message.name() == name).unwrap();
    let mut lists = Vec::new();
    for said in named("Event").field.iter().filter(|field| field.r#type() == Type::Message) {
        let body = named(said.type_name().rsplit('.').next().unwrap());
        let repeated = |field: &&prost_types::FieldDescriptorProto| {
            field.label() == Label::Repeated && field.r#type() == Type::Message
        };
        lists.extend(body.field.iter().filter(repeated).map(|field| (said.number() as u64, field.number() as u64)));
    }
    lists.sort_unstable();
    assert_eq!(lists, MESSAGE_LISTS);
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
    let sealed = Sealer::new(1).unwrap().seal(header(1), &mut batch, ROOMY).unwrap();
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
    for (length, codec) in [(10, 4), (LARGE, 1), (LARGE - 100, 4), (3 * LARGE, 1), (10, 4)] {
        let mut batch = batch(vec![(0..length).map(|n| (n % 251) as u8).collect()]);
        let before = batch.clone();
        let sealed = sealer.seal(header(1), &mut batch, ROOMY).unwrap();
        assert_eq!(sealed.bytes[4], codec, "{length}");
        let frame = Frame::parse(&sealed.bytes).unwrap();
        assert_eq!(frame.batch().unwrap(), before, "{length}");
        assert_eq!(batch, before, "{length}: sealing leaves the batch as it was");
    }
    let huge = sealer.seal(header(1), &mut batch(vec![vec![0; RAW_MAX]]), ROOMY).unwrap_err();
    assert!(matches!(huge, FrameError::TooLarge { what: "batch", .. }), "{huge}");
}

#[test]
fn codecs_that_are_not_known_are_named() {
    let sealed = Sealer::new(1).unwrap().seal(header(1), &mut batch(vec![b"id".to_vec()]), ROOMY).unwrap().bytes;
    let with = |codec: [u8; 4]| {
        let mut bytes = sealed.clone();
        bytes[4..8].copy_from_slice(&codec);
        Frame::parse(&bytes).unwrap_err()
    };
    assert_eq!(with([5, 0, 0, 0]), FrameError::Codec(5));
    for codec in [2, 3, 4] {
        assert_eq!(with([codec, 0, 0, 0]), FrameError::Dictionary(0));
        assert_eq!(with([codec, NEWEST + 1, 0, 0]), FrameError::Dictionary(NEWEST + 1));
    }
    for codec in [[1, 1, 0, 0], [2, 1, 1, 0], [3, 1, 0, 1], [3, 1, 1, 0], [4, 1, 0, 1]] {
        assert_eq!(with(codec), FrameError::Reserved);
    }
    assert_eq!(with([4, 1, RUN_FRAMES, 0]), FrameError::Place(RUN_FRAMES));
    // A sound header of the other codec: the hash says that it was changed.
    assert_eq!(with([1, 0, 0, 0]), FrameError::Hash);
}

/// Seals `batches` behind each other.
fn chain(sealer: &mut Sealer, first: Header, batches: &mut [Batch]) -> Vec<Sealed> {
    let mut sealed: Vec<Sealed> = Vec::new();
    for batch in batches {
        let header = sealed.last().map_or(first, |last| Header { seq: last.header.seq + 1, prev: last.hash, ..first });
        sealed.push(sealer.seal(header, batch, ROOMY).unwrap());
    }
    sealed
}

fn place_of(sealed: &Sealed) -> u8 {
    sealed.bytes[6]
}

#[test]
fn frames_of_the_codecs_before_are_read() {
    let content = batch(vec![b"systemctl".to_vec()]);
    let mut thinned = content.clone();
    thin::thin(&mut thinned, 10);
    for (codec, raw) in [(Codec::Dictionary(1), content.encode_to_vec()), (Codec::Thin(2), thinned.encode_to_vec())] {
        let dictionary = DICTIONARIES[usize::from(codec.dictionary().unwrap()) - 1];
        let payload = zstd::bulk::Compressor::with_dictionary(1, dictionary).unwrap().compress(&raw).unwrap();
        let sealed = assemble(Header { events: 1, ..header(1) }, codec, raw.len(), &payload).unwrap();
        assert_eq!(Frame::parse(&sealed.bytes).unwrap().batch().unwrap(), content, "{codec:?}");
    }
}

#[test]
fn what_one_frame_says_costs_the_next_one_next_to_nothing() {
    let argv = || (0..40u32).map(|n| format!("--{}", n.wrapping_mul(2_654_435_761)).into_bytes()).collect::<Vec<_>>();
    let sealed = chain(&mut Sealer::new(1).unwrap(), header(1), &mut [batch(argv()), batch(argv())]);
    let [first, second] = [0, 1].map(|at| sealed[at].bytes.len() - HEADER_LEN - HASH_LEN);
    assert!(second < first / 8, "{first} {second}");
}

#[test]
fn a_run_begins_where_the_chain_breaks_the_room_ends_or_it_is_full() {
    let mut sealer = Sealer::new(1).unwrap();
    let again = || batch(vec![b"id".to_vec()]);
    let sealed = chain(&mut sealer, header(1), &mut vec![again(); 2 * usize::from(RUN_FRAMES) + 3]);
    let places: Vec<u8> = sealed.iter().map(place_of).collect();
    assert_eq!(places, (0..RUN_FRAMES).cycle().take(sealed.len()).collect::<Vec<_>>());
    // The last two were taken back, so that the next one does not follow what the compressor saw last.
    let last = &sealed[sealed.len() - 3];
    let next = Header { seq: last.header.seq + 1, prev: last.hash, ..last.header };
    let taken_back = sealer.seal(next, &mut again(), ROOMY).unwrap();
    assert_eq!(place_of(&taken_back), 0);
    let next = |sealed: &Sealed| Header { seq: sealed.header.seq + 1, prev: sealed.hash, ..sealed.header };
    let narrow = sealer.seal(next(&taken_back), &mut again(), 200).unwrap();
    assert_eq!(place_of(&narrow), 0);
    let wide = sealer.seal(next(&narrow), &mut again(), 2000).unwrap();
    assert_eq!(place_of(&wide), 1);
    let mut of_another = Batch { sessions: vec![vec![1; 16], vec![2; 16]], ..again() };
    let opened = sealer.seal(next(&wide), &mut of_another, ROOMY).unwrap();
    assert_eq!(place_of(&opened), 0, "the first frame of a session can be read by itself");
    let wide = sealer.seal(next(&opened), &mut again(), 2000).unwrap();
    assert_eq!(place_of(&wide), 1);
    let other = sealer.seal(Header { stream_id: [1; 16], ..next(&wide) }, &mut again(), ROOMY).unwrap();
    assert_eq!(place_of(&other), 0);
}

#[test]
fn a_frame_of_a_run_is_refused_without_those_before_it() {
    let mut batches = ["id", "ls", "ps"].map(|name| batch(vec![name.into()]));
    let sealed = chain(&mut Sealer::new(1).unwrap(), Header { seq: 5, ..header(2) }, &mut batches);
    let [first, second, third] = [0, 1, 2].map(|at| Frame::parse(&sealed[at].bytes).unwrap());
    let refused = Err(FrameError::Continues { from: 5 });
    assert_eq!((first.readable_from(), third.readable_from()), (5, 5));
    assert_eq!(third.batch(), refused);
    assert_eq!(third.reseal([8; 16], 1, [0; 32]).unwrap_err(), FrameError::Continues { from: 5 });
    let mut unpacker = Unpacker::default();
    unpacker.take(&first).unwrap();
    assert_eq!((unpacker.lacks(&second), unpacker.lacks(&third)), (None, Some(5)));
    assert_eq!(unpacker.batch(&third), refused, "one was left out");
    assert_eq!(unpacker.batch(&second), refused, "and now nothing is known");
    unpacker.take(&first).unwrap();
    unpacker.take(&second).unwrap();
    assert_eq!(unpacker.batch(&third).unwrap(), batches[2]);
    assert_eq!(first.batch().unwrap(), batches[0], "the first needs no other");
}

/// A frame of a run with any payload.
fn forged(before: Option<&Sealed>, place: u8, raw_len: usize, payload: &[u8]) -> Sealed {
    let header = before.map_or(header(1), |last| Header { seq: last.header.seq + 1, prev: last.hash, ..last.header });
    assemble(header, Codec::Run { dictionary: NEWEST, place }, raw_len, payload).unwrap()
}

/// How the first payload of a run begins.
const BEGIN: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd, 0, 0x40];

/// A block that holds so many bytes as they are.
fn raw_block(length: u32) -> Vec<u8> {
    [&(length << 3).to_le_bytes()[..3], &vec![b'r'; length as usize]].concat()
}

#[test]
fn a_payload_of_a_run_is_whole_blocks_and_nothing_else() {
    let read = |payload: &[u8], raw_len| {
        let sealed = forged(None, 0, raw_len, payload);
        Unpacker::default().take(&Frame::parse(&sealed.bytes).unwrap())
    };
    let with = |blocks: &[u8]| [BEGIN, blocks].concat();
    read(&with(&raw_block(5)), 5).unwrap();
    let ended = with(&[(5 << 3) | 1, 0, 0, b'e', b'n', b'd', b'e', b'd']);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, b's'][..], &with(&raw_block(5))].concat();
    let wide = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x48][..], &raw_block(5)].concat();
    let checksummed = [&[0x28, 0xb5, 0x2f, 0xfd, 4, 0x40][..], &raw_block(5)].concat();
    let wrong: [(&str, &[u8]); 9] = [
        ("nothing", b""),
        ("no block", BEGIN),
        ("another kind of bytes", b"not a frame of zstd"),
        ("a last block", &ended),
        ("a skippable frame first", &skippable),
        ("a large window", &wide),
        ("a checksum", &checksummed),
        ("a cut block", &with(&raw_block(5)[..7])),
        ("a block of the reserved type", &with(&[(1 << 3) | 6, 0, 0, b'x'])),
    ];
    for (what, payload) in wrong {
        assert!(matches!(read(payload, 5), Err(FrameError::Decompress(_))), "{what}");
    }
    let many = with(&raw_block(1).repeat(65));
    assert!(matches!(read(&many, 65), Err(FrameError::Decompress(_))), "many small blocks");
}

#[test]
fn what_continues_a_run_is_moved_as_one_that_can_be_read_by_itself() {
    let mut batches = ["id", "ls"].map(|name| batch(vec![name.into()]));
    let sealed = chain(&mut Sealer::new(1).unwrap(), Header { seq: 5, ..header(2) }, &mut batches);
    let mut unpacker = Unpacker::default();
    let mut moved = |at: usize| {
        let frame = Frame::parse(&sealed[at].bytes).unwrap();
        unpacker.reseal(&frame, [8; 16], 1, [0; 32]).unwrap().map(|sealed| sealed.bytes)
    };
    for (at, batch) in batches.iter().enumerate() {
        assert_eq!(&Frame::parse(&moved(at).unwrap()).unwrap().batch().unwrap(), batch);
    }
    assert_eq!(moved(1).unwrap_err(), FrameError::Continues { from: 5 }, "and not without the one before");
}

#[test]
fn a_run_cannot_be_made_to_cost_much() {
    let mut unpacker = Unpacker::default();
    // Two blocks that say one byte 128 Ki times each.
    let blocks = [0x02, 0, 0x10, b'x'].repeat(2);
    let first = forged(None, 0, RUN_RAW_MAX, &[BEGIN, &blocks].concat());
    let second = forged(Some(&first), 1, 1, &[0x0a, 0, 0, b'y']);
    unpacker.take(&Frame::parse(&first.bytes).unwrap()).unwrap();
    let refused = unpacker.take(&Frame::parse(&second.bytes).unwrap()).unwrap_err();
    assert!(matches!(refused, FrameError::TooLarge { what: "run", .. }), "{refused}");
    let long = forged(None, 0, 10, &vec![0; RUN_PAYLOAD_MAX + 1]);
    let refused = Frame::parse(&long.bytes).unwrap_err();
    assert!(matches!(refused, FrameError::TooLarge { what: "run's payload", .. }), "{refused}");
    let begun = forged(None, 0, 10, &[BEGIN, &raw_block(300_000)].concat());
    let more = forged(Some(&begun), 1, 10, &raw_block(300_000));
    unpacker.take(&Frame::parse(&begun.bytes).unwrap()).unwrap();
    let refused = unpacker.take(&Frame::parse(&more.bytes).unwrap()).unwrap_err();
    assert!(matches!(refused, FrameError::TooLarge { what: "run's payload", .. }), "{refused}");
    let late = forged(Some(&first), 2, 1, b"z");
    assert_eq!(
        Frame::parse(&late.bytes).unwrap_err(),
        FrameError::Place(2),
        "the third frame of a run is not number 2"
    );
}

proptest! {
    #[test]
    fn the_count_is_that_of_the_decoder(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(batch) = Batch::decode(raw.as_slice()) {
            // Groups are skipped by the decoder and refused here.
            if let Some(found) = Found::of(&raw) {
                prop_assert_eq!(found.events, batch.events.len());
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

    #[test]
    fn runs_are_read_in_order_and_from_their_beginning(
        lens in proptest::collection::vec(prop_oneof![8 => 0usize..4000, 1 => 0usize..3 * LARGE / 2], 1..60),
        from in any::<proptest::sample::Index>(),
    ) {
        let content = |(at, len): (usize, usize)| batch(vec![(0..len).map(|n| (n * (at + 1) % 251) as u8).collect()]);
        let mut batches: Vec<Batch> = lens.iter().copied().enumerate().map(content).collect();
        let sealed = chain(&mut Sealer::new(1).unwrap(), header(1), &mut batches);
        let mut unpacker = Unpacker::default();
        for (sealed, batch) in sealed.iter().zip(&batches) {
            prop_assert_eq!(&unpacker.batch(&Frame::parse(&sealed.bytes).unwrap()).unwrap(), batch);
        }
        let at = from.index(sealed.len());
        let frame = Frame::parse(&sealed[at].bytes).unwrap();
        let first = frame.readable_from() as usize - 1;
        let mut unpacker = Unpacker::default();
        for sealed in &sealed[first..at] {
            unpacker.take(&Frame::parse(&sealed.bytes).unwrap()).unwrap();
        }
        prop_assert_eq!(unpacker.batch(&frame).unwrap(), batches[at].clone());
    }
}
