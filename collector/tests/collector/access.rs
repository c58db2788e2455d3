//! Who may do what.

use breakglass_api::GRPC_MESSAGE_MAX;
use breakglass_api::v1::ingest_client::IngestClient;
use breakglass_api::v1::{
    AgentMessage, EventsRequest, GetSessionRequest, ListCommandsRequest, ListHostsRequest, ListSessionsRequest,
    ReplayRequest, SearchRequest,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::support::*;

/// Two operators with a session each.
async fn two_sessions(collector: &Collector) -> HostIdentity {
    let host = collector.enroll_host("web1");
    let mut spool = Spool::new(1);
    let mut agent = Agent::connect(collector, &host, spool.stream, 0).await;
    agent.send(spool.frame(Some(session_id(1)), vec![opened("alice"), exec(1, &["echo", "findme"]), closed()])).await;
    agent.send(spool.frame(Some(session_id(2)), vec![opened("bob"), exec(1, &["echo", "findme"]), closed()])).await;
    agent.acked(2).await;
    host
}

#[tokio::test]
async fn an_operator_sees_own_sessions_and_nothing_else() {
    let collector = Collector::start();
    two_sessions(&collector).await;
    let mut alice = collector.person("alice", "operator").await;
    let sessions = alice.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner().sessions;
    assert_eq!(sessions.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), [session_text(1)]);
    let search = SearchRequest { text: "findme".into(), ..SearchRequest::default() };
    let hits = alice.search(search.clone()).await.unwrap().into_inner().hits;
    assert_eq!(hits.iter().map(|h| h.session.as_str()).collect::<Vec<_>>(), [session_text(1)]);

    let other = session_text(2);
    assert_code(alice.get_session(GetSessionRequest { session: other.clone() }).await, Code::NotFound);
    let request = ListCommandsRequest { session: other.clone(), ..ListCommandsRequest::default() };
    assert_code(alice.list_commands(request).await.map(drop), Code::NotFound);
    let request = ReplayRequest { session: other.clone(), ..ReplayRequest::default() };
    assert_code(alice.replay(request).await.map(drop), Code::NotFound);
    let request = EventsRequest { session: other, ..EventsRequest::default() };
    assert_code(alice.events(request).await.map(drop), Code::NotFound);
    let request = EventsRequest { host: "web1".into(), ..EventsRequest::default() };
    assert_code(alice.events(request).await.map(drop), Code::PermissionDenied);
    assert_code(alice.list_hosts(ListHostsRequest {}).await, Code::PermissionDenied);
    assert_code(alice.search(SearchRequest { operator: "bob".into(), ..search }).await, Code::PermissionDenied);

    let mut admin = collector.person("ada", "admin").await;
    let sessions = admin.list_sessions(ListSessionsRequest::default()).await.unwrap().into_inner().sessions;
    assert_eq!(sessions.len(), 2);
}

#[tokio::test]
async fn hosts_do_not_look_and_people_do_not_write() {
    let collector = Collector::start();
    let host = two_sessions(&collector).await;
    let mut nosy = query_client(collector.channel(&host.dir, "host").await);
    let message = assert_code(nosy.list_hosts(ListHostsRequest {}).await, Code::PermissionDenied);
    assert!(message.contains("only operators, reviewers and administrators"), "{message}");

    collector.reviewer().await;
    let channel = collector.channel(&collector.path("reviewer-rita"), "person").await;
    let mut forger = IngestClient::new(channel).max_encoding_message_size(GRPC_MESSAGE_MAX);
    let answer = forger.stream(tokio_stream::empty::<AgentMessage>()).await;
    assert_code(answer.map(drop), Code::PermissionDenied);
}

#[tokio::test]
async fn without_a_certificate_of_this_ca_nobody_gets_in() {
    let collector = Collector::start();
    let other = Collector::start();
    other.reviewer().await;
    let stranger = other.path("reviewer-rita");
    let read = |name: &str| std::fs::read(stranger.join(name)).unwrap();
    let ca = std::fs::read(collector.path("collector").join("ca.crt")).unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name("collector");
    let foreign = tls.clone().identity(tonic::transport::Identity::from_pem(read("person.crt"), read("person.key")));
    for tls in [tls, foreign] {
        let endpoint = Endpoint::from_shared(format!("https://{}", collector.address())).unwrap();
        // In TLS 1.3 the client learns of the refusal only with its first request.
        let answer = match endpoint.tls_config(tls).unwrap().connect().await {
            Ok(channel) => query_client(channel).list_hosts(ListHostsRequest {}).await.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        assert!(answer.is_err());
    }
}

#[tokio::test]
async fn only_tls_1_3_is_spoken() {
    let collector = Collector::start();
    collector.reviewer().await;
    let pem = |name: &str| std::fs::read(collector.path("reviewer-rita").join(name)).unwrap();
    for (version, accepted) in [(&rustls::version::TLS13, true), (&rustls::version::TLS12, false)] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem("ca.crt")).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(&pem("person.crt")).unwrap()],
                PrivateKeyDer::from_pem_slice(&pem("person.key")).unwrap(),
            )
            .unwrap();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        let tcp = tokio::net::TcpStream::connect(collector.address()).await.unwrap();
        let connected = connector.connect("collector".try_into().unwrap(), tcp).await;
        assert_eq!(connected.is_ok(), accepted, "{version:?}");
        if let Ok(mut stream) = connected {
            // The server's HTTP/2 settings: it has accepted our certificate too.
            assert!(within(stream.read_u8()).await.is_ok());
        }
    }
}
