//! A collector's query service with fixed answers, on a free port of loopback.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use breakglass_api::{
    GRPC_MESSAGE_MAX,
    v1::{
        self,
        manage_server::ManageServer,
        query_server::{Query, QueryServer},
    },
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{
    Request, Response, Status,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};

use crate::lists::Nothing;

/// What it answers.
#[derive(Clone, Default)]
pub struct Answers {
    pub hosts: Vec<v1::Host>,
    pub sessions: Vec<v1::Session>,
    pub commands: Vec<v1::Command>,
    pub events: Vec<v1::RecordedEvent>,
    pub replay: Vec<v1::ReplayItem>,
    pub hits: Vec<v1::SearchHit>,
    /// Every request is refused with this.
    pub refusal: Option<Status>,
    /// Between the items of a stream.
    pub pace: Duration,
    /// How often a session is asked for before it is there.
    pub late: u32,
}

/// A running fake, with the configuration of a person enrolled at it.
pub struct Fake {
    pub folder: TempDir,
    pub address: SocketAddr,
    // Dropped with the fake: the server ends with it.
    _runtime: Runtime,
}

impl Fake {
    pub fn start(answers: Answers) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new();
        let (cert, key) = ca.issue(vec![SanType::DnsName("collector".try_into().unwrap())]);
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(cert, key))
            .client_ca_root(Certificate::from_pem(ca.pem.as_str()));
        let service = QueryServer::new(Service(answers, AtomicU32::new(0))).max_encoding_message_size(GRPC_MESSAGE_MAX);
        let server =
            Server::builder().tls_config(tls).unwrap().add_service(service).add_service(ManageServer::new(Nothing));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let fake = Self { folder, address, _runtime: runtime };
        fake.enrol(&ca, "config.toml");
        fake
    }

    /// Writes a person's files and configuration, certified by a CA.
    pub fn enrol(&self, ca: &Ca, config: &str) {
        let folder = self.folder.path();
        let (cert, key) = ca.issue(vec![SanType::URI("breakglass://reviewer/rita".try_into().unwrap())]);
        let stem = config.trim_end_matches(".toml");
        fs::write(folder.join(format!("{stem}.crt")), cert).unwrap();
        fs::write(folder.join(format!("{stem}.key")), key).unwrap();
        if config == "config.toml" {
            fs::write(folder.join("ca.crt"), &ca.pem).unwrap();
        }
        self.configure(config, "ca.crt", "collector", self.address);
    }

    /// Writes a configuration for files that are there.
    pub fn configure(&self, config: &str, ca: &str, server_name: &str, address: SocketAddr) {
        let stem = config.trim_end_matches(".toml");
        let text = format!(
            "[collector]\nurl = \"https://{address}\"\nserver_name = \"{server_name}\"\nca = \"{ca}\"\ncert = \"{stem}.crt\"\nkey = \"{stem}.key\"\n"
        );
        fs::write(self.folder.path().join(config), text).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A private CA.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Ca {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, names: Vec<SanType>) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// With how often a session was asked for.
struct Service(Answers, AtomicU32);

type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn session(&self, name: &str) -> Result<v1::Session, Status> {
        let (host, part) = name.rsplit_once('/').unwrap_or(("", name));
        let named = |s: &&v1::Session| {
            part.len() >= 6
                && (s.id.starts_with(part) || s.id.ends_with(part))
                && (host.is_empty() || host == s.host_id || host == s.hostname)
        };
        let found: Vec<_> = self.0.sessions.iter().filter(named).collect();
        match found.as_slice() {
            [] => Err(Status::not_found(format!("there is no session {name}"))),
            [first, others @ ..] if others.iter().any(|other| other.id == first.id) => {
                Err(Status::failed_precondition(format!("{name} may be on any of {} hosts", found.len())))
            }
            [first, ..] => Ok((*first).clone()),
        }
    }

    fn answer<T>(&self, answer: T) -> Result<Response<T>, Status> {
        self.0.refusal.clone().map_or_else(|| Ok(Response::new(answer)), Err)
    }

    fn stream<T: Clone + Send + 'static>(&self, items: Vec<T>) -> Result<Response<Items<T>>, Status> {
        let pace = self.0.pace;
        let items = tokio_stream::iter(items).then(move |item| async move {
            tokio::time::sleep(pace).await;
            Ok(item)
        });
        self.answer(Box::pin(items))
    }
}

