//! Takes signed reviews.

use breakglass_api::v1::{Review as ReviewMessage, SubmitReviewRequest};
use breakglass_proof::review::{LogHead, Review};
use breakglass_proof::reviewers::{FILE_MAX, Reviewers};
use tonic::{Code, Status};
use uuid::Uuid;

use super::evidence::Range;
use super::{QueryService, convert, proofs, unavailable};
use crate::access::Scope;
use crate::index::SessionRecord;
use crate::reviews::book::ReviewRecord;
use crate::reviews::judge::{Misfit, Subject, judge};
use crate::wall_clock_ns;

impl QueryService {
    /// Takes a review by `caller` if it counts.
    pub(super) async fn take_review(
        &self,
        caller: &str,
        request: SubmitReviewRequest,
    ) -> Result<ReviewMessage, Status> {
        let SubmitReviewRequest { text, signature } = request;
        let review = Review::parse(&text).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let session = Uuid::from_bytes(review.session);
        let record = self.reviewed(session, Uuid::from_bytes(review.host_id)).await?;
        let range = self.range(record).await?;
        let subject = self.subject(&range).await?;
        let reviewers = self.reviewers().await?;
        let known = self.was_logged(review.log.as_ref()).await?;
        let key = judge(&review, (&text, &signature), caller, &subject, &reviewers, |_| known).map_err(|misfit| {
            tracing::warn!(who = caller, %session, code = misfit.code(), %misfit, "refused a review");
            refused(&misfit)
        })?;
        tracing::info!(who = caller, %session, verdict = review.verdict.word(), "reviewed");
        let record = ReviewRecord { review, text, signature, key, received_ns: wall_clock_ns() };
        self.signing.queue.book().add(&record).await.map_err(unavailable)?;
        Ok(convert::review(record))
    }

    /// The session that a review is about: that host's, where several have one of this id.
    async fn reviewed(&self, session: Uuid, host: Uuid) -> Result<SessionRecord, Status> {
        match self.resolve(&format!("{host}/{session}"), &Scope::All).await {
            // Another host's: the judge says so.
            Err(missing) if missing.code() == Code::NotFound => self.resolve(&session.to_string(), &Scope::All).await,
            found => found,
        }
    }

    /// The session as it is held.
    async fn subject(&self, range: &Range) -> Result<Subject, Status> {
        let SessionRecord { uuid, host, state } = &range.record;
        let hosts = self.hosts_by_row().await?;
        let host_id = hosts.get(host).and_then(|host| Uuid::try_parse(&host.host_id).ok()).unwrap_or_default();
        let hash = self.store.held(range.stream, range.last).await.map_err(unavailable)?;
        let hash = hash.ok_or_else(|| Status::data_loss("the last frame of this session is no longer there"))?;
        Ok(Subject {
            ids: [*uuid, host_id.into_bytes(), range.stream],
            closed: state.closed.is_some(),
            head: (range.last, hash),
            operators: [vec![(state.operator.clone(), convert::opened(state).key_fingerprint)], state.joined.clone()]
                .concat(),
        })
    }

    /// Who may review, as the file says now.
    async fn reviewers(&self) -> Result<Reviewers, Status> {
        let path = &self.signing.reviewers;
        let content = match tokio::fs::read(path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "cannot read who may review");
                return Err(Status::unavailable(format!("the collector cannot read who may review: {error}")));
            }
            Ok(content) => content,
        };
        let text = String::from_utf8(content).ok().filter(|text| text.len() <= FILE_MAX);
        let text =
            text.ok_or_else(|| Status::unavailable("the collector's list of reviewers is not text, or too long"))?;
        let reviewers = Reviewers::parse(&text);
        for problem in reviewers.problems() {
            let (line, message) = (problem.line, &problem.message);
            tracing::warn!(path = %path.display(), line, message, "a line of the list of reviewers allows nothing");
        }
        Ok(reviewers)
    }

    /// Whether the log ever looked like that; a review without a log fits a log that has published nothing.
    async fn was_logged(&self, head: Option<&LogHead>) -> Result<bool, Status> {
        let log = &self.signing.log;
        let Some(head) = head else { return Ok(log.published().is_none()) };
        let published = log.published().map_or(0, |published| published.size);
        if head.origin != log.key().public().holder() || head.size > published {
            return Ok(false);
        }
        Ok(log.root(head.size).await.map_err(proofs::failed)?.0 == head.root)
    }
}

fn refused(misfit: &Misfit) -> Status {
    let message = format!("{misfit} ({})", misfit.code());
    match misfit {
        Misfit::NotYou { .. } | Misfit::Signature(_) | Misfit::OwnSession(_) => Status::permission_denied(message),
        Misfit::OtherSession | Misfit::OtherLog => Status::invalid_argument(message),
        Misfit::StillOpen | Misfit::StaleHead { .. } => Status::failed_precondition(message),
    }
}
