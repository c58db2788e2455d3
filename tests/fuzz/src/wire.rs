//! What comes over a connection: to the agent from operators, to the collector from agents.

use breakglass_agent::control::wire;
use breakglass_api::{
    frame::{Frame, FrameError, HASH_LEN, HEADER_LEN, Header, Unpacker, seal_raw},
    v1::{AgentMessage, ControlRequest, agent_message::Body},
};
use breakglass_collector::transcript::Transcript;
use prost::Message as _;
use sha2::{Digest, Sha256};

/// Requests in turn, as a connection reads them: what was read is a request, and the same one when it is passed on.
pub fn control(input: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
    let mut rest = input;
    while let Ok(request) = runtime.block_on(wire::read(&mut rest)) {
        let again = ControlRequest::decode(request.encode_to_vec().as_slice());
        assert_eq!(again.as_ref(), Ok(&request), "a request changes when it is passed on");
    }
}

/// A frame as it is, and the input as what is inside one, which chance does not find through its hash.
pub fn frame(input: &[u8]) {
    opened(input);
    let header = Header {
        stream_id: [1; 16],
        boot_id: [2; 16],
        seq: 2,
        prev: [3; 32],
        first_boot_ns: 0,
        last_boot_ns: 0,
        wall_offset_ns: 0,
        events: u32::from(input.first().copied().unwrap_or_default()),
    };
    let sealed = seal_raw(header, input.get(1..).unwrap_or_default(), 1).expect("a short batch can be sealed");
    assert!(Frame::parse(&sealed.bytes).is_ok_and(|frame| frame.header == header), "what was sealed is not a frame");
    opened(&sealed.bytes);
    run(input, &sealed.bytes);
}

/// Two frames of a run, with pieces of the input as their payloads.
fn run(input: &[u8], like: &[u8]) {
    let Some((&[events, cut, raw @ ..], payload)) = input.split_first_chunk::<6>() else { return };
    let [first, second] = [[raw[0], raw[1]], [raw[2], raw[3]]].map(u16::from_le_bytes);
    let (before, after) = payload.split_at(usize::from(cut).min(payload.len()));
    // Whole blocks, which chance would not make: the input as it is behind their headers.
    let block = |kind: u8, content: &[u8]| {
        [&(((content.len() as u32) << 3) | u32::from(kind & 2)).to_le_bytes()[..3], content].concat()
    };
    let (before, after) = match cut & 1 {
        0 => (before.to_vec(), after.to_vec()),
        _ => ([&[0x28, 0xb5, 0x2f, 0xfd, 0, 0x40][..], &block(cut, before)].concat(), block(events, after)),
    };
    let forged = |place: u8, prev: &[u8], raw: u16, payload: &[u8]| {
        let mut bytes = like.get(..HEADER_LEN).unwrap_or_default().to_vec();
        bytes[4..8].copy_from_slice(&[4, 1, place, 0]);
        bytes[40..48].copy_from_slice(&(2 + u64::from(place)).to_le_bytes());
        bytes[48..80].copy_from_slice(prev);
        bytes[104..108].copy_from_slice(&u32::from(events).to_le_bytes());
        bytes[108..112].copy_from_slice(&u32::from(raw).to_le_bytes());
        bytes[112..116].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(payload);
        let hash = Sha256::new().chain_update(b"breakglass-frame-v1\0").chain_update(&bytes).finalize();
        bytes.extend_from_slice(&hash);
        bytes
    };
    let begun = forged(0, &[3; HASH_LEN], first, &before);
    let continued = forged(1, &begun[begun.len() - HASH_LEN..], second, &after);
    let frames =
        [&begun, &continued].map(|bytes| Frame::parse(bytes).expect("what was forged has the form of a frame"));
    let mut unpacker = Unpacker::default();
    for frame in &frames {
        let lacks = unpacker.lacks(frame);
        let read = unpacker.batch(frame);
        assert!(read.is_err() || lacks.is_none(), "a frame was read without those before it");
        if let Ok(batch) = read {
            assert_eq!(batch.events.len(), frame.header.events as usize, "the header's count is not the content's");
        }
    }
    opened(&begun);
    opened(&continued);
}

/// Checks a frame that is one: its content fits the header, and moved to another chain it is the same content.
fn opened(bytes: &[u8]) {
    let Ok(frame) = Frame::parse(bytes) else { return };
    let batch = frame.batch();
    if frame.readable_from() < frame.header.seq {
        let continues = FrameError::Continues { from: frame.readable_from() };
        assert_eq!(batch, Err(continues), "a frame was read without those before it");
        return;
    }
    let moved = frame.reseal([9; 16], 7, [8; 32]).expect("a frame that can be read by itself can be moved");
    assert_eq!(Frame::parse(&moved.bytes).expect("a moved frame is one").batch(), batch, "moving changes the content");
    if let Ok(batch) = batch {
        assert_eq!(batch.events.len(), frame.header.events as usize, "the header's count is not the content's");
    }
}

/// What an agent says to the collector.
pub fn agent(input: &[u8]) {
    let Ok(message) = AgentMessage::decode(input) else { return };
    if let Some(Body::Frame(bytes)) = message.body {
        opened(&bytes);
    }
}

/// A terminal's output and input as the collector reads them: the same lines come out however often the work is saved and taken up.
pub fn transcript(input: &[u8]) {
    let (Some((&[rows, cols], data)), mut whole) = (input.split_first_chunk(), Transcript::default()) else { return };
    let mut pieces = Transcript::default();
    let (mut lines, mut again) = (Vec::new(), Vec::new());
    for (index, chunk) in data.chunks(61).enumerate() {
        // Every fourth piece is typed.
        if index % 4 == 3 {
            lines.extend(whole.input(chunk));
            again.extend(pieces.input(chunk));
        } else {
            lines.extend(whole.output(chunk, rows.into(), cols.into()));
            again.extend(pieces.output(chunk, rows.into(), cols.into()));
        }
        pieces = Transcript::restore(&pieces.save()).expect("what was saved can be taken up");
    }
    assert_eq!((lines, whole.current()), (again, pieces.current()), "saving changes the lines");
}
