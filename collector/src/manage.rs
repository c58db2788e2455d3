//! The service for people who act: ending sessions, having hosts read their rules anew, looking at alarms.
//!
//! Every act is on disk, with who and why, before it takes effect; what came of it is filled in after.

use std::time::Instant;

use breakglass_api::v1::manage_server::Manage;
use breakglass_api::v1::order::What;
use breakglass_api::v1::{
    Act, Alarm, AreYouThere, ListActsRequest, ListActsResponse, ListAlarmsRequest, ListAlarmsResponse, OrderAnswer,
    ReachRequest, RefreshPolicy, RefreshRequest, ReviewAlarmRequest, TerminateRequest, TerminateSession,
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use crate::access::{self, Scope};
use crate::desk::Desk;
use crate::pki::{Peer, Role};
use crate::presence::Presence;
use crate::query::{QueryService, limit};
use crate::store::{HostRecord, StoreError};

/// Longest reason or note, bytes.
const TEXT_MAX: usize = 1024;

/// Acts for people. Cheap to clone.
#[derive(Clone)]
pub struct ManageService {
    query: QueryService,
    presence: Presence,
    desk: Desk,
}

impl ManageService {
    /// Finds hosts and sessions by `query`, reaches hosts by `presence`, and writes down what is done in `desk`.
    pub fn new(query: QueryService, presence: Presence, desk: Desk) -> Self {
        Self { query, presence, desk }
    }

    async fn order(
        &self,
        peer: &Peer,
        host: HostRecord,
        session: Option<Uuid>,
        (word, what): (&str, What),
        reason: &str,
    ) -> Result<OrderAnswer, Status> {
        let (who, session) = (peer.to_string(), session.map(|id| id.to_string()).unwrap_or_default());
        let act = Act {
            who: who.clone(),
            what: word.to_owned(),
            host_id: host.host_id.clone(),
            session: session.clone(),
            reason: reason.to_owned(),
            ..Act::default()
        };
        let act = self.desk.begin(&act).await.map_err(unavailable)?;
        let began = Instant::now();
        let (code, message) = match self.presence.order(&host.host_id, what, &who, reason).await {
            Ok(done) => (done.code, done.message),
            Err(error) => (error.code().to_owned(), error.to_string()),
        };
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::warn!(who, what = word, host = host.hostname, session, reason, code, message, "acted");
        if let Err(error) = self.desk.finish(act, &format!("{code}: {message}")).await {
            tracing::error!(%error, act, "what came of an act is not written down");
        }
        Ok(OrderAnswer { host_id: host.host_id, hostname: host.hostname, session, code, message, took_us })
    }
}

#[tonic::async_trait]
impl Manage for ManageService {
    async fn terminate(&self, request: Request<TerminateRequest>) -> Result<Response<OrderAnswer>, Status> {
        let peer = access::actor(&request, "Terminate")?;
        let TerminateRequest { session, reason } = request.into_inner();
        let reason = required(&reason, "a reason")?;
        let record = self.query.resolve(&session, &Scope::All).await?;
        let host = self.query.host_of(record.host).await?;
        let session = Uuid::from_bytes(record.uuid);
        let what = What::Terminate(TerminateSession { session: session.to_string() });
        self.order(&peer, host, Some(session), ("terminate", what), &reason).await.map(Response::new)
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Result<Response<OrderAnswer>, Status> {
        let peer = access::actor(&request, "Refresh")?;
        let RefreshRequest { host, reason } = request.into_inner();
        let reason = required(&reason, "a reason")?;
        let host = self.query.host_named(&host).await?;
        let what = What::RefreshPolicy(RefreshPolicy {});
        self.order(&peer, host, None, ("refresh", what), &reason).await.map(Response::new)
    }

    async fn reach(&self, request: Request<ReachRequest>) -> Result<Response<OrderAnswer>, Status> {
        let peer = access::actor(&request, "Reach")?;
        let host = self.query.host_named(&request.get_ref().host).await?;
        let what = What::AreYouThere(AreYouThere {});
        self.order(&peer, host, None, ("reach", what), "").await.map(Response::new)
    }

    async fn list_alarms(&self, request: Request<ListAlarmsRequest>) -> Result<Response<ListAlarmsResponse>, Status> {
        access::actor(&request, "ListAlarms")?;
        let ListAlarmsRequest { open_only, limit: asked } = request.into_inner();
        let alarms = self.desk.alarms(open_only, limit(asked)).await.map_err(unavailable)?;
        Ok(Response::new(ListAlarmsResponse { alarms }))
    }

    async fn review_alarm(&self, request: Request<ReviewAlarmRequest>) -> Result<Response<Alarm>, Status> {
        let peer = access::actor(&request, "ReviewAlarm")?;
        let ReviewAlarmRequest { id, note } = request.into_inner();
        let note = required(&note, "a note")?;
        let who = peer.to_string();
        let act = Act { who: who.clone(), what: "review-alarm".into(), reason: note.clone(), ..Act::default() };
        let act = self.desk.begin(&act).await.map_err(unavailable)?;
        let alarm = self.desk.review(id, &who, &note).await.map_err(unavailable)?;
        let outcome = if alarm.is_some() { format!("alarm {id}") } else { format!("there is no alarm {id}") };
        self.desk.finish(act, &outcome).await.map_err(unavailable)?;
        alarm.map(Response::new).ok_or_else(|| Status::not_found(outcome))
    }

    async fn list_acts(&self, request: Request<ListActsRequest>) -> Result<Response<ListActsResponse>, Status> {
        let peer = access::actor(&request, "ListActs")?;
        if peer.role != Role::Admin {
            return Err(access::denied(&peer, "only administrators may see what others did"));
        }
        let acts = self.desk.acts(limit(request.get_ref().limit)).await.map_err(unavailable)?;
        Ok(Response::new(ListActsResponse { acts }))
    }
}

/// A text that has to be there, without what would steer a terminal.
fn required(text: &str, what: &str) -> Result<String, Status> {
    let text = text.trim();
    if text.is_empty() || text.len() > TEXT_MAX || text.chars().any(char::is_control) {
        return Err(Status::invalid_argument(format!(
            "{what} is needed: one line of at most {TEXT_MAX} bytes, without control characters"
        )));
    }
    Ok(text.to_owned())
}

fn unavailable(error: StoreError) -> Status {
    tracing::error!(%error, "the desk does not answer");
    Status::unavailable(format!("the collector cannot write down what is done: {error}"))
}
