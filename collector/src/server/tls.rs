//! TLS 1.3 with certificates on both sides, from the private CA.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::pki::read_private_key;
use crate::settings::Layout;

/// How long a peer may take to prove who it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Peers that are proving who they are at the same time. Those who have are bounded by the certificates issued.
const HANDSHAKES_MAX: usize = 256;
/// Pause after the system refuses a connection (out of file descriptors, mostly), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection whose peer has proved that the CA knows it.
pub type Connection = TlsStream<TcpStream>;

/// The acceptor, from the certificate and keys of a collector's folder.
pub fn acceptor(layout: &Layout) -> anyhow::Result<TlsAcceptor> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for ca in certificates(&layout.ca_cert())? {
        roots.add(ca).with_context(|| format!("{} is not a CA certificate", layout.ca_cert().display()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .context("cannot verify clients")?;
    let key_path = layout.key();
    let key = PrivateKeyDer::from_pem_slice(read_private_key(&key_path)?.as_bytes())
        .with_context(|| format!("{} is not a private key", key_path.display()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .context("TLS 1.3 is not available")?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&layout.cert())?, key)
        .with_context(|| format!("{} and {} do not belong together", layout.cert().display(), key_path.display()))?;
    // gRPC is HTTP/2.
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let certs = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let certs = certs.with_context(|| format!("{} is not a PEM certificate", path.display()))?;
    anyhow::ensure!(!certs.is_empty(), "{} holds no certificate", path.display());
    Ok(certs)
}

/// Accepts connections for ever and passes on those whose handshake succeeds. Ends when nobody receives any more.
pub async fn accept(listener: TcpListener, acceptor: TlsAcceptor, ready: mpsc::Sender<std::io::Result<Connection>>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                tokio::spawn(handshake(acceptor.clone(), stream, from, ready.clone(), permit));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    from: std::net::SocketAddr,
    ready: mpsc::Sender<std::io::Result<Connection>>,
    permit: OwnedSemaphorePermit,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %from, "cannot set TCP_NODELAY");
    }
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(connection)) => {
            drop(permit);
            // Fails only when the server is shutting down.
            let _ = ready.send(Ok(connection)).await;
        }
        Ok(Err(error)) => tracing::warn!(%error, %from, "refused a connection: the TLS handshake failed"),
        Err(_) => tracing::warn!(%from, "refused a connection: the TLS handshake took too long"),
    }
}
