//! One connection: a request, an answer, and again.

use std::{sync::Arc, time::Instant};

use breakglass_api::{
    CONTROL_MESSAGE_MAX,
    grant::{self, CloseText},
    v1::{
        self, ControlRequest, ControlResponse, ProofRefused, control_request::Body as Request,
        control_response::Body as Answer,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use super::{
    CloseBy, Permit, Sessions,
    admission::Ticket,
    code,
    cost::{Attempt, Checks},
    door::Door,
    fold::Refusals,
    peer::Peer,
    source::Source,
    verifier::Verifier,
    wire::{self, ReadError},
};
use crate::{
    blocking,
    grant::{Refusal, Signed, proof},
};

/// What all connections share.
pub struct Shared<S> {
    /// Who decides.
    pub sessions: Arc<S>,
    /// Who checks proofs.
    pub verifier: Arc<Verifier>,
    /// What checks of signatures may cost.
    pub checks: Checks,
    /// What checks of one-time codes may cost.
    pub guesses: Checks,
    /// What was refused and is to be recorded.
    pub refusals: Refusals,
    /// Where the TLS door stands.
    pub door: watch::Receiver<Door>,
}

/// Serves one connection until the other side ends it, breaks the rules, or has to make room.
pub async fn serve<S: Sessions, T: AsyncRead + AsyncWrite + Unpin>(
    shared: Arc<Shared<S>>,
    mut stream: T,
    source: Source,
    peer: Peer,
    ticket: &Ticket,
) {
    loop {
        ticket.set_busy(false);
        let request = tokio::select! {
            request = wire::read(&mut stream) => request,
            () = ticket.asked_to_leave() => return,
        };
        ticket.set_busy(true);
        let (answer, go_on) = match request {
            Ok(request) => (answer(&shared, request, source, &peer, ticket).await, true),
            Err(ReadError::Gone) => return,
            Err(ReadError::TooLarge(size)) => {
                let message = format!("the message has {size} bytes, the limit is {CONTROL_MESSAGE_MAX}");
                (Answer::Refused(shared.refuse(source, Refusal::new("too-large", message), None)), false)
            }
            Err(ReadError::Garbage(error)) => {
                let message = format!("not a request of this protocol: {error}; use a breakglass client");
                (Answer::Refused(shared.refuse(source, Refusal::new("bad-request", message), None)), false)
            }
        };
        let sent = wire::write(&mut stream, &ControlResponse { body: Some(answer) }).await;
        if sent.is_err() || !go_on {
            return;
        }
    }
}

async fn answer<S: Sessions>(
    shared: &Arc<Shared<S>>,
    request: ControlRequest,
    source: Source,
    peer: &Peer,
    ticket: &Ticket,
) -> Answer {
    match request.body {
        Some(Request::Challenge(request)) => Answer::Challenge(shared.verifier.challenge(request)),
        Some(Request::Status(_)) => Answer::Status(shared.status(source).await),
        Some(Request::Open(open)) => {
            let signed = Signed { text: open.grant_text, signature: open.signature };
            match shared.open(signed.clone(), open.cosignatures, source, ticket).await {
                Ok(opened) => Answer::Opened(opened),
                Err(refusal) => {
                    ticket.failed();
                    Answer::Refused(shared.refuse(source, refusal, Some(&signed)))
                }
            }
        }
        Some(Request::Close(close)) => {
            let signed = Signed { text: close.close_text, signature: close.signature };
            match shared.close(signed.clone(), source, ticket).await {
                Ok(closed) => Answer::Closed(closed),
                Err(refusal) => {
                    ticket.failed();
                    Answer::Refused(shared.refuse(source, refusal, Some(&signed)))
                }
            }
        }
        Some(Request::Code(request)) => match shared.open_by_code(request, source).await {
            Ok(opened) => Answer::Opened(opened),
            Err(refusal) => {
                ticket.failed();
                Answer::Refused(shared.refuse(source, refusal, None))
            }
        },
        Some(Request::Stop(request)) => match shared.stop(request, source, peer).await {
            Ok(stopping) => Answer::Stopping(stopping),
            Err(refusal) => Answer::Refused(shared.refuse(source, refusal, None)),
        },
        Some(Request::Login(notice)) => match source {
            Source::Unix { uid: 0, .. } => {
                shared.sessions.logged_in(notice).await;
                Answer::Noted(v1::Noted {})
            }
            _ => {
                let refusal = Refusal::new("not-allowed", "only the PAM gate tells of logins");
                Answer::Refused(shared.refuse(source, refusal, None))
            }
        },
        None => {
            let refusal = Refusal::new("bad-request", "the request is empty or of a kind that this host does not know");
            Answer::Refused(shared.refuse(source, refusal, None))
        }
    }
}

impl<S: Sessions> Shared<S> {
    async fn open(
        self: &Arc<Self>,
        signed: Signed,
        cosignatures: Vec<v1::Cosignature>,
        source: Source,
        ticket: &Ticket,
    ) -> Result<v1::Opened, Refusal> {
        let started = Instant::now();
        let attempt = self.attempt(&signed, source, ticket);
        let verifier = Arc::clone(&self.verifier);
        let check = move || verifier.grant(signed, &cosignatures, source);
        let grant = self.checks.run(attempt, check).await?;
        if let Some(number) = grant.prepared {
            // Its use is noted for good, so whatever would stop the session is looked for before.
            self.sessions.ready().await?;
            let verifier = Arc::clone(&self.verifier);
            blocking::run(move || verifier.use_up(&number)).await?;
        }
        self.open_permitted(Permit::Signed(Box::new(grant)), source, started).await
    }

    async fn open_by_code(self: &Arc<Self>, request: v1::CodeRequest, source: Source) -> Result<v1::Opened, Refusal> {
        let started = Instant::now();
        code::check_caller(&request, source)?;
        // A code is gone once it is checked, so whatever would stop the session is looked for before.
        self.sessions.ready().await?;
        let (verifier, group) = (Arc::clone(&self.verifier), code::group(&request, source));
        let grant = self.guesses.guess(group, move || verifier.code(&request, source)).await?;
        self.open_permitted(Permit::Code(Box::new(grant)), source, started).await
    }

    async fn open_permitted(
        self: &Arc<Self>,
        permit: Permit,
        source: Source,
        started: Instant,
    ) -> Result<v1::Opened, Refusal> {
        let sessions = Arc::clone(&self.sessions);
        // A task of its own: what has begun is not left half done when the connection goes.
        let mut opened = finished(tokio::spawn(async move { sessions.open(permit, source).await })).await?;
        opened.agent_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(opened)
    }

    async fn close(self: &Arc<Self>, signed: Signed, source: Source, ticket: &Ticket) -> Result<v1::Closed, Refusal> {
        let by = if signed.text.is_empty() && signed.signature.is_empty() {
            self.local_closer(source)?
        } else {
            let attempt = self.attempt(&signed, source, ticket);
            let verifier = Arc::clone(&self.verifier);
            let close = self.checks.run(attempt, move || verifier.close(signed, source)).await?;
            CloseBy::Operator(Box::new(close))
        };
        let sessions = Arc::clone(&self.sessions);
        finished(tokio::spawn(async move { sessions.close(by, source).await })).await
    }

    async fn status(&self, source: Source) -> v1::Status {
        let mut status = self.sessions.status(source.is_local()).await;
        if source.is_local() {
            status.door_error = self.door.borrow().error().to_owned();
        }
        status
    }

    async fn stop(
        self: &Arc<Self>,
        request: v1::StopRequest,
        source: Source,
        peer: &Peer,
    ) -> Result<v1::Stopping, Refusal> {
        let Source::Unix { uid: 0, .. } = source else {
            let message = "only root on the host itself may stop the agent; run breakglass-agent stop there";
            return Err(Refusal::new("not-allowed", message));
        };
        let sound = |text: &str| text.len() <= grant::REASON_MAX && text.chars().all(grant::is_plain);
        if !sound(&request.reason) {
            return Err(Refusal::new("bad-text", "the reason is too long, or holds characters that cannot be seen"));
        }
        if request.reason.trim().is_empty() {
            return Err(Refusal::new("no-reason", "the request gives no reason; say why with --reason"));
        }
        let (sessions, peer) = (Arc::clone(&self.sessions), peer.clone());
        finished(tokio::spawn(async move { sessions.stop(request, source, peer).await })).await
    }

    /// What decides how long the check of a proof has to wait. Reads the text, which costs microseconds.
    fn attempt(&self, signed: &Signed, source: Source, ticket: &Ticket) -> Attempt {
        Attempt {
            group: source.group(),
            failed_before: ticket.has_failed(),
            challenge: self.verifier.challenge_of(&signed.text),
        }
    }

    /// Over the Unix socket root and the emergency account need no signature: they are on the host already.
    fn local_closer(&self, source: Source) -> Result<CloseBy, Refusal> {
        match source {
            Source::Unix { uid: 0, .. } => Ok(CloseBy::Root),
            Source::Unix { uid, .. } if uid == self.verifier.identity().account_uid => Ok(CloseBy::Account),
            _ => Err(Refusal::new(
                "not-allowed",
                "only root and the emergency account may close without a signature, and only on the host itself; sign the request",
            )),
        }
    }

    /// Notes a refusal for the record and makes the answer of it.
    fn refuse(&self, source: Source, refusal: Refusal, signed: Option<&Signed>) -> v1::Refused {
        let mut refused = ProofRefused {
            code: refusal.code.to_owned(),
            message: refusal.message.clone(),
            source: source.to_string(),
            count: 1,
            ..ProofRefused::default()
        };
        if let Some(signed) = signed {
            claims(signed, &mut refused);
        }
        // One line each would let a flood fill the log; what is recorded is folded, and logged with that.
        tracing::debug!(code = refusal.code, %source, claimed = %refused.claimed_operator, "refused: {}", refusal.message);
        self.refusals.add(source.group(), refused);
        v1::Refused { code: refusal.code.to_owned(), message: refusal.message }
    }
}

/// What a refused request says about itself, where it can be read.
fn claims(signed: &Signed, refused: &mut ProofRefused) {
    if let Ok(text) = grant::Request::parse(&signed.text) {
        refused.claimed_operator = text.operator().to_owned();
        refused.claimed_reason = text.reason().to_owned();
    } else if let Ok(text) = CloseText::parse(&signed.text) {
        refused.claimed_operator = text.claim.operator;
    }
    refused.key_fingerprint = proof::claimed_fingerprint(&signed.signature).unwrap_or_default();
}

async fn finished<T>(task: tokio::task::JoinHandle<Result<T, Refusal>>) -> Result<T, Refusal> {
    match task.await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "a request was not worked off");
            Err(Refusal::new("failed", "the agent failed at this request; its log says why; try again"))
        }
    }
}
