//! Reads what is in stored frames.

use std::collections::{HashMap, VecDeque};

use breakglass_api::frame::{Frame, FrameError, Header, RUN_FRAME_MAX, Unpacker};
use breakglass_api::v1::Batch;

use super::model::Decoded;
use super::{failed, worker_failed};
use crate::store::{Result, Store, StoredFrame};

/// Most that is remembered of runs under way, bytes; beyond, all but the one at hand is forgotten and read again when needed. Of an honest host it is
/// some kilobytes.
const REMEMBERED_MAX: usize = 32 * 1024 * 1024;

/// A stream's id.
type Stream = [u8; 16];

/// Decodes frames in the order of their arrival. Of each stream it remembers what the next frame may continue; where it begins in the middle of a run,
/// it has the store give it the frames before.
pub struct Decoder {
    store: Store,
    runs: Runs,
}

impl Decoder {
    /// A decoder of the frames in `store`.
    pub fn new(store: Store) -> Self {
        Self { store, runs: Runs::default() }
    }

    /// Checks and decodes frames, off the threads that serve everybody.
    pub async fn decode(&mut self, frames: Vec<StoredFrame>) -> Result<Vec<Decoded>> {
        let mut work = Work::new(std::mem::take(&mut self.runs), frames);
        loop {
            let working = tokio::task::spawn_blocking(move || {
                let lack = work.go();
                (work, lack)
            });
            let (back, lack) = working.await.map_err(worker_failed).map_err(failed("decode frames"))?;
            work = back;
            let Some(Lack { stream, from, until }) = lack else { break };
            // A longer one is of no run, so that the next frame cannot continue it.
            work.given = Some(self.store.stretch(stream, from, until, RUN_FRAME_MAX).await?);
        }
        self.runs = work.runs;
        Ok(work.decoded)
    }
}

/// What must be read before the next frame: frames of its stream by their sequence, without the last.
struct Lack {
    stream: Stream,
    from: u64,
    until: u64,
}

/// Runs under way.
#[derive(Default)]
struct Runs {
    by_stream: HashMap<Stream, Unpacker>,
    /// What is remembered of them all, bytes.
    bytes: usize,
}

impl Runs {
    fn take(&mut self, stream: Stream) -> Unpacker {
        let unpacker = self.by_stream.remove(&stream).unwrap_or_default();
        self.bytes -= unpacker.remembers();
        unpacker
    }

    fn put(&mut self, stream: Stream, unpacker: Unpacker) {
        let bytes = unpacker.remembers();
        if self.bytes + bytes > REMEMBERED_MAX {
            *self = Self::default();
        }
        if bytes > 0 {
            self.bytes += bytes;
            self.by_stream.insert(stream, unpacker);
        }
    }
}

/// One call's frames.
struct Work {
    runs: Runs,
    frames: VecDeque<StoredFrame>,
    /// What the next frame lacked.
    given: Option<Vec<Vec<u8>>>,
    decoded: Vec<Decoded>,
}

impl Work {
    fn new(runs: Runs, frames: Vec<StoredFrame>) -> Self {
        Self { runs, decoded: Vec::with_capacity(frames.len()), frames: frames.into(), given: None }
    }

    /// Decodes until all is done, or something is lacking.
    fn go(&mut self) -> Option<Lack> {
        while let Some(StoredFrame { arrival, host, missing_before, bytes }) = self.frames.pop_front() {
            let content = match Frame::parse(&bytes) {
                Ok(frame) => {
                    let (stream, until) = (frame.header.stream_id, frame.header.seq);
                    let mut unpacker = self.runs.take(stream);
                    if let Some(from) = unpacker.lacks(&frame) {
                        match self.given.take() {
                            Some(before) => unpacker = unpacked(&before),
                            None => {
                                self.frames.push_front(StoredFrame { arrival, host, missing_before, bytes });
                                return Some(Lack { stream, from, until });
                            }
                        }
                    }
                    let content = content(&mut unpacker, &frame);
                    self.runs.put(stream, unpacker);
                    content
                }
                Err(error) => Err(error),
            };
            let content = content.map_err(|error| error.to_string());
            self.decoded.push(Decoded { arrival, host, missing_before, content });
        }
        None
    }
}

/// What knows these frames. If something is wrong with them, it shows when the next one is decoded.
fn unpacked(before: &[Vec<u8>]) -> Unpacker {
    let mut unpacker = Unpacker::default();
    let taken = before.iter().try_for_each(|bytes| unpacker.take(&Frame::parse(bytes)?));
    if let Err(error) = taken {
        tracing::debug!(%error, "a frame before the one to be read is unreadable");
    }
    unpacker
}

fn content(unpacker: &mut Unpacker, frame: &Frame<'_>) -> std::result::Result<(Header, Batch), FrameError> {
    Ok((frame.header, unpacker.batch(frame)?))
}
