//! Hosts and sessions: by name, by id, by a part of an id, and in lists.

use std::collections::HashMap;

use breakglass_api::GRPC_MESSAGE_MAX;
use breakglass_api::v1::{Host, ListHostsResponse, ListSessionsRequest, ListSessionsResponse, Session};
use tonic::Status;
use uuid::Uuid;

use super::{LIMIT_MAX, QueryService, convert, limit, unavailable};
use crate::access::Scope;
use crate::index::{SessionRecord, SessionState, TerminalRecord, hex};
use crate::store::HostRecord;

/// Fewest characters of a session id.
const ID_PART_MIN: usize = 6;
/// Sessions named in the message about an ambiguous id, and as many are looked at.
const CANDIDATES: u32 = 50;

/// Findings told of one session; one is enough to distrust it.
const FINDINGS_MAX: u32 = 100;

/// Terminals told of one session; `terminals_recorded` says how many there are.
const TERMINALS_MAX: u32 = 500;
/// Largest session in a list, bytes. One that a host made larger is without its longest parts, so that every page is as full as was asked for and fits
/// one message, and callers need not tell a short page from the last.
const LISTED_MAX: usize = 16 * 1024;
const _: () = assert!(LISTED_MAX * LIMIT_MAX as usize <= GRPC_MESSAGE_MAX / 2);
/// Sessions looked at at once for those that wait for a review.
const LOOKED_AT: u32 = 250;

/// Which sessions to list.
struct Listing {
    hosts: Option<Vec<i64>>,
    operator: Option<String>,
    open_only: bool,
    before: Option<SessionState>,
}

/// Hosts by row.
pub(super) type Hosts = HashMap<i64, HostRecord>;

impl QueryService {
    /// Every host that ever connected.
    pub(super) async fn hosts(&self) -> Result<ListHostsResponse, Status> {
        self.catch_up().await?;
        let counted: HashMap<_, _> = self.index.hosts().await.map_err(unavailable)?.into_iter().collect();
        let known = self.store.hosts().await.map_err(unavailable)?;
        let hosts = known.into_iter().map(|(row, record)| {
            let sighting = self.presence.sighting(&record.host_id);
            let state = counted.get(&row).cloned().unwrap_or_default();
            Host {
                connected: sighting.connected,
                last_seen_ns: sighting.last_seen_ns.max(record.last_seen_ns),
                id: record.host_id,
                hostname: record.hostname,
                tier: record.tier,
                agent_version: record.agent_version,
                frames: state.frames,
                events: state.events,
                open_session: state.open.map(convert::uuid_text).unwrap_or_default(),
                host_key: state.signer.map(|signer| hex(&signer.host_key)).unwrap_or_default(),
            }
        });
        Ok(ListHostsResponse { hosts: hosts.collect() })
    }

    /// Sessions, newest first.
    pub(super) async fn sessions(
        &self,
        scope: &Scope,
        request: ListSessionsRequest,
    ) -> Result<ListSessionsResponse, Status> {
        let behind = !self.catch_up().await?;
        let operator = narrow(scope, &request.operator)?;
        let hosts = self.host_rows(&request.host).await?;
        let before = match request.before.is_empty() {
            true => None,
            false => Some(self.resolve(&request.before, scope).await?.state),
        };
        let limit = limit(request.limit);
        let list = Listing { hosts, operator, open_only: request.open_only, before };
        let found = match request.unreviewed_only {
            true => self.unreviewed(list, limit).await?,
            false => self.listed(&list, limit).await?,
        };
        let hosts = self.hosts_by_row().await?;
        let (mut sessions, more) = (Vec::with_capacity(found.len()), found.len() >= limit as usize);
        for record in found {
            sessions.push(convert::listed(self.session_with(record, &hosts, Vec::new()).await?, LISTED_MAX));
        }
        Ok(ListSessionsResponse { sessions, behind, more })
    }

    async fn listed(&self, list: &Listing, limit: u32) -> Result<Vec<SessionRecord>, Status> {
        let Listing { hosts, operator, open_only, before } = list;
        let found = self.index.sessions(hosts.as_deref(), operator.as_deref(), *open_only, before.as_ref(), limit);
        found.await.map_err(unavailable)
    }

    /// As many of a list as wait for a review. Those that have one are passed over, so that a page is full where it can be.
    async fn unreviewed(&self, mut list: Listing, limit: u32) -> Result<Vec<SessionRecord>, Status> {
        let mut waiting = Vec::new();
        loop {
            let page = self.listed(&list, LOOKED_AT).await?;
            let Some(last) = page.last() else { return Ok(waiting) };
            list.before = Some(last.state.clone());
            for record in page {
                if self.signing.queue.is_reviewed(&record).await.map_err(unavailable)? {
                    continue;
                }
                waiting.push(record);
                if waiting.len() >= limit as usize {
                    return Ok(waiting);
                }
            }
        }
    }

    /// The session that `text` names: a UUID, or an unambiguous beginning or end of one, and before it the host with a slash where several
    /// have it. One that the caller may not see does not exist for them.
    pub(crate) async fn resolve(&self, text: &str, scope: &Scope) -> Result<SessionRecord, Status> {
        self.resolve_with_lag(text, scope).await.map(|(record, _)| record)
    }

