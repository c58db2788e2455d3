//! One session's evidence as a file: what `docs/EVIDENCE.md` describes, from what is held.
//!
//! Nothing is judged here. Whatever is missing or wrong is in the file as it is, for the verifier to find.

use std::time::Duration;

use async_stream::try_stream;
use breakglass_api::checkpoint::{PublicKey, Signed, reason};
use breakglass_api::evidence::{Writer, kind};
use breakglass_api::frame::{Frame, Header};
use breakglass_api::v1::EvidenceChunk;
use futures_util::Stream;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::{QueryService, convert, unavailable};
use crate::index::{SessionRecord, hex};
use crate::store::{Page, Span};
use crate::wall_clock_ns;

/// How long to wait for the signature over the end of a session that was closed just now. The host signs at once.
const SIGNED_WAIT: Duration = Duration::from_secs(3);
/// Statements read at once, of some 300 bytes each.
const STATEMENTS: u32 = 4096;
/// Frames read at once; they are not decompressed.
const PAGE: Page = Page { events: 16_384, bytes: 1024 * 1024, raw: usize::MAX };
/// Largest piece of the file that is sent at once, bytes.
const CHUNK: usize = 1024 * 1024;

/// What goes into the file.
pub(super) struct Range {
    pub(super) record: SessionRecord,
    pub(super) stream: [u8; 16],
    /// First frame of the session.
    first: u64,
    /// Last frame of the file: the last that the statement over the session's end covers.
    pub(super) last: u64,
    /// Whose signature covers the end, and of which epoch; none where nothing does yet.
    signer: Option<(PublicKey, u64)>,
}

impl QueryService {
    /// The file, in pieces.
    pub(super) async fn evidence(
        self,
        record: SessionRecord,
        log_size: u64,
    ) -> Result<impl Stream<Item = Result<EvidenceChunk, Status>> + use<>, Status> {
        let range = self.range(record).await?;
        let manifest = self.manifest(&range).await?;
        Ok(try_stream! {
            let (mut writer, head) = Writer::new();
            yield EvidenceChunk { data: head };
            yield EvidenceChunk { data: writer.section(kind::MANIFEST, manifest.as_bytes()) };
            let mut epoch = 0;
            while let Some(links) = self.links(&range, epoch).await? {
                epoch = links.last().map_or(epoch, |link| link.statement.epoch) + 1;
                yield EvidenceChunk { data: sections(&mut writer, kind::KEY, &links) };
            }
            let mut after = 0;
            while let Some((id, checkpoints)) = self.checkpoints(&range, after).await? {
                after = id;
                yield EvidenceChunk { data: sections(&mut writer, kind::CHECKPOINT, &checkpoints) };
            }
            let mut arrival = range.record.state.first_arrival - 1;
            while let Some(frames) = self.frames(&range, &mut arrival).await? {
                for frame in frames {
                    for piece in writer.section(kind::FRAME, &frame).chunks(CHUNK) {
                        yield EvidenceChunk { data: piece.to_vec() };
                    }
                }
            }
            let reviews = self.reviews(&range.record).await?;
            for signed in &reviews {
                yield EvidenceChunk { data: writer.section(kind::REVIEW, signed) };
            }
            if let Some(checkpoint) = self.published(&range).await? {
                yield EvidenceChunk { data: writer.section(kind::LOG_CHECKPOINT, &checkpoint.to_bytes()) };
                let mut after = 0;
                while let Some((id, checkpoints)) = self.checkpoints(&range, after).await? {
                    after = id;
                    let proofs = self.inclusions(&checkpoints, checkpoint.size()).await?;
                    yield EvidenceChunk { data: all_of(&mut writer, kind::INCLUSION, &proofs) };
                }
                let proofs = self.consistencies(&reviews, log_size, checkpoint.size()).await?;
                yield EvidenceChunk { data: all_of(&mut writer, kind::CONSISTENCY, &proofs) };
            }
            yield EvidenceChunk { data: writer.end() };
        })
    }

    pub(super) async fn range(&self, record: SessionRecord) -> Result<Range, Status> {
        let record = self.wait_signed(record).await?;
        let (first, last) =
            (self.header(record.state.first_arrival).await?, self.header(record.state.last_arrival).await?);
        let stream = last.stream_id;
        let covering = self.index.covering(record.host, stream, last.seq).await.map_err(unavailable)?;
        let closing = self.index.mark(record.host, record.uuid, reason::CLOSED).await.map_err(unavailable)?;
        let closing = closing.filter(|closing| closing.signed.statement.stream_id == stream);
        let end = covering.into_iter().chain(closing).map(|record| record.signed.statement);
        let end = end.filter(|statement| statement.seq >= last.seq).max_by_key(|statement| statement.seq);
        Ok(Range {
            stream,
            first: if first.stream_id == stream { first.seq } else { 1 },
            last: end.as_ref().map_or(last.seq, |end| end.seq),
            signer: end.map(|end| (end.host_key, end.epoch)),
            record,
        })
    }

