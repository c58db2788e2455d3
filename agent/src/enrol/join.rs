//! Joining: from a token to an enrolment folder.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use breakglass_api::v1::{JoinRequest, Joined, enrol_client::EnrolClient};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use super::{CA, CERT, EnrolError, FILE_MAX, ID, KEY, Token, failed, replace, request_for};
use crate::regular;

/// How long each step over the network may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Port where the address names none.
const PORT: u16 = 443;

/// What joining needs.
pub struct Join<'a> {
    /// `https://name:port`.
    pub url: &'a str,
    /// Name that the collector's certificate must carry.
    pub server_name: &'a str,
    /// From `breakglass-collector enroll token`.
    pub token: Token,
    /// The folder to fill.
    pub folder: &'a Path,
    /// Replace an enrolment that is there.
    pub again: bool,
}

/// Joins; returns the host's id and name. Can be tried again with the same token until it has succeeded.
pub async fn join(join: &Join<'_>) -> Result<(String, String), EnrolError> {
    if join.folder.join(ID).exists() && !join.again {
        return Err(EnrolError::Enrolled(join.folder.to_owned()));
    }
    let key = prepare_key(join.folder, join.again)?;
    let request = request_for(&key, &join.folder.join(KEY))?;
    let ca = authority(join).await?;
    let joined = ask(join, &ca, request).await?;
    write(join.folder, &key, &joined, &ca)?;
    Ok((joined.host_id, joined.hostname))
}

/// A key that an attempt before this one left, or a new one, which is on disk before anybody hears of it: the collector takes a
/// token again only for the same key. With an enrolment there, its key stays in place until the new certificate is here.
fn prepare_key(folder: &Path, again: bool) -> Result<rcgen::KeyPair, EnrolError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make", folder))?;
    let path = pending(folder);
    let unusable =
        |path: &Path, error: rcgen::Error| EnrolError::Unusable { path: path.to_owned(), message: error.to_string() };
    if let Ok(text) = regular::read_to_string(&path, FILE_MAX) {
        return rcgen::KeyPair::from_pem(&text).map_err(|error| unusable(&path, error));
    }
    if folder.join(KEY).exists() && !again {
        return Err(EnrolError::Enrolled(folder.to_owned()));
    }
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| unusable(&path, error))?;
    replace(&path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

fn pending(folder: &Path) -> PathBuf {
    folder.join("host.key.joining")
}

/// The files, the id last but for the key that is not needed any more: with the id the folder is complete.
fn write(folder: &Path, key: &rcgen::KeyPair, joined: &Joined, ca: &str) -> Result<(), EnrolError> {
    replace(&folder.join(KEY), key.serialize_pem().as_bytes(), 0o600)?;
    replace(&folder.join(CA), ca.as_bytes(), 0o644)?;
    replace(&folder.join(CERT), joined.certificate.as_bytes(), 0o644)?;
    replace(&folder.join(ID), format!("{}\n", joined.host_id).as_bytes(), 0o644)?;
    let path = pending(folder);
    fs::remove_file(&path).map_err(failed("remove", &path))
}

async fn ask(join: &Join<'_>, ca: &str, request: Vec<u8>) -> Result<Joined, EnrolError> {
    let connect = |reason: String| EnrolError::Connect { url: join.url.to_owned(), reason };
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name(join.server_name);
    let endpoint = Endpoint::from_shared(join.url.to_owned()).and_then(|endpoint| endpoint.tls_config(tls));
    let endpoint = endpoint.map_err(|error| connect(error.to_string()))?.connect_timeout(LIMIT).timeout(LIMIT);
    let channel = endpoint.connect().await.map_err(|error| connect(error.to_string()))?;
    let request = JoinRequest { token_id: join.token.id.clone(), token_secret: join.token.secret.clone(), request };
    let joined = EnrolClient::new(channel).join(request).await;
    Ok(joined.map_err(|status| EnrolError::Refused(status.message().to_owned()))?.into_inner())
}

/// The CA certificate that the token speaks of, PEM, from the collector itself: what it sends is held against the hash.
async fn authority(join: &Join<'_>) -> Result<String, EnrolError> {
    let connect = |reason: String| EnrolError::Connect { url: join.url.to_owned(), reason };
    let address = address_of(join.url).ok_or_else(|| connect("this is not https://NAME:PORT".into()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Pinned { authority: join.token.authority, provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| connect(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(join.server_name.to_owned()).map_err(|error| connect(error.to_string()))?;
    let handshake = async {
        let stream = TcpStream::connect(&address).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    let stream = timeout(LIMIT, handshake)
        .await
        .map_err(|_| connect("no answer in time".into()))?
        .map_err(|error| connect(error.to_string()))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let ca = chain.iter().find(|certificate| is_authority(certificate, &join.token.authority));
    Ok(pem(ca.ok_or_else(|| connect("it sent no CA certificate".into()))?))
}

fn is_authority(certificate: &CertificateDer<'_>, hash: &[u8; 32]) -> bool {
    Sha256::digest(certificate).as_slice() == hash
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    /// Characters a line, RFC 7468.
    const LINE: usize = 64;
    let text = STANDARD.encode(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(LINE).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Host and port of an address.
fn address_of(url: &str) -> Option<String> {
    let authority = url.strip_prefix("https://")?.split('/').next()?;
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match authority.is_empty() {
        true => None,
        false if has_port => Some(authority.to_owned()),
        false => Some(format!("{authority}:{PORT}")),
    }
}

/// Believes a collector whose certificate is signed by the CA with this hash, and nobody else.
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates.iter().find(|certificate| is_authority(certificate, &self.authority));
        let ca = ca.ok_or_else(|| rustls::Error::General("this is not the collector that the token is from".into()))?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trap_where_an_earlier_attempt_left_its_key_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_owned();
        crate::regular::tests::trap(&pending(&folder));
        crate::regular::tests::untrapped(move || prepare_key(&folder, false)).unwrap();
        assert!(fs::read_to_string(pending(dir.path())).unwrap().contains("PRIVATE KEY"));
    }

    #[test]
    fn addresses() {
        for (url, address) in [
            ("https://c.example.org:7444", Some("c.example.org:7444")),
            ("https://c.example.org/", Some("c.example.org:443")),
            ("https://[::1]:7444", Some("[::1]:7444")),
            ("http://c:1", None),
            ("https://", None),
        ] {
            assert_eq!(address_of(url).as_deref(), address, "{url}");
        }
    }
}
