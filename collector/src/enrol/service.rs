//! The service: certificates for hosts.

use std::net::IpAddr;

use breakglass_api::v1::enrol_server::Enrol;
use breakglass_api::v1::{Act, JoinRequest, Joined, RenewRequest};
use tonic::{Request, Response, Status};

use super::limit::Attempts;
use super::token::{SECRET_LEN, TokenError, Tokens};
use crate::access;
use crate::desk::Desk;
use crate::pki::{Authority, HostRequest};
use crate::settings::Layout;

/// Longest certificate request, bytes; one with an ECDSA key has some 200.
const REQUEST_MAX: usize = 4096;

/// Gives hosts their certificates. Cheap to clone.
#[derive(Clone)]
pub struct EnrolService {
    layout: Layout,
    tokens: Tokens,
    attempts: Attempts,
    desk: Desk,
    validity: time::Duration,
}

impl EnrolService {
    /// For the collector in `layout`, whose certificates for hosts are good for `validity`.
    pub fn new(layout: &Layout, desk: Desk, validity: time::Duration) -> Self {
        let tokens = Tokens::new(layout.tokens());
        Self { layout: layout.clone(), tokens, attempts: Attempts::default(), desk, validity }
    }

    /// The CA's key is read for every certificate: it may be kept elsewhere while no host joins, and then nobody gets one.
    async fn certify(&self, host_id: String, name: String, request: HostRequest) -> Result<Joined, Status> {
        let (layout, validity) = (self.layout.clone(), self.validity);
        let made = tokio::task::spawn_blocking(move || {
            let authority = std::fs::read_to_string(layout.ca_cert())?;
            let certificate = Authority::load(&layout)?.certify_host(&host_id, &name, request, validity)?;
            anyhow::Ok(Joined { host_id, hostname: name, certificate, authority })
        });
        let made = made.await.map_err(|error| Status::internal(format!("making a certificate failed: {error}")))?;
        made.map_err(|error| {
            tracing::error!("no certificate can be made: {error:#}");
            Status::failed_precondition("the collector cannot make certificates now: its log says why")
        })
    }

    /// Written down before the certificate is handed out.
    async fn write_down(&self, who: String, what: &str, joined: &Joined) -> Result<(), Status> {
        let act = Act {
            who,
            what: what.to_owned(),
            host_id: joined.host_id.clone(),
            reason: joined.hostname.clone(),
            outcome: "done".to_owned(),
            ..Act::default()
        };
        self.desk.begin(&act).await.map(drop).map_err(|error| {
            tracing::error!(%error, "cannot write down that a certificate was made");
            Status::unavailable("the collector cannot write down what it does")
        })
    }

    fn refuse(&self, error: &TokenError, source: Option<IpAddr>) -> Status {
        if let TokenError::Io(error) = error {
            tracing::error!(%error, "tokens cannot be used");
            return Status::unavailable("the collector cannot use its tokens now: its log says why");
        }
        self.attempts.wrong(source);
        tracing::warn!(%error, ?source, "refused a token");
        Status::permission_denied(
            "this token is not good: it was never made here, was used, or has expired; ask for a new one",
        )
    }
}

fn parse(request: &[u8]) -> Result<HostRequest, Status> {
    if request.len() > REQUEST_MAX {
        return Err(Status::invalid_argument("the certificate request is too long"));
    }
    HostRequest::parse(request).map_err(|error| Status::invalid_argument(format!("{error:#}")))
}

#[tonic::async_trait]
impl Enrol for EnrolService {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<Joined>, Status> {
        let source = request.remote_addr().map(|address| address.ip());
        if !self.attempts.allowed(source) {
            return Err(Status::resource_exhausted("too many wrong tokens; try again in a minute"));
        }
        let JoinRequest { token_id, token_secret, request } = request.into_inner();
        let request = parse(&request)?;
        if token_secret.len() != SECRET_LEN {
            return Err(self.refuse(&TokenError::Unknown, source));
        }
        let entry = match self.tokens.take(&token_id, &token_secret, request.public_key()) {
            Ok(entry) => entry,
            Err(error) => return Err(self.refuse(&error, source)),
        };
        let joined = self.certify(entry.host_id, entry.name, request).await?;
        self.write_down(format!("token/{token_id}"), "join", &joined).await?;
        tracing::info!(host = joined.host_id, name = joined.hostname, ?source, "a host has joined");
        Ok(Response::new(joined))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<Joined>, Status> {
        let peer = access::host(&request, &self.layout)?;
        let name = peer.dns.clone().ok_or_else(|| Status::failed_precondition("the certificate names no host"))?;
        let request = parse(&request.into_inner().request)?;
        let joined = self.certify(peer.name.clone(), name, request).await?;
        self.write_down(peer.to_string(), "renew", &joined).await?;
        tracing::info!(host = joined.host_id, name = joined.hostname, "renewed a host's certificate");
        Ok(Response::new(joined))
    }
}