    /// Waits for the end of a closed session to be signed for, a little; returns the session as it is then.
    async fn wait_signed(&self, mut record: SessionRecord) -> Result<SessionRecord, Status> {
        let until = Instant::now() + SIGNED_WAIT;
        let mut indexed = self.index.indexed();
        loop {
            indexed.mark_unchanged();
            if let Some(again) = self.index.session_again(record.state.row).await.map_err(unavailable)? {
                record = again;
            }
            let last = self.header(record.state.last_arrival).await?;
            let covering = self.index.covering(record.host, last.stream_id, last.seq).await.map_err(unavailable)?;
            let marked = self.index.mark(record.host, record.uuid, reason::CLOSED).await.map_err(unavailable)?;
            if record.state.closed.is_none() || (covering.is_some() && marked.is_some()) {
                return Ok(record);
            }
            if !matches!(timeout_at(until, indexed.changed()).await, Ok(Ok(()))) {
                return Ok(record);
            }
        }
    }

    pub(super) async fn header(&self, arrival: i64) -> Result<Header, Status> {
        let frame = self.store.frame(arrival).await.map_err(unavailable)?;
        let frame = frame.ok_or_else(|| Status::data_loss("a frame of this session is no longer there"))?;
        let parsed = Frame::parse(&frame.bytes);
        let parsed =
            parsed.map_err(|error| Status::data_loss(format!("a frame of this session is damaged: {error}")))?;
        Ok(parsed.header)
    }

    async fn manifest(&self, range: &Range) -> Result<String, Status> {
        let hosts = self.hosts_by_row().await?;
        let host = hosts.get(&range.record.host);
        let manifest = serde_json::json!({
            "format": 1,
            "session": convert::uuid_text(range.record.uuid),
            "operator": range.record.state.operator,
            "host_id": host.map(|host| host.host_id.as_str()),
            "hostname": host.map(|host| host.hostname.as_str()),
            "host_key": range.signer.map(|(host_key, _)| hex(&host_key)),
            "stream": hex(&range.stream),
            "first_frame": range.first,
            "last_frame": range.last,
            "exported_ns": wall_clock_ns(),
            "exported_by": concat!("breakglass-collector ", env!("CARGO_PKG_VERSION")),
        });
        Ok(manifest.to_string())
    }

    /// The next links of the chain of keys; `None` when the key that signed the end is reached.
    async fn links(&self, range: &Range, from: u64) -> Result<Option<Vec<Signed>>, Status> {
        let Some((host_key, epoch)) = range.signer else { return Ok(None) };
        // The last link may be what covers the end.
        let until = epoch.saturating_add(1);
        let links =
            self.index.links(range.record.host, host_key, from, until, STATEMENTS).await.map_err(unavailable)?;
        Ok((!links.is_empty()).then(|| links.into_iter().map(|link| link.signed).collect()))
    }

    /// The next checkpoints, with the place of the last.
    pub(super) async fn checkpoints(&self, range: &Range, after: i64) -> Result<Option<(i64, Vec<Signed>)>, Status> {
        let bounds = (range.first.saturating_sub(1), range.last);
        let found = self.index.checkpoints(range.record.host, range.stream, bounds, after, STATEMENTS).await;
        let found = found.map_err(unavailable)?;
        let last = found.last().map(|record| record.id);
        Ok(last.map(|id| (id, found.into_iter().map(|record| record.signed).collect())))
    }

    /// The next frames, up to the last one; moves `arrival` on.
    async fn frames(&self, range: &Range, arrival: &mut i64) -> Result<Option<Vec<Vec<u8>>>, Status> {
        let span = Span { host: Some(range.record.host), after: *arrival, until: i64::MAX };
        let frames = self.store.read(span, PAGE).await.map_err(unavailable)?;
        let Some(last) = frames.last() else { return Ok(None) };
        *arrival = last.arrival;
        let mut taken = Vec::with_capacity(frames.len());
        for frame in frames {
            // A damaged one goes into the file as it is.
            let header = Frame::parse(&frame.bytes).map(|frame| frame.header);
            let is_last = frame.arrival >= range.record.state.last_arrival
                && header.as_ref().is_ok_and(|header| header.stream_id == range.stream && header.seq >= range.last);
            let is_beyond = is_last && header.is_ok_and(|header| header.seq > range.last);
            if !is_beyond {
                taken.push(frame.bytes);
            }
            if is_last {
                *arrival = i64::MAX;
                break;
            }
        }
        Ok((!taken.is_empty()).then_some(taken))
    }
}

fn all_of(writer: &mut Writer, kind: u32, contents: &[Vec<u8>]) -> Vec<u8> {
    contents.iter().flat_map(|content| writer.section(kind, content)).collect()
}

fn sections(writer: &mut Writer, kind: u32, statements: &[Signed]) -> Vec<u8> {
    statements.iter().flat_map(|signed| writer.section(kind, &signed.encode())).collect()
}
