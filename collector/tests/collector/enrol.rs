//! Joining with a token, renewing with a certificate.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use breakglass_api::v1::enrol_client::EnrolClient;
use breakglass_api::v1::{JoinRequest, Joined, RenewRequest};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use sha2::Digest;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::*;

struct Token {
    id: String,
    secret: Vec<u8>,
    authority: Vec<u8>,
}

fn token(collector: &Collector, extra: &[&str]) -> Token {
    let said = run_ok(&[&["enroll", "token", "web1", "--dir", collector.home()], extra].concat());
    let text = said.split_whitespace().find_map(|word| word.strip_prefix("bge1.")).unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
    Token { id: hex::encode(&bytes[..8]), secret: bytes[8..40].to_vec(), authority: bytes[40..].to_vec() }
}

fn request(key: &KeyPair) -> Vec<u8> {
    // What a host claims of itself is not taken over.
    let params = CertificateParams::new(vec!["evil.example.org".to_owned()]).unwrap();
    params.serialize_request(key).unwrap().der().to_vec()
}

async fn join(client: &mut EnrolClient<Channel>, token: &Token, request: Vec<u8>) -> Result<Joined, tonic::Status> {
    let request = JoinRequest { token_id: token.id.clone(), token_secret: token.secret.clone(), request };
    client.join(request).await.map(tonic::Response::into_inner)
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn names_of(pem: &str) -> (String, i64) {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.iter();
    let hours = (certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp()) / 3600;
    (names.map(|name| name.to_string()).collect::<Vec<_>>().join(" "), hours)
}

#[tokio::test]
async fn a_host_joins_once_with_its_own_key_ships_and_renews() {
    let collector = Collector::start();
    let token = token(&collector, &[]);
    let ca = std::fs::read(collector.path("collector").join("ca.crt")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&ca).unwrap();
    assert_eq!(token.authority, sha2::Sha256::digest(&pem.contents).as_slice(), "the token pins the CA");

    let mut client = EnrolClient::new(collector.stranger().await);
    let (mine, other) = (key(), key());
    let joined = join(&mut client, &token, request(&mine)).await.unwrap();
    let (names, hours) = names_of(&joined.certificate);
    assert!(names.contains(&joined.host_id) && names.contains("web1") && !names.contains("evil"), "{names}");
    assert_eq!(hours, 30 * 24 + 1);
    let again = join(&mut client, &token, request(&mine)).await.unwrap();
    assert_eq!(again.host_id, joined.host_id, "its answer may have been lost");
    assert_code(join(&mut client, &token, request(&other)).await, Code::PermissionDenied);

    let host = write_identity(&collector, "joined", &joined, &mine);
    let mut agent = Agent::connect(&collector, &host, [1; 16], 0).await;
    agent.send(Spool::new(1).frame(None, vec![closed()])).await;
    agent.acked(1).await;

    let mut renewing = EnrolClient::new(collector.channel(&host.dir, "host").await);
    let renewed = renewing.renew(RenewRequest { request: request(&mine) }).await.unwrap().into_inner();
    assert_eq!((renewed.host_id.as_str(), renewed.hostname.as_str()), (host.id.as_str(), "web1"));
    let host = write_identity(&collector, "renewed", &renewed, &mine);
    Agent::connect(&collector, &host, [1; 16], 0).await;

    run_ok(&["enroll", "retire", &host.id, "--dir", collector.home()]);
    assert_code(renewing.renew(RenewRequest { request: request(&mine) }).await, Code::PermissionDenied);
}

#[tokio::test]
async fn what_is_no_request_for_a_p256_key_is_refused_before_the_token_is_used() {
    let collector = Collector::start();
    let token = token(&collector, &[]);
    let mut client = EnrolClient::new(collector.stranger().await);
    let mut tampered = request(&key());
    let last = tampered.len() - 1;
    tampered[last] ^= 1;
    let ed25519 = request(&KeyPair::generate_for(&PKCS_ED25519).unwrap());
    for bad in [vec![], vec![0x30, 0x80], tampered, ed25519, vec![0; 5000]] {
        assert_code(join(&mut client, &token, bad).await, Code::InvalidArgument);
    }
    join(&mut client, &token, request(&key())).await.unwrap();
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_soon_not_even_looked_at() {
    let collector = Collector::start();
    let good = token(&collector, &[]);
    let expired = token(&collector, &["--minutes", "1"]);
    let file = collector.path("collector").join("tokens").join(format!("{}.toml", expired.id));
    let text = std::fs::read_to_string(&file).unwrap();
    let line = text.lines().find(|line| line.starts_with("expires_s")).unwrap();
    std::fs::write(&file, text.replace(line, "expires_s = 1")).unwrap();

    let mut client = EnrolClient::new(collector.stranger().await);
    let wrong = Token { secret: vec![7; 32], id: good.id.clone(), authority: vec![] };
    let unknown = Token { secret: vec![7; 32], id: "../../ca".into(), authority: vec![] };
    let short = Token { secret: vec![], id: good.id.clone(), authority: vec![] };
    for bad in [&wrong, &unknown, &short, &expired, &wrong] {
        assert_code(join(&mut client, bad, request(&key())).await, Code::PermissionDenied);
    }
    assert_code(join(&mut client, &good, request(&key())).await, Code::ResourceExhausted);
}

#[tokio::test]
async fn strangers_are_few() {
    let collector = Collector::start();
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(collector.stranger().await);
    }
    let mut client = EnrolClient::new(held[0].clone());
    assert_code(client.renew(RenewRequest::default()).await, Code::Unauthenticated);
    let refused = match collector.try_stranger().await {
        // The client learns that it was closed with its first request.
        Ok(channel) => EnrolClient::new(channel).renew(RenewRequest::default()).await.unwrap_err().code(),
        Err(_) => Code::Unavailable,
    };
    assert_ne!(refused, Code::Unauthenticated, "a stranger too many got an answer");
    // Those with a certificate are none of them.
    collector.reviewer().await.list_hosts(breakglass_api::v1::ListHostsRequest {}).await.unwrap();
}

#[tokio::test]
async fn without_the_ca_s_key_nobody_joins_and_everything_else_goes_on() {
    let collector = Collector::start();
    let host = collector.enroll_host("db1");
    let token = token(&collector, &[]);
    std::fs::rename(collector.path("collector").join("ca.key"), collector.path("offline.key")).unwrap();
    let mut client = EnrolClient::new(collector.stranger().await);
    assert_code(join(&mut client, &token, request(&key())).await, Code::FailedPrecondition);
    Agent::connect(&collector, &host, [1; 16], 0).await;
}

fn write_identity(collector: &Collector, name: &str, joined: &Joined, key: &KeyPair) -> HostIdentity {
    let dir = collector.path(name);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("ca.crt"), &joined.authority).unwrap();
    std::fs::write(dir.join("host.crt"), &joined.certificate).unwrap();
    std::fs::write(dir.join("host.key"), key.serialize_pem()).unwrap();
    HostIdentity { id: joined.host_id.clone(), dir }
}
