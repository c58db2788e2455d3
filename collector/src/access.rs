//! Who may call what. Every call is checked here, from the certificate of its connection.

use tonic::{Request, Status};

use crate::pki::{Peer, Role};
use crate::settings::Layout;

/// What a caller of the query service may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// Only sessions that this operator opened.
    OwnedBy(String),
}

/// The caller, from the connection's certificate.
pub fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let certs = request.peer_certs().ok_or_else(|| Status::unauthenticated("a client certificate is required"))?;
    let leaf = certs.first().ok_or_else(|| Status::unauthenticated("a client certificate is required"))?;
    Peer::from_der(leaf).map_err(|error| {
        tracing::warn!(%error, from = ?request.remote_addr(), "refused a certificate without a usable identity");
        Status::unauthenticated(format!("this certificate cannot be used here: {error}"))
    })
}

/// The caller, who must be the agent of a host that was not retired.
pub fn host<T>(request: &Request<T>, layout: &Layout) -> Result<Peer, Status> {
    let peer = peer(request)?;
    match peer.role {
        Role::Host if layout.is_refused(&peer.name) => Err(denied(&peer, "this host was retired here")),
        Role::Host => Ok(peer),
        Role::Collector | Role::Operator | Role::Reviewer | Role::Admin => {
            Err(denied(&peer, "only the agent of a host may send records"))
        }
    }
}

/// The caller and what they may see, for the query service. Leaves a line in the log: looking is audited.
pub fn reader<T>(request: &Request<T>, call: &'static str) -> Result<(Peer, Scope), Status>
where
    T: std::fmt::Debug,
{
    let peer = peer(request)?;
    let scope = match peer.role {
        Role::Reviewer | Role::Admin => Scope::All,
        Role::Operator => Scope::OwnedBy(peer.name.clone()),
        Role::Host | Role::Collector => {
            return Err(denied(&peer, "only operators, reviewers and administrators may look at records"));
        }
    };
    tracing::info!(target: "breakglass_collector::access", who = %peer, call, request = ?request.get_ref(), "looked");
    Ok((peer, scope))
}

/// The caller, who must be one that signs sessions off.
pub fn reviewer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = peer(request)?;
    match peer.role {
        Role::Reviewer | Role::Admin => Ok(peer),
        Role::Host | Role::Collector | Role::Operator => {
            Err(denied(&peer, "only reviewers and administrators sign sessions off"))
        }
    }
}

/// The caller, who must be a reviewer or an administrator, for the service of those who act. Leaves a line in the log.
pub fn actor<T>(request: &Request<T>, call: &'static str) -> Result<Peer, Status>
where
    T: std::fmt::Debug,
{
    let peer = peer(request)?;
    match peer.role {
        Role::Reviewer | Role::Admin => {
            tracing::info!(target: "breakglass_collector::access", who = %peer, call, request = ?request.get_ref(), "called");
            Ok(peer)
        }
        Role::Host | Role::Collector | Role::Operator => {
            Err(denied(&peer, "only reviewers and administrators may do this"))
        }
    }
}

/// Anybody with a certificate, for services that tell nothing. gRPC's interceptors see no more of a request.
pub fn anybody(request: Request<()>) -> Result<Request<()>, Status> {
    peer(&request).map(|_| request)
}

/// The caller may see everything, or is told why not.
pub fn require_all(peer: &Peer, scope: &Scope) -> Result<(), Status> {
    match scope {
        Scope::All => Ok(()),
        Scope::OwnedBy(_) => Err(denied(peer, "operators see only the sessions that they opened themselves")),
    }
}

pub(crate) fn denied(peer: &Peer, why: &str) -> Status {
    tracing::warn!(who = %peer, why, "denied");
    Status::permission_denied(format!("{peer}: {why}"))
}
