//! Reads what is in stored frames.

use std::collections::{HashMap, VecDeque};

use breakglass_api::frame::{Frame, FrameError, Header, Unpacker};
use breakglass_api::v1::Batch;

use super::model::Decoded;
use super::{failed, worker_failed};
use crate::store::{Result, Store, StoredFrame};

/// Streams of which the run under way is kept, some kilobytes each; beyond, all are dropped and read again when needed.
const STREAMS_KEPT: usize = 256;

/// A stream's id.
type Stream = [u8; 16];

/// Decodes frames in the order of their arrival. Of each stream it remembers what the next frame may continue; where it begins in the middle of a run,
/// it has the store give it the frames before.
pub struct Decoder {
    store: Store,
    streams: HashMap<Stream, Unpacker>,
}

impl Decoder {
    /// A decoder of the frames in `store`.
    pub fn new(store: Store) -> Self {
        Self { store, streams: HashMap::new() }
    }

    /// Checks and decodes frames, off the threads that serve everybody.
    pub async fn decode(&mut self, frames: Vec<StoredFrame>) -> Result<Vec<Decoded>> {
        let mut work = Work::new(std::mem::take(&mut self.streams), frames);
        loop {
            let working = tokio::task::spawn_blocking(move || {
                let lack = work.go();
                (work, lack)
            });
            let (back, lack) = working.await.map_err(worker_failed).map_err(failed("decode frames"))?;
            work = back;
            let Some(Lack { stream, from, until }) = lack else { break };
            let before = self.store.stretch(stream, from, until).await?;
            work.give(stream, &before);
        }
        self.streams = work.streams;
        if self.streams.len() > STREAMS_KEPT {
            self.streams.clear();
        }
        Ok(work.decoded)
    }
}

/// What must be read before the next frame: frames of its stream by their sequence, without the last.
struct Lack {
    stream: Stream,
    from: u64,
    until: u64,
}

/// One call's frames.
struct Work {
    streams: HashMap<Stream, Unpacker>,
    frames: VecDeque<StoredFrame>,
    /// Whether what the next frame lacked was given.
    given: bool,
    decoded: Vec<Decoded>,
}

impl Work {
    fn new(streams: HashMap<Stream, Unpacker>, frames: Vec<StoredFrame>) -> Self {
        Self { streams, decoded: Vec::with_capacity(frames.len()), frames: frames.into(), given: false }
    }

    /// Decodes until all is done, or something is lacking.
    fn go(&mut self) -> Option<Lack> {
        while let Some(next) = self.frames.front() {
            let content = match Frame::parse(&next.bytes) {
                Ok(frame) => {
                    let (stream, until) = (frame.header.stream_id, frame.header.seq);
                    let unpacker = self.streams.entry(stream).or_default();
                    if let Some(from) = unpacker.lacks(&frame).filter(|_| !self.given) {
                        return Some(Lack { stream, from, until });
                    }
                    content(unpacker, &frame)
                }
                Err(error) => Err(error),
            };
            self.given = false;
            if let Some(frame) = self.frames.pop_front() {
                let StoredFrame { arrival, host, missing_before, .. } = frame;
                let content = content.map_err(|error| error.to_string());
                self.decoded.push(Decoded { arrival, host, missing_before, content });
            }
        }
        None
    }

    /// Takes the frames that were lacking. What is wrong with them shows when the next one is decoded.
    fn give(&mut self, stream: Stream, before: &[Vec<u8>]) {
        let mut unpacker = Unpacker::default();
        let taken = before.iter().try_for_each(|bytes| unpacker.take(&Frame::parse(bytes)?));
        if let Err(error) = taken {
            tracing::debug!(%error, "a frame before the one to be read is unreadable");
        }
        self.streams.insert(stream, unpacker);
        self.given = true;
    }
}

fn content(unpacker: &mut Unpacker, frame: &Frame<'_>) -> std::result::Result<(Header, Batch), FrameError> {
    Ok((frame.header, unpacker.batch(frame)?))
}
