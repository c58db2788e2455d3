//! What comes over a connection: to the agent from operators, to the collector from agents.

use breakglass_agent::control::wire;
use breakglass_api::{
    frame::{Frame, Header, seal_raw},
    v1::{AgentMessage, ControlRequest, agent_message::Body},
};
use breakglass_collector::transcript::Transcript;
use prost::Message as _;

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
}

/// Checks a frame that is one: its content fits the header, and moved to another chain it is the same content.
fn opened(bytes: &[u8]) {
    let Ok(frame) = Frame::parse(bytes) else { return };
    let moved = frame.reseal([9; 16], 7, [8; 32]).expect("a frame can be moved");
    let batch = frame.batch();
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
