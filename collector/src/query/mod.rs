//! The query service: what people may ask, and who may ask it.
//!
//! Lists and searches are answered from the index, replay and events from the raw frames. A question first waits (briefly) for
//! the index to reach what was durable when it was asked. Followers read from the store like everybody else and are only woken by
//! news: however slow they are, they miss nothing.

mod commands;
mod convert;
mod events;
mod evidence;
mod lookup;
mod proofs;
mod replay;
mod review;
mod search;
mod tail;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use breakglass_api::v1::query_server::Query;
use breakglass_api::v1::{
    Command, EventsRequest, EvidenceChunk, ExportEvidenceRequest, GetSessionRequest, ListCommandsRequest,
    ListHostsRequest, ListHostsResponse, ListSessionsRequest, ListSessionsResponse, RecordedEvent, ReplayItem,
    ReplayRequest, Review, SearchRequest, SearchResponse, Session, SubmitReviewRequest,
};
use futures_util::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::access;
use crate::index::IndexReader;
use crate::presence::Presence;
use crate::reviews::queue::Queue;
use crate::store::{Store, StoreError};
use crate::tlog::log::Log;

/// Items of a list where the request says nothing, and at most.
const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1000;

/// A streamed answer.
type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The query service. Cheap to clone.
#[derive(Clone)]
pub struct QueryService {
    store: Store,
    index: IndexReader,
    presence: Presence,
    signing: Signing,
    shutdown: watch::Receiver<bool>,
}

/// What proves and signs off sessions.
#[derive(Clone)]
pub struct Signing {
    /// The transparency log.
    pub log: Arc<Log>,
    /// The sessions that wait for a review.
    pub queue: Queue,
    /// The file that lists who may review.
    pub reviewers: PathBuf,
}

impl QueryService {
    /// A service over `store` and `index`; streams end when `shutdown` becomes true.
    pub fn new(
        store: Store,
        index: IndexReader,
        presence: Presence,
        signing: Signing,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        Self { store, index, presence, signing, shutdown }
    }
}

#[tonic::async_trait]
impl Query for QueryService {
    type ListCommandsStream = Answer<Command>;
    type ReplayStream = Answer<ReplayItem>;
    type EventsStream = Answer<RecordedEvent>;
    type ExportEvidenceStream = Answer<EvidenceChunk>;

    async fn list_hosts(&self, request: Request<ListHostsRequest>) -> Result<Response<ListHostsResponse>, Status> {
        let (peer, scope) = access::reader(&request, "ListHosts")?;
        access::require_all(&peer, &scope)?;
        self.hosts().await.map(Response::new)
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let (_, scope) = access::reader(&request, "ListSessions")?;
        self.sessions(&scope, request.into_inner()).await.map(Response::new)
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<Session>, Status> {
        let (_, scope) = access::reader(&request, "GetSession")?;
        let (record, behind) = self.resolve_with_lag(&request.get_ref().session, &scope).await?;
        let session = self.session_message(record).await?;
        Ok(Response::new(Session { behind, ..session }))
    }

    async fn list_commands(
        &self,
        request: Request<ListCommandsRequest>,
    ) -> Result<Response<Self::ListCommandsStream>, Status> {
        let (_, scope) = access::reader(&request, "ListCommands")?;
        let request = request.into_inner();
        let record = self.resolve(&request.session, &scope).await?;
        Ok(Response::new(Box::pin(self.clone().commands(record, request))))
    }

    async fn replay(&self, request: Request<ReplayRequest>) -> Result<Response<Self::ReplayStream>, Status> {
        let (_, scope) = access::reader(&request, "Replay")?;
        let request = request.into_inner();
        let record = self.resolve(&request.session, &scope).await?;
        let items = self.replay_items(record, request).await?;
        Ok(Response::new(Box::pin(items)))
    }

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let (peer, scope) = access::reader(&request, "Events")?;
        if request.get_ref().session.is_empty() {
            access::require_all(&peer, &scope)?;
        }
        let events = self.recorded_events(&scope, request.into_inner()).await?;
        Ok(Response::new(Box::pin(events)))
    }

    async fn export_evidence(
        &self,
        request: Request<ExportEvidenceRequest>,
    ) -> Result<Response<Self::ExportEvidenceStream>, Status> {
        let (peer, scope) = access::reader(&request, "ExportEvidence")?;
        // Frames hold what the host recorded, of others too.
        access::require_all(&peer, &scope)?;
        let request = request.into_inner();
        let record = self.resolve(&request.session, &scope).await?;
        let chunks = self.clone().evidence(record, request.log_size).await?;
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn submit_review(&self, request: Request<SubmitReviewRequest>) -> Result<Response<Review>, Status> {
        let peer = access::reviewer(&request)?;
        self.take_review(&peer.name, request.into_inner()).await.map(Response::new)
    }

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchResponse>, Status> {
        let (_, scope) = access::reader(&request, "Search")?;
        self.find(&scope, request.into_inner()).await.map(Response::new)
    }
}

/// How many items to give where `asked` were asked for.
pub(crate) fn limit(asked: u32) -> u32 {
    match asked {
        0 => LIMIT_DEFAULT,
        asked => asked.min(LIMIT_MAX),
    }
}

/// The store failed: the caller is told that, and the log why.
fn unavailable(error: StoreError) -> Status {
    tracing::error!(%error, "a query failed");
    Status::unavailable(format!("the collector's store does not answer: {error}"))
}