#[tonic::async_trait]
impl Query for Service {
    type ListCommandsStream = Items<v1::Command>;
    type ReplayStream = Items<v1::ReplayItem>;
    type EventsStream = Items<v1::RecordedEvent>;
    type ExportEvidenceStream = Items<v1::EvidenceChunk>;

    async fn list_hosts(&self, _: Request<v1::ListHostsRequest>) -> Result<Response<v1::ListHostsResponse>, Status> {
        self.answer(v1::ListHostsResponse { hosts: self.0.hosts.clone() })
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let request = request.into_inner();
        let wanted = |s: &&v1::Session| {
            (request.host.is_empty() || s.hostname == request.host) && (!request.open_only || s.closed_ns == 0)
        };
        let sessions = self.0.sessions.iter().filter(wanted).take(request.limit as usize).cloned().collect();
        let behind = self.0.sessions.iter().any(|session| session.behind);
        self.answer(v1::ListSessionsResponse { sessions, behind, ..Default::default() })
    }

    async fn get_session(&self, request: Request<v1::GetSessionRequest>) -> Result<Response<v1::Session>, Status> {
        let name = request.into_inner().session;
        if self.1.fetch_add(1, Ordering::Relaxed) < self.0.late {
            return Err(Status::not_found(format!("there is no session {name}")));
        }
        self.answer(self.session(&name)?)
    }

    async fn list_commands(
        &self,
        request: Request<v1::ListCommandsRequest>,
    ) -> Result<Response<Self::ListCommandsStream>, Status> {
        self.session(&request.into_inner().session)?;
        self.stream(self.0.commands.clone())
    }

    async fn replay(&self, request: Request<v1::ReplayRequest>) -> Result<Response<Self::ReplayStream>, Status> {
        use v1::replay_item::Body;
        let request = request.into_inner();
        self.session(&request.session)?;
        let wanted = |item: &v1::ReplayItem| match &item.body {
            Some(Body::Input(_) | Body::Withheld(_)) => request.input,
            Some(Body::Command(_)) => request.commands,
            Some(Body::Output(output)) => request.terminal == 0 || output.terminal == request.terminal,
            _ => true,
        };
        self.stream(self.0.replay.iter().filter(|item| wanted(item)).cloned().collect())
    }

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let v1::EventsRequest { kinds, session, .. } = request.into_inner();
        self.session(&session)?;
        let wanted = |event: &&v1::RecordedEvent| kinds.is_empty() || kinds.iter().any(|kind| *kind == kind_of(event));
        self.stream(self.0.events.iter().filter(wanted).cloned().collect())
    }

    async fn export_evidence(
        &self,
        request: Request<v1::ExportEvidenceRequest>,
    ) -> Result<Response<Self::ExportEvidenceStream>, Status> {
        self.session(&request.into_inner().session)?;
        self.stream(vec![v1::EvidenceChunk { data: b"BGEV".to_vec() }, v1::EvidenceChunk { data: b"ID1\n".to_vec() }])
    }

    async fn submit_review(&self, _: Request<v1::SubmitReviewRequest>) -> Result<Response<v1::Review>, Status> {
        self.answer(v1::Review::default())
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchResponse>, Status> {
        let request = request.into_inner();
        if request.text.chars().count() < 3 {
            return Err(Status::invalid_argument("search for three characters or more"));
        }
        if !request.session.is_empty() {
            self.session(&request.session)?;
        }
        let text = request.text.to_lowercase();
        let matching = |hit: &&v1::SearchHit| {
            hit.text.to_lowercase().contains(&text) && (request.kinds.is_empty() || request.kinds.contains(&hit.kind))
        };
        let hits = self.0.hits.iter().filter(matching).cloned().collect();
        self.answer(v1::SearchResponse { hits, ..v1::SearchResponse::default() })
    }
}

/// What the protocol calls an event, of those that there are here.
fn kind_of(event: &v1::RecordedEvent) -> &'static str {
    use v1::event::Body;
    match event.event.as_ref().and_then(|event| event.body.as_ref()) {
        Some(Body::Exec(_)) => "exec",
        Some(Body::Alert(_)) => "alert",
        Some(Body::Gap(_)) => "gap",
        Some(Body::SessionClosed(_)) => "session_closed",
        Some(Body::CredentialsRotated(_)) => "credentials_rotated",
        other => panic!("an event of a kind that no test has: {other:?}"),
    }
}
