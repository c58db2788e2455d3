//! Search over commands, typed lines and screens.

use breakglass_api::v1::{SearchHit, SearchKind, SearchRequest, SearchResponse};
use tonic::Status;

use super::lookup::{Hosts, narrow};
use super::{QueryService, convert, limit, unavailable};
use crate::access::Scope;
use crate::index::{HitRecord, SearchFilter};

/// Fewest characters of a search: the index knows trigrams.
const TEXT_MIN: usize = 3;
/// Most characters of a search.
const TEXT_MAX: usize = 1024;

impl QueryService {
    /// Lines that hold a text.
    pub(super) async fn find(&self, scope: &Scope, request: SearchRequest) -> Result<SearchResponse, Status> {
        let filter = self.filter(scope, request).await?;
        self.catch_up().await?;
        let (hits, more) = self.index.search(&filter).await.map_err(unavailable)?;
        let hosts = self.hosts_by_row().await?;
        Ok(SearchResponse { hits: hits.into_iter().map(|hit| message(hit, &hosts)).collect(), more })
    }

    async fn filter(&self, scope: &Scope, request: SearchRequest) -> Result<SearchFilter, Status> {
        let length = request.text.chars().count();
        if !(TEXT_MIN..=TEXT_MAX).contains(&length) {
            return Err(Status::invalid_argument(format!(
                "a search needs {TEXT_MIN} to {TEXT_MAX} characters, this one has {length}"
            )));
        }
        if request.text.contains('\0') {
            return Err(Status::invalid_argument("no line holds a NUL character: leave it out of the search"));
        }
        let session = match request.session.is_empty() {
            true => None,
            false => Some(self.resolve(&request.session, scope).await?.state),
        };
        let kinds = request.kinds.iter().map(|kind| SearchKind::try_from(*kind));
        let kinds: Vec<SearchKind> =
            kinds.collect::<Result<_, _>>().map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(SearchFilter {
            hosts: self.host_rows(&request.host).await?,
            session,
            operator: narrow(scope, &request.operator)?,
            since_ns: request.since_ns,
            until_ns: request.until_ns,
            kinds: kinds.into_iter().filter(|kind| *kind != SearchKind::Unspecified).collect(),
            limit: usize::try_from(limit(request.limit)).unwrap_or(usize::MAX),
            text: request.text,
        })
    }
}

fn message(hit: HitRecord, hosts: &Hosts) -> SearchHit {
    let host = hosts.get(&hit.host);
    let command = hit.kind == SearchKind::Command;
    let on_terminal = matches!(hit.kind, SearchKind::Typed | SearchKind::Screen);
    SearchHit {
        kind: hit.kind as i32,
        session: convert::uuid_text(hit.session),
        host_id: host.map(|host| host.host_id.clone()).unwrap_or_default(),
        hostname: host.map(|host| host.hostname.clone()).unwrap_or_default(),
        operator: hit.operator,
        wall_ns: hit.wall_ns,
        text: hit.text,
        command_number: if command { hit.subject } else { 0 },
        terminal: if on_terminal { hit.subject } else { 0 },
    }
}
