//! From rows to messages.

use breakglass_api::v1::{
    Command, Exec, ExecFailed, Exit, Finding, Gap, LeftBehind, Review as ReviewMessage, Session, SessionOpened,
    TerminalInfo,
};
use breakglass_proof::review::Verdict;
use prost::Message;

use super::lookup::Hosts;
use crate::index::{CommandRecord, FindingRecord, SessionRecord, SessionState, TerminalRecord};
use crate::reviews::book::ReviewRecord;
use crate::reviews::queue::Standing;

/// Cause of a gap that stands for frames which the agent no longer had when it connected.
const FRAMES_LOST: &str = "frames-lost-by-agent";
/// Cause of a gap that stands for a stored frame that cannot be read.
const FRAME_UNREADABLE: &str = "frame-unreadable";

/// Of a session that is too long for a list: texts, characters, and findings and reviews.
const LISTED_TEXT_MAX: usize = 128;
const LISTED_FINDINGS_MAX: usize = 3;
const LISTED_REVIEWS_MAX: usize = 8;
/// Stands in place of its warnings.
const LISTED_NOTE: &str = "this session says too much for a list: asked for by itself it is there with all its texts";

/// A UUID as text.
pub(super) fn uuid_text(uuid: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(uuid).to_string()
}

/// A session with its terminals, but for what it left behind.
pub(super) fn session(
    record: SessionRecord,
    hosts: &Hosts,
    terminals: Vec<TerminalRecord>,
    findings: Vec<FindingRecord>,
    standing: Standing,
) -> Session {
    let host = hosts.get(&record.host);
    let state = record.state;
    Session {
        id: uuid_text(record.uuid),
        host_id: host.map(|host| host.host_id.clone()).unwrap_or_default(),
        hostname: host.map(|host| host.hostname.clone()).unwrap_or_default(),
        opened: decoded(state.opened.as_deref()),
        opened_ns: state.opened_ns,
        closed_ns: state.closed_ns,
        closed: decoded(state.closed.as_deref()),
        commands: state.commands,
        failed_commands: state.failed_commands,
        terminal_bytes: state.terminal_bytes,
        input_bytes: state.input_bytes,
        withheld_bytes: state.withheld_bytes,
        events: state.events,
        gaps: state.gaps,
        alerts: state.alerts,
        terminals: terminals.iter().map(terminal).collect(),
        deadline_ns: state.deadline_ns,
        execs: state.execs,
        stdio_output_bytes: state.stdio_output_bytes,
        stdio_input_bytes: state.stdio_input_bytes,
        actions: state.actions,
        findings: findings.into_iter().map(finding).collect(),
        left_behind: None,
        compared: state.left_behind.is_some(),
        changes: state.changes,
        doors: state.doors,
        witnessed: state.witnessed,
        reviews: standing.reviews.into_iter().map(review).collect(),
        reviewed: standing.reviewed,
        review_due_ns: standing.due_ns,
        review_overdue: standing.overdue,
        behind: false,
        terminals_recorded: state.terminals,
    }
}

/// A session as it is listed: without its longest parts where it takes more than `most` bytes, and saying so.
pub(super) fn listed(mut session: Session, most: usize) -> Session {
    if session.encoded_len() <= most {
        return session;
    }
    let cut = |text: &mut String| *text = text.chars().take(LISTED_TEXT_MAX).collect();
    if let Some(opened) = &mut session.opened {
        let texts = [
            &mut opened.operator,
            &mut opened.key_fingerprint,
            &mut opened.key_type,
            &mut opened.reason,
            &mut opened.ticket,
            &mut opened.account,
            &mut opened.tier,
            &mut opened.source,
            &mut opened.certificate,
        ];
        texts.into_iter().for_each(cut);
        (opened.grant_text, opened.signature, opened.cosigners) = Default::default();
        opened.warnings = vec![LISTED_NOTE.to_owned()];
    }
    if let Some(closed) = &mut session.closed {
        cut(&mut closed.by);
        (closed.survivors, closed.produced, closed.missing) = Default::default();
    }
    session.findings.truncate(LISTED_FINDINGS_MAX);
    session.findings.iter_mut().for_each(|finding| cut(&mut finding.message));
    // A concern is what a list must show.
    session.reviews.sort_by_key(|review| review.verdict == Verdict::Ok.word());
    session.reviews.truncate(LISTED_REVIEWS_MAX);
    for review in &mut session.reviews {
        cut(&mut review.note);
        (review.text, review.signature) = Default::default();
    }
    session
}

