//! What is recorded, as it was recorded.

use std::collections::HashSet;

use async_stream::try_stream;
use breakglass_api::v1::event::Body;
use breakglass_api::v1::{Event, EventsRequest, Gap, RecordedEvent};
use futures_util::Stream;
use tonic::Status;

use super::tail::{End, Tail};
use super::{QueryService, convert};
use crate::access::Scope;
use crate::index::{Decoded, Uuid, session_of};

impl QueryService {
    /// The events of a session or of a host.
    pub(super) async fn recorded_events(
        &self,
        scope: &Scope,
        request: EventsRequest,
    ) -> Result<impl Stream<Item = Result<RecordedEvent, Status>> + use<>, Status> {
        let (mut tail, session) = self.tail_of(scope, &request).await?;
        if request.after_frame > 0 {
            tail.skip_through(request.after_frame).await?;
        }
        let hosts = self.hosts_by_row().await?;
        let kinds: HashSet<String> = request.kinds.into_iter().collect();
        Ok(try_stream! {
            while let Some(frames) = tail.next().await? {
                for frame in frames {
                    let host_id = hosts.get(&frame.host).map(|host| host.host_id.as_str()).unwrap_or_default();
                    for event in recorded(frame, session, host_id) {
                        if is_wanted(&kinds, &event) {
                            yield event;
                        }
                    }
                }
            }
        })
    }

    async fn tail_of(&self, scope: &Scope, request: &EventsRequest) -> Result<(Tail, Option<Uuid>), Status> {
        if !request.session.is_empty() {
            let record = self.resolve(&request.session, scope).await?;
            return Ok((self.tail_session(&record, request.follow).await?, Some(record.uuid)));
        }
        let rows = self.host_rows(&request.host).await?;
        match rows.as_deref() {
            Some([host]) => {
                let end = if request.follow { End::Never } else { End::Now };
                Ok((self.tail(*host, end).await?, None))
            }
            Some(_) => Err(Status::failed_precondition(format!(
                "several hosts are called {:?}: give the host's id, as in the list of hosts",
                request.host
            ))),
            None => Err(Status::invalid_argument("give a session or a host")),
        }
    }
}

fn is_wanted(kinds: &HashSet<String>, event: &RecordedEvent) -> bool {
    let kind = || event.event.as_ref().and_then(|event| event.body.as_ref()).map(kind_of);
    kinds.is_empty() || kind().is_some_and(|kind| kinds.contains(kind))
}

/// The name of a kind of event: that of its field in the protocol.
fn kind_of(body: &Body) -> &'static str {
    match body {
        Body::Exec(_) => "exec",
        Body::ExecFailed(_) => "exec_failed",
        Body::Fork(_) => "fork",
        Body::Exit(_) => "exit",
        Body::TerminalOutput(_) => "terminal_output",
        Body::TerminalInput(_) => "terminal_input",
        Body::InputWithheld(_) => "input_withheld",
        Body::StdioData(_) => "stdio_data",
        Body::FileAction(_) => "file_action",
        Body::SocketAction(_) => "socket_action",
        Body::CredentialsChanged(_) => "credentials_changed",
        Body::NamespacesChanged(_) => "namespaces_changed",
        Body::SystemAction(_) => "system_action",
        Body::SessionOpened(_) => "session_opened",
        Body::SessionClosed(_) => "session_closed",
        Body::ProofRefused(_) => "proof_refused",
        Body::SessionResumed(_) => "session_resumed",
        Body::AccountChanged(_) => "account_changed",
        Body::Alert(_) => "alert",
        Body::LeftBehind(_) => "left_behind",
        Body::Login(_) => "login",
        Body::SessionExtended(_) => "session_extended",
        Body::CredentialsRotated(_) => "credentials_rotated",
        Body::AgentStarted(_) => "agent_started",
        Body::AgentStopping(_) => "agent_stopping",
        Body::AgentStopAsked(_) => "agent_stop_asked",
        Body::Gap(_) => "gap",
        Body::ClockStep(_) => "clock_step",
        Body::Checkpoint(_) => "checkpoint",
        Body::KeyEvolved(_) => "key_evolved",
        Body::KeyIntroduced(_) => "key_introduced",
        Body::CollectorOrder(_) => "collector_order",
    }
}

/// The events of a frame that belong to `session`, or all of them. A hole before the frame comes as a gap without an origin.
fn recorded(frame: Decoded, session: Option<Uuid>, host_id: &str) -> Vec<RecordedEvent> {
    let gap = |gap: Gap, boot_ns| Event { boot_ns, body: Some(Body::Gap(gap)), ..Event::default() };
    let of = |frame, index, wall_ns, session: Option<Uuid>, event| RecordedEvent {
        host_id: host_id.to_owned(),
        session: session.map(convert::uuid_text).unwrap_or_default(),
        frame,
        index,
        wall_ns,
        event: Some(event),
    };
    let (header, batch) = match frame.content {
        Ok(content) => content,
        Err(_) => {
            let lost = (frame.missing_before > 0).then(|| convert::lost_frames(frame.missing_before));
            let gaps = lost.into_iter().chain([convert::unreadable_frame()]);
            return gaps.map(|what| of(0, 0, 0, None, gap(what, 0))).collect();
        }
    };
    let mut events = Vec::new();
    if frame.missing_before > 0 {
        let boot_ns = header.first_boot_ns;
        let first_missing = header.seq.saturating_sub(frame.missing_before);
        let lost = gap(convert::lost_frames(frame.missing_before), boot_ns);
        events.push(of(first_missing, 0, header.wall_ns(boot_ns), None, lost));
    }
    let owners: Vec<Option<Uuid>> = batch.events.iter().map(|event| session_of(&batch, event)).collect();
    for ((index, event), owner) in (0u32..).zip(batch.events).zip(owners) {
        if session.is_none() || owner == session {
            events.push(of(header.seq, index, header.wall_ns(event.boot_ns), owner, event));
        }
    }
    events
}