    /// As [`Self::resolve`], with whether the index is behind what was received, so that there may be more of the session.
    pub(super) async fn resolve_with_lag(&self, text: &str, scope: &Scope) -> Result<(SessionRecord, bool), Status> {
        let (host, part) = text.rsplit_once('/').unwrap_or(("", text));
        let digits: String = part.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
        if digits.len() < ID_PART_MIN || digits.len() > 32 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(Status::invalid_argument(format!(
                "{text:?} is not a session: give its UUID, or at least {ID_PART_MIN} characters of its beginning or end, and HOST/ before it where several hosts have it"
            )));
        }
        let behind = !self.catch_up().await?;
        let hosts = self.host_rows(host).await?;
        let found = match Uuid::try_parse(&digits) {
            Ok(uuid) => self.index.sessions_of(*uuid.as_bytes(), hosts.as_deref(), CANDIDATES).await,
            Err(_) => self.index.find_sessions(&digits, hosts.as_deref(), CANDIDATES).await,
        };
        let found = found.map_err(unavailable)?;
        let mut visible: Vec<SessionRecord> = found.into_iter().filter(|record| may_see(scope, record)).collect();
        if visible.len() > 1 {
            let names = self.told_apart(&visible).await?;
            return Err(Status::failed_precondition(format!("{text:?} may be any of {}", names.join(", "))));
        }
        visible.pop().map(|record| (record, behind)).ok_or_else(|| match behind {
            false => Status::not_found(format!("there is no session {text:?}")),
            // After a crash what is durable is read again, which may take minutes.
            true => Status::unavailable(format!(
                "there is no session {text:?} in what can be searched yet: the index is behind what was received; ask again in a moment"
            )),
        })
    }

    /// Names of sessions by which each can be found. A host can claim another's session: only with its host is it one then.
    async fn told_apart(&self, sessions: &[SessionRecord]) -> Result<Vec<String>, Status> {
        let hosts = self.hosts_by_row().await?;
        let is_taken = |one: &SessionRecord| sessions.iter().filter(|other| other.uuid == one.uuid).count() > 1;
        let names = sessions.iter().map(|record| {
            let uuid = convert::uuid_text(record.uuid);
            match hosts.get(&record.host).filter(|_| is_taken(record)) {
                Some(host) => format!("{}/{uuid} (on {})", host.host_id, host.hostname),
                None => uuid,
            }
        });
        Ok(names.collect())
    }

    /// The whole answer about a session.
    pub(super) async fn session_message(&self, record: SessionRecord) -> Result<Session, Status> {
        let hosts = self.hosts_by_row().await?;
        let left_behind = convert::left_behind(&record);
        let terminals = self.index.terminals(record.state.row, TERMINALS_MAX).await.map_err(unavailable)?;
        Ok(Session { left_behind, ..self.session_with(record, &hosts, terminals).await? })
    }

    /// A session but for what it left behind, which may be long.
    async fn session_with(
        &self,
        record: SessionRecord,
        hosts: &Hosts,
        terminals: Vec<TerminalRecord>,
    ) -> Result<Session, Status> {
        let findings = self.index.findings(record.host, record.uuid, FINDINGS_MAX).await.map_err(unavailable)?;
        let standing = self.signing.queue.standing(&record).await.map_err(unavailable)?;
        Ok(convert::session(record, hosts, terminals, findings, standing))
    }

    /// Every host by its row.
    pub(super) async fn hosts_by_row(&self) -> Result<Hosts, Status> {
        Ok(self.store.hosts().await.map_err(unavailable)?.into_iter().collect())
    }

    /// The rows of the hosts with this id or name; `None` where the text is empty and means all.
    pub(super) async fn host_rows(&self, text: &str) -> Result<Option<Vec<i64>>, Status> {
        if text.is_empty() {
            return Ok(None);
        }
        let hosts = self.store.hosts().await.map_err(unavailable)?;
        let named = |host: &HostRecord| host.host_id == text || host.hostname == text;
        let rows: Vec<i64> = hosts.iter().filter(|(_, host)| named(host)).map(|(row, _)| *row).collect();
        match rows.is_empty() {
            true => Err(Status::not_found(format!("there is no host {text:?}"))),
            false => Ok(Some(rows)),
        }
    }

    /// The host of a row.
    pub(crate) async fn host_of(&self, row: i64) -> Result<HostRecord, Status> {
        let missing = || Status::internal("the session's host is not known");
        self.hosts_by_row().await?.remove(&row).ok_or_else(missing)
    }

    /// The one host with this id or name.
    pub(crate) async fn host_named(&self, text: &str) -> Result<HostRecord, Status> {
        let rows = self.host_rows(text).await?.unwrap_or_default();
        match rows.as_slice() {
            [row] => self.host_of(*row).await,
            [] => Err(Status::invalid_argument("name a host, or its id")),
            _ => Err(Status::failed_precondition(format!("{text:?} names {} hosts: give an id", rows.len()))),
        }
    }

    /// Waits for the index to reach what is durable now, for a while; says whether it did.
    pub(super) async fn catch_up(&self) -> Result<bool, Status> {
        let newest = self.store.last_arrival().await.map_err(unavailable)?;
        Ok(self.index.catch_up(newest).await)
    }
}

fn may_see(scope: &Scope, record: &SessionRecord) -> bool {
    match scope {
        Scope::All => true,
        Scope::OwnedBy(operator) => record.state.operator == *operator,
    }
}

/// The operator to whose sessions an answer is confined, from what was asked and what the caller may see.
pub(super) fn narrow(scope: &Scope, asked: &str) -> Result<Option<String>, Status> {
    match scope {
        Scope::All => Ok((!asked.is_empty()).then(|| asked.to_owned())),
        Scope::OwnedBy(own) if asked.is_empty() || asked == own => Ok(Some(own.clone())),
        Scope::OwnedBy(_) => {
            Err(Status::permission_denied("operators see only the sessions that they opened themselves"))
        }
    }
}