/// A review that counts.
pub(super) fn review(record: ReviewRecord) -> ReviewMessage {
    let ReviewRecord { review, text, signature, key, received_ns } = record;
    ReviewMessage {
        reviewer: review.reviewer,
        key,
        verdict: review.verdict.word().to_owned(),
        note: review.note,
        last_frame: review.last_frame,
        received_ns,
        text,
        signature,
    }
}

/// The opening, as far as it is known.
pub(super) fn opened(state: &SessionState) -> SessionOpened {
    decoded(state.opened.as_deref()).unwrap_or_default()
}

fn finding(record: FindingRecord) -> Finding {
    Finding { wall_ns: record.wall_ns, code: record.code, message: record.message, frame: record.carrier }
}

/// What a session left behind, where that is known.
pub(super) fn left_behind(record: &SessionRecord) -> Option<LeftBehind> {
    decoded(record.state.left_behind.as_deref())
}

fn terminal(record: &TerminalRecord) -> TerminalInfo {
    TerminalInfo {
        id: record.terminal,
        index: record.state.pts,
        output_bytes: record.state.output_bytes,
        input_bytes: record.state.input_bytes,
        first_ns: record.state.first_ns,
        last_ns: record.state.last_ns,
    }
}

/// A command. `exec` and `failed` are absent where the index does not hold them.
pub(super) fn command(record: &CommandRecord, session: String) -> Command {
    let event = record.event.as_deref();
    Command {
        number: record.number,
        wall_ns: record.wall_ns,
        exec: (!record.failed).then(|| decoded::<Exec>(event)).flatten(),
        exit_wall_ns: record.exit_wall_ns,
        exit: decoded::<Exit>(record.exit.as_deref()),
        session,
        failed: record.failed.then(|| decoded::<ExecFailed>(event)).flatten(),
        boot_ns: record.boot_ns,
        replaced_by: record.replaced_by,
    }
}

/// The index wrote it, so it decodes; a damaged index is rebuilt, not trusted.
fn decoded<M: Message + Default>(bytes: Option<&[u8]>) -> Option<M> {
    M::decode(bytes?).ok()
}

/// The gap that stands for `frames` missing frames.
pub(super) fn lost_frames(frames: u64) -> Gap {
    Gap { records: frames, cause: FRAMES_LOST.to_owned(), ..Gap::default() }
}

/// The gap that stands for a frame that cannot be read.
pub(super) fn unreadable_frame() -> Gap {
    Gap { records: 1, cause: FRAME_UNREADABLE.to_owned(), ..Gap::default() }
}

#[cfg(test)]
mod tests {
    use breakglass_api::v1::{Cosigner, Process, SessionClosed};

    use super::*;

    #[test]
    fn the_largest_session_is_listed_within_its_bound() {
        let long = || "\u{1f525}".repeat(20_000);
        let bytes = || vec![1; 20_000];
        let opened = SessionOpened {
            operator: long(),
            key_fingerprint: long(),
            key_type: long(),
            reason: long(),
            ticket: long(),
            account: long(),
            tier: long(),
            source: long(),
            certificate: long(),
            grant_text: bytes(),
            signature: bytes(),
            cosigners: vec![Cosigner { principal: long(), ..Cosigner::default() }; 3],
            warnings: vec![long(); 3],
            ..SessionOpened::default()
        };
        let closed = SessionClosed {
            by: long(),
            survivors: vec![Process { pid: 1, start_ns: 1 }; 1024],
            produced: vec![u64::MAX; 1024],
            missing: vec![u64::MAX; 1024],
            ..SessionClosed::default()
        };
        let review = |verdict: &str| ReviewMessage {
            reviewer: "r".repeat(256),
            key: "k".repeat(64),
            verdict: verdict.to_owned(),
            note: long(),
            text: bytes(),
            signature: bytes(),
            ..ReviewMessage::default()
        };
        let session = Session {
            id: "i".repeat(36),
            host_id: "h".repeat(36),
            hostname: "n".repeat(253),
            opened: Some(opened),
            closed: Some(closed),
            findings: vec![Finding { message: long(), ..Finding::default() }; 100],
            reviews: [vec![review("ok"); 100], vec![review("concern")]].concat(),
            commands: 7,
            ..Session::default()
        };
        let listed = listed(session, 16 * 1024);
        assert!(listed.encoded_len() <= 16 * 1024, "{}", listed.encoded_len());
        assert_eq!((listed.reviews[0].verdict.as_str(), listed.commands), ("concern", 7));
        // One that is short enough is as it is.
        let short =
            Session { opened: Some(SessionOpened { grant_text: vec![1; 9000], ..Default::default() }), ..listed };
        assert_eq!(super::listed(short.clone(), 32 * 1024), short);
    }
}
